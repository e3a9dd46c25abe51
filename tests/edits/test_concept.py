"""A concept that is erased cannot be read by an affine map; the cheapest way to do so is LEACE's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression

import koopman_interp as ki
from koopman_interp.edits.concept import columns_of
from koopman_interp.errors import InputError

DEPTH = 2


@pytest.fixture(scope="module")
def rows(surrogate, trajectories):
    return surrogate.encode(trajectories.states[DEPTH], DEPTH).double()


def quantity(rows, seed=0):
    """Something that the rows tell, with noise."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
    return rows @ direction + 0.3 * torch.randn(len(rows), generator=generator, dtype=torch.float64)


def attributes(kind, rows, trajectories):
    return {
        "binary": trajectories.labels == 1,
        "categorical": trajectories.labels,
        "continuous": quantity(rows),
        "several quantities": torch.stack([quantity(rows), quantity(rows, 1)], 1),
    }[kind]


KINDS = ["binary", "categorical", "continuous", "several quantities"]
RANKS = {"binary": 1, "categorical": 2, "continuous": 1, "several quantities": 2}


@pytest.mark.parametrize("cost", ["fit", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_to_read(surrogate, trajectories, rows, kind, cost):
    attribute = attributes(kind, rows, trajectories)
    edit = ki.erase_concept(surrogate, trajectories, attribute=attribute, site=DEPTH, cost=cost)
    after = edit(rows)
    columns = columns_of(attribute, trajectories.sequence, "attribute").numpy()
    covariances = [(z - z.mean(0)).numpy().T @ columns / len(columns) for z in (rows, after)]
    assert np.abs(covariances[0]).max() > 1e-2
    assert np.abs(covariances[1]).max() < 1e-9
    assert edit.rank == RANKS[kind]
    torch.testing.assert_close(edit(after), after, rtol=1e-7, atol=1e-7)
    if kind in ("binary", "categorical"):
        # A linear probe on the class means is at chance: they all are the same.
        means = [after[attribute == value].mean(0) for value in attribute.unique()]
        assert max(float((mean - means[0]).abs().max()) for mean in means) < 1e-8
        prior = np.bincount(attribute.long().numpy()).max() / len(attribute)
        found = LogisticRegression(max_iter=500).fit(after.numpy(), attribute.numpy())
        assert found.score(after.numpy(), attribute.numpy()) <= prior + 1e-3
    else:
        assert LinearRegression().fit(rows.numpy(), columns).score(rows.numpy(), columns) > 0.5
        assert LinearRegression().fit(after.numpy(), columns).score(after.numpy(), columns) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_cost_of_the_rows_it_is_leace(surrogate, trajectories, rows, kind):
    leace = pytest.importorskip("concept_erasure", reason="concept-erasure is not installed")
    attribute = attributes(kind, rows, trajectories)
    columns = columns_of(attribute, trajectories.sequence, "attribute")
    # Some observables hardly vary; both sides cut those off, so rows that all vary are compared.
    noisy = rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    fitter = leace.LeaceFitter.fit(noisy, columns, shrinkage=False, constrain_cov_trace=False)
    torch.testing.assert_close(_erased(noisy, columns), fitter.eraser(noisy), rtol=1e-6, atol=1e-6)


def _erased(rows, columns):
    """The factors of `erase_concept` on rows of one's own."""
    from koopman_interp.edits.concept import cross_covariance
    from koopman_interp.edits.oblique import oblique

    centred = rows - rows.mean(0)
    A = cross_covariance(centred, columns)
    return oblique(A, A[:, :0], torch.cov(rows.T, correction=0), rows.mean(0), shrinkage=0.0).map(rows)


def test_the_cost_of_the_fit_is_cheaper_on_the_rows_fitted(surrogate, trajectories, rows):
    few = trajectories[:60]
    drift = {}
    for cost in ("fit", "rows"):
        edit = ki.erase_concept(surrogate, few, attribute=few.labels == 1, site=DEPTH, cost=cost)
        drift[cost] = float((edit(rows) - rows).square().sum())
    assert drift["fit"] < drift["rows"]


@pytest.mark.parametrize("shrinkage", [1e-3, 1.0])
@pytest.mark.parametrize("cost", ["fit", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_move_by_the_cheapest_readers_about_their_mean(surrogate, trajectories, rows, kind, cost, shrinkage):
    attribute = attributes(kind, rows, trajectories)
    edit = ki.erase_concept(surrogate, trajectories, attribute=attribute, site=DEPTH, cost=cost, shrinkage=shrinkage)
    z, mean = rows.numpy(), rows.numpy().mean(0)
    A = (z - mean).T @ columns_of(attribute, trajectories.sequence, "attribute").numpy() / len(z)
    sigma = surrogate.moments.covariance[DEPTH].numpy() if cost == "fit" else np.cov(z.T, bias=True)
    inverse = np.linalg.inv(sigma + shrinkage * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
    # Columns of categories sum to nothing, whence the pseudo-inverse.
    P = inverse @ A @ np.linalg.pinv(A.T @ inverse @ A, rcond=1e-9) @ A.T
    np.testing.assert_allclose(edit(rows).numpy(), z - (z - mean) @ P, atol=1e-7)
    np.testing.assert_allclose(edit(rows).numpy().mean(0), mean, atol=1e-9)


def test_no_linear_eraser_of_a_phase_moves_rows_less(surrogate, trajectories, rows):
    """Two quantities on a circle: any other linear map about the mean that erases them moves white rows farther."""
    angle = quantity(rows)
    phase = torch.stack([angle.cos(), angle.sin()], 1)
    edit = ki.erase_concept(surrogate, trajectories, attribute=phase, site=DEPTH, cost="rows", shrinkage=1e-9)
    assert edit.rank == 2
    after = edit(rows)
    assert LinearRegression().fit(after.numpy(), phase.numpy()).score(after.numpy(), phase.numpy()) < 1e-9
    torch.testing.assert_close(edit(after), after, rtol=1e-7, atol=1e-7)
    centred = rows - rows.mean(0)
    A = centred.T @ (phase - phase.mean(0)) / len(rows)
    moved = float((edit(rows) - rows).square().sum())
    draw = torch.Generator().manual_seed(4)
    others = [torch.linalg.qr(A).Q, torch.randn(A.shape, generator=draw, dtype=A.dtype)]
    others += [edit.readers + scale * torch.randn(A.shape, generator=draw, dtype=A.dtype) for scale in (1e-3, 1e-1)]
    for readers in others:
        # z → z − z W (AᵀW)⁻¹ Aᵀ erases whatever W is.
        other = centred @ readers @ torch.linalg.solve(A.T @ readers, A.T)
        left = (centred - other).T @ (phase - phase.mean(0)) / len(rows)
        assert float(left.abs().max()) < 1e-8
        assert float(other.square().sum()) > moved


def test_without_a_site_it_is_the_last_but_one(surrogate, trajectories):
    assert ki.erase_concept(surrogate, trajectories).depth == len(surrogate.sites) - 2


def test_feasibility_is_the_sine_between_what_is_erased_and_what_is_preserved(surrogate, trajectories, rows):
    given = quantity(rows, 3), quantity(rows, 4)
    edit = ki.erase_concept(
        surrogate, trajectories, attribute=given[0], preserve=given[1], site=DEPTH, cost="rows", shrinkage=0.1
    )
    a, b = ((rows - rows.mean(0)).T.numpy() @ (one - one.mean()).numpy() for one in given)
    sigma = np.cov(rows.numpy().T, bias=True)
    inverse = np.linalg.inv(sigma + 0.1 * np.trace(sigma) / len(sigma) * np.eye(len(sigma)))
    sine = np.sqrt(1 - (a @ inverse @ b) ** 2 / (a @ inverse @ a) / (b @ inverse @ b))
    assert edit.certificate.feasibility == pytest.approx(sine, rel=1e-6)
    assert sine < 0.999


@pytest.mark.parametrize("preserved", ["continuous", "categorical"])
def test_what_is_preserved_stays_readable_as_it_was(surrogate, trajectories, rows, preserved):
    attribute = quantity(rows, 3)
    keep = attributes(preserved, rows, trajectories)
    columns = [columns_of(given, trajectories.sequence, "attribute") for given in (attribute, keep)]
    after = {}
    for name, preserve in (("plain", None), ("preserving", keep)):
        edit = ki.erase_concept(surrogate, trajectories, attribute=attribute, preserve=preserve, site=DEPTH)
        z = edit(rows)
        after[name] = [(z - z.mean(0)).T @ column / len(z) for column in columns]
    before = (rows - rows.mean(0)).T @ columns[1] / len(rows)
    assert float(after["preserving"][0].abs().max()) < 1e-9
    torch.testing.assert_close(after["preserving"][1], before, rtol=1e-7, atol=1e-9)
    assert float((after["plain"][1] - before).abs().max()) > 1e-3


def test_a_concept_that_is_what_is_preserved_is_refused(surrogate, trajectories, rows):
    attribute = quantity(rows)
    with pytest.raises(InputError, match="cannot be erased without the other"):
        ki.erase_concept(surrogate, trajectories, attribute=attribute, preserve=-2.0 * attribute, site=DEPTH)


def test_strength_is_a_dial(surrogate, trajectories, rows):
    """Cross-covariance falls in proportion, changes its sign past 1, and 0 moves nothing."""
    attribute = trajectories.labels == 1
    columns = attribute.double() - attribute.double().mean()
    whole = (rows - rows.mean(0)).T @ columns
    for strength in (0.0, 0.5, 1.0, 1.5):
        edit = ki.erase_concept(surrogate, trajectories, attribute=attribute, site=DEPTH, strength=strength)
        z = edit(rows)
        torch.testing.assert_close((z - z.mean(0)).T @ columns, (1 - strength) * whole, rtol=1e-6, atol=1e-7)
        assert ("over-erased" in edit.description) == ("over-erased" in str(edit.certificate)) == (strength > 1)
    none = ki.erase_concept(surrogate, trajectories, attribute=attribute, site=DEPTH, strength=0.0)
    assert torch.equal(none(rows), rows)


def test_labels_are_the_attribute_unless_one_is_given(surrogate, trajectories):
    ours = ki.erase_concept(surrogate, trajectories, site=DEPTH)
    theirs = ki.erase_concept(surrogate, trajectories, attribute=trajectories.labels, site=DEPTH)
    assert torch.equal(ours.readers, theirs.readers)


def test_one_value_an_input_is_spread_over_its_rows():
    sequence = torch.tensor([0, 0, 0, 1, 1, 2])
    columns = columns_of([1.0, 2.0, 6.0], sequence, "attribute")
    assert (columns[:, 0] + 13 / 6).tolist() == pytest.approx([1, 1, 1, 2, 2, 6])
    assert columns_of(torch.tensor([5, 7, 5]), sequence, "attribute").shape == (6, 2)


@pytest.mark.parametrize(
    ("attribute", "sentence"),
    [
        (["a", "b"] * 300, "no array of numbers"),
        (torch.zeros(7), "Expected 600 values of the attribute, one a sample; got 7"),
        (torch.ones(600), "the same for all 600 rows"),
        (torch.full((600,), torch.nan), "NaN or infinite"),
        (torch.arange(600), "give it as floating-point numbers"),
        (torch.zeros(600, 2, dtype=torch.long), "Categories are one whole number a row"),
    ],
)
def test_attributes_that_tell_nothing_are_refused(surrogate, trajectories, attribute, sentence):
    with pytest.raises(InputError, match=sentence):
        ki.erase_concept(surrogate, trajectories, attribute=attribute)


def test_neither_attribute_nor_labels_is_refused(surrogate, trajectories):
    from dataclasses import replace

    with pytest.raises(InputError, match="There is no attribute to erase"):
        ki.erase_concept(surrogate, replace(trajectories, labels=None))


def test_of_pooled_states_nothing_is_left_for_an_affine_reader_of_them(surrogate, trajectories):
    """Whose inputs have several rows each, as texts have tokens."""
    from dataclasses import replace

    sequence = torch.arange(len(trajectories)) // 5
    several = replace(trajectories, sequence=sequence)
    attribute = torch.arange(int(sequence.max()) + 1) % 3
    edit = ki.erase_concept(surrogate, several, attribute=attribute, site=2, pooled=True)
    z = surrogate.encode(trajectories.states[2], 2).double()
    pooled = edit(z).reshape(-1, 5, z.shape[1]).mean(1)
    values = torch.nn.functional.one_hot(attribute).double()
    left = (pooled - pooled.mean(0)).T @ (values - values.mean(0)) / len(values)
    before = z.reshape(-1, 5, z.shape[1]).mean(1)
    there = (before - before.mean(0)).T @ (values - values.mean(0)) / len(values)
    assert float(there.norm()) > 1e-3
    assert float(left.norm()) < 1e-9 * float(there.norm()) + 1e-12
    # Of one row an input, pooling changes nothing.
    plain = ki.erase_concept(surrogate, trajectories, site=2)
    same = ki.erase_concept(surrogate, trajectories, site=2, pooled=True)
    torch.testing.assert_close(same(z), plain(z))
