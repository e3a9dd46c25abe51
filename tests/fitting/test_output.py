"""A fit with the model lowers the divergence at its output, on inputs to fit on alone, and is else the fit without."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import koopman_interp as ki
from koopman_interp.errors import FitInterrupted, HostMismatchError, InputError, UnsupportedHostError
from koopman_interp.fitting import output
from koopman_interp.fitting.inputs import PartedInputs
from koopman_interp.fitting.output import OutputObjective, arrivals_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.observing.digests import input_digests
from koopman_interp.testing import yin_yang
from tests.hosts.lens_models import llama_bridge
from tests.interrupting import interrupted_at

QUICK = ki.FitConfig(observables=14, hidden=(16,), steps=40, evaluate_every=10, batch_size=64, inputs=60)


@pytest.fixture(scope="module")
def known(trained, yin_yang_data):
    model, _, data = trained
    return model, data, yin_yang_data[0]


def fit(known, config=QUICK, **options):
    model, data, x = known
    return ki.fit(data, config, model=model, batches=x, progress=False, **options)


@pytest.fixture(scope="module")
def fitted(known):
    return fit(known)


def divergence(model, koopman, x, depths=range(4)):
    """Mean over depths of KL(host ‖ surrogate in place), in float64 by numpy."""
    W, b = (part.detach().double().numpy() for part in (model.head.weight, model.head.bias))
    states = ki.attach(model).observe(x, progress=False).states
    host = log_softmax(states[-1].double().numpy() @ W.T + b, axis=1)
    found = []
    for depth in depths:
        logp = log_softmax(koopman.predict(states[depth], depth).double().numpy() @ W.T + b, axis=1)
        found.append((np.exp(host) * (host - logp)).sum(1).mean())
    return np.mean(found)


def test_it_comes_nearer_to_what_the_model_says_than_a_fit_of_the_states(known, fitted):
    model, data, _ = known
    fresh = yin_yang(300, seed=9)[0]
    alone = ki.fit(data, QUICK, progress=False)
    assert divergence(model, fitted, fresh) < 0.8 * divergence(model, alone, fresh)


def test_a_weight_of_nothing_makes_it_the_fit_without_to_the_bit(known):
    _, data, _ = known
    config = replace(QUICK, divergence=0.0, steps=12)
    ours, alone = fit(known, config), ki.fit(data, config, progress=False)
    theirs = alone.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    assert [look["loss"] for look in ours.record.history] == [look["loss"] for look in alone.record.history]
    assert all(look["kl"] > 0 for look in ours.record.history)


def test_what_is_held_out_is_judged_by_and_never_called_with_to_train_on(known, fitted):
    model, _, x = known
    held_out = x[torch.isin(input_digests(x), fitted.record.held_out)]
    assert len(held_out) == 60
    trained_on, looked_at = [], []

    def keep(_, args):
        (trained_on if torch.is_grad_enabled() else looked_at).append(input_digests(args[0]))

    handle = model.register_forward_pre_hook(keep)
    try:
        again = fit(known)
    finally:
        handle.remove()
    assert again.digest() == fitted.digest()
    assert set(torch.cat(trained_on).tolist()) == set(input_digests(x).tolist()) - set(fitted.record.held_out.tolist())
    assert torch.isin(input_digests(held_out), torch.cat(looked_at)).all()
    best = min(fitted.record.history, key=lambda look: look["loss"])
    assert divergence(model, fitted, held_out) == pytest.approx(best["kl"], rel=1e-3)


def test_the_divergence_of_a_step_is_that_of_a_slow_computation(known, fitted):
    model, _, x = known
    inputs = PartedInputs.of([x[:60]], 0.1, 0)
    objective = OutputObjective(
        host_for(model), fitted.sites, 0, inputs, arrivals_of(fitted), starts=[1, 3], depths=None, seed=0
    )
    with torch.no_grad():
        ours, judged = float(objective(0, torch.Generator().manual_seed(0))), objective.judged()
    assert ours == pytest.approx(divergence(model, fitted, inputs.train[0], [1, 3]), rel=1e-4)
    assert judged == pytest.approx(divergence(model, fitted, inputs.held_out[0], [1, 3]), rel=1e-4)


def test_the_model_is_left_as_it_was(known):
    model = known[0]
    model.zero_grad(set_to_none=True)
    before = weight_digest(model), torch.get_rng_state().sum()
    fit(known, replace(QUICK, steps=2))
    assert before == (weight_digest(model), torch.get_rng_state().sum())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_passes_that_are_kept_change_no_bit(known, fitted, monkeypatch):
    monkeypatch.setattr(output, "_KEPT_BYTES", 0)
    assert fit(known).digest() == fitted.digest()


@pytest.mark.parametrize("stop", [7, 20, 39])
def test_a_resumed_fit_is_bit_identical_to_one_never_interrupted(known, fitted, tmp_path, monkeypatch, stop):
    path, mend = tmp_path / "kept.safetensors", interrupted_at(monkeypatch, stop)
    with pytest.raises(FitInterrupted, match=rf"{re.escape(str(path))} holds step {stop // 10 * 10}"):
        fit(known, checkpoint=path)
    mend()
    resumed, theirs = fit(known, checkpoint=path, resume=True), fitted.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.state_dict().items())
    assert resumed.record.history == fitted.record.history
    with pytest.raises(InputError, match="another call of fit: inputs differs"):
        fit((*known[:2], known[2][1:]), checkpoint=path, resume=True)
    with pytest.raises(InputError, match="another call of fit: inputs differs"):
        ki.fit(known[1], QUICK, checkpoint=path, resume=True)


def test_the_ends_alone_are_fitted_from_the_first_depth_alone(known, monkeypatch):
    starts = []

    class Watched(OutputObjective):
        def __init__(self, *args, **named):
            starts.append(list(named["starts"]))
            super().__init__(*args, **named)

    monkeypatch.setattr(output, "OutputObjective", Watched)
    fit(known, replace(QUICK, steps=1))
    fit(known, replace(QUICK, steps=1, pairs="endpoints"))
    assert starts == [[0, 1, 2, 3], [0]]


def test_time_and_the_schedule_end_it_as_they_end_a_fit_without(known):
    found = fit(known, replace(QUICK, steps=100_000, seconds=3.0))
    assert 0 < found.record.history[-1]["step"] < 100_000
    assert any("as many as the time allowed" in choice for choice in found.record.choices)


def test_it_says_how_many_inputs_a_step_it_took(known):
    found = fit(known, replace(QUICK, inputs=None, steps=1))
    assert any(choice.startswith("inputs a step 512") for choice in found.record.choices)
    ids = torch.randint(2, 90, (40, 8), generator=torch.Generator().manual_seed(1))
    model = llama_bridge()
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    config = ki.FitConfig(observables=16, steps=1)
    of_tokens = ki.fit(data, config, model=model, batches=ids, progress=False)
    assert any(
        choice.startswith(f"inputs a step {round(512 / (len(data) / 40))},") for choice in of_tokens.record.choices
    )


# --- bad input ---------------------------------------------------------------------------------------------------


def test_the_model_and_its_inputs_come_together(known):
    model, data, x = known
    for given in ({"model": model}, {"batches": x}):
        with pytest.raises(InputError, match=r"fit\(trajectories, model=model, batches=inputs\)"):
            ki.fit(data, QUICK, **given)
    with pytest.raises(InputError, match="gradient steps on K"):
        fit(known, method="least_squares")
    with pytest.raises(InputError, match="gradient steps on K"):
        fit(known, replace(QUICK, aim="spectrum"))


def test_strangers_are_refused(known):
    model, data, x = known
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(HostMismatchError, match="set of trajectories"):
        fit((other, data, x))
    with pytest.raises(InputError, match="None of the inputs is among those observed"):
        fit((model, data, yin_yang(50, seed=9)[0]))
    with pytest.raises(InputError, match="None of the inputs is among those observed"):
        fit((model, replace(data, digests=torch.arange(len(data))), x))  # which are of something else
    with pytest.raises(InputError, match="held out all 60 inputs"):
        held_out = torch.unique(data.split(QUICK.validation, seed=QUICK.seed)[1].digests)
        fit((model, data, x[torch.isin(input_digests(x), held_out)]))


def test_a_model_without_logits_is_refused(known):
    x = known[2]
    trunk = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = trunk

        def forward(self, x):
            return {"states": self.blocks(x)}

    odd = Odd().eval()
    data = ki.attach(odd, sites=["blocks.0", "blocks.1", "blocks.2"]).observe(x, progress=False)
    with pytest.raises(UnsupportedHostError, match="logits"):
        ki.fit(data, QUICK, model=odd, batches=x, progress=False)


@pytest.mark.parametrize(("name", "value"), [("divergence", -1.0), ("depths", 0), ("inputs", 0)])
def test_settings_that_make_no_sense_are_named(unchecked, name, value):
    with pytest.raises(InputError, match=name):
        ki.FitConfig(**{name: value})
