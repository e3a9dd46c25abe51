"""Eigenpairs, whole and leading, and the ordered Schur form, against the definition."""

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

import koopman_interp as ki
from koopman_interp.analysis.spectra.eigen import eigen, real_basis, uncut
from koopman_interp.errors import InputError
from koopman_interp.surrogates.operators import operator
from tests.analysis.linear import plain_surrogate, turn

TIMES = (0.0, 1.0)


def decaying(size, seed=0, coupling=0.3):
    """Conjugate pairs and real values with sizes from 1 down, in a basis that is not orthogonal."""
    draw = np.random.default_rng(seed)
    radii = np.linspace(1, 0.05, size // 3)
    blocks = [turn(r, draw.uniform(0.1, 3)) if i % 2 else [[r]] for i, r in enumerate(radii)]
    diagonal = block_diag(*blocks)
    basis = np.eye(len(diagonal)) + coupling / np.sqrt(size) * draw.normal(size=diagonal.shape)
    return basis @ diagonal @ np.linalg.inv(basis)


@pytest.mark.parametrize("modes", [1, 2, 9, 24])
def test_the_leading_part_agrees_with_the_whole(modes):
    K = decaying(240)
    koopman = plain_surrogate(K, TIMES)
    whole, few = eigen(koopman), eigen(koopman, modes)
    count = len(few.values)
    assert count in (modes, modes - 1, 2)
    assert few.observables == len(K) == len(whole.values)
    np.testing.assert_allclose(few.values, whole.values[:count], atol=1e-9)
    np.testing.assert_allclose(K @ few.modes, few.modes * few.values, atol=1e-8)
    np.testing.assert_allclose(K.T @ few.readers, few.readers * few.values, atol=1e-8)
    np.testing.assert_allclose(few.readers.T @ few.modes, np.eye(count), atol=1e-8)
    np.testing.assert_allclose(few.sensitivity, whole.sensitivity[:count], rtol=1e-6)


def test_all_modes_add_up_to_the_operator():
    K = decaying(60)
    whole = eigen(plain_surrogate(K, TIMES))
    np.testing.assert_allclose((whole.modes * whole.values) @ whole.readers.T, K, atol=1e-10)


def test_sensitivity_is_how_far_an_eigenvalue_moves():
    K = decaying(30, coupling=1.0)
    whole = eigen(plain_surrogate(K, TIMES))
    change = 1e-7
    for index in (0, 5):
        # The worst change of K lies along the two eigenvectors.
        w, v = whole.readers[:, index], whole.modes[:, index]
        worst = change * np.outer(w.conj() / np.linalg.norm(w), v.conj() / np.linalg.norm(v))
        moved = np.linalg.eigvals(K + worst)
        distance = np.abs(moved - whole.values[index]).min()
        assert distance == pytest.approx(change * whole.sensitivity[index], rel=1e-3)


def test_repeated_eigenvalues_keep_readers_and_modes_paired():
    low_rank = operator("identity_plus_low_rank", 40, 3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        low_rank.U.copy_(0.3 * torch.randn(40, 3, generator=draw))
        low_rank.V.copy_(0.3 * torch.randn(40, 3, generator=draw))
    K = low_rank.matrix().detach().double().numpy()
    whole = eigen(plain_surrogate(K, TIMES))
    assert np.isclose(whole.values, 1, atol=1e-6).sum() == 37
    np.testing.assert_allclose(whole.readers.T @ whole.modes, np.eye(40), atol=1e-6)


def test_a_pair_is_never_cut_in_two():
    values = np.array([1, 0.9 + 0.1j, 0.9 - 0.1j, 0.5])
    assert [uncut(values, count) for count in (1, 2, 3, 4, 9)] == [1, 1, 3, 4, 4]
    assert uncut(values[1:], 1) == 2


def test_a_real_basis_spans_both_parts():
    K = decaying(60)
    whole = eigen(plain_surrogate(K, TIMES))
    count = uncut(whole.values, 11)
    Q = real_basis(whole.readers[:, :count])
    assert Q.shape == (len(K), count)
    np.testing.assert_allclose(Q.T @ Q, np.eye(count), atol=1e-12)
    np.testing.assert_allclose(Q @ (Q.T @ whole.readers[:, :count]), whole.readers[:, :count], atol=1e-9)


def test_the_schur_form_is_in_order_and_cuts_invariant_subspaces():
    K = decaying(45, coupling=1.0)
    form = ki.schur_form(plain_surrogate(K, TIMES))
    np.testing.assert_allclose(form.Q @ form.T @ form.Q.T, K, atol=1e-10)
    np.testing.assert_allclose(form.Q.T @ form.Q, np.eye(len(K)), atol=1e-12)
    sizes = [np.abs(np.linalg.eigvals(form.T[block, block])).max() for block in form.blocks]
    assert (np.diff(sizes) < 1e-9).all()
    for block in form.blocks[:6]:
        Q = form.subspace(block.stop)
        np.testing.assert_allclose(Q @ (Q.T @ K @ Q), K @ Q, atol=1e-10)
    pair = next(block for block in form.blocks if block.stop - block.start == 2)
    with pytest.raises(InputError, match=f"Ask for {pair.stop}"):
        form.subspace(pair.stop - 1)


def test_the_schur_form_of_a_jordan_block_stands():
    K = 0.9 * np.eye(4) + np.diag([1.0, 1.0, 0.0], 1)
    K[3, 3] = 0.95
    form = ki.schur_form(plain_surrogate(K, TIMES))
    np.testing.assert_allclose(form.Q @ form.T @ form.Q.T, K, atol=1e-12)
    assert form.T[0, 0] == pytest.approx(0.95)


def test_more_modes_than_there_are_is_refused():
    with pytest.raises(InputError, match="1 to 6 modes; asked for 7"):
        eigen(plain_surrogate(np.eye(6), TIMES), 7)


def test_a_subspace_of_more_modes_than_there_are_is_refused():
    form = ki.schur_form(plain_surrogate(decaying(6), TIMES))
    assert form.subspace(0).shape == (len(form.T), 0)
    for modes in (-1, len(form.T) + 1):
        with pytest.raises(InputError, match=f"has {len(form.T)} modes; asked for {modes}"):
            form.subspace(modes)
