"""Products in bfloat16: weights stay float32, and the fit comes near that of float32."""

from dataclasses import replace

import torch

import koopman_interp as ki


def test_a_fit_in_bfloat16_keeps_float32_weights_and_comes_near(trajectories, quick_config):
    config = replace(quick_config, steps=120)
    full = ki.fit(trajectories, config, progress=False)
    half = ki.fit(trajectories, replace(config, precision="bfloat16"), progress=False)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert half.digest() != full.digest()
    assert half.record.kept["loss"] < 1.1 * full.record.kept["loss"] + 1e-3
