"""What the tests of motions share."""

from __future__ import annotations

import pytest
import torch

import koopman_interp as ki
from koopman_interp.testing import ResidualMLP, yin_yang
from koopman_interp.trajectories import Trajectories


@pytest.fixture(scope="module")
def seen() -> Trajectories:
    """Trajectories of one width, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualMLP(4, 10, 4, 3).double().eval()
    x, labels = yin_yang(300)
    return ki.attach(model).observe(x.double(), labels, progress=False)
