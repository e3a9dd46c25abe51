"""A fit recovers what is known, repeats itself bit for bit, and survives being killed."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, FitInterrupted, InputError, NonFiniteError
from koopman_interp.files import write_tensors
from koopman_interp.fitting.descent import Descent
from koopman_interp.surrogates.operators import OPERATORS
from koopman_interp.testing import LinearHost
from tests.interrupting import interrupted_at
from tests.naming import named

PLAIN = ki.NormalizationConfig(scale="common")


def same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def known_operator(size=6, seed=0):
    """Two rotations and two real decays, in a basis that is not orthogonal."""
    draw = np.random.default_rng(seed)
    turns = [r * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for r, a in ((0.95, 0.4), (0.8, 1.1))]
    basis = np.eye(size) + 0.2 * draw.normal(size=(size, size))
    return torch.from_numpy(basis @ block_diag(*turns, 0.9, 0.6) @ np.linalg.inv(basis)).float()


def linear_trajectories(K, samples=400, blocks=3, **arguments):
    host = LinearHost(K, blocks).eval()
    x = torch.randn(samples, len(K), generator=torch.Generator().manual_seed(1))
    return ki.attach(host, **arguments).observe(x, progress=False)


def eigenvalues(K):
    return np.sort_complex(np.linalg.eigvals(K.double().numpy()))


# --- what is known is recovered -----------------------------------------------------------------------------


def test_least_squares_recovers_a_known_operator():
    K = known_operator()
    data = linear_trajectories(K)
    config = ki.FitConfig(observables=6, normalization=PLAIN, ridge=0.0)
    fitted = ki.fit(data, config, method="least_squares")
    np.testing.assert_allclose(eigenvalues(fitted.K), eigenvalues(K), atol=1e-4)
    _, forward, inverse = fitted.normalization.maps(0)
    torch.testing.assert_close(inverse.T @ fitted.K @ forward.T, K, rtol=0, atol=1e-4)
    torch.testing.assert_close(fitted.predict(data.states[0]), data.states[-1], rtol=1e-3, atol=1e-3)


def test_least_squares_with_more_observables_still_holds_the_known_eigenvalues():
    K = known_operator()
    fitted = ki.fit(linear_trajectories(K), ki.FitConfig(normalization=PLAIN), method="least_squares")
    found = eigenvalues(fitted.K)
    assert len(found) == fitted.config.observables > 64
    for value in eigenvalues(K):
        assert np.abs(found - value).min() < 1e-3


def test_least_squares_takes_the_root_over_several_steps():
    K = known_operator()
    # Only the ends are seen, three steps apart; all angles are small enough for the principal root.
    data = linear_trajectories(K, sites=["blocks.0:input", "blocks.1"], times=[0.0, 2.0])
    fitted = ki.fit(data, ki.FitConfig(observables=6, normalization=PLAIN, ridge=0.0), method="least_squares")
    np.testing.assert_allclose(eigenvalues(fitted.K), eigenvalues(K), atol=1e-4)


def test_the_warm_start_alone_recovers_the_eigenvalues():
    K = known_operator()
    config = ki.FitConfig(observables=6, normalization=PLAIN, ridge=0.0, steps=1, learning_rate=1e-9, hidden=())
    fitted = ki.fit(linear_trajectories(K), config, progress=False)
    # The encoder is linear here, so K is the known one in other coordinates.
    np.testing.assert_allclose(eigenvalues(fitted.K), eigenvalues(K), atol=1e-3)


def test_fewer_observables_keep_the_leading_components():
    K = torch.diag(torch.tensor([0.99, 0.98, 1e-3, 1e-3, 1e-3, 1e-3]))
    data = linear_trajectories(K, sites=["blocks.0", "blocks.1", "blocks.2"])
    fitted = ki.fit(data, ki.FitConfig(observables=2, normalization=PLAIN, ridge=0.0), method="least_squares")
    np.testing.assert_allclose(eigenvalues(fitted.K), [0.98, 0.99], atol=1e-3)


# --- every way to fit ---------------------------------------------------------------------------------------


WAYS = [
    *({"operator": kind} for kind in OPERATORS),
    *({"operator": kind, "warm_start": False} for kind in OPERATORS),
    {"architecture": "mlp"},
    {"architecture": "mlp", "operator": "blocks"},
    {"pairs": "endpoints"},
    {"isometry": "all_pairs"},
    {"isometry": "chords"},
    {"isometry_weight": 0.0},
    {"schedule": "cyclic", "cycle": 6},
    {"schedule": "constant"},
    {"observables": 4},
    {"hidden": ()},
    {"hidden": (9, 8)},
    {"normalization": ki.NormalizationConfig(dimension=5, whiten=0.5)},
]


@pytest.mark.parametrize("settings", WAYS, ids=named)
def test_a_hundred_steps_lower_the_loss(trajectories, settings):
    config = ki.FitConfig(**({"observables": 12, "hidden": (12,), "rank": 4} | settings), steps=100, evaluate_every=100)
    fitted = ki.fit(trajectories, config, progress=False)
    first, last = fitted.record.history[0], fitted.record.history[-1]
    assert (first["step"], last["step"]) == (0, 100)
    assert last["loss"] < first["loss"]
    assert all(torch.isfinite(tensor).all() for tensor in fitted.state_dict().values())
    assert not fitted.training
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


@pytest.mark.parametrize("kind", [kind for kind, cls in OPERATORS.items() if cls.fractional])
@pytest.mark.parametrize("warm_start", [True, False])
def test_times_may_lie_parts_of_a_step_apart(trajectories, kind, warm_start):
    between = replace(trajectories, times=(0.0, 0.5, 1.0, 1.5, 3.0))
    config = ki.FitConfig(
        operator=kind,
        rank=4,
        observables=12,
        hidden=(12,),
        steps=20,
        evaluate_every=20,
        warm_start=warm_start,
        ridge=1e-2,
        seed=2 if kind == "blocks" else 0,  # so that the start has a real half power
    )
    fitted = ki.fit(between, config, progress=False)
    assert fitted.record.history[-1]["loss"] < fitted.record.history[0]["loss"]


def test_parts_of_a_step_are_refused_where_the_operator_has_none(trajectories):
    between = replace(trajectories, times=(0.0, 0.5, 1.0, 1.5, 2.0))
    with pytest.raises(InputError, match="whole powers only"):
        ki.fit(between, ki.FitConfig(steps=2), progress=False)


def test_endpoints_look_at_nothing_between(trajectories, quick_config):
    config = replace(
        quick_config,
        steps=5,
        pairs="endpoints",
        normalization=ki.NormalizationConfig(basis="per depth", scale="per depth"),
        warm_start=False,
    )
    spoilt = list(trajectories.states)
    spoilt[2] = spoilt[2].flip(0) * 3
    first, second = (
        ki.fit(data, config, progress=False) for data in (trajectories, replace(trajectories, states=tuple(spoilt)))
    )
    for part in ("encoder", "operator", "decoder"):
        assert same_weights(getattr(first, part), getattr(second, part))


def test_a_blocks_start_predicts_as_the_schur_form_does(trajectories):
    # Turning encoder and decoder with K must not change what they say together.
    dense, blocks = (
        ki.fit(trajectories, ki.FitConfig(operator=kind, steps=1, learning_rate=1e-12), progress=False)
        for kind in ("dense", "blocks")
    )
    rows = trajectories.states[0]
    torch.testing.assert_close(
        blocks.decode(blocks.encode(rows, 0), 0), dense.decode(dense.encode(rows, 0), 0), rtol=1e-3, atol=1e-3
    )


def test_moments_are_those_of_the_rows_fitted_and_held_out(surrogate, trajectories, quick_config):
    fitted, held_out = trajectories.split(quick_config.validation, seed=quick_config.seed)
    assert len(held_out) == 60
    for moments, part in ((surrogate.moments, fitted), (surrogate.heldout_moments, held_out)):
        assert moments.rows == len(part)
        z = surrogate.encode(part.states[2], 2).double()
        torch.testing.assert_close(moments.total_mean(2), z.mean(0), rtol=1e-5, atol=1e-5)
        for index, label in enumerate(trajectories.classes):
            torch.testing.assert_close(moments.mean[2, index], z[part.labels == label].mean(0), rtol=1e-5, atol=1e-5)
    assert surrogate.config.classes == (0, 1, 2)


# --- chosen from what is seen -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradient", "least_squares"])
def test_a_linear_host_gives_its_eigenvalues_unasked(method):
    # Once the growth that the scale took out is put back.
    K = known_operator()
    fitted = ki.fit(linear_trajectories(K, blocks=5), method=method, progress=False)
    found = fitted.config.coordinates.growth * eigenvalues(fitted.K)
    for value in eigenvalues(K):
        assert np.abs(found - value).min() < 1e-3


def test_the_numerical_rank_of_linear_maps_is_that_of_the_states():
    fitted = ki.fit(linear_trajectories(known_operator()), progress=False)
    assert fitted.record.history[-1]["step"] == 0
    assert "numerical rank 6 of 64 observables" in str(fitted.record)


def test_what_was_not_asked_for_is_said_with_its_reason(trajectories):
    unasked = ki.fit(trajectories, ki.FitConfig(steps=2), progress=False)
    said = str(unasked.record)
    for word in ("coordinates: ", "observables 64: ", "hidden 128: ", "batch size 256: ", "steps 2: ", "K: "):
        assert word in said
    assert (unasked.config.observables, unasked.config.hidden) == (64, (128,))
    asked = ki.fit(trajectories, ki.FitConfig(steps=2, observables=5, hidden=(7,), batch_size=32), progress=False)
    assert not any(word in str(asked.record) for word in ("observables 5: ", "hidden 7: ", "batch size"))


def test_few_rows_have_few_observables(trajectories):
    few = trajectories[:40]
    fitted = ki.fit(few, ki.FitConfig(steps=2), progress=False)
    assert fitted.config.observables == 36 * 4 // 10


def test_a_fit_for_the_spectrum_solves_k_on_the_rows_fitted(trajectories, quick_config):
    config = replace(quick_config, aim="spectrum", activation="gelu")
    fitted = ki.fit(trajectories, config, progress=False)
    assert fitted.config.activation == "gelu"
    train, _ = trajectories.split(config.validation, seed=config.seed)
    z = torch.stack([fitted.encode(state, depth).double() for depth, state in enumerate(train.states)])
    before, after = z[:-1].flatten(0, 1), z[1:].flatten(0, 1)
    expected = torch.linalg.lstsq(before, after).solution.T
    assert float((before @ (expected - fitted.K.double()).T).square().mean()) < 1e-4 * float(after.square().mean())
    with pytest.raises(InputError, match="dense"):
        ki.FitConfig(aim="spectrum", operator="blocks")
    with pytest.raises(InputError, match="equally far apart"):
        ki.fit(replace(trajectories, times=(0.0, 1.0, 2.0, 3.0, 5.0)), config, progress=False)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_fit_needs_no_gradients_of_the_caller(yin_yang_data, model, quick_config, context):
    points, labels = yin_yang_data
    config = replace(quick_config, steps=3)
    plain = ki.fit(ki.attach(model).observe(points, labels, progress=False), config, progress=False)
    with context():
        within = ki.fit(ki.attach(model).observe(points, labels, progress=False), config, progress=False)
    assert same_weights(within, plain)


def test_a_fit_ends_within_its_time(trajectories, quick_config):
    config = replace(quick_config, steps=10**6, seconds=1.0, patience=None)
    fitted = ki.fit(trajectories, config, progress=False)
    assert 20 < fitted.record.history[-1]["step"] < 10**6
    assert "as many as the time allowed" in str(fitted.record)
    assert fitted.record.seconds < 10


# --- the same again -----------------------------------------------------------------------------------------


def test_a_seed_fixes_every_weight(trajectories, quick_config, surrogate):
    torch.manual_seed(123)
    again = ki.fit(trajectories, quick_config, progress=False)
    assert same_weights(again, surrogate)
    assert again.config == surrogate.config
    assert again.record.history == surrogate.record.history
    other = ki.fit(trajectories, replace(quick_config, seed=1), progress=False)
    assert not same_weights(other, surrogate)


@pytest.mark.parametrize("method", ["gradient", "least_squares"])
def test_the_random_states_of_the_caller_are_untouched(trajectories, quick_config, method):
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    ki.fit(trajectories, replace(quick_config, steps=3), method=method, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()


def test_the_trajectories_are_untouched(trajectories, quick_config):
    before = [state.clone() for state in trajectories.states]
    ki.fit(trajectories, replace(quick_config, steps=3), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(trajectories.states, before, strict=True))


@pytest.mark.parametrize(
    ("stop", "settings"),
    [*((stop, {}) for stop in (0, 3, 20, 21, 47, 59)), (47, {"operator": "blocks", "isometry": "chords"})],
    ids=named,
)
def test_a_resumed_fit_is_bit_identical_to_one_never_interrupted(
    trajectories, quick_config, surrogate, tmp_path, monkeypatch, stop, settings
):
    config = replace(quick_config, **settings)
    whole = ki.fit(trajectories, config, progress=False) if settings else surrogate
    path = tmp_path / "kept.safetensors"
    mend = interrupted_at(monkeypatch, stop)
    with pytest.raises(FitInterrupted, match=re.escape(str(path))) as caught:
        ki.fit(trajectories, config, checkpoint=path, progress=False)
    assert f"holds step {stop // 20 * 20}" in str(caught.value)
    assert "resume=True" in str(caught.value)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert not isinstance(caught.value, Exception)
    mend()
    resumed = ki.fit(trajectories, config, checkpoint=path, resume=True, progress=False)
    assert same_weights(resumed, whole)
    assert resumed.config == whole.config
    assert resumed.record.history == whole.record.history
    assert list(tmp_path.iterdir()) == [path]


def test_a_fit_may_be_interrupted_twice(trajectories, quick_config, surrogate, tmp_path, monkeypatch):
    path = tmp_path / "kept.safetensors"
    for stop in (25, 45):
        mend = interrupted_at(monkeypatch, stop)
        with pytest.raises(FitInterrupted):
            ki.fit(trajectories, quick_config, checkpoint=path, resume=stop > 25, progress=False)
        mend()
    assert same_weights(ki.fit(trajectories, quick_config, checkpoint=path, resume=True, progress=False), surrogate)


def test_auto_begins_where_there_is_no_checkpoint_and_goes_on_where_there_is(
    trajectories, quick_config, surrogate, tmp_path, monkeypatch
):
    path = tmp_path / "kept.safetensors"
    mend = interrupted_at(monkeypatch, 45)
    with pytest.raises(FitInterrupted):
        ki.fit(trajectories, quick_config, checkpoint=path, resume="auto", progress=False)
    mend()
    taken = []
    descend = Descent._descend
    monkeypatch.setattr(Descent, "_descend", lambda self, step: (taken.append(step), descend(self, step))[1])
    assert same_weights(ki.fit(trajectories, quick_config, checkpoint=path, resume="auto", progress=False), surrogate)
    assert taken == list(range(40, 60))


def test_resuming_a_finished_fit_gives_it_again(trajectories, quick_config, surrogate, tmp_path):
    path = tmp_path / "kept.safetensors"
    first = ki.fit(trajectories, quick_config, checkpoint=path, progress=False)
    assert same_weights(first, surrogate)  # keeping checkpoints changes nothing
    assert same_weights(ki.fit(trajectories, quick_config, checkpoint=path, resume=True, progress=False), surrogate)


def test_early_stopping_is_resumed_too(trajectories, quick_config, tmp_path, monkeypatch):
    # A learning rate at which the loss soon rises, so that patience ends the fit.
    config = replace(quick_config, learning_rate=0.3, schedule="constant", steps=400, evaluate_every=4, patience=3)
    whole = ki.fit(trajectories, config, progress=False)
    last = int(whole.record.history[-1]["step"])
    assert last < 400
    best = min(figures["loss"] for figures in whole.record.history)
    assert whole.record.history[-4]["loss"] == best
    mend = interrupted_at(monkeypatch, last - 2)
    path = tmp_path / "kept.safetensors"
    with pytest.raises(FitInterrupted):
        ki.fit(trajectories, config, checkpoint=path, progress=False)
    mend()
    assert same_weights(ki.fit(trajectories, config, checkpoint=path, resume=True, progress=False), whole)


def test_resuming_before_the_first_step_costs_no_patience(trajectories, quick_config, tmp_path, monkeypatch):
    config = replace(quick_config, patience=1, steps=40)
    whole = ki.fit(trajectories, config, progress=False)
    assert len(whole.record.history) > 1
    mend = interrupted_at(monkeypatch, 0)
    path = tmp_path / "kept.safetensors"
    with pytest.raises(FitInterrupted):
        ki.fit(trajectories, config, checkpoint=path, progress=False)
    mend()
    assert same_weights(ki.fit(trajectories, config, checkpoint=path, resume=True, progress=False), whole)


def test_an_interrupt_without_checkpoint_says_that_nothing_was_kept(trajectories, quick_config, monkeypatch):
    interrupted_at(monkeypatch, 7)
    with pytest.raises(FitInterrupted, match=r"step 7 of 60; nothing was kept.*checkpoint=path"):
        ki.fit(trajectories, quick_config, progress=False)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(trajectories, quick_config, tmp_path):
    path = tmp_path / "kept.safetensors"
    ki.fit(trajectories, replace(quick_config, steps=2), checkpoint=path, progress=False)
    return path


def test_a_checkpoint_is_not_overwritten_unasked(trajectories, quick_config, checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match="resume=True, or delete it"):
        ki.fit(trajectories, replace(quick_config, steps=2), checkpoint=checkpoint, progress=False)
    assert checkpoint.read_bytes() == before


CHANGES = [
    {"seed": 3},
    {"learning_rate": 4e-3},
    {"operator": "generator"},
    {"observables": 13},
    {"hidden": None},
    {"validation": 0.2},
    {"normalization": ki.NormalizationConfig(whiten=0.1)},
]


@pytest.mark.parametrize("change", CHANGES, ids=named)
def test_a_checkpoint_of_other_settings_is_refused_by_name(trajectories, quick_config, checkpoint, change):
    config = replace(quick_config, **({"steps": 2} | change))
    with pytest.raises(InputError, match=f"another call of fit: {next(iter(change))}"):
        ki.fit(trajectories, config, checkpoint=checkpoint, resume=True, progress=False)


def test_no_hidden_layer_is_not_the_default_of_one(trajectories, quick_config, tmp_path):
    path = tmp_path / "kept.safetensors"
    config = replace(quick_config, steps=2, hidden=())
    ki.fit(trajectories, config, checkpoint=path, progress=False)
    with pytest.raises(InputError, match="another call of fit"):
        ki.fit(trajectories, replace(config, hidden=None), checkpoint=path, resume=True, progress=False)


def test_a_checkpoint_of_other_trajectories_is_refused(trajectories, quick_config, checkpoint):
    config = replace(quick_config, steps=2)
    others = {
        "host": replace(trajectories, host=replace(trajectories.host, weights="f" * 32)),
        "sites": replace(trajectories, sites=("0", *trajectories.sites[1:])),
        "rows": trajectories[:500],
        "times": replace(trajectories, times=(0.0, 1.0, 2.0, 3.0, 5.0)),
    }
    for name, other in others.items():
        with pytest.raises(InputError, match="another call of fit"):
            ki.fit(other, config, checkpoint=checkpoint, resume=True, progress=False)
            pytest.fail(f"other {name} were taken")


def test_a_checkpoint_that_is_none_is_refused(trajectories, quick_config, tmp_path):
    with pytest.raises(InputError, match="needs the checkpoint"):
        ki.fit(trajectories, quick_config, resume=True, progress=False)
    with pytest.raises(FileNotFoundError):
        ki.fit(trajectories, quick_config, checkpoint=tmp_path / "none", resume=True, progress=False)
    path = tmp_path / "other.safetensors"
    write_tensors(path, {"x": torch.zeros(1)}, kind="edit", header={})
    with pytest.raises(FileFormatError, match="holds 'edit'"):
        ki.fit(trajectories, quick_config, checkpoint=path, resume=True, progress=False)


def test_a_truncated_checkpoint_is_refused(trajectories, quick_config, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    with pytest.raises(FileFormatError, match="cut short"):
        ki.fit(trajectories, replace(quick_config, steps=2), checkpoint=checkpoint, resume=True, progress=False)


@pytest.mark.parametrize("method", ["gradient", "least_squares"])
def test_nan_states_are_refused_by_site(trajectories, quick_config, method):
    states = [state.clone() for state in trajectories.states]
    states[3][17, 2] = float("nan")
    spoilt = replace(trajectories, states=tuple(states))
    with pytest.raises(NonFiniteError, match=r"'blocks\.2'.*row 17"):
        ki.fit(spoilt, quick_config, method=method, progress=False)


def test_too_few_samples_are_refused_with_both_numbers(trajectories):
    with pytest.raises(InputError, match=r"10 principal components need more than 10 .* got 10\..*\(dimension=2\)"):
        ki.fit(trajectories[:12], ki.FitConfig(validation=0.17), progress=False)
    with pytest.raises(InputError, match="2 held-out samples or more; got 1"):
        ki.fit(trajectories[:14], progress=False)
    with pytest.raises(InputError, match="leaves one part empty"):
        ki.fit(trajectories[:3], progress=False)


@pytest.mark.parametrize("method", ["gradient", "least_squares"])
def test_a_fit_on_very_few_samples_can_be_saved(trajectories, tmp_path, method):
    # Two rows are held out, the fewest that have a variance.
    fitted = ki.fit(trajectories[:20], ki.FitConfig(steps=2), method=method, progress=False)
    fitted.save_pretrained(tmp_path)
    assert same_weights(ki.KoopmanAutoencoder.from_pretrained(tmp_path), fitted)


def test_unlabelled_trajectories_can_be_fitted(trajectories, quick_config):
    fitted = ki.fit(replace(trajectories, labels=None), replace(quick_config, steps=2), progress=False)
    assert fitted.config.classes == ()
    assert fitted.moments.rows == 540


def test_a_class_that_is_only_held_out_does_no_harm(trajectories, quick_config):
    _, held_out = trajectories.split(quick_config.validation, seed=quick_config.seed)
    labels = trajectories.labels.clone()
    labels[held_out.sequence[:2]] = 7
    fitted = ki.fit(trajectories.with_labels(labels), replace(quick_config, steps=2), progress=False)
    assert fitted.config.classes == (0, 1, 2, 7)
    assert fitted.moments.count[3] == 0
    assert fitted.heldout_moments.count[3] == 2


def test_states_in_bfloat16_can_be_fitted(trajectories, quick_config):
    half = replace(trajectories, states=tuple(state.to(torch.bfloat16) for state in trajectories.states))
    fitted = ki.fit(half, replace(quick_config, steps=20), progress=False)
    assert {parameter.dtype for parameter in fitted.parameters()} == {torch.float32}
    assert fitted.record.history[-1]["loss"] < fitted.record.history[0]["loss"]


def test_losses_that_diverge_are_refused_with_the_remedy(trajectories, quick_config):
    config = replace(quick_config, learning_rate=1e12, schedule="constant", patience=None)
    with pytest.raises(NonFiniteError, match=r"diverged by step \d+.*learning_rate"):
        ki.fit(trajectories, config, progress=False)


def test_least_squares_refuses_what_it_has_no_use_for(trajectories, tmp_path):
    with pytest.raises(InputError, match="neither checkpoint nor resume"):
        ki.fit(trajectories, method="least_squares", checkpoint=tmp_path / "x")
    with pytest.raises(InputError, match="linear_plus_nonlinear"):
        ki.fit(trajectories, ki.FitConfig(architecture="mlp"), method="least_squares")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_method_is_refused(trajectories):
    with pytest.raises(InputError, match="neither 'gradient' nor 'least_squares'"):
        ki.fit(trajectories, method="lbfgs")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "cnn"},
        {"operator": "cayley"},
        {"pairs": "some"},
        {"isometry": "random"},
        {"schedule": "linear"},
        {"steps": 0},
        {"steps": 20.5},
        {"batch_size": 0},
        {"evaluate_every": 0},
        {"cycle": 0},
        {"observables": 1},
        {"validation": 0.0},
        {"validation": 1.0},
        {"learning_rate": 0.0},
        {"seconds": 0.0},
        {"decay": 0.0},
        {"least_gain": -0.1},
        {"aim": "both"},
        {"activation": "tanh"},
        {"residual": -1.0},
        {"learning_rate": float("nan")},
        {"ridge": -1.0},
        {"prediction": -0.1},
        {"isometry_weight": -0.1},
        {"hidden": (64, 0)},
        {"hidden": (2.5,)},
        {"seed": 2**63},
        {"seed": 0.5},
    ],
    ids=named,
)
def test_settings_that_make_no_sense_are_refused_by_name(settings):
    with pytest.raises(InputError, match=f"{next(iter(settings))}"):
        ki.FitConfig(**settings)


@pytest.mark.usefixtures("unchecked")
def test_settings_without_names_are_refused():
    with pytest.raises(InputError, match="values by name; got a list"):
        ki.FitConfig.from_dict([20])


def test_settings_go_through_json_unchanged(quick_config):
    config = replace(quick_config, normalization=ki.NormalizationConfig(dimension=5), hidden=(3, 4))
    assert ki.FitConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(InputError, match="stepz is no setting"):
        ki.FitConfig.from_dict({"stepz": 3})
    with pytest.raises(InputError, match="whitten"):
        ki.FitConfig.from_dict({"normalization": {"whitten": 1.0}})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_k_solved_anew_never_costs_the_whole_span(trajectories, quick_config, seed):
    config = replace(quick_config, seed=seed, steps=60)
    fitted = ki.fit(trajectories, config, progress=False)
    _, held_out = trajectories.split(config.validation, seed=config.seed)
    predicted = fitted.predict(held_out.states[0], 0, held_out.depths - 1)
    last = held_out.states[-1]
    normalized, target = (fitted.normalization.normalize(state, held_out.depths - 1) for state in (predicted, last))
    fvu = (normalized - target).square().sum() / (target - target.mean(0)).square().sum()
    assert float(fvu) <= fitted.record.kept["fvu"] * (1 + 1e-3)
