"""Distillation lowers the divergence at the host's output, and changes nothing but the surrogate that it returns."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import koopman_interp as ki
from koopman_interp.distilling import _koopman_loss
from koopman_interp.errors import HostMismatchError, InputError, NonFiniteError
from koopman_interp.hosts import host_for, weight_digest
from koopman_interp.tails import OwnPass
from koopman_interp.testing import yin_yang
from tests.hosts.lens_models import llama_bridge

QUICK = ki.DistilConfig(steps=30, evaluate_every=10)


@pytest.fixture
def points(yin_yang_data):
    return list(yin_yang_data[0].split(60))


@pytest.fixture(scope="module")
def distilled(trained, yin_yang_data):
    return ki.distil(*trained, list(yin_yang_data[0].split(60)), QUICK, progress=False)


def divergence(model, koopman, x):
    """Mean over depths of KL(host ‖ surrogate in place), in float64 by numpy."""
    W, b = (part.detach().double().numpy() for part in (model.head.weight, model.head.bias))
    states = ki.attach(model).observe(x, progress=False).states
    host = log_softmax(states[-1].double().numpy() @ W.T + b, axis=1)
    found = []
    for depth, state in enumerate(states[:-1]):
        logp = log_softmax(koopman.predict(state, depth).double().numpy() @ W.T + b, axis=1)
        found.append((np.exp(host) * (host - logp)).sum(1).mean())
    return np.mean(found)


def test_it_comes_nearer_to_the_host_on_points_never_seen(trained, distilled):
    model, surrogate, _ = trained
    fresh = yin_yang(300, seed=9)[0]
    assert divergence(model, distilled, fresh) < 0.7 * divergence(model, surrogate, fresh)


def test_what_is_kept_is_the_best_look(trained, distilled, points):
    model, *_ = trained
    history = distilled.config.distilled
    assert [look["step"] for look in history] == [0, 10, 20, 30]
    held_out = torch.cat([points[i] for i in torch.randperm(10, generator=torch.Generator().manual_seed(0))[:1]])
    best = min(look["kl"] for look in history)
    assert best < history[0]["kl"]
    assert divergence(model, distilled, held_out) == pytest.approx(best, rel=1e-3)


def test_host_and_surrogate_are_left_as_they_were(model, surrogate, trajectories, points):
    before = weight_digest(model), surrogate.digest(), surrogate.config, torch.get_rng_state().sum()
    ki.distil(model, surrogate, trajectories, points, ki.DistilConfig(steps=2), progress=False)
    assert before == (weight_digest(model), surrogate.digest(), surrogate.config, torch.get_rng_state().sum())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_same_call_gives_the_same_surrogate(trained, points, distilled):
    again = ki.distil(*trained, points, QUICK, progress=False)
    assert again.digest() == distilled.digest()
    assert not any(parameter.requires_grad for parameter in distilled.parameters())


def test_moments_are_those_of_the_new_observables(trained, distilled):
    train, held_out = trained[2].split(0.1)
    for moments, part in ((distilled.moments, train), (distilled.heldout_moments, held_out)):
        z = distilled.encode(part.states[2], 2).double()
        torch.testing.assert_close(moments.covariance[2], z.T.cov(correction=0), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(moments.mean[2, 1], z[part.labels == 1].mean(0), rtol=1e-6, atol=1e-9)


def test_an_edit_of_the_new_surrogate_patches_and_is_kept(trained, distilled, tmp_path):
    model, *_ = trained
    distilled.save_pretrained(tmp_path)
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    assert loaded.config == distilled.config
    edit = ki.erase_class(distilled, label=1)
    x = yin_yang(30, seed=2)[0]
    with torch.no_grad(), ki.patched(model, loaded, edit):
        patched = model(x)
    assert not torch.equal(patched, model(x))


def test_the_loss_is_that_of_a_slow_computation(model, surrogate, points):
    own = OwnPass.of(host_for(model), points[0], surrogate.sites, training=True)
    with torch.no_grad():
        ours = float(_koopman_loss(surrogate, own, [0, 2], torch.Generator().manual_seed(0), 0.3, 0.0))
    x = [surrogate.normalization.normalize(own.rows(depth), depth) for depth in range(5)]
    z = [surrogate.encoder(one) for one in x]
    K = surrogate.K
    advanced = {(i, j): z[i] @ torch.linalg.matrix_power(K, j - i).T for i in range(5) for j in range(i + 1, 5)}
    linearity = torch.stack([(advanced[i, j] - z[j]).square().mean() for i, j in advanced]).mean()
    reconstruction = torch.stack([(surrogate.decoder(a) - b).square().mean() for a, b in zip(z, x, strict=True)]).mean()
    prediction = torch.stack([(surrogate.decoder(advanced[i, 4]) - x[4]).square().mean() for i in range(4)]).mean()
    host = model(points[0]).double().log_softmax(1)
    divergences = []
    for depth in (0, 2):
        logp = model.head(surrogate.predict(own.rows(depth), depth)).double().log_softmax(1)
        divergences.append((host.exp() * (host - logp)).sum(1).mean())
    expected = torch.stack(divergences).mean() + 0.3 * (linearity + reconstruction + prediction)
    assert ours == pytest.approx(expected.item(), rel=1e-4)


def test_a_language_model_is_distilled_through_its_own_head():
    model = llama_bridge()
    with torch.no_grad():  # which says something of the token
        model.original_model.lm_head.weight *= 20
    ids = torch.randint(2, 90, (40, 8), generator=torch.Generator().manual_seed(1))
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=16), method="least_squares")
    settings = ki.DistilConfig(steps=12, evaluate_every=6, depths=2)
    found = ki.distil(model, koopman, data, ids, settings, skip=1, progress=False)
    first, *later = (look["kl"] for look in found.config.distilled)
    assert min(later) < first
    lens = ki.koopman_lens(model, found, ids[:4], skip=1)
    assert torch.equal(lens.top[-1, :, 0], model(ids[:4])[:, 1:].flatten(0, 1).argmax(1))


# --- affine lenses -----------------------------------------------------------------------------------------------


def test_a_tuned_lens_is_nearer_to_the_host_than_least_squares(trained, points):
    model, surrogate, trajectories = trained
    lens = ki.AffineLens.fit(trajectories)
    weights = copy.deepcopy(lens.maps[0].weight)
    settings = ki.DistilConfig(steps=60, learning_rate=1e-2)
    tuned = ki.tune(model, lens, surrogate.sites, points, settings, progress=False)
    fresh = yin_yang(300, seed=9)[0]
    found = ki.compare_lenses(model, surrogate, trajectories, fresh, others=[tuned])
    assert sum(found.kl(tuned.name)) < 0.9 * sum(found.kl(lens.name))
    assert found.parameters[tuned.name] == lens.parameters
    assert torch.equal(lens.maps[0].weight, weights)


def test_a_tuned_lens_has_a_site_for_each_depth(model, surrogate, trajectories, points):
    with pytest.raises(InputError, match="Expected 5 sites"):
        ki.tune(model, ki.AffineLens.fit(trajectories), surrogate.sites[1:], points)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("depths", 0),
        ("evaluate_every", 0),
        ("learning_rate", 0.0),
        ("operator_rate", float("nan")),
        ("clip", -1.0),
        ("states", -0.1),
        ("isometry_weight", float("inf")),
        ("validation", 1.0),
    ],
)
def test_settings_that_make_no_sense_are_named(name, value):
    with pytest.raises(InputError, match=name):
        ki.DistilConfig(**{name: value})


def test_one_batch_cannot_be_fitted_on_and_held_out(model, surrogate, trajectories, points):
    with pytest.raises(InputError, match="got 1 in all"):
        ki.distil(model, surrogate, trajectories, points[:1])


def test_strangers_are_refused(model, surrogate, trajectories, points):
    with pytest.raises(InputError, match="not those that the surrogate was fitted on"):
        ki.distil(model, surrogate, trajectories[trajectories.labels != 1], points)
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(HostMismatchError):
        ki.distil(model, surrogate, trajectories, points)


def test_a_loss_that_diverges_is_told(model, surrogate, trajectories, points):
    wild = ki.DistilConfig(steps=40, learning_rate=1e30, clip=None)
    with pytest.raises(NonFiniteError, match="Lower learning_rate"):
        ki.distil(model, surrogate, trajectories, points, wild, progress=False)
