"""Several classes: jointly or one after another they end on the retained mean, and what is retained stays."""

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.edits.erase import oblique_eraser
from koopman_interp.errors import InputError
from koopman_interp.testing import ResidualMLP

CLASSES = 5


@pytest.fixture(scope="module")
def fitted():
    """A host of five classes, its trajectories as fitted, and the fit."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (800,), generator=generator)
    centres = torch.randn(CLASSES, 6, generator=generator) * 2
    x = centres[labels] + torch.randn(800, 6, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualMLP(inputs=6, width=12, blocks=3, outputs=CLASSES).eval()
    trajectories = ki.attach(model).observe(x, labels, progress=False)
    config = ki.FitConfig(observables=16)
    koopman = ki.fit(trajectories, config, method="least_squares")
    return koopman, trajectories.split(config.validation, seed=config.seed)[0]


def class_means(koopman, train, depth, edit=None):
    z = koopman.encode(train.states[depth], depth).double()
    z = z if edit is None else edit(z)
    return torch.stack([z[train.labels == c].mean(0) for c in range(CLASSES)]), z


@pytest.mark.parametrize("jointly", [True, False])
@pytest.mark.parametrize("labels", [[3], [0, 4], [4, 0, 2]])
def test_all_of_them_end_on_the_mean_of_those_retained(fitted, labels, jointly):
    koopman, train = fitted
    edit = ki.erase_class(koopman, label=labels, jointly=jointly, site=2)
    before, z = class_means(koopman, train, 2)
    after, moved = class_means(koopman, train, 2, edit)
    kept = [c for c in range(CLASSES) if c not in labels]
    retained = ~torch.isin(train.labels, torch.tensor(labels))
    spread = float(z.std(0).norm())
    assert float((before[labels] - z[retained].mean(0)).norm(dim=1).min()) > 0.1 * spread
    assert float((after[labels] - z[retained].mean(0)).norm(dim=1).max()) < 1e-4 * spread
    assert float((after[kept] - before[kept]).norm(dim=1).max()) < 1e-4 * spread
    assert edit.rank == len(labels)
    assert edit.certificate.rank == len(labels)
    assert float((edit(moved) - moved).norm(dim=1).max()) < 1e-3 * spread  # a projection
    K = koopman.K.double()
    assert np.linalg.matrix_rank((edit.apply(K) - K).numpy(), tol=1e-9) == len(labels)
    assert float((edit.undo(edit.apply(K)) - K).norm() / K.norm()) < 1e-10


def test_a_sequence_of_one_class_is_that_class(fitted):
    koopman, train = fitted
    for jointly in (True, False):
        several = ki.erase_class(koopman, label=[1], jointly=jointly, strength=1.3, held_out=train)
        one = ki.erase_class(koopman, label=1, strength=1.3, held_out=train)
        assert several.description == one.description == "erase class 1 at strength 1.3 (past 1: over-erased)"
        torch.testing.assert_close(several.readers, one.readers)
        assert several.certificate == one.certificate


@pytest.mark.parametrize("order", [(2, 0), (0, 2), (4, 1), (1, 4)])
def test_one_after_another_is_the_composition_from_the_moments_left(fitted, order):
    """By hand: erase the first, take the moments of the rows that it leaves, erase the second from those, compose."""
    koopman, _ = fitted
    depth, (first, second) = 1, order
    mean, cov = koopman.moments.mean[depth], koopman.moments.covariance[depth]
    one = ki.erase_class(koopman, label=first, site=depth)
    P = np.eye(len(cov)) - (one.directions @ one.readers.T).numpy()
    left = oblique_eraser(
        one(mean), koopman.moments.count, torch.from_numpy(P @ cov.numpy() @ P.T), [second], ignored=[first]
    )
    z = torch.randn(30, len(cov), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = one(z)
    both = both - (both @ left.map.readers - left.map.offset) @ left.map.directions.T
    edit = ki.erase_class(koopman, label=[first, second], jointly=False, site=depth)
    torch.testing.assert_close(edit(z), both, rtol=1e-9, atol=1e-9)
    assert "one after another" in edit.description
    assert edit.certificate.feasibility == pytest.approx(min(one.certificate.feasibility, left.feasibility))


def test_without_a_site_the_noise_of_all_readings_together_is_least(fitted):
    koopman, _ = fitted
    moments, noise = koopman.heldout_moments, []
    share = (moments.count / moments.count.sum()).numpy()
    for depth in range(3):
        edit = ki.erase_class(koopman, label=[0, 3], site=depth)
        total = 0.0
        for reader in edit.readers.T.numpy():
            means = moments.mean[depth].numpy() @ reader
            between = share @ (means - share @ means) ** 2
            total += reader @ moments.covariance[depth].numpy() @ reader - between
        noise.append(total)
    assert ki.erase_class(koopman, label=[0, 3]).depth == int(np.argmin(noise))


def test_the_order_matters_one_after_another_and_not_jointly(fitted):
    koopman, train = fitted
    _, z = class_means(koopman, train, 2)
    there, back = (ki.erase_class(koopman, label=order, site=2) for order in ([0, 3], [3, 0]))
    torch.testing.assert_close(there(z), back(z), rtol=1e-8, atol=1e-8)
    there, back = (ki.erase_class(koopman, label=order, site=2, jointly=False) for order in ([0, 3], [3, 0]))
    assert float((there(z) - back(z)).abs().max()) > 1e-4 * float(z.std(0).norm())


def test_it_knows_what_it_erases(fitted):
    koopman, _ = fitted
    assert ki.erase_class(koopman, label=3).labels == (3,)
    for jointly in (True, False):
        assert ki.erase_class(koopman, label=(4, 0), jointly=jointly, site=2).labels == (4, 0)


def test_the_drift_counts_the_rows_of_no_forgotten_class(fitted):
    koopman, train = fitted
    edit = ki.erase_class(koopman, label=[0, 1], site=2, held_out=train)
    assert edit.certificate.drift_rows == int((train.labels > 1).sum())
    bound = ki.erase_class(koopman, label=[0, 1], site=2)
    assert bound.certificate.drift_rows == 0
    assert bound.certificate.noise is None
    assert 0 < bound.certificate.feasibility <= 1


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([], "each once"),
        ([1, 1], "each once"),
        ([1, 9], "Class 9 does not occur"),
        (list(range(5)), "nothing to retain"),
    ],
)
def test_what_cannot_be_erased_is_said(fitted, labels, sentence):
    with pytest.raises(InputError, match=sentence):
        ki.erase_class(fitted[0], label=labels)
