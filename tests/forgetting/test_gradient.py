"""An edit by gradient goes down its objective, touches nothing but K, and is patched as it was trained."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

import koopman_interp as ki
from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.forgetting.gradient import TrainableMap
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.patching.stepped_motion import SteppedMotion


@pytest.fixture(scope="module")
def x():
    return torch.rand(60, 4, generator=torch.Generator().manual_seed(7))


def away_from(x, label):
    """What is to become small: the probability of a class."""
    return lambda model: model(x).softmax(1)[:, label].mean()


def value(model, koopman, edit, objective, at="target"):
    with torch.no_grad(), ki.patched(model, koopman, edit, at=at):
        return float(objective(model))


def test_it_goes_down_and_the_patch_is_what_was_trained(model, surrogate, x):
    objective, seen = away_from(x, 1), []

    def watched(host):
        loss = objective(host)
        seen.append(float(loss.detach()))
        return loss

    edit = ki.gradient_edit(model, surrogate, watched, site=2, rank=2, steps=40, rate=0.1, progress=False)
    plain = float(objective(model).detach())
    assert seen[0] == pytest.approx(plain, abs=0.01)
    found = value(model, surrogate, edit, objective)
    assert found < seen[-1] + 1e-3
    assert found < 0.9 * plain
    assert (edit.rank, edit.depth, edit.labels) == (2, 2, ())
    assert edit.certificate.undo_error < 1e-10
    assert "40 gradient steps" in edit.description


@pytest.mark.parametrize("at", ["target", "each site"])
def test_no_step_is_the_start(model, surrogate, x, at):
    """The motion that is trained is the motion that is patched: without a step they give the same objective."""
    start = ki.each_site(surrogate, lambda site: ki.erase_class(surrogate, label=1, site=site), [1, 3])
    seen = []

    def objective(host):
        seen.append(host(x).square().mean())
        return seen[-1]

    edit = ki.gradient_edit(model, surrogate, objective, start=start, steps=1, rate=1e-9, at=at, progress=False)
    assert float(seen[0].detach()) == pytest.approx(value(model, surrogate, start, objective, at), rel=1e-5)
    assert isinstance(edit, ki.EditSet)
    assert [one.depth for one in edit] == [1, 3]


def test_the_gradient_is_that_of_finite_differences(model, surrogate, x):
    """In float64, along one random direction of the factors."""
    double, precise = copy.deepcopy(model).double(), copy.deepcopy(surrogate).double()
    rows = ki.attach(double).observe(x.double(), progress=False).states[1]
    edits = [ki.erase_class(surrogate, label=label, site=depth) for depth, label in ((1, 0), (3, 2))]
    trained = [TrainableMap(edit.map).double() for edit in edits]
    motion = SteppedMotion(precise, 1, 4, [(edit.depth, change) for edit, change in zip(edits, trained, strict=True)])
    parameters = [p for one in trained for p in one.parameters()]
    slopes = torch.autograd.grad(motion(rows).square().mean(), parameters)
    generator = torch.Generator().manual_seed(0)
    step = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, along in zip(parameters, step, strict=True):
                parameter += sign * 1e-5 * along
            values.append(float(motion(rows).square().mean()))
    expected = sum(float((slope * along).sum()) for slope, along in zip(slopes, step, strict=True))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-5)


def test_a_random_start_reads_in_standard_deviations_about_the_mean(model, surrogate, x):
    def made(seed):
        return ki.gradient_edit(
            model, surrogate, away_from(x, 1), site=2, rank=3, steps=1, rate=1e-9, seed=seed, progress=False
        )

    edit, moments = made(0), surrogate.moments
    assert torch.equal(edit.readers, made(0).readers)
    assert not torch.allclose(edit.readers, made(1).readers)
    variance = (edit.readers.T @ moments.covariance[2] @ edit.readers).diagonal()
    torch.testing.assert_close(variance, torch.ones(3).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(moments.total_mean(2) @ edit.readers, edit.offset, rtol=1e-4, atol=1e-4)


def test_a_step_is_as_large_as_the_factor(model, surrogate, x):
    """Adam's first step moves every entry that has a slope by its learning rate."""
    start = ki.erase_class(surrogate, label=1, site=2, strength=50.0)
    edit = ki.gradient_edit(model, surrogate, away_from(x, 1), start=start, steps=1, rate=0.01, progress=False)
    size = float(start.directions.square().mean().sqrt())
    assert size > 1
    assert float((edit.directions - start.directions).abs().max()) == pytest.approx(0.01 * size, rel=1e-2)


def test_nothing_but_the_edit_changes(model, surrogate, x):
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    start = ki.erase_class(surrogate, label=1, site=2)
    kept, digest, koopman = start.directions.clone(), weight_digest(model), surrogate.digest()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    edit = ki.gradient_edit(model, surrogate, away_from(x, 0), start=start, steps=3, progress=False)
    assert edit.labels == start.labels == (1,)
    assert torch.equal(start.directions, kept)
    assert not torch.equal(edit.directions, kept)
    assert (weight_digest(model), surrogate.digest()) == (digest, koopman)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert edit.operator == koopman


def test_its_certificate_counts_the_classes_that_its_start_does_not_forget(model, surrogate, x):
    start = ki.erase_class(surrogate, label=1, site=2)
    edit = ki.gradient_edit(model, surrogate, away_from(x, 1), start=start, steps=2, progress=False)
    means, covariance = surrogate.heldout_moments.mean[2], surrogate.heldout_moments.covariance[2]
    moved = (edit(means) - means).norm(dim=1) / covariance.trace().sqrt()
    assert edit.certificate.class_mean_drift == pytest.approx(float(moved[[0, 2]].max()))
    assert moved.argmax() == 1


def test_it_can_mend_what_an_eraser_broke(model, surrogate, yin_yang_data):
    """Two terms: the class away, and the host's own answers elsewhere; it keeps more of them than its start."""
    points, labels = yin_yang_data
    with torch.no_grad():
        own = model(points).softmax(1)
    gone = labels == 2
    start = ki.erase_class(surrogate, label=2, site=1, strength=3.0)

    def kept(host):
        return cross_entropy(host(points[~gone]), own[~gone])

    edit = ki.gradient_edit(model, surrogate, kept, start=start, steps=30, rate=0.05, progress=False)
    assert value(model, surrogate, edit, kept) < value(model, surrogate, start, kept)


@pytest.mark.parametrize(
    ("objective", "error", "sentence"),
    [
        (lambda host: host(torch.rand(3, 4)), InputError, "must return a scalar tensor"),
        (lambda host: 0.5, InputError, "must return a scalar tensor; got float"),
        (lambda host: torch.zeros(()), InputError, "does not depend on the edit"),
        (lambda host: host(torch.rand(3, 4)).sum() * torch.inf, NonFiniteError, "at step 0"),
    ],
)
def test_an_objective_that_leads_nowhere_is_refused(model, surrogate, objective, error, sentence, unchecked):
    with pytest.raises(error, match=sentence):
        ki.gradient_edit(model, surrogate, objective, steps=2, progress=False)


def test_a_start_without_a_slope_and_a_rank_that_is_none_are_refused(model, surrogate, x):
    still = ki.erase_class(surrogate, label=1, strength=0.0)
    with pytest.raises(InputError, match="no slope to start from"):
        ki.gradient_edit(model, surrogate, away_from(x, 0), start=still, progress=False)
    with pytest.raises(InputError, match="between 1 and the 14"):
        ki.gradient_edit(model, surrogate, away_from(x, 0), rank=15, progress=False)
