"""Edits by modes change the eigenvalues they name and no others, and take only modes that their residual certifies."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError


@pytest.fixture(scope="module")
def spectrum(surrogate, trajectories):
    return ki.spectrum(surrogate, trajectories)


def pairs_and_singles(spectrum):
    values = spectrum.operator_eigenvalues
    pairs = [index for index, value in enumerate(values) if value.imag > 1e-6]
    singles = [index for index, value in enumerate(values) if abs(value.imag) <= 1e-6]
    assert pairs, "this K has no complex pair; choose another seed"
    assert len(singles) > 1
    return pairs, singles


def changed(spectrum, modes, factor):
    """The spectrum by hand: chosen eigenvalues, and their conjugates by the conjugate factor."""
    values = spectrum.operator_eigenvalues.copy()
    for mode in modes:
        value = values[mode]
        if abs(value.imag) > 1e-6:
            partner = np.abs(spectrum.operator_eigenvalues - value.conj()).argmin()
            values[partner] = values[partner] * np.conj(factor)
        values[mode] = value * factor
    return values


def same_multiset(found, expected, tolerance):
    found = list(found)
    for value in expected:
        nearest = int(np.abs(np.array(found) - value).argmin())
        assert abs(found[nearest] - value) < tolerance
        found.pop(nearest)


@pytest.mark.parametrize("basis", ["eigenpairs", "schur"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["pair", "single", "both"])
def test_the_chosen_eigenvalues_are_scaled_and_no_other(surrogate, spectrum, kind, scale, basis):
    pairs, singles = pairs_and_singles(spectrum)
    modes = {"pair": pairs[:1], "single": singles[:1], "both": [pairs[0], singles[1]]}[kind]
    edit = ki.edit_modes(surrogate, spectrum, modes=modes, scale=scale, basis=basis, uncertified=True)
    K = surrogate.K.double()
    assert edit.rank == sum(1 if mode in singles else 2 for mode in modes)
    values = np.linalg.eigvals(edit.apply(K).numpy())
    same_multiset(values, changed(spectrum, modes, scale), 1e-6)
    assert float((edit.undo(edit.apply(K)) - K).norm() / K.norm()) < 1e-10
    if scale == 1:
        torch.testing.assert_close(edit.apply(K), K, rtol=0, atol=1e-10)


def test_by_eigenpairs_the_edit_commutes_with_k_and_leaves_other_modes(surrogate, spectrum):
    pairs, singles = pairs_and_singles(spectrum)
    edit = ki.edit_modes(surrogate, spectrum, modes=[pairs[0]], scale=0.3, uncertified=True)
    K = surrogate.K.double().numpy()
    P = np.eye(len(K)) - (edit.directions @ edit.readers.T).numpy()
    np.testing.assert_allclose(P @ K, K @ P, atol=1e-8)
    for mode in (*singles, *pairs[1:]):
        np.testing.assert_allclose(P @ spectrum.modes[:, mode], spectrum.modes[:, mode], atol=1e-7)


def test_in_a_schur_basis_removal_is_an_orthogonal_projection(surrogate, spectrum):
    pairs, _ = pairs_and_singles(spectrum)
    edit = ki.edit_modes(surrogate, spectrum, modes=[pairs[0]], basis="schur", uncertified=True)
    P = np.eye(14) - (edit.directions @ edit.readers.T).numpy()
    np.testing.assert_allclose(P, P.T, atol=1e-10)
    np.testing.assert_allclose(P @ P, P, atol=1e-10)
    np.testing.assert_allclose(P @ spectrum.modes[:, pairs[0]], 0, atol=1e-7)


@pytest.mark.parametrize("basis", ["eigenpairs", "schur"])
def test_a_rotation_turns_the_pair_by_its_angle(surrogate, spectrum, basis):
    pairs, singles = pairs_and_singles(spectrum)
    edit = ki.edit_modes(surrogate, spectrum, modes=pairs[:1], scale=1.0, rotate=0.2, basis=basis, uncertified=True)
    values = np.linalg.eigvals(edit.apply(surrogate.K.double()).numpy())
    expected = changed(spectrum, pairs[:1], np.exp(0.2j))
    if basis == "eigenpairs":
        same_multiset(values, expected, 1e-6)
    else:  # an orthogonal turn in a block that is no plain rotation: the determinant stays, others do not move
        untouched = np.delete(spectrum.operator_eigenvalues, [pairs[0], pairs[0] + 1])
        assert np.prod(values) == pytest.approx(np.prod(spectrum.operator_eigenvalues), rel=1e-5)
        for value in untouched:
            assert np.abs(values - value).min() < 1e-6
        assert np.abs(values - spectrum.operator_eigenvalues[pairs[0]]).min() > 1e-3
    with pytest.raises(InputError, match="no plane to turn in"):
        ki.edit_modes(surrogate, spectrum, modes=singles[:1], rotate=0.2, scale=1.0, uncertified=True)


@pytest.mark.parametrize("turn", [1e-3, -1e-3])
@pytest.mark.parametrize("basis", ["eigenpairs", "schur"])
def test_a_pair_turns_more_by_a_positive_angle_and_less_by_a_negative_one(surrogate, spectrum, basis, turn):
    pairs, _ = pairs_and_singles(spectrum)
    for pair in pairs:
        own = spectrum.operator_eigenvalues[pair]
        edit = ki.edit_modes(surrogate, spectrum, modes=[pair], scale=1.0, rotate=turn, basis=basis, uncertified=True)
        values = np.linalg.eigvals(edit.apply(surrogate.K).numpy())
        values = [
            value for value in values if np.abs(spectrum.operator_eigenvalues - value).min() > 1e-6 and value.imag > 0
        ]
        assert len(values) == 1
        assert np.sign(np.angle(values[0]) - np.angle(own)) == np.sign(turn)


@pytest.mark.parametrize("rotate", [0.0, 0.3])
@pytest.mark.parametrize("basis", ["eigenpairs", "schur"])
def test_a_partner_is_the_same_pair(surrogate, spectrum, basis, rotate):
    pairs, _ = pairs_and_singles(spectrum)
    partner = int(np.abs(spectrum.operator_eigenvalues - spectrum.operator_eigenvalues[pairs[0]].conj()).argmin())
    ours, theirs = (
        ki.edit_modes(surrogate, spectrum, modes=modes, scale=0.4, rotate=rotate, basis=basis, uncertified=True)
        for modes in ([pairs[0]], [partner, pairs[0]])
    )
    torch.testing.assert_close(ours.apply(surrogate.K), theirs.apply(surrogate.K), rtol=0, atol=1e-9)


@pytest.mark.parametrize("phase", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["pair", "single"])
def test_steering_moves_one_eigenfunction_and_no_other(surrogate, spectrum, trajectories, kind, phase):
    pairs, singles = pairs_and_singles(spectrum)
    mode = (pairs if kind == "pair" else singles)[0]
    edit = ki.steer(surrogate, spectrum, mode=mode, amount=1.5, phase=phase, site=2, uncertified=True)
    z = surrogate.encode(trajectories.states[2], 2).double()
    shift = (edit(z) - z).numpy()
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-12)
    moved = shift[0] @ spectrum.readers / np.einsum("mk,mk->k", spectrum.readers, spectrum.modes)
    partner = int(np.abs(spectrum.operator_eigenvalues - spectrum.operator_eigenvalues[mode].conj()).argmin())
    np.testing.assert_allclose(np.delete(moved, [mode, partner]), 0, atol=1e-6)
    reader = spectrum.readers[:, mode] / (spectrum.readers[:, mode] @ spectrum.modes[:, mode])
    covariance = surrogate.moments.covariance[2].numpy()
    spread = np.sqrt((reader.conj() @ covariance @ reader).real)
    expected = 1.5 * spread * (np.exp(1j * phase) if kind == "pair" else 1)
    assert moved[mode] == pytest.approx(expected, rel=1e-6)
    assert ki.steer(surrogate, spectrum, mode=mode, amount=1.0, uncertified=True).depth == len(surrogate.sites) - 2
    assert ki.edit_modes(surrogate, spectrum, modes=[mode], uncertified=True).depth == len(surrogate.sites) - 2
    # K itself stays.
    torch.testing.assert_close(edit.apply(surrogate.K), surrogate.K.double(), rtol=0, atol=0)


def test_only_certified_modes_unless_told_otherwise(surrogate, spectrum):
    spurious = int(np.flatnonzero(~spectrum.trusted)[0])
    for make in (
        lambda **more: ki.edit_modes(surrogate, spectrum, modes=[spurious], **more),
        lambda **more: ki.steer(surrogate, spectrum, mode=spurious, amount=1.0, **more),
    ):
        with pytest.raises(InputError, match="not known to be the model's"):
            make()
        assert make(uncertified=True).certificate is not None
    lenient = replace(spectrum, tolerance=np.inf, solved_anew=None)
    assert ki.edit_modes(surrogate, lenient, modes=[spurious]).rank in (1, 2)


def test_what_is_no_mode_of_this_k_is_refused(surrogate, spectrum, trajectories):
    with pytest.raises(InputError, match="between 0 and 13"):
        ki.edit_modes(surrogate, spectrum, modes=[14])
    with pytest.raises(InputError, match="between 0 and 13"):
        ki.edit_modes(surrogate, spectrum, modes=[-1])
    with pytest.raises(InputError, match="one mode or more"):
        ki.edit_modes(surrogate, spectrum, modes=[])
    with pytest.raises(InputError, match="not those of the surrogate's K"):
        ki.edit_modes(surrogate, replace(spectrum, operator_eigenvalues=spectrum.operator_eigenvalues * 2), modes=[0])
    smaller = ki.fit(trajectories, ki.FitConfig(observables=12), method="least_squares")
    other = ki.spectrum(smaller, trajectories)
    with pytest.raises(InputError, match="12 modes, the surrogate 14"):
        ki.steer(surrogate, other, mode=0, amount=1.0)
