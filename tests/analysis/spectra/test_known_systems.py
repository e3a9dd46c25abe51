"""Spectra of systems that are known: a rotation, the quadratic example, and what PyDMD finds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

import koopman_interp as ki
from koopman_interp.surrogates.coordinates import Coordinates
from koopman_interp.surrogates.normalization import Normalization
from koopman_interp.testing import LinearHost
from tests.analysis.linear import known_operator, noisy_data, pairs_of, plain_surrogate, trajectories_of

TIMES = (0.0, 1.0, 2.0)


def test_a_network_that_only_rotates_neither_decays_nor_misses():
    angles = (0.3, 1.1)
    K = block_diag(*[[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in angles])
    host = LinearHost(torch.from_numpy(K).float(), blocks=4).eval()
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    tap = ki.attach(host)
    # Aligned depths would have the rotation in the normalisation, and K would be the identity.
    config = ki.FitConfig(observables=4, normalization=ki.NormalizationConfig())
    koopman = ki.fit(tap.observe(x, progress=False), config, method="least_squares")
    found = ki.spectrum(koopman, tap.observe(x.flip(1), progress=False))
    np.testing.assert_allclose(found.decay, 1, atol=2e-3)
    np.testing.assert_allclose(np.sort(np.abs(found.rotation)), [0.3, 0.3, 1.1, 1.1], atol=2e-3)
    assert found.residuals.max() < 0.01
    assert found.condition == pytest.approx(1, abs=0.05)


class Lift(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2], 1)


def test_the_quadratic_example_has_a_closed_subspace_with_its_products():
    """`x' = a x, y' = b y + c x²` is linear in (x, y, x²); where λ is an eigenvalue of φ, λ² is one of φ²."""
    a, b, c = 0.9, 0.5, 0.7
    x = np.random.default_rng(0).uniform(-1, 1, size=(300, 2))
    states = [x]
    for _ in TIMES[1:]:
        x = np.stack([a * x[:, 0], b * x[:, 1] + c * x[:, 0] ** 2], 1)
        states.append(x)
    data = trajectories_of(states, TIMES)
    koopman = plain_surrogate(np.eye(3), TIMES)
    koopman.normalization = Normalization([2] * 3, 2).double()
    koopman.encoder = Lift()
    grams = ki.gather_grams(koopman, data).pooled()
    koopman.operator.K.copy_(torch.linalg.solve(grams.G[0, 0, 0], grams.A[0, 0, 0]).T)
    found = ki.spectrum(koopman, data)
    np.testing.assert_allclose(found.eigenvalues, [a, a * a, b], atol=1e-6)
    assert found.residuals.max() < 1e-6
    phi = ki.eigenfunctions(koopman, found, data)
    square = phi[:, 0] ** 2
    np.testing.assert_allclose(phi[:, 1] / phi[0, 1], square / square[0], rtol=1e-6)
    exact = data.states[0][:, 1] - c / (a * a - b) * data.states[0][:, 0] ** 2
    np.testing.assert_allclose(phi[:, 2] / phi[0, 2], exact / exact[0], rtol=1e-6)


def test_of_polynomials_the_host_grows_by_their_degree():
    """States that shrink by g a step and are scaled by it: what is quadratic in them shrinks by g²."""
    a, b, g = 0.9, 0.5, 0.8
    x = np.random.default_rng(0).uniform(-1, 1, size=(600, 2))
    states = [np.stack([(a**t) * x[:, 0], (b**t) * x[:, 1]], 1) for t in TIMES]
    data = trajectories_of(states, TIMES)
    koopman = plain_surrogate(np.eye(3), TIMES)
    koopman.normalization = Normalization([2] * 3, 2).double()
    for depth in range(3):
        _, forward, inverse = koopman.normalization.maps(depth)
        forward.copy_(torch.eye(2) / g**depth)
        inverse.copy_(torch.eye(2) * g**depth)
    koopman.config = replace(koopman.config, coordinates=Coordinates("shared", "geometric", g))
    koopman.encoder = Lift()
    koopman.operator.K.copy_(torch.diag(torch.tensor([a / g, b / g, (a / g) ** 2])))
    found = ki.spectrum(koopman, data)
    np.testing.assert_allclose(np.sort(found.operator_eigenvalues.real), np.sort([a / g, b / g, (a / g) ** 2]))
    np.testing.assert_allclose(np.sort(found.eigenvalues.real), np.sort([a, b, a * a]), rtol=1e-9)
    assert found.in_host_units
    assert found.trusted.all()
    assert "the host's own units" in str(found)
    np.testing.assert_allclose(found.half_life, np.log(2) / -np.log(found.decay))
    np.testing.assert_allclose(found.of_operator().eigenvalues, found.operator_eigenvalues)
    spread = np.abs(found.intervals.decay - found.decay[:, None]).max()
    assert spread < 1e-6


def test_pydmd_finds_the_same_eigenvalues_and_residuals():
    pydmd = pytest.importorskip("pydmd")
    K = known_operator()
    data = noisy_data(K, TIMES, rows=200, noise=0.1)
    koopman = plain_surrogate(K, TIMES)
    before, after = (np.concatenate(parts) for parts in zip(*[p[1:] for p in pairs_of(koopman, data)], strict=True))
    oracle = pydmd.DMD(svd_rank=6).fit(before.T, after.T)
    fitted = oracle.modes @ np.diag(oracle.eigs) @ np.linalg.pinv(oracle.modes)
    koopman.operator.K.copy_(torch.from_numpy(fitted.real.copy()))
    found = ki.spectrum(koopman, data)
    np.testing.assert_allclose(np.sort_complex(found.eigenvalues), np.sort_complex(oracle.eigs), atol=1e-8)
    for value, reader in zip(oracle.eigs, np.linalg.pinv(oracle.modes), strict=True):
        phi, phi_next = before @ reader, after @ reader
        ours = np.abs(found.eigenvalues - value).argmin()
        expected = np.linalg.norm(phi_next - value * phi) / np.linalg.norm(phi)
        assert found.about_zero[ours] == pytest.approx(expected, rel=1e-6)
