"""Eigenvalues are those of K, and a residual tells true modes from false ones."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, expm

import koopman_interp as ki
from koopman_interp.errors import InputError

HOST = ki.HostFingerprint(model="m.M", adapter="torch", basis="b", dtype="float64", weights="0" * 32)


def turn(radius, angle):
    return radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


BLOCKS = (turn(0.95, 0.4), turn(0.7, 2.0), [[0.9]], [[-0.5]])
KNOWN = np.array([0.95 * np.exp(0.4j), 0.95 * np.exp(-0.4j), 0.9, 0.7 * np.exp(2.0j), 0.7 * np.exp(-2.0j), -0.5])
"""Slowest decay first, and the upper member of a pair before the lower."""


def known_operator(seed=0):
    basis = np.eye(6) + 0.3 * np.random.default_rng(seed).normal(size=(6, 6))
    return basis @ block_diag(*BLOCKS) @ np.linalg.inv(basis)


def plain_surrogate(K, times, kind="dense"):
    """Observables are the states themselves: no normalisation, and encoder and decoder the identity."""
    depths = len(times)
    config = ki.SurrogateConfig(
        sites=tuple(f"site.{depth}" for depth in range(depths)),
        times=times,
        widths=(len(K),) * depths,
        shapes=((len(K),),) * depths,
        dimension=len(K),
        observables=len(K),
        architecture="linear_plus_nonlinear",
        hidden=(4,),
        operator=kind,
        rank=None,
        classes=(),
        host=HOST,
    )
    koopman = ki.KoopmanAutoencoder(config).double().eval().requires_grad_(False)
    for part in (koopman.encoder, koopman.decoder):
        part.linear.weight.copy_(torch.eye(len(K)))
        part.nonlinear[-1].weight.zero_()
    parameter = koopman.operator.K if kind == "dense" else koopman.operator.A
    parameter.copy_(torch.from_numpy(K))
    return koopman


def trajectories_of(states, times):
    return ki.Trajectories(
        states=tuple(torch.as_tensor(state, dtype=torch.float64) for state in states),
        sites=tuple(f"site.{depth}" for depth in range(len(states))),
        times=times,
        host=HOST,
        sequence=torch.arange(len(states[0])),
        position=torch.zeros(len(states[0]), dtype=torch.long),
    )


def whole_power(K, time):
    return np.linalg.matrix_power(K, int(time))


def linear_data(K, times, rows=50, power=whole_power):
    x = np.random.default_rng(1).normal(size=(rows, len(K)))
    return trajectories_of([x @ power(K, time).T for time in times], times)


def naive_residuals(found, koopman, trajectories):
    """Eigenfunctions evaluated row by row, and compared."""
    residuals = []
    for value, reader in zip(found.eigenvalues, found.readers.T, strict=True):
        missed = size = 0.0
        for depth in range(trajectories.depths - 1):
            gap = koopman.config.times[depth + 1] - koopman.config.times[depth]
            now, then = (
                koopman.encode(trajectories.states[d], d).double().numpy() @ reader for d in (depth, depth + 1)
            )
            missed += float((np.abs(then - value**gap * now) ** 2).sum())
            size += float((np.abs(now) ** 2).sum())
        residuals.append(np.sqrt(missed / size))
    return residuals


def test_the_eigenvalues_are_those_of_the_known_operator_slowest_first():
    times = (0.0, 1.0, 2.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    np.testing.assert_allclose(found.eigenvalues, KNOWN, atol=1e-10)
    np.testing.assert_allclose(found.decay, [0.95, 0.95, 0.9, 0.7, 0.7, 0.5], atol=1e-10)
    np.testing.assert_allclose(found.rotation, [0.4, -0.4, 0, 2, -2, np.pi], atol=1e-10)
    assert found.samples == 50


def test_vectors_are_eigenvectors_from_either_side():
    times = (0.0, 1.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    np.testing.assert_allclose(K @ found.modes, found.modes * found.eigenvalues, atol=1e-10)
    np.testing.assert_allclose(K.T @ found.readers, found.readers * found.eigenvalues, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(found.modes, axis=0), 1, atol=1e-12)
    # Each reads its own mode only.
    paired = found.readers.T @ found.modes
    np.testing.assert_allclose(paired - np.diag(np.diag(paired)), 0, atol=1e-10)
    assert np.abs(np.diag(paired)).min() > 1e-3


def test_the_same_laws_hold_for_a_fitted_surrogate(surrogate, trajectories):
    found = ki.spectrum(surrogate, trajectories)
    K = surrogate.K.double().numpy()
    np.testing.assert_allclose(K.T @ found.readers, found.readers * found.eigenvalues, atol=1e-9)
    expected = np.sort_complex(np.linalg.eigvals(K))
    np.testing.assert_allclose(np.sort_complex(found.eigenvalues), expected, atol=1e-9)
    assert (np.diff(found.decay) <= 1e-9).all()
    np.testing.assert_allclose(found.residuals, naive_residuals(found, surrogate, trajectories), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 1.0, 2.0, 3.0), (0.0, 2.0, 3.0), (2.0, 5.0)])
def test_nothing_is_left_over_on_linear_data(times):
    K = known_operator()
    data = linear_data(K, times)
    found = ki.spectrum(plain_surrogate(K, times), data)
    assert found.residuals.max() < 1e-6
    assert found.trusted.all()


def test_parts_of_a_step_take_the_eigenvalue_to_their_power():
    generator = np.array([[-0.1, -0.6, 0], [0.6, -0.1, 0.2], [0, 0, -0.4]])
    times = (0.0, 0.5, 2.0)
    data = linear_data(generator, times, power=lambda A, time: expm(A * time))
    found = ki.spectrum(plain_surrogate(generator, times, "generator"), data)
    np.testing.assert_allclose(np.sort(found.decay)[::-1], np.exp([-0.1, -0.1, -0.4]), atol=1e-10)
    assert found.residuals.max() < 1e-6


def test_much_is_left_over_on_noise_and_as_much_as_counted_row_by_row():
    times = (0.0, 1.0, 2.0)
    draw = np.random.default_rng(2)
    noise = trajectories_of(draw.normal(size=(3, 80, 6)), times)
    koopman = plain_surrogate(known_operator(), times)
    found = ki.spectrum(koopman, noise)
    assert found.residuals.min() > 0.9
    assert not found.trusted.any()
    np.testing.assert_allclose(found.residuals, naive_residuals(found, koopman, noise), rtol=1e-9)


@pytest.mark.parametrize("times", [(0.0, 1.0, 2.0), (0.0, 3.0, 4.0)])
def test_a_residual_in_between_is_as_counted_row_by_row(times):
    K = known_operator()
    clean = linear_data(K, times)
    draw = torch.Generator().manual_seed(3)
    spoilt = replace(
        clean,
        states=tuple(s + 0.1 * torch.randn(s.shape, generator=draw, dtype=s.dtype) for s in clean.states),
    )
    koopman = plain_surrogate(K, times)
    found = ki.spectrum(koopman, spoilt)
    assert 0.01 < found.residuals.min() < found.residuals.max()
    np.testing.assert_allclose(found.residuals, naive_residuals(found, koopman, spoilt), rtol=1e-8)


def test_many_rows_are_streamed(monkeypatch):
    times = (0.0, 1.0, 2.0)
    koopman = plain_surrogate(known_operator(), times)
    noise = trajectories_of(np.random.default_rng(2).normal(size=(3, 80, 6)), times)
    whole = ki.spectrum(koopman, noise).residuals
    monkeypatch.setattr("koopman_interp.analysis.spectrum._CHUNK", 7)
    np.testing.assert_allclose(ki.spectrum(koopman, noise).residuals, whole, rtol=1e-12)


def test_the_tolerance_marks_modes():
    times = (0.0, 1.0)
    noise = trajectories_of(np.random.default_rng(2).normal(size=(2, 80, 6)), times)
    koopman = plain_surrogate(known_operator(), times)
    strict, lax = (ki.spectrum(koopman, noise, tolerance=tolerance) for tolerance in (0.1, 10.0))
    assert "0 with residual ≤ 0.1" in repr(strict)
    assert "6 with residual ≤ 10" in repr(lax)
    assert str(strict).count("spurious") == 4
    assert "spurious" not in str(lax)
    between = float(np.median(strict.residuals))
    some = ki.spectrum(koopman, noise, tolerance=between).trusted
    assert some.tolist() == (strict.residuals <= between).tolist()
    assert 0 < some.sum() < 6


def test_a_normal_operator_is_well_conditioned_and_a_crooked_one_is_not():
    times = (0.0, 1.0)
    normal = block_diag(*BLOCKS)
    assert ki.spectrum(plain_surrogate(normal, times), linear_data(normal, times)).condition == pytest.approx(1)
    crooked = np.array([[0.9, 5.0], [0.0, 0.9 - 1e-6]])
    found = ki.spectrum(plain_surrogate(crooked, times), linear_data(crooked, times))
    assert found.condition > 1e6


def test_an_operator_that_only_stretches_has_a_spectrum():
    times = (0.0, 1.0)
    K = np.array([[0.9, 0.3], [0.0, 0.5]])
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    assert np.iscomplexobj(found.modes)
    assert np.iscomplexobj(found.readers)
    np.testing.assert_allclose(found.eigenvalues, [0.9, 0.5], atol=1e-12)
    assert found.residuals.max() < 1e-6


def test_a_conjugate_pair_is_one_line():
    times = (0.0, 1.0)
    K = known_operator()
    lines = str(ki.spectrum(plain_surrogate(K, times), linear_data(K, times))).split("\n")
    assert len(lines) == 2 + 4
    assert [line.split()[2] for line in lines[2:]] == ["±22.9°", "0.0°", "±114.6°", "180.0°"]
    assert [line.split()[0] for line in lines[2:]] == ["0", "2", "3", "5"]


def test_the_head_is_as_long_as_asked():
    times = (0.0, 1.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    assert len(found.head(2).split("\n")) == 2 + 2


def test_plain_values_go_through_json():
    times = (0.0, 1.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    np.testing.assert_array_equal([complex(*pair) for pair in values["eigenvalues"]], found.eigenvalues)
    assert values["residuals"] == found.residuals.tolist()
    assert (values["samples"], values["condition"]) == (50, found.condition)


def test_other_sites_are_refused(surrogate, trajectories):
    with pytest.raises(InputError, match=r"the sites blocks\.0, blocks\.1"):
        ki.spectrum(surrogate, trajectories.between("blocks.0", None))


def test_nothing_is_changed(surrogate, trajectories):
    before = copy.deepcopy(surrogate.state_dict())
    ki.spectrum(surrogate, trajectories)
    assert all(torch.equal(tensor, before[name]) for name, tensor in surrogate.state_dict().items())
