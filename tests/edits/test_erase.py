"""The oblique eraser keeps what it promises, and is the cheapest that does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import null_space

import koopman_interp as ki
from koopman_interp.edits.certifying import numerical_rank
from koopman_interp.edits.erase import SHRINKAGE, oblique_eraser
from koopman_interp.errors import InputError

SIZE = 9
SHRINKAGES = [0.0, 1e-3, 1.0, 100.0]


class Problem:
    """Rows of several classes, unlike in number, with their moments by numpy."""

    def __init__(self, classes=4, size=SIZE, rows=400, seed=0):
        draw = np.random.default_rng(seed)
        self.labels = draw.choice(classes, rows, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
        mix = draw.normal(size=(size, size))
        self.z = draw.normal(size=(rows, size)) @ mix + draw.normal(size=(classes, size))[self.labels] * 2 + 3
        self.means = np.stack([self.z[self.labels == c].mean(0) for c in range(classes)])
        self.counts = np.bincount(self.labels).astype(float)
        self.covariance = np.cov(self.z.T, bias=True)

    def solved(self, forgotten, shrinkage=SHRINKAGE):
        return oblique_eraser(
            torch.from_numpy(self.means),
            torch.from_numpy(self.counts),
            torch.from_numpy(self.covariance),
            [forgotten],
            shrinkage=shrinkage,
        )

    def constraints(self, forgotten):
        """The columns a and B, and Σ's own retained mean, from the rows themselves."""
        retained = self.z[self.labels != forgotten].mean(0)
        offsets = np.delete(self.means, forgotten, 0) - retained
        return self.means[forgotten] - retained, offsets.T, retained

    def ridged(self, shrinkage):
        return self.covariance + shrinkage * np.trace(self.covariance) / len(self.covariance) * np.eye(
            len(self.covariance)
        )


def erase(eraser, z):
    change = eraser.map
    a, w, offset = (part.numpy() for part in (change.directions[:, 0], change.readers[:, 0], change.offset))
    return z - np.outer(z @ w - offset, a)


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
@pytest.mark.parametrize("forgotten", [0, 2])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_what_it_promises_holds_at_any_shrinkage(classes, forgotten, shrinkage):
    forgotten = min(forgotten, classes - 1)
    problem = Problem(classes)
    eraser = problem.solved(forgotten, shrinkage)
    after = erase(eraser, problem.z)
    gone = problem.labels == forgotten

    # The forgotten class is where the others are on average, which themselves are where they were.
    retained_mean = problem.z[~gone].mean(0)
    np.testing.assert_allclose(after[gone].mean(0), retained_mean, atol=1e-9)
    for c in set(range(classes)) - {forgotten}:
        np.testing.assert_allclose(after[problem.labels == c].mean(0), problem.means[c], atol=1e-9)
    # So no linear reader covaries with the class.
    contrast = gone - gone.mean()
    assert np.abs(contrast @ problem.z / len(gone)).max() > 0.05
    np.testing.assert_allclose(contrast @ (after - after.mean(0)) / len(gone), 0, atol=1e-9)
    # A projection, of rank one.
    np.testing.assert_allclose(erase(eraser, after), after, atol=1e-9)
    moved = np.linalg.svd(after - problem.z, compute_uv=False)
    assert moved[0] > 1
    assert moved[1] < 1e-9 * moved[0]


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
@pytest.mark.parametrize("classes", [2, 4])
def test_the_reader_is_the_cheapest(classes, shrinkage):
    problem = Problem(classes, seed=1)
    sigma = problem.ridged(shrinkage)
    a, B, _ = problem.constraints(1)
    w = problem.solved(1, shrinkage).map.readers[:, 0].numpy()
    np.testing.assert_allclose(a @ w, 1, atol=1e-10)
    np.testing.assert_allclose(B.T @ w, 0, atol=1e-10)
    # By the conditions of optimality, solved as they stand.
    columns = np.c_[a, B]
    n, k = columns.shape
    system = np.block([[sigma, columns], [columns.T, np.zeros((k, k))]])
    right = np.r_[np.zeros(n), 1, np.zeros(k - 1)]
    solution, *_ = np.linalg.lstsq(system, right, rcond=1e-13)
    np.testing.assert_allclose(w, solution[:n], rtol=1e-7, atol=1e-9)
    # By trying others that keep the same promises.
    free = null_space(columns.T)
    assert free.shape[1] == n - (classes - 1)
    draw = np.random.default_rng(2)
    for size in (1e-3, 1e-1, 10):
        for _ in range(20):
            other = w + size * free @ draw.normal(size=free.shape[1])
            assert other @ sigma @ other > w @ sigma @ w


def test_shrinkage_changes_the_reader():
    problem = Problem()
    assert not torch.allclose(problem.solved(0, 0.0).map.readers, problem.solved(0, 10.0).map.readers, rtol=1e-2)


def test_two_classes_are_fishers_direction():
    problem = Problem(2)
    a, _, _ = problem.constraints(0)
    fisher = np.linalg.solve(problem.covariance, a)
    np.testing.assert_allclose(problem.solved(0, 0.0).map.readers[:, 0].numpy(), fisher / (a @ fisher), rtol=1e-9)


def test_the_retained_mean_is_weighed_by_class_sizes():
    problem = Problem()
    centre = problem.means[3] - problem.solved(3).map.directions[:, 0].numpy()
    np.testing.assert_allclose(centre, problem.z[problem.labels != 3].mean(0))
    assert np.abs(np.delete(problem.means, 3, 0).mean(0) - problem.z[problem.labels != 3].mean(0)).max() > 0.1


@pytest.mark.parametrize("forgotten", [0, 3])
def test_it_moves_with_the_coordinates(forgotten):
    problem, mapped = Problem(), Problem()
    A = np.random.default_rng(4).normal(size=(SIZE, SIZE)) + 2 * np.eye(SIZE)
    mapped.means, mapped.covariance = problem.means @ A.T, A @ problem.covariance @ A.T
    there = erase(mapped.solved(forgotten, 0.0), problem.z @ A.T)
    here = erase(problem.solved(forgotten, 0.0), problem.z) @ A.T
    np.testing.assert_allclose(there, here, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.0), (2.0, -3.0, 2.0)])
def test_a_class_among_the_others_is_refused(weights):
    problem = Problem()
    problem.means[3] = np.array(weights) @ problem.means[:3]
    with pytest.raises(InputError, match="no direction is its own"):
        problem.solved(3)


def test_a_class_on_the_retained_mean_is_refused():
    problem = Problem(2)
    problem.means[1] = problem.means[0]
    with pytest.raises(InputError, match="no direction is its own"):
        problem.solved(1)


def test_more_classes_than_observables_are_refused():
    problem = Problem(classes=6, size=3)
    with pytest.raises(InputError, match="Fit more observables"):
        problem.solved(0)


def test_retained_classes_on_one_spot_constrain_nothing():
    # Their offsets are rounding errors, and no direction of their own.
    problem = Problem(4)
    problem.means[1] = problem.means[2] = problem.means[0]
    problem.counts = np.array([0.1, 0.7, 0.3, 1.0]) * 100
    a = problem.means[3] - problem.means[0]
    fisher = np.linalg.solve(problem.ridged(SHRINKAGE), a)
    np.testing.assert_allclose(problem.solved(3).map.readers[:, 0].numpy(), fisher / (a @ fisher), rtol=1e-6)


# --- erase_class --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(trajectories, quick_config):
    """The rows fitted and the rows held out, as the fit had them."""
    return trajectories.split(quick_config.validation, seed=quick_config.seed)


@pytest.mark.parametrize("depth", [0, 2, 4])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_rows_fitted_lose_the_class(surrogate, parts, label, depth):
    train = parts[0]
    edit = ki.erase_class(surrogate, label=label, site=depth)
    z = surrogate.encode(train.states[depth], depth).double()
    gone = train.labels == label
    after, spread = edit(z), float(z.std(0).norm())
    assert float((z[gone].mean(0) - z[~gone].mean(0)).norm()) > 1e-2 * spread
    assert float((after[gone].mean(0) - z[~gone].mean(0)).norm()) < 1e-4 * spread
    for c in {0, 1, 2} - {label}:
        moved = after[train.labels == c].mean(0) - z[train.labels == c].mean(0)
        assert float(moved.norm()) < 1e-4 * spread


def test_no_data_is_needed(surrogate, tmp_path):
    surrogate.save_pretrained(tmp_path)
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    ours, theirs = ki.erase_class(surrogate, label=1, site=1), ki.erase_class(loaded, label=1, site=1)
    for name in ("directions", "readers", "offset", "moved"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    assert ours.certificate == theirs.certificate
    assert theirs.certificate.drift_rows == 0
    assert (theirs.host, theirs.operator) == (surrogate.config.host, surrogate.digest())


@pytest.mark.parametrize(("site", "depth"), [("blocks.0:input", 0), ("blocks.1", 2), (3, 3), (-1, 4), (-5, 0)])
def test_a_site_by_name_or_depth(surrogate, site, depth):
    edit = ki.erase_class(surrogate, label=0, site=site)
    assert (edit.depth, edit.site) == (depth, surrogate.sites[depth])
    assert torch.equal(edit.directions, ki.erase_class(surrogate, label=0, site=depth).directions)


@pytest.mark.parametrize("label", range(3))
def test_without_a_site_it_is_erased_where_it_is_read_with_least_noise(surrogate, parts, label):
    """Noise by hand: the spread of the readings of held-out rows around the mean of their class."""
    held_out, noise = parts[1], []
    for depth in range(4):
        edit = ki.erase_class(surrogate, label=label, site=depth)
        z = surrogate.encode(held_out.states[depth], depth).double()
        readings = (z @ edit.readers - edit.offset)[:, 0].numpy()
        labels = held_out.labels.numpy()
        inside = [readings[labels == c] - readings[labels == c].mean() for c in range(3)]
        noise.append(np.concatenate(inside).std())
        assert edit.certificate.noise == pytest.approx(noise[-1], rel=1e-6)
    chosen = ki.erase_class(surrogate, label=label)
    assert chosen.depth == int(np.argmin(noise))
    assert torch.equal(chosen.readers, ki.erase_class(surrogate, label=label, site=chosen.depth).readers)


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_the_edit_follows_from_the_moments_by_hand(surrogate, strength):
    depth, label = 2, 1
    edit = ki.erase_class(surrogate, label=label, site=depth, strength=strength)
    means, counts = surrogate.moments.mean[depth].numpy(), surrogate.moments.count.numpy()
    centre = counts[[0, 2]] @ means[[0, 2]] / counts[[0, 2]].sum()
    np.testing.assert_allclose(edit.directions[:, 0].numpy(), strength * (means[1] - centre), atol=1e-12)
    np.testing.assert_allclose(edit.offset.numpy(), centre @ edit.readers.numpy(), atol=1e-12)
    K = surrogate.K.double()
    torch.testing.assert_close(edit.moved, K @ edit.directions, rtol=0, atol=1e-12)
    P = np.eye(len(K)) - edit.directions.numpy() @ edit.readers.numpy().T
    np.testing.assert_allclose(edit.apply(K).numpy(), K.numpy() @ P, atol=1e-12)
    assert edit.certificate.rank == 1
    assert edit.certificate.undo_error < 1e-12
    assert ("at strength" in edit.description) == (strength != 1)


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("label", [0, 2])
def test_the_drift_on_rows_is_the_one_measured_by_hand(surrogate, parts, label, depth):
    held_out = parts[1]
    edit = ki.erase_class(surrogate, label=label, site=depth, strength=1.3, held_out=held_out)
    z = surrogate.encode(held_out.states[depth], depth).double().numpy()
    a, w = edit.directions[:, 0].numpy(), edit.readers[:, 0].numpy()
    gone = (held_out.labels == label).numpy()
    drifts = [((row @ w - float(edit.offset)) ** 2) * (a @ a) for row in z[~gone]]
    spread = np.sqrt(((z - z.mean(0)) ** 2).sum(1).mean())
    assert edit.certificate.drift_rows == (~gone).sum()
    np.testing.assert_allclose(edit.certificate.retained_drift, np.sqrt(np.mean(drifts)) / spread, rtol=1e-4)
    farthest = max(
        np.linalg.norm((z[held_out.labels == c].mean(0) @ w - float(edit.offset)) * a) for c in {0, 1, 2} - {label}
    )
    np.testing.assert_allclose(edit.certificate.class_mean_drift, farthest / spread, rtol=1e-3)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_bound_holds_on_the_rows_held_out(surrogate, parts, label, depth, strength):
    bound = ki.erase_class(surrogate, label=label, site=depth, strength=strength).certificate
    measured = ki.erase_class(surrogate, label=label, site=depth, strength=strength, held_out=parts[1]).certificate
    assert bound.drift_rows == 0
    assert measured.drift_rows > 0
    assert bound.retained_drift >= measured.retained_drift * (1 - 1e-5) > 0
    assert bound.class_mean_drift == measured.class_mean_drift


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("label", [0, 2])
def test_the_bound_leaves_out_what_the_class_moves_at_least(surrogate, parts, label, depth):
    """By rows: all readings squared, but the class's as if each were their mean."""
    held_out = parts[1]
    edit = ki.erase_class(surrogate, label=label, site=depth)
    z = surrogate.encode(held_out.states[depth], depth).double().numpy()
    readings = z @ edit.readers[:, 0].numpy() - float(edit.offset)
    gone = (held_out.labels == label).numpy()
    squared = (np.square(readings).sum() - gone.sum() * readings[gone].mean() ** 2) / (~gone).sum()
    spread = np.sqrt(((z - z.mean(0)) ** 2).sum(1).mean())
    expected = np.sqrt(squared) * np.linalg.norm(edit.directions.numpy()) / spread
    assert edit.certificate.retained_drift == pytest.approx(expected, rel=1e-4)


def copied(surrogate):
    """A copy, whose moments may be written into."""
    copy = ki.KoopmanAutoencoder(surrogate.config)
    copy.load_state_dict(surrogate.state_dict())
    return copy


def test_directions_that_no_fitted_row_reaches_are_counted(surrogate):
    flat = copied(surrogate)
    flat.moments.covariance[2, :, :3] = flat.moments.covariance[2, :3, :] = 0
    values = np.linalg.eigvalsh(surrogate.moments.covariance[2].numpy()[3:, 3:])
    hardly = int((values <= 1e-10 * values[-1]).sum())
    assert ki.erase_class(flat, label=0, site=2).certificate.null_dimension == 3 + hardly


@pytest.mark.parametrize("hidden", [[0], [3], [0, 1, 2, 3]])
def test_depths_at_which_the_class_is_not_apart_are_passed_over(surrogate, hidden):
    mixed = copied(surrogate)
    mixed.moments.mean[hidden, 1] = (mixed.moments.mean[hidden, 0] + mixed.moments.mean[hidden, 2]) / 2
    with pytest.raises(InputError, match="no direction is its own"):
        ki.erase_class(mixed, label=1, site=hidden[0])
    if len(hidden) == 4:
        with pytest.raises(InputError, match="no direction is its own"):
            ki.erase_class(mixed, label=1)
    else:
        assert ki.erase_class(mixed, label=1).depth not in hidden


def test_trajectories_without_labels_give_the_bound(surrogate, parts):
    unlabelled = replace(parts[1], labels=None)
    assert (
        ki.erase_class(surrogate, label=0, held_out=unlabelled).certificate
        == ki.erase_class(surrogate, label=0).certificate
    )


def test_trajectories_of_the_class_alone_measure_nothing(surrogate, parts):
    held_out = parts[1]
    with pytest.raises(InputError, match="no drift can be measured"):
        ki.erase_class(surrogate, label=0, held_out=held_out[held_out.labels == 0])


def test_trajectories_of_fewer_sites_serve_where_they_have_the_site(surrogate, parts):
    some = parts[1].between("blocks.0", "blocks.2")
    assert (
        ki.erase_class(surrogate, label=0, site="blocks.1", held_out=some).certificate
        == ki.erase_class(surrogate, label=0, site="blocks.1", held_out=parts[1]).certificate
    )
    with pytest.raises(InputError, match="not among"):
        ki.erase_class(surrogate, label=0, site="blocks.3", held_out=some)


def quickly_fitted(trajectories, **settings):
    return ki.fit(trajectories, ki.FitConfig(observables=12, **settings), method="least_squares")


def test_a_fit_without_labels_is_refused(trajectories):
    with pytest.raises(InputError, match="fitted without labels"):
        ki.erase_class(quickly_fitted(replace(trajectories, labels=None)), label=0)


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(surrogate, strength):
    with pytest.raises(InputError, match="Give a finite strength"):
        ki.erase_class(surrogate, label=0, strength=strength)


def test_an_unknown_class_is_refused_and_the_known_are_named(surrogate):
    with pytest.raises(InputError, match="Class 7 does not occur among the fitted rows; there are 0, 1, 2"):
        ki.erase_class(surrogate, label=7)


def test_the_only_class_is_refused(trajectories):
    only = quickly_fitted(trajectories[trajectories.labels == 1])
    with pytest.raises(InputError, match="Class 1 is the only one"):
        ki.erase_class(only, label=1)


def test_an_unknown_site_is_refused(surrogate):
    with pytest.raises(InputError, match=r"'blocks\.9' is not among the fitted sites"):
        ki.erase_class(surrogate, label=0, site="blocks.9")
    with pytest.raises(InputError, match="Depth 5 is outside"):
        ki.erase_class(surrogate, label=0, site=5)


@pytest.fixture(scope="module")
def with_a_class_held_out(trajectories):
    """A fit whose split holds out all rows of class 9: one row, that the fit never saw."""
    held = trajectories.split(0.1, seed=0)[1].sequence[0]
    labels = trajectories.labels.clone()
    labels[trajectories.sequence == held] = 9
    koopman = quickly_fitted(replace(trajectories, labels=labels))
    assert koopman.moments.count.tolist()[-1] == 0
    return koopman


def test_a_class_that_was_all_held_out_is_refused(with_a_class_held_out):
    with pytest.raises(InputError, match="Class 9 does not occur among the fitted rows"):
        ki.erase_class(with_a_class_held_out, label=9)


def test_a_class_that_was_all_held_out_constrains_nothing(with_a_class_held_out):
    koopman = with_a_class_held_out
    edit = ki.erase_class(koopman, label=0, site=0, shrinkage=0.1)
    expected = oblique_eraser(
        koopman.moments.mean[0][:3],
        koopman.moments.count[:3],
        koopman.moments.covariance[0],
        [0],
        shrinkage=0.1,
    )
    torch.testing.assert_close(edit.readers[:, 0], expected.map.readers[:, 0])


def test_held_out_rows_of_the_class_alone_bound_no_drift_by_a_number_that_is_none(trajectories):
    held = trajectories.split(0.1, seed=0)[1].sequence
    labels = trajectories.labels % 2
    labels[torch.isin(trajectories.sequence, held)] = 1
    koopman = quickly_fitted(replace(trajectories, labels=labels))
    assert koopman.heldout_moments.count.tolist() == [0, 60]
    assert not np.isnan(ki.erase_class(koopman, label=1).certificate.retained_drift)


def test_a_covariance_that_cannot_be_inverted_is_refused_with_a_sentence(surrogate):
    # Without shrinkage nothing holds the observables that never vary.
    flat = copied(surrogate)
    flat.moments.covariance[:, 0, :] = 0
    flat.moments.covariance[:, :, 0] = 0
    assert ki.erase_class(flat, label=0).certificate.undo_error < 1e-12
    with pytest.raises(InputError, match="shrinkage"):
        ki.erase_class(flat, label=0, shrinkage=0.0)


@pytest.mark.parametrize("tolerance", [1e-10, 1e-3])
@pytest.mark.parametrize("least", [0.0, 1e-14, 0.9, 1.1, 3.0, 20.0])
def test_the_numerical_rank_counts_eigenvalues(least, tolerance):
    """At spectra below, near and above the limit, where a Cholesky decomposition alone decides and where it cannot."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q
    values = torch.linspace(0.1, 2, 30, dtype=torch.float64)
    values[:4] = 2 * (least if least < 0.1 and least > 0 else least * tolerance)
    found = numerical_rank(turn * values @ turn.T, tolerance)
    assert found == (30 if least > 1 else 26)


def test_an_edit_of_states_in_place_of_observables_is_told_to_lift_them(surrogate, trajectories, unchecked):
    edit = ki.erase_class(surrogate, label=1)
    with pytest.raises(InputError, match=r"got rows of width 10\..*koopman\.encode\(states, 'blocks\.\d'\)"):
        edit(trajectories.states[0])
