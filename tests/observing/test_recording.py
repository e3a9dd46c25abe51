"""What is recorded stays together: rows of one pass are one pass's at all depths."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import koopman_interp as ki


@pytest.fixture
def hasty():
    """Threads that are interrupted as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_passes_of_threads_are_recorded_one_after_the_other(model, hasty):
    def call(x):
        with torch.no_grad():
            model(x)

    tap = ki.attach(model)
    with tap, ThreadPoolExecutor(4) as pool:
        list(pool.map(call, torch.randn(400, 1, 4)))
    first, *later = tap.trajectories.states
    assert len(first) == 400
    with torch.no_grad():
        for block, states in zip(model.blocks, later, strict=True):
            first = block(first)
            torch.testing.assert_close(states, first)
    assert tap.trajectories.sequence.tolist() == list(range(400))
