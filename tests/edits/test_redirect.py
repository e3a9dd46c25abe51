"""A redirection is the minimum of its objective; its limits, targets and null space do what their formulae say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import koopman_interp as ki
from koopman_interp.edits.redirect import EQUALITY
from koopman_interp.edits.targets import named_targets
from koopman_interp.errors import InputError

DEPTH, LABEL = 3, 1


@pytest.fixture(scope="module")
def rows(surrogate, trajectories):
    return surrogate.encode(trajectories.states[DEPTH], DEPTH).double()


def by_hand(rows, gone, goal, weight):
    """Δ by least squares on stacked rows, each half of the objective as rows of its own."""
    z, T = rows.numpy(), goal.numpy()
    gone = gone.numpy()
    centre = z[~gone].mean(0)
    f, r = z[gone] - centre, z[~gone] - centre
    ridge = 1e-4 * np.cov(r.T, bias=True).trace() / r.shape[1]
    above = f / np.sqrt(len(f))
    below = np.r_[r * np.sqrt(weight / len(r)), np.sqrt(weight * ridge) * np.eye(r.shape[1])]
    right = np.r_[(T - z[gone]) / np.sqrt(len(f)), np.zeros_like(below)]
    return np.linalg.lstsq(np.r_[above, below], right, rcond=None)[0], centre


@pytest.mark.parametrize("targets", ["next_best", "similar", "retained_mean"])
@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_it_is_the_minimum_of_its_objective(surrogate, trajectories, rows, weight, targets):
    gone = trajectories.labels == LABEL
    goal = named_targets(targets, rows, trajectories.labels, gone)
    edit = ki.redirect(surrogate, fitted=trajectories, label=LABEL, targets=targets, weight=weight, site=DEPTH, rank=14)
    change, centre = by_hand(rows, gone, goal, weight)
    whole = ki.redirect(surrogate, fitted=trajectories, label=LABEL, targets=targets, weight=weight, site=DEPTH)
    expected = rows.numpy() + (rows.numpy() - centre) @ change
    size = np.linalg.norm(expected - rows.numpy())
    # What a truncation may lose is 1e-4 of the displacement's sum of squares.
    assert np.linalg.norm(whole(rows).numpy() - expected) < 0.03 * size
    assert np.linalg.norm(edit(rows).numpy() - expected) < 0.03 * size
    met = 1 - ((goal - edit(rows)[gone]) ** 2).sum() / ((goal - rows[gone]) ** 2).sum()
    assert edit.certificate.feasibility == pytest.approx(float(met), abs=1e-6)
    torch.testing.assert_close(edit(torch.from_numpy(centre)), torch.from_numpy(centre), atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def few(trajectories):
    """Fewer rows to redirect than there are observables, which leaves some directions unreached."""
    gone = (trajectories.labels == LABEL).nonzero()[:5, 0]
    return trajectories[torch.cat([gone, (trajectories.labels != LABEL).nonzero()[:, 0]])]


def test_fewer_rows_than_observables_have_the_same_minimum(surrogate, few):
    z = surrogate.encode(few.states[DEPTH], DEPTH).double()
    gone = few.labels == LABEL
    change, centre = by_hand(z, gone, named_targets("next_best", z, few.labels, gone), 1.0)
    edit = ki.redirect(surrogate, fitted=few, label=LABEL, site=DEPTH)
    assert edit.rank <= 5
    expected = z.numpy() + (z.numpy() - centre) @ change

    def size(moves):
        """What a truncation is measured by: moved and retained rows, as means over each."""
        squares = np.square(moves).sum(1)
        return squares[gone.numpy()].mean() + squares[~gone.numpy()].mean()

    assert size(edit(z).numpy() - expected) < 1.01e-4 * size(expected - z.numpy())


def test_a_weight_that_leaves_the_solve_singular_is_refused(surrogate, few):
    with pytest.raises(InputError, match="At weight 1e-30 the rows alone decide"):
        ki.redirect(surrogate, fitted=few, label=LABEL, site=DEPTH, weight=1e-30)


def test_the_weight_is_a_dial_between_all_and_nothing(surrogate, trajectories, rows):
    gone = trajectories.labels == LABEL
    met, drift = [], []
    for weight in (EQUALITY, 1e-2, 1.0, 100.0, 1e4):
        edit = ki.redirect(surrogate, fitted=trajectories, label=LABEL, weight=weight, site=DEPTH)
        met.append(edit.certificate.feasibility)
        drift.append(float((edit(rows) - rows)[~gone].square().mean()))
    assert met == sorted(met, reverse=True)
    assert drift == sorted(drift, reverse=True)
    assert met[0] > 0.2
    assert met[-1] < 0.01
    assert "equality" in ki.redirect(surrogate, fitted=trajectories, label=LABEL, weight=EQUALITY).description


def test_equality_meets_every_target_where_rows_are_few(surrogate, trajectories, rows):
    gone = (trajectories.labels == LABEL).nonzero().squeeze(1)
    some = trajectories[torch.cat([gone[:4], (trajectories.labels != LABEL).nonzero().squeeze(1)])]
    edit = ki.redirect(surrogate, fitted=some, label=LABEL, weight=EQUALITY, site=DEPTH)
    assert edit.certificate.feasibility > 0.999


def test_strength_multiplies_the_displacement_and_nothing_changes_no_bit(surrogate, trajectories, rows):
    one = ki.redirect(surrogate, fitted=trajectories, label=LABEL, site=DEPTH)
    for strength in (0.0, 0.5, 2.0):
        edit = ki.redirect(surrogate, fitted=trajectories, label=LABEL, site=DEPTH, strength=strength)
        torch.testing.assert_close(edit(rows) - rows, strength * (one(rows) - rows), rtol=1e-9, atol=1e-12)
    assert torch.equal(ki.redirect(surrogate, fitted=trajectories, label=LABEL, strength=0.0, site=DEPTH)(rows), rows)
    K = surrogate.K.double()
    assert float((one.undo(one.apply(K)) - K).norm() / K.norm()) < 1e-10


def test_a_smaller_rank_is_the_best_of_its_rank(surrogate, trajectories, rows):
    """Against Eckart and Young in the metric of moved and retained rows: no other cut moves the rows more alike."""
    whole = ki.redirect(surrogate, fitted=trajectories, label=LABEL, site=DEPTH, rank=14, targets="similar")
    cut = ki.redirect(surrogate, fitted=trajectories, label=LABEL, site=DEPTH, rank=1, targets="similar")
    assert cut.rank == 1
    gone = trajectories.labels == LABEL
    # Rows weighed as the metric weighs them: means over either kind, about the retained mean.
    centred = rows - rows[~gone].mean(0)
    weights = torch.where(gone, 1 / gone.sum(), 1 / (~gone).sum()).sqrt()[:, None]
    moved = (weights * centred) @ -(whole.readers @ whole.directions.T)
    best = torch.linalg.svdvals(moved)[1:].square().sum()
    ours = (moved - (weights * centred) @ -(cut.readers @ cut.directions.T)).square().sum()
    assert float(ours) <= float(best) * 1.01 + 1e-9


def test_after_an_eraser_it_is_solved_on_what_that_leaves(surrogate, trajectories, rows):
    first = ki.erase_class(surrogate, label=LABEL, site=DEPTH)
    both = ki.redirect(surrogate, fitted=trajectories, label=LABEL, after=first)
    gone = trajectories.labels == LABEL
    goal = named_targets("next_best", first(rows), trajectories.labels, gone)
    change, centre = by_hand(first(rows), gone, goal, 1.0)
    left = first(rows).numpy()
    expected = left + (left - centre) @ change
    assert np.linalg.norm(both(rows).numpy() - expected) < 0.03 * np.linalg.norm(expected - left)
    assert both.depth == DEPTH
    assert both.description.startswith("erase class 1, then redirect class 1")
    assert both.certificate is not None
    with pytest.raises(InputError, match="redirect there too"):
        ki.redirect(surrogate, fitted=trajectories, label=LABEL, after=first, site=0)


# --- targets ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several():
    """Rows of five classes, unlike in number: of two retained ones, a mix-up would but change their order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.3, 0.1, 0.05, 0.4, 0.15]), 600, True, generator=generator) * 2
    centres = 0.8 * torch.randn(9, 5, generator=generator, dtype=torch.float64)
    mix = torch.eye(5) + 0.3 * torch.randn(5, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(600, 5, generator=generator, dtype=torch.float64) @ mix + centres[labels]
    return z, labels, labels == 6, np.stack([z[labels == c].mean(0).numpy() for c in (0, 2, 4, 8)])


def test_next_best_is_the_nearest_retained_mean(several):
    z, labels, gone, means = several
    nearest = [np.linalg.norm(means - row, axis=1).argmin() for row in z[gone].numpy()]
    assert len(set(nearest)) > 2
    np.testing.assert_allclose(named_targets("next_best", z, labels, gone).numpy(), means[nearest], atol=1e-12)


def test_similar_is_what_a_discriminant_without_the_class_says(several):
    z, labels, gone, means = several
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(z[~gone].numpy(), labels[~gone].numpy())
    said = oracle.predict_proba(z[gone].numpy())
    # The ridge of 1e-3 is ours.
    np.testing.assert_allclose(named_targets("similar", z, labels, gone).numpy(), said @ means, atol=0.05)
    assert said.max(0).min() > 0.2  # each of them is said of some row


def test_counterfactuals_put_each_value_on_the_mean_of_its_group():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    value, group = torch.randint(0, 2, (40,), generator=generator), torch.randint(0, 4, (40,), generator=generator)
    z = z + value[:, None] * group[:, None]
    group[:3] = 9
    value[:3] = 1  # a group of one value: nothing to compare it with
    after = ki.counterfactual(value, group)(z, 0)
    for g in range(4):
        means = [after[(group == g) & (value == v)].mean(0) for v in (0, 1)]
        torch.testing.assert_close(means[0], means[1])
        middle = (z[(group == g) & (value == 0)].mean(0) + z[(group == g) & (value == 1)].mean(0)) / 2
        torch.testing.assert_close(means[0], middle)
    assert torch.equal(after[:3], z[:3])
    # Within a value of a group all rows move alike.
    cell = (group == 2) & (value == 1)
    torch.testing.assert_close((after - z)[cell], (after - z)[cell].mean(0).expand(int(cell.sum()), -1))
    with pytest.raises(InputError, match="for each of 39 rows"):
        ki.counterfactual(value, group)(z[:39], 0)
    with pytest.raises(InputError, match="got 40 and 39"):
        ki.counterfactual(value, group[:39])


def test_without_a_label_all_rows_go_and_the_fit_is_retained(surrogate, trajectories, rows):
    value, group = trajectories.labels % 2, torch.arange(600) % 5
    targets = ki.counterfactual(value, group)
    edit = ki.redirect(surrogate, fitted=trajectories, targets=targets, weight=0.5, site=DEPTH, name="value")
    mean, C = surrogate.moments.total_mean(DEPTH).numpy(), surrogate.moments.covariance[DEPTH].numpy()
    z = rows.numpy() - mean
    wanted = (targets(rows, DEPTH) - rows).numpy()
    ridge = 1e-4 * C.trace() / len(C) * np.eye(len(C))
    change = np.linalg.solve(z.T @ z / 600 + 0.5 * (C + ridge), z.T @ wanted / 600)
    assert np.linalg.norm((edit(rows) - rows).numpy() - z @ change) < 0.03 * np.linalg.norm(z @ change)
    assert edit.description == "redirect value to targets, λ = 0.5"


def test_without_a_label_an_edit_before_moves_what_is_retained_too(surrogate, trajectories, rows):
    first = ki.erase_class(surrogate, label=LABEL, site=DEPTH)
    targets = ki.counterfactual(trajectories.labels % 2, torch.arange(600) % 5)
    both = ki.redirect(surrogate, fitted=trajectories, targets=targets, weight=0.5, after=first)
    left = first(rows)
    P = np.eye(14) - (first.directions @ first.readers.T).numpy()
    C = P @ surrogate.moments.covariance[DEPTH].numpy() @ P.T
    z = (left - first(surrogate.moments.total_mean(DEPTH))).numpy()
    ridge = 1e-4 * C.trace() / len(C) * np.eye(len(C))
    wanted = (targets(left, DEPTH) - left).numpy()
    change = np.linalg.solve(z.T @ z / 600 + 0.5 * (C + ridge), z.T @ wanted / 600)
    assert np.linalg.norm((both(rows) - left).numpy() - z @ change) < 0.03 * np.linalg.norm(z @ change)


def test_the_certificate_counts_the_means_of_the_others_only(surrogate, trajectories):
    edit = ki.redirect(surrogate, fitted=trajectories, label=LABEL)
    assert edit.depth == len(surrogate.sites) - 2
    held_out = surrogate.heldout_moments
    means = held_out.mean[edit.depth]
    farthest = (edit(means) - means).norm(dim=1)
    assert farthest.argmax() == LABEL
    spread = held_out.covariance[edit.depth].trace().sqrt()
    assert edit.certificate.class_mean_drift == pytest.approx(float(farthest[[0, 2]].max() / spread))


def test_it_knows_what_it_redirects(surrogate, trajectories):
    redirected = ki.redirect(surrogate, fitted=trajectories, label=LABEL)
    assert redirected.labels == (LABEL,)
    erased = ki.erase_class(surrogate, label=2, site=redirected.depth)
    both = ki.redirect(surrogate, fitted=trajectories, label=LABEL, after=erased)
    assert both.labels == (2, LABEL)
    # Neither class counts as retained.
    held_out = surrogate.heldout_moments
    mean, spread = held_out.mean[both.depth][0], held_out.covariance[both.depth].trace().sqrt()
    assert both.certificate.class_mean_drift == pytest.approx(float((both(mean) - mean).norm() / spread))
    value, group = trajectories.labels % 2, torch.arange(600) % 5
    assert ki.redirect(surrogate, fitted=trajectories, targets=ki.counterfactual(value, group)).labels == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": 7}, "Expected rows of class 7"),
        ({"label": None}, "give label=…, or targets as a function"),
        ({"targets": "nearest"}, "There are no targets 'nearest'"),
        ({"targets": lambda z, depth: z[:5]}, "Expected targets of the shape"),
        ({"weight": 0.0}, "positive and finite"),
        ({"rank": 0}, "one or more; got 0"),
    ],
)
def test_what_cannot_be_redirected_is_said(surrogate, trajectories, changes, sentence, unchecked):
    with pytest.raises(InputError, match=sentence):
        ki.redirect(surrogate, fitted=trajectories, **({"label": LABEL} | changes))


def test_rows_without_labels_are_refused(surrogate, trajectories):
    with pytest.raises(InputError, match="have no labels"):
        ki.redirect(surrogate, fitted=replace(trajectories, labels=None), label=LABEL)


# --- null space ---------------------------------------------------------------------------------------------


def test_where_every_direction_is_reached_it_refuses_and_says_the_rank(surrogate, trajectories):
    with pytest.raises(InputError, match=r"numerical rank 14 of 14 observables.*Use redirect"):
        ki.redirect_in_null_space(surrogate, fitted=trajectories, label=LABEL, site=DEPTH, tolerance=0.0)


def test_where_something_is_left_retained_rows_stay(surrogate, trajectories):
    """Retained rows that span few directions: on them the edit is exact, on others of their classes it is not."""
    kept = (trajectories.labels != LABEL).nonzero().squeeze(1)
    few, others = kept[:6], kept[6:]
    some = trajectories[torch.cat([few, (trajectories.labels == LABEL).nonzero().squeeze(1)])]
    edit = ki.redirect_in_null_space(surrogate, fitted=some, label=LABEL, site=DEPTH)
    z, held_out = (surrogate.encode(trajectories.states[DEPTH][part], DEPTH).double() for part in (few, others))
    spread = float(z.std(0).norm())
    assert float((edit(z) - z).norm(dim=1).max()) < 1e-4 * spread
    assert float((edit(held_out) - held_out).norm(dim=1).mean()) > 1e-3 * spread
    assert edit.certificate.feasibility > 0.05
    assert edit.labels == (LABEL,)
    assert "null space of 9 dimensions" in edit.description  # six rows about their mean span five


def test_chosen_classes_are_met_at_their_means():
    generator = torch.Generator().manual_seed(0)
    z, labels = torch.randn(60, 5, generator=generator).double(), torch.arange(60) % 3 * 2
    choices = torch.where(labels == 4, 2, labels)
    found = ki.class_means(choices, labels)(z, 0)
    for row, choice in zip(found, choices, strict=True):
        assert torch.allclose(row, z[labels == choice].mean(0))
    with pytest.raises(InputError, match="No row is of class 1"):
        ki.class_means(torch.ones(60, dtype=torch.long), labels)
    with pytest.raises(InputError, match="got 59 and 60"):
        ki.class_means(choices[:59], labels)
    with pytest.raises(InputError, match="each of 59 rows"):
        ki.class_means(choices, labels)(z[:59], 0)
