"""On hosts whose eigenvalues are known no mode is trusted at a wrong one, whatever the fit."""

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.testing import LinearHost

SIZES = [0.9, 0.7, 0.5, 0.2]
LEAST_SQUARES, GRADIENT = "least_squares", "gradient"


def crooked():
    V = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))
    return V @ torch.diag(torch.tensor(SIZES)) @ torch.linalg.inv(V)


HOSTS = {
    "normal": (torch.diag(torch.tensor(SIZES)), SIZES),
    "crooked": (crooked(), SIZES),
    "coupled": (
        torch.diag(torch.tensor([0.9, 0.8, 0.7, 0.6])) + torch.diag(torch.full((3,), 5.0), 1),
        [0.9, 0.8, 0.7, 0.6],
    ),
    "turning": (
        torch.tensor([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]).float(),
        [np.exp(0.4j), np.exp(-0.4j)],
    ),
}


def fitted_spectrum(A, method, **settings):
    tap = ki.attach(LinearHost(A, blocks=6).eval())
    draw = torch.Generator().manual_seed(0)
    fitted, held_out = (tap.observe(torch.randn(rows, len(A), generator=draw), progress=False) for rows in (1500, 500))
    config = ki.FitConfig(observables=len(A), **settings)
    return ki.spectrum(ki.fit(fitted, config, method=method, progress=False), held_out)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("method", [LEAST_SQUARES, GRADIENT])
def test_no_mode_of_a_linear_host_is_trusted_at_a_wrong_eigenvalue(host, method):
    A, known = HOSTS[host]
    found = fitted_spectrum(A, method)
    assert found.in_host_units
    off = np.abs(found.eigenvalues[:, None] - np.array(known)).min(1)
    assert off[found.trusted].max(initial=0) < 0.05
    if method == LEAST_SQUARES:
        assert found.trusted.all()
        assert off.max() < 5e-3


def test_scales_of_each_depth_leave_no_host_units_to_be_wrong_in():
    scale = ki.NormalizationConfig(scale="per depth")
    found = fitted_spectrum(HOSTS["normal"][0], LEAST_SQUARES, normalization=scale)
    assert not found.in_host_units
    assert "no host's units" in str(found)
    assert np.abs(found.eigenvalues[:, None] - np.array(SIZES)).min(1).max() > 0.05
