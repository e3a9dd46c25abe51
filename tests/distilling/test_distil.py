"""Distillation lowers the divergence at the host's output, and changes nothing but the surrogate that it returns."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import koopman_interp as ki
from koopman_interp.errors import FitInterrupted, HostMismatchError, InputError, NonFiniteError
from koopman_interp.fitting.output import arrivals_of
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.observing.digests import input_digests
from koopman_interp.testing import yin_yang
from tests.hosts.lens_models import llama_bridge
from tests.interrupting import interrupted_at

QUICK = ki.DistilConfig(steps=30, evaluate_every=10)


def distil(trained, batches, config=QUICK, **options):
    model, koopman, fitted = trained
    return ki.distil(model, koopman, batches, config, fitted=fitted, progress=False, **options)


@pytest.fixture(scope="module")
def distilled(known, yin_yang_data):
    return distil(known, list(yin_yang_data[0].split(60)))


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


def test_it_comes_nearer_to_the_host_on_points_never_seen(known, distilled):
    model, surrogate, _ = known
    fresh = yin_yang(300, seed=9)[0]
    assert divergence(model, distilled, fresh) < 0.7 * divergence(model, surrogate, fresh)


def test_what_is_kept_is_the_best_look_at_the_inputs_that_the_fit_held_out(known, distilled, held_out):
    model, surrogate, _ = known
    history = distilled.record.distilled
    assert [look["step"] for look in history] == [0, 10, 20, 30]
    best = min(look["kl"] for look in history)
    assert best < history[0]["kl"]
    assert divergence(model, surrogate, held_out) == pytest.approx(history[0]["kl"], rel=1e-3)
    assert divergence(model, distilled, held_out) == pytest.approx(best, rel=1e-3)


def test_each_held_out_row_counts_the_same_whatever_its_batch(known, yin_yang_data, held_out):
    model, surrogate, _ = known
    points = list(yin_yang_data[0].split([5, 300, 95, 200]))
    once = distil(known, points, ki.DistilConfig(steps=1))
    assert once.record.distilled[0]["kl"] == pytest.approx(divergence(model, surrogate, held_out), rel=1e-3)
    assert not once.training


def test_distillations_follow_one_another_in_the_record(known, points):
    settings = ki.DistilConfig(steps=2)
    once = distil(known, points, settings)
    twice = distil((known[0], once, known[2]), points, settings)
    assert len(twice.record.distilled) == 4
    assert twice.record.distilled[:2] == once.record.distilled
    assert twice.record.history == known[1].record.history
    assert twice.record.seconds > once.record.seconds > known[1].record.seconds


# --- held out means held out -----------------------------------------------------------------------------------------


class Passes:
    """What a model was called with, with gradients (to train on) and without."""

    def __init__(self, model):
        self.trained, self.looked = [], []
        self.handle = model.register_forward_pre_hook(self.keep)

    def keep(self, _, args):
        (self.trained if torch.is_grad_enabled() else self.looked).append(input_digests(args[0]))


@pytest.mark.parametrize(("seed", "validation"), [(0, 0.1), (1, 0.05), (7, 0.3)])
@pytest.mark.parametrize("cut", ["batches", "uncut", "twice, shuffled"])
def test_no_input_that_the_fit_held_out_is_trained_on(fit, yin_yang_data, seed, validation, cut):
    trained = fit(ki.FitConfig(observables=14, seed=seed, validation=validation))
    model, koopman, fitted = trained
    x = yin_yang_data[0]
    again = torch.cat([x, x])[torch.randperm(1200, generator=torch.Generator().manual_seed(1))]
    batches = {"batches": list(x.split(60)), "uncut": x, "twice, shuffled": list(again.split(77))}[cut]
    # Enough steps for each batch; the seed of the distillation is the default, and so is its share.
    passes = Passes(model)
    try:
        found = distil(trained, batches, ki.DistilConfig(steps=16, evaluate_every=16, batch_size=50, depths=1))
    finally:
        passes.handle.remove()
    held_out = koopman.record.held_out
    assert len(held_out) == round(validation * 600)
    seen = torch.cat(passes.trained).unique()
    assert not torch.isin(seen, held_out).any()
    assert len(seen) == 600 - len(held_out)  # all the others are
    assert torch.isin(held_out, torch.cat(passes.looked)).all()
    # And the moments are gathered on the same sides as by the fit.
    side = koopman.is_held_out(fitted)
    assert torch.equal(found.is_held_out(fitted), side)
    for moments, rows in ((found.moments, fitted[~side]), (found.heldout_moments, fitted[side])):
        z = found.encode(rows.states[2], 2).double()
        assert moments.rows == len(rows)
        torch.testing.assert_close(moments.covariance[2], z.T.cov(correction=0), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(moments.mean[2, 1], z[rows.labels == 1].mean(0), rtol=1e-6, atol=1e-9)


def test_other_inputs_are_held_out_by_a_share_of_their_own(known):
    model, surrogate, _ = known
    fresh = yin_yang(100, seed=9)[0]
    passes = Passes(model)
    try:
        found = distil(known, fresh, ki.DistilConfig(steps=40, evaluate_every=40, validation=0.2, depths=1))
    finally:
        passes.handle.remove()
    seen = torch.cat(passes.trained).unique()
    assert len(seen) == 80
    judged = fresh[~torch.isin(input_digests(fresh), seen)]
    assert found.record.distilled[0]["kl"] == pytest.approx(divergence(model, surrogate, judged), rel=1e-3)
    assert torch.equal(found.record.held_out, surrogate.record.held_out)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_each_step_starts_from_depths_that_are_drawn(known, points, monkeypatch):
    drawn = []

    def watched(koopman):
        arrivals = arrivals_of(koopman)

        def arriving(own, depth):
            if torch.is_grad_enabled():
                drawn.append(depth)
            return arrivals(own, depth)

        return arriving

    monkeypatch.setattr("koopman_interp.distilling.distil.arrivals_of", watched)
    distil(known, points, ki.DistilConfig(steps=40, depths=2, evaluate_every=40))
    assert len(drawn) == 80
    assert set(zip(drawn[::2], drawn[1::2], strict=True)) == {(i, j) for i in range(4) for j in range(i + 1, 4)}


def test_the_losses_of_the_fit_stay_on_as_it_weighed_them(fit, points):
    def digest(trained, **weights):
        return distil(trained, points, ki.DistilConfig(steps=12, **weights)).digest()

    plain, without = (fit(ki.FitConfig(observables=14, **one)) for one in ({}, {"linearity": 0.0}))
    assert plain[1].digest() == without[1].digest()  # a solve has no weights
    assert digest(plain) != digest(without)
    assert digest(plain, states=0.0) == digest(without, states=0.0) != plain[1].digest()


def test_host_and_surrogate_are_left_as_they_were(known, points):
    model, surrogate, _ = known
    model.zero_grad(set_to_none=True)
    before = weight_digest(model), surrogate.digest(), surrogate.config, torch.get_rng_state().sum()
    distil(known, points, ki.DistilConfig(steps=2))
    assert before == (weight_digest(model), surrogate.digest(), surrogate.config, torch.get_rng_state().sum())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_same_call_gives_the_same_surrogate(known, points, distilled):
    again = distil(known, points)
    assert again.digest() == distilled.digest()
    assert not any(parameter.requires_grad for parameter in distilled.parameters())


@pytest.mark.parametrize("stop", [0, 7, 10, 29])
def test_a_resumed_distillation_is_bit_identical_to_one_never_interrupted(
    known, points, distilled, tmp_path, monkeypatch, stop
):
    path, mend = tmp_path / "kept.safetensors", interrupted_at(monkeypatch, stop)
    with pytest.raises(FitInterrupted, match=rf"{re.escape(str(path))} holds step {stop // 10 * 10}"):
        distil(known, points, checkpoint=path)
    mend()
    resumed = distil(known, points, checkpoint=path, resume=True)
    ours, theirs = resumed.state_dict(), distilled.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert resumed.record.distilled == distilled.record.distilled
    with pytest.raises(InputError, match="another call of distil: inputs differ"):
        distil(known, points[1:], checkpoint=path, resume=True)


def test_an_edit_of_the_new_surrogate_patches_and_is_kept(known, distilled, tmp_path):
    model, *_ = known
    distilled.save_pretrained(tmp_path)
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    assert loaded.config == distilled.config
    assert loaded.record.distilled == distilled.record.distilled
    edit = ki.erase_class(distilled, label=1)
    x = yin_yang(30, seed=2)[0]
    with torch.no_grad(), ki.patched(model, loaded, edit):
        patched = model(x)
    assert not torch.equal(patched, model(x))


def test_a_language_model_is_distilled_through_its_own_head():
    model = llama_bridge()
    with torch.no_grad():  # which says something of the token
        model.original_model.lm_head.weight *= 20
    ids = torch.randint(2, 90, (40, 8), generator=torch.Generator().manual_seed(1))
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    data = replace(data, digests=input_digests(ids)[data.sequence])
    koopman = ki.fit(data, ki.FitConfig(observables=16), method="least_squares")
    settings = ki.DistilConfig(steps=12, evaluate_every=6, depths=2)
    found = distil((model, koopman, data), ids, settings)
    first, *later = (look["kl"] for look in found.record.distilled)
    assert min(later) < first
    held_out = ids[torch.isin(input_digests(ids), koopman.record.held_out)]
    as_fitted = ki.compare_lenses(model, koopman, fitted=data, held_out=held_out).kl("Koopman lens")
    assert first == pytest.approx(np.mean(as_fitted), rel=1e-2)
    with pytest.raises(InputError, match=r"no samples to judge by.*skip=1"):
        distil((model, koopman, data), ids[:, :1], settings)
    lens = ki.koopman_lens(model, found, ids[:4])
    assert torch.equal(lens.top[-1, :, 0], model(ids[:4])[:, 1:].flatten(0, 1).argmax(1))


def test_inputs_without_samples_are_passed_over():
    model = llama_bridge()
    ids = torch.randint(2, 90, (40, 8), generator=torch.Generator().manual_seed(1))
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    digests = input_digests(ids)
    # One input held out has nothing past the first place, and so has every other batch to train on.
    data = replace(data, digests=digests[data.sequence])
    koopman = ki.fit(data, ki.FitConfig(observables=16), method="least_squares")
    koopman.record = replace(
        koopman.record, held_out=torch.cat([koopman.record.held_out, input_digests(ids[:1, :1])]).unique()
    )
    mixed = [part for row in ids.split(4) for part in (row, row[:, :1])]
    settings = ki.DistilConfig(steps=12, evaluate_every=12, depths=1)
    known = model, koopman, ki.Trajectories.concatenate([data, replace(data[:1], digests=input_digests(ids[:1, :1]))])
    history = distil(known, mixed, settings).record.distilled
    alone = distil((model, koopman, known[2]), ids, settings).record.distilled
    assert history[0]["kl"] == pytest.approx(alone[0]["kl"], rel=1e-5)
    assert history[1]["kl"] != history[0]["kl"]


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
        ("validation", 1.0),
    ],
)
def test_settings_that_make_no_sense_are_named(unchecked, name, value):
    with pytest.raises(InputError, match=name):
        ki.DistilConfig(**{name: value})


def test_inputs_that_leave_nothing_to_train_on_are_refused(known, points, held_out):
    with pytest.raises(InputError, match="got 1 in all"):
        distil(known, yin_yang(1, seed=9)[0])
    with pytest.raises(InputError, match="held out all 60 inputs"):
        distil(known, held_out)


def test_trajectories_other_than_those_of_the_fit_are_refused(known, points):
    model, surrogate, fitted = known
    with pytest.raises(InputError, match=r"not the trajectories .*sites or labels differ"):
        distil((model, surrogate, fitted[fitted.labels != 1]), points)
    with pytest.raises(InputError, match=r"not the trajectories .*\d+ of 60 inputs held out are among them"):
        distil((model, surrogate, fitted[:300]), points)


def test_strangers_are_refused(model, surrogate, trajectories, points):
    own = copy.deepcopy(model)
    with torch.no_grad():
        model.head.bias += 1
    others = ki.attach(model).observe(torch.cat(points), trajectories.labels, progress=False)
    with pytest.raises(HostMismatchError, match="set of trajectories"):
        distil((own, surrogate, others), points)
    with pytest.raises(HostMismatchError):
        distil((model, surrogate, trajectories), points)


def test_a_loss_that_diverges_is_told(known, points):
    wild = ki.DistilConfig(steps=40, learning_rate=1e30, clip=None)
    with pytest.raises(NonFiniteError, match="Lower learning_rate"):
        distil(known, points, wild)
