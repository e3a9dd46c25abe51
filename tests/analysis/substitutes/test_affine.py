"""Affine maps are what an independent float64 least squares gives, and compose."""

import numpy as np
import torch

from koopman_interp.analysis.substitutes.affine import AffineMap


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9000, 5, generator=generator) + 3
    y = x @ torch.randn(5, 4, generator=generator) + torch.randn(9000, 4, generator=generator) - 7
    return x, y, y.tanh() + y[:, [1, 0, 3, 2]]


def lstsq(x, y):
    columns = np.c_[x.double().numpy(), np.ones(len(x))]
    return np.linalg.lstsq(columns, y.double().numpy(), rcond=None)[0]


def test_least_squares_over_chunks_of_rows():
    x, y, _ = data()
    found, expected = AffineMap.fit(x, y), lstsq(x, y)
    np.testing.assert_allclose(found.weight, expected[:-1], rtol=1e-4)
    np.testing.assert_allclose(found(x.double()), np.c_[x.double().numpy(), np.ones(len(x))] @ expected, atol=1e-4)
    assert found.parameters == 5 * 4 + 4
    assert found(x).dtype == torch.float32


def test_one_map_after_another():
    x, y, w = data()
    first, second = AffineMap.fit(x, y), AffineMap.fit(y, w)
    torch.testing.assert_close(first.then(second)(x.double()), second(first(x.double())))
