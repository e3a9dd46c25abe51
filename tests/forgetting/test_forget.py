"""forget() returns the candidate that its own table says is nearest to what was asked."""

import json

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.testing import ResidualMLP, train_classifier, yin_yang

LABEL = 2


@pytest.fixture(scope="module")
def setting():
    """A trained host, a fit, and three sets of rows: fitted, to choose on, to report on."""
    x, y = yin_yang(900, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualMLP(4, 10, 3, 3)
        train_classifier(model, x, y, epochs=40, peak_rate=2e-2)
    model.eval()
    trajectories = ki.attach(model).observe(x, y, progress=False)
    koopman = ki.fit(trajectories, ki.FitConfig(observables=20), method="least_squares")
    return model, koopman, trajectories, yin_yang(400, seed=1)


def choose(setting, label=LABEL, **options):
    model, koopman, trajectories, held_out = setting
    return ki.forget(model, koopman, fitted=trajectories, label=label, **({"held_out": held_out} | options))


@pytest.fixture(scope="module")
def forgetting(setting):
    return choose(setting, most=0.05)


def figures(model, koopman, edit, held_out, at="target"):
    """By hand: predictions, no batches."""
    x, y = held_out
    with torch.no_grad():
        own = model(x).double().log_softmax(1)
        with ki.patched(model, koopman, edit, at=at):
            logp = model(x).double().log_softmax(1)
    guess, gone = logp.argmax(1), y == LABEL
    kl = (logp.exp() * (logp - own)).sum(1)[~gone].mean()
    return float((guess[gone] == LABEL).double().mean()), float((guess == y)[~gone].double().mean()), float(kl)


def test_the_row_chosen_is_what_the_edit_does(setting, forgetting):
    model, koopman, _, held_out = setting
    ours = figures(model, koopman, forgetting.edit, held_out, forgetting.at)
    assert ours == pytest.approx(
        (forgetting.chosen.forget_accuracy, forgetting.chosen.retain_accuracy, forgetting.chosen.kl), abs=1e-6
    )
    assert forgetting.forget_rows == int((held_out[1] == LABEL).sum())


def test_no_row_of_the_table_is_nearer(forgetting):
    edits = forgetting.trials[2:]
    assert len(edits) == 23
    assert forgetting.chosen in edits
    keeping = [row for row in edits if row.forget_accuracy <= 0.05]
    if keeping:
        assert forgetting.met
        assert forgetting.chosen.retain_accuracy == max(row.retain_accuracy for row in keeping)
    else:
        assert not forgetting.met
        assert forgetting.chosen.forget_accuracy == min(row.forget_accuracy for row in edits)
    assert forgetting.trials[0].name == "base model"
    assert forgetting.trials[0].kl == 0
    mask = forgetting.trials[1]
    assert (mask.name, mask.forget_accuracy) == ("logit mask", 0)


def test_it_prints_and_saves(forgetting, tmp_path):
    assert f"forget accuracy {100 * forgetting.chosen.forget_accuracy:.1f} % on class {LABEL}" in repr(forgetting)
    (marked,) = (line for line in str(forgetting).splitlines() if line.endswith("  yes"))
    assert marked.startswith(forgetting.chosen.name)
    assert f"{100 * forgetting.chosen.retain_accuracy:.2f}" in marked
    assert "report it on other rows" in str(forgetting)
    frame = forgetting.to_frame()
    assert frame["forget accuracy ↓ %"].tolist() == [trial.forget_accuracy for trial in forgetting.trials]
    assert frame["edit"][frame["chosen"]].tolist() == [forgetting.chosen.name]
    forgetting.save(tmp_path / "forgetting.json")
    told = json.loads((tmp_path / "forgetting.json").read_text())
    assert told["chosen"]["name"] == forgetting.chosen.name
    assert told["edit"]["description"] == forgetting.edit.description


def test_what_cannot_be_reached_is_said(setting):
    _, koopman, _, _ = setting
    weak = [ki.erase_class(koopman, label=LABEL, strength=s) for s in (0.01, 0.02)]
    forgetting = choose(setting, most=0.0, candidates=weak)
    assert not forgetting.met
    assert "NOT reached" in str(forgetting)
    assert "NOT reached" in repr(forgetting)
    assert forgetting.edit in weak


def test_a_weight_trades_one_for_the_other(setting):
    _, koopman, _, _ = setting
    candidates = [ki.erase_class(koopman, label=LABEL, site=1, strength=s) for s in (0.0, 0.5, 1.0, 4.0)]

    for weight in (0.1, 1.0, 1e4):
        forgetting = choose(setting, weight=weight, candidates=candidates)
        scores = [row.forget_accuracy - weight * row.retain_accuracy for row in forgetting.trials[2:]]
        assert forgetting.chosen.forget_accuracy - weight * forgetting.chosen.retain_accuracy == min(scores)
    # The last weight asks for retain accuracy alone.
    assert forgetting.chosen.retain_accuracy == max(row.retain_accuracy for row in forgetting.trials[2:])


def test_among_equals_the_nearest_to_the_host_is_chosen(setting):
    _, koopman, _, _ = setting
    candidates = [ki.erase_class(koopman, label=LABEL, strength=s) for s in (1e-3, 0.0, 2e-3)]
    forgetting = choose(setting, most=1.0, candidates=candidates)
    assert len({row.retain_accuracy for row in forgetting.trials[2:]}) == 1
    assert forgetting.edit is candidates[1]


def test_candidates_may_be_made_late_be_sets_and_be_impossible(setting):
    model, koopman, trajectories, held_out = setting

    def impossible():
        return ki.redirect_in_null_space(koopman, fitted=trajectories, label=LABEL, tolerance=0.0)

    several = ki.each_site(koopman, lambda site: ki.erase_class(koopman, label=LABEL, site=site), [1, 2])
    candidates = [impossible, lambda: ki.erase_class(koopman, label=LABEL), several]
    forgetting = choose(setting, candidates=candidates)
    ((name, reason),) = forgetting.refused
    assert name == "impossible"
    assert "The null space is empty" in reason
    assert "Not tried: impossible. The null space is empty" in str(forgetting)
    _, carried, in_place = forgetting.trials[2:]
    assert (carried.site, carried.at) == ("2 sites, carried on", "target")
    assert (in_place.site, in_place.at) == ("2 sites, applied at each", "each site")
    for row in (carried, in_place):
        ours = figures(model, koopman, several, held_out, row.at)
        assert ours == pytest.approx((row.forget_accuracy, row.retain_accuracy, row.kl), abs=1e-6)
    assert carried.kl != in_place.kl
    replaced = choose(setting, candidates=[several], mode="replace")
    assert [row.at for row in replaced.trials[2:]] == ["target"]
    with pytest.raises(InputError, match=r"No candidate makes an edit: The null space is empty"):
        choose(setting, candidates=[impossible])


def test_a_candidate_that_is_no_edit_is_refused(setting):
    with pytest.raises(InputError, match="got NoneType"):
        choose(setting, candidates=[lambda: None])


def test_batches_serve_as_one_pair(setting):
    _, koopman, _, (x, y) = setting
    candidates = [ki.erase_class(koopman, label=LABEL)]
    whole = choose(setting, candidates=candidates)
    cut = choose(setting, held_out=[(x[:150], y[:150]), (x[150:], y[150:])], candidates=candidates)
    assert cut.chosen.retain_accuracy == whole.chosen.retain_accuracy
    assert cut.chosen.kl == pytest.approx(whole.chosen.kl, rel=1e-5)


@pytest.mark.parametrize("size", [64, 150, 1000])
def test_a_pair_is_cut_into_batches(setting, size):
    model, koopman, _, (x, _) = setting
    candidates, rows = [ki.erase_class(koopman, label=LABEL)], []
    with model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]))):
        cut = choose(setting, candidates=candidates, batch_size=size)
    assert max(rows) == min(size, len(x))
    assert sum(rows) == 2 * len(x)  # the base model, and the one candidate
    assert cut.chosen.kl == pytest.approx(choose(setting, candidates=candidates).chosen.kl, rel=1e-5)


@pytest.mark.parametrize(
    ("label", "split", "sentence"),
    [
        (7, lambda x, y: (x, y), "not among the model's 3 outputs"),
        (2, lambda x, y: (x[y != 2], y[y != 2]), "it has 0 and"),
        (2, lambda x, y: [x], r"held_out=\(x, y\)"),
    ],
)
def test_a_split_that_cannot_choose_is_refused(setting, label, split, sentence):
    with pytest.raises(InputError, match=sentence):
        choose(setting, label, held_out=split(*setting[3]))
