"""The data with known answers are what they are said to be."""

import torch

from koopman_interp.testing import yin_yang


def test_yin_yang_is_balanced_and_inside_its_disc():
    x, y = yin_yang(3000, seed=3)
    assert torch.bincount(y).tolist() == [1000, 1000, 1000]
    assert torch.hypot(x[:, 0] - 0.5, x[:, 1] - 0.5).max() <= 0.5
    torch.testing.assert_close(x[:, 2:], 1 - x[:, :2])
    dots = (torch.hypot(x[:, 0] - 0.75, x[:, 1] - 0.5) <= 0.1) | (torch.hypot(x[:, 0] - 0.25, x[:, 1] - 0.5) <= 0.1)
    assert torch.equal(dots, y == 2)
