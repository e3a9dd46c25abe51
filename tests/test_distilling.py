"""Distillation lowers the divergence at the host's output, and changes nothing but the surrogate that it returns."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import koopman_interp as ki
from koopman_interp.distilling import _Descent, _koopman_loss
from koopman_interp.errors import HostMismatchError, InputError, NonFiniteError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.observing.own_pass import OwnPass
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


def test_each_held_out_row_counts_the_same_whatever_its_batch(trained, yin_yang_data):
    model, surrogate, data = trained
    points = list(yin_yang_data[0].split([5, 300, 95, 200]))
    settings = ki.DistilConfig(steps=1, validation=0.5)
    once = ki.distil(model, surrogate, data, points, settings, progress=False)
    held_out = torch.cat([points[i] for i in torch.randperm(4, generator=torch.Generator().manual_seed(0))[:2]])
    assert once.config.distilled[0]["kl"] == pytest.approx(divergence(model, surrogate, held_out), rel=1e-3)
    twice = ki.distil(model, once, data, points, settings, progress=False)
    assert twice.config.distilled[:2] == once.config.distilled
    assert not once.training


def test_a_step_is_adamws_at_a_rate_that_rises_and_falls_as_a_cosine(model, points):
    settings = ki.DistilConfig(steps=40, learning_rate=0.02, weight_decay=0.3, depths=2, evaluate_every=40)
    host = host_for(model)
    fast, slow = (torch.ones((), requires_grad=True) for _ in range(2))
    descent = _Descent(host, host.sites(), [([fast], 1.0), ([slow], 0.1)], settings, 0)
    seen, drawn, factors = [], [], iter(10.0 ** (torch.arange(40) % 5))

    def objective(own, depths, _):
        seen.append(own.batch)
        drawn.append(tuple(depths))
        return next(factors) * (fast + 2 * slow)

    descent.run(points, objective, lambda own: fast.detach(), progress=False)
    # Clipped, each gradient is the same at all steps; AdamW then moves a parameter by its rate, whatever its gradient.
    expected = [1.0, 1.0]
    for step in range(40):
        rate = (step + 1) / 2 if step < 2 else (1 + np.cos(np.pi * (step - 2) / 38)) / 2
        for index, peak in enumerate((0.02, 0.002)):
            expected[index] -= peak * rate * (1 + 0.3 * expected[index])
    assert [float(fast.detach()), float(slow.detach())] == pytest.approx(expected, rel=1e-4)
    # One batch of ten is held out; the nine others are each seen once before any is seen again.
    numbers = [next(i for i, one in enumerate(points) if torch.equal(one, batch)) for batch in seen]
    assert [len(set(numbers[start : start + 9])) for start in range(0, 36, 9)] == [9] * 4
    assert len(set(numbers)) == 9
    assert set(drawn) == {(i, j) for i in range(4) for j in range(i + 1, 4)}


def test_the_weights_of_the_losses_are_those_of_the_config(trained, points):
    def digest(**weights):
        return ki.distil(*trained, points, ki.DistilConfig(steps=3, **weights), progress=False).digest()

    found = {name: digest(**{name: 0.0}) for name in ("states", "isometry_weight")} | {"neither": digest()}
    assert len({*found.values(), trained[1].digest()}) == 4
    assert digest(isometry_weight=1 / trained[1].config.dimension) == found["neither"]


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
        ours = float(_koopman_loss(surrogate, own, [0, 2], torch.Generator().manual_seed(0), 0.3, 0.7))
    x = [surrogate.normalization.normalize(own.rows(depth), depth) for depth in range(5)]
    z = [surrogate.encoder(one) for one in x]
    K = surrogate.K
    advanced = {(i, j): z[i] @ torch.linalg.matrix_power(K, j - i).T for i in range(5) for j in range(i + 1, 5)}
    linearity = torch.stack([(advanced[i, j] - z[j]).square().mean() for i, j in advanced]).mean()
    reconstruction = torch.stack([(surrogate.decoder(a) - b).square().mean() for a, b in zip(z, x, strict=True)]).mean()
    prediction = torch.stack([(surrogate.decoder(advanced[i, 4]) - x[4]).square().mean() for i in range(4)]).mean()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    pairs = zip(order, [order[-1], *order[:-1]], strict=True)
    ratios = [[(a[i] - a[j]).norm() - (b[i] - b[j]).norm() for a, b in zip(z, x, strict=True)] for i, j in pairs]
    isometry = torch.tensor(ratios).square().mean()
    host = model(points[0]).double().log_softmax(1)
    divergences = []
    for depth in (0, 2):
        logp = model.head(surrogate.predict(own.rows(depth), depth)).double().log_softmax(1)
        divergences.append((host.exp() * (host - logp)).sum(1).mean())
    expected = torch.stack(divergences).mean() + 0.3 * (linearity + reconstruction + prediction) + 0.7 * isometry
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
    held_out = ids.split(4)[int(torch.randperm(10, generator=torch.Generator().manual_seed(0))[0])]
    as_fitted = ki.compare_lenses(model, koopman, held_out=held_out, fitted=data).kl("Koopman lens")
    assert first == pytest.approx(np.mean(as_fitted), rel=1e-2)
    with pytest.raises(InputError, match=r"no samples to learn from.*skip=8"):
        ki.distil(model, koopman, data, ids, settings, skip=8, progress=False)
    lens = ki.koopman_lens(model, found, ids[:4])
    assert torch.equal(lens.top[-1, :, 0], model(ids[:4])[:, 1:].flatten(0, 1).argmax(1))


# --- affine lenses -----------------------------------------------------------------------------------------------


def test_a_tuned_lens_is_nearer_to_the_host_than_least_squares(trained, points):
    model, surrogate, trajectories = trained
    lens = ki.AffineLens.fit(trajectories)
    weights = copy.deepcopy(lens.maps[0].weight)
    settings = ki.DistilConfig(steps=60, learning_rate=1e-2)
    tuned = ki.tune(model, lens, surrogate.sites, points, settings, progress=False)
    fresh = yin_yang(300, seed=9)[0]
    found = ki.compare_lenses(model, surrogate, held_out=fresh, fitted=trajectories, others=[tuned])
    assert sum(found.kl(tuned.name)) < 0.9 * sum(found.kl(lens.name))
    assert found.parameters[tuned.name] == lens.parameters
    assert torch.equal(lens.maps[0].weight, weights)


def test_a_tuned_lens_has_a_site_for_each_depth(model, surrogate, trajectories, points):
    with pytest.raises(InputError, match="Expected 5 sites"):
        ki.tune(model, ki.AffineLens.fit(trajectories), surrogate.sites[1:], points)
    with pytest.raises(InputError, match="in order of depth"):
        ki.tune(model, ki.AffineLens.fit(trajectories), surrogate.sites[::-1], points)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
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
def test_settings_that_make_no_sense_are_named(unchecked, name, value):
    with pytest.raises(InputError, match=name):
        ki.DistilConfig(**{name: value})


def test_one_batch_cannot_be_fitted_on_and_held_out(model, surrogate, trajectories, points):
    with pytest.raises(InputError, match="got 1 in all"):
        ki.distil(model, surrogate, trajectories, points[:1])


def test_strangers_are_refused(model, surrogate, trajectories, points):
    with pytest.raises(InputError, match="not those that the surrogate was fitted on"):
        ki.distil(model, surrogate, trajectories[trajectories.labels != 1], points)
    own = copy.deepcopy(model)
    with torch.no_grad():
        model.head.bias += 1
    others = ki.attach(model).observe(torch.cat(points), trajectories.labels, progress=False)
    with pytest.raises(HostMismatchError, match="set of trajectories"):
        ki.distil(own, surrogate, others, points)
    with pytest.raises(HostMismatchError):
        ki.distil(model, surrogate, trajectories, points)


def test_a_loss_that_diverges_is_told(model, surrogate, trajectories, points):
    wild = ki.DistilConfig(steps=40, learning_rate=1e30, clip=None)
    with pytest.raises(NonFiniteError, match="Lower learning_rate"):
        ki.distil(model, surrogate, trajectories, points, wild, progress=False)
