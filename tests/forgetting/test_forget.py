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


@pytest.fixture(scope="module")
def found(setting):
    model, koopman, trajectories, held_out = setting
    return ki.forget(model, koopman, trajectories, label=LABEL, held_out=held_out, most=0.05)


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


def test_the_row_chosen_is_what_the_edit_does(setting, found):
    model, koopman, _, held_out = setting
    ours = figures(model, koopman, found.edit, held_out, found.at)
    assert ours == pytest.approx((found.chosen.forgotten, found.chosen.retained, found.chosen.kl), abs=1e-6)
    assert found.forget_rows == int((held_out[1] == LABEL).sum())


def test_no_row_of_the_table_is_nearer(found):
    edits = found.tried[2:]
    assert len(edits) == 23
    assert found.chosen in edits
    keeping = [row for row in edits if row.forgotten <= 0.05 and not row.refused]
    if keeping:
        assert found.met
        assert found.chosen.retained == max(row.retained for row in keeping)
    else:
        assert not found.met
        assert found.chosen.forgotten == min(row.forgotten for row in edits)
    assert found.tried[0].name == "host"
    assert found.tried[0].kl == 0
    mask = found.tried[1]
    assert (mask.name, mask.forgotten) == ("logit mask", 0)


def test_it_prints_and_saves(found, tmp_path):
    assert f"of class {LABEL} still recognised" in repr(found)
    assert str(found).count("chosen") == 1
    assert "report it on other rows" in str(found)
    found.save(tmp_path / "forgetting.json")
    told = json.loads((tmp_path / "forgetting.json").read_text())
    assert told["chosen"]["name"] == found.chosen.name
    assert told["edit"]["description"] == found.edit.description


def test_what_cannot_be_reached_is_said(setting):
    model, koopman, trajectories, held_out = setting
    weak = [ki.erase_class(koopman, label=LABEL, strength=s) for s in (0.01, 0.02)]
    found = ki.forget(model, koopman, trajectories, label=LABEL, held_out=held_out, most=0.0, candidates=weak)
    assert not found.met
    assert "NOT reached" in str(found)
    assert "NOT reached" in repr(found)
    assert found.edit in weak


def test_a_weight_trades_one_for_the_other(setting):
    model, koopman, trajectories, held_out = setting
    candidates = [ki.erase_class(koopman, label=LABEL, site=1, strength=s) for s in (0.0, 0.5, 1.0, 4.0)]

    def choose(weight):
        return ki.forget(
            model, koopman, trajectories, label=LABEL, held_out=held_out, weight=weight, candidates=candidates
        )

    for weight in (0.1, 1.0, 1e4):
        found = choose(weight)
        scores = [row.forgotten - weight * row.retained for row in found.tried[2:]]
        assert found.chosen.forgotten - weight * found.chosen.retained == min(scores)
    assert choose(1e4).chosen.retained == max(row.retained for row in choose(1e4).tried[2:])


def test_among_equals_the_nearest_to_the_host_is_chosen(setting):
    model, koopman, trajectories, held_out = setting
    candidates = [ki.erase_class(koopman, label=LABEL, strength=s) for s in (1e-3, 0.0, 2e-3)]
    found = ki.forget(model, koopman, trajectories, label=LABEL, held_out=held_out, most=1.0, candidates=candidates)
    assert len({row.retained for row in found.tried[2:]}) == 1
    assert found.edit is candidates[1]


def test_candidates_may_be_made_late_be_sets_and_be_impossible(setting):
    model, koopman, trajectories, held_out = setting

    def impossible():
        return ki.null_space(koopman, trajectories, label=LABEL, tolerance=0.0)

    several = ki.each_site(koopman, lambda site: ki.erase_class(koopman, label=LABEL, site=site), [1, 2])
    candidates = [impossible, lambda: ki.erase_class(koopman, label=LABEL), several]
    found = ki.forget(model, koopman, trajectories, label=LABEL, held_out=held_out, candidates=candidates)
    refused, one, carried, in_place = found.tried[2:]
    assert "The null space is empty" in refused.refused
    assert refused.name == "impossible"
    assert not one.refused
    assert (carried.site, carried.at) == ("2 sites", "target")
    assert (in_place.site, in_place.at) == ("2 sites, in place", "each site")
    for row in (carried, in_place):
        ours = figures(model, koopman, several, held_out, row.at)
        assert ours == pytest.approx((row.forgotten, row.retained, row.kl), abs=1e-6)
    assert carried.kl != in_place.kl
    replaced = ki.forget(
        model, koopman, trajectories, label=LABEL, held_out=held_out, candidates=[several], mode="replace"
    )
    assert [row.at for row in replaced.tried[2:]] == ["target"]
    with pytest.raises(InputError, match=r"No candidate makes an edit: The null space is empty"):
        ki.forget(model, koopman, trajectories, label=LABEL, held_out=held_out, candidates=[impossible])


def test_a_candidate_that_is_no_edit_is_refused(setting):
    model, koopman, trajectories, held_out = setting
    with pytest.raises(InputError, match="got NoneType"):
        ki.forget(model, koopman, trajectories, label=LABEL, held_out=held_out, candidates=[lambda: None])


def test_batches_serve_as_one_pair(setting):
    model, koopman, trajectories, (x, y) = setting
    candidates = [ki.erase_class(koopman, label=LABEL)]
    whole = ki.forget(model, koopman, trajectories, label=LABEL, held_out=(x, y), candidates=candidates)
    parts = [(x[:150], y[:150]), (x[150:], y[150:])]
    cut = ki.forget(model, koopman, trajectories, label=LABEL, held_out=parts, candidates=candidates)
    assert cut.chosen.retained == whole.chosen.retained
    assert cut.chosen.kl == pytest.approx(whole.chosen.kl, rel=1e-5)


@pytest.mark.parametrize(
    ("label", "split", "sentence"),
    [
        (7, lambda x, y: (x, y), "not among the host's 3 outputs"),
        (2, lambda x, y: (x[y != 2], y[y != 2]), "it has 0 and"),
        (2, lambda x, y: [x], r"held_out=\(x, y\)"),
    ],
)
def test_a_split_that_cannot_choose_is_refused(setting, label, split, sentence):
    model, koopman, trajectories, held_out = setting
    with pytest.raises(InputError, match=sentence):
        ki.forget(model, koopman, trajectories, label=label, held_out=split(*held_out))
