"""Laws of times that follow from the names of sites."""

import numpy as np
import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_interp.observing.site_times import site_times
from koopman_interp.testing import LinearHost


@pytest.mark.parametrize(
    ("sites", "times"),
    [
        (["blocks.0", "blocks.2", "blocks.5"], (0, 2, 5)),
        (["blocks.0:input", "blocks.0", "blocks.1"], (0, 1, 2)),
        (["blocks.3:input", "blocks.5"], (0, 3)),
        (["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.4.hook_resid_post"], (0, 1, 5)),
        (["blocks.0.hook_resid_mid", "blocks.3.hook_resid_mid"], (0, 3)),
        (["model.layers.1", "model.layers.4"], (0, 3)),
        (["towers.1.layers.0", "towers.1.layers.2"], (0, 2)),
        # names that do not tell
        (["blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post"], (0, 1, 2)),
        (["layer1.0", "layer1.2", "layer2.0", "layer2.1"], (0, 1, 2, 3)),
        (["stages.0.blocks.1", "stages.1.blocks.0"], (0, 1)),
        (["embed", "blocks.3", "blocks.7"], (0, 1, 2)),
        (["fc1", "fc4"], (0, 1)),
    ],
)
def test_times_follow_block_numbers_where_names_tell(sites, times):
    assert site_times(sites) == tuple(map(float, times))


def test_layers_that_are_no_blocks_are_not_counted():
    """In a plain stack every second module is an activation: its outputs are one step apart, not two."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(4, 4), nn.ReLU())]
    assert ki.attach(nn.Sequential(*layers), ["1", "3", "5"]).times == (0, 1, 2)


def test_a_tap_says_times_that_are_not_those_in_order():
    model = LinearHost(0.5 * torch.eye(4), blocks=6).eval()
    assert "at times 0, 2, 5" in repr(ki.attach(model, ["blocks.0", "blocks.2", "blocks.5"]))
    assert "times" not in repr(ki.attach(model))
    assert ki.attach(model, ["blocks.0", "blocks.5"], times=[0, 1]).times == (0, 1)


def test_skipped_blocks_leave_the_eigenvalues_those_of_one_block():
    known = [0.9, 0.7, 0.5, 0.2]
    model = LinearHost(torch.diag(torch.tensor(known)), blocks=6).eval()
    tap = ki.attach(model, ["blocks.0", "blocks.2", "blocks.5"])
    draw = torch.Generator().manual_seed(0)
    fitted, held_out = (tap.observe(torch.randn(rows, 4, generator=draw), progress=False) for rows in (1500, 500))
    koopman = ki.fit(fitted, ki.FitConfig(observables=4), method="least_squares", progress=False)
    spectrum = ki.spectrum(koopman, held_out)
    np.testing.assert_allclose(np.abs(spectrum.eigenvalues), known, atol=2e-3)
    assert spectrum.trusted.all()
