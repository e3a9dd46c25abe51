"""The verdict says what the figures say, and never that anything was removed."""

import re
from dataclasses import replace

import pytest

from koopman_interp.auditing.membership import Membership
from koopman_interp.auditing.probe_scores import ProbeScores
from koopman_interp.auditing.relearning import RelearningCurve
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.auditing.verdict import verdict

BASE = AuditRow("base model", 0.98, 0.97, 0.0, 0.99, 0.995, 0.95)
MASK = replace(BASE, name="logit mask", forget_accuracy=0.0)
EDIT = AuditRow("edit (delta)", 0.01, 0.965, 0.02, 0.71, 0.93, 0.4)
RETRAINED = AuditRow("retrained reference", 0.0, 0.96, 0.2, 0.9, 0.91, 0.5)


def curve(moved, *forgotten):
    return RelearningCurve(moved, (0, 1, 5)[: len(forgotten)], forgotten, forgotten)


@pytest.mark.parametrize(
    ("forgotten", "word"), [(0.0, "Suppressed"), (0.09, "Suppressed"), (0.3, "Partly"), (0.6, "Not suppressed")]
)
def test_how_far_the_output_forgets(forgotten, word):
    said = verdict("class 4", (BASE, MASK, replace(EDIT, forget_accuracy=forgotten)))
    assert said.startswith(word)
    assert f"{100 * forgotten:.1f} %" in said
    assert "a logit mask, which is free, has 0.0 and 97.0 %" in said
    assert ("This is reversible suppression" in said) == (forgotten <= 0.49)
    assert "reversible suppression" in said


@pytest.mark.parametrize("base", [0.98, 0.4])
@pytest.mark.parametrize(
    ("share", "word"),
    [(0.05, "Suppressed"), (0.15, "Partly"), (0.45, "Partly"), (0.55, "Not suppressed"), (1.0, "Not suppressed")],
)
def test_it_goes_by_the_share_of_what_the_base_model_knew(base, share, word):
    rows = (replace(BASE, forget_accuracy=base), MASK, replace(EDIT, forget_accuracy=share * base))
    said = verdict("class 4", rows)
    assert said.startswith(word)
    assert ("This is reversible suppression" in said) == (word != "Not suppressed")
    back = replace(rows[-1], relearning=(curve("all parameters", 0.0, 0.45 * base, 0.55 * base),))
    assert "is back by step 5" in verdict("class 4", (*rows[:-1], back))


@pytest.mark.parametrize("forgotten", [0.0, 0.9])
@pytest.mark.parametrize("probe", [0.5, 0.9])
def test_it_never_claims_that_anything_was_removed(forgotten, probe):
    ours = replace(EDIT, forget_accuracy=forgotten, linear_probe=probe, rbf_probe=None)
    said = verdict("class 4", (BASE, MASK, ours)).lower()
    assert not re.search(r"removed|deleted|unlearned|gone|guarantee", said)


def test_the_best_probe_is_quoted_beside_base_model_and_reference():
    said = verdict("class 4", (BASE, MASK, RETRAINED, EDIT))
    assert "Still there in the last states: a probe finds class 4 at 93.0 %" in said
    assert "base model 99.5 % and 95.0 %, retrained reference 91.0 % and 50.0 %" in said
    unseen = verdict("class 4", (BASE, MASK, replace(EDIT, linear_probe=0.52, rbf_probe=0.55)))
    assert "no proof that no other finds it" in unseen
    assert "Still there" not in unseen
    assert "probe" not in verdict("class 4", (BASE, MASK, replace(EDIT, linear_probe=None, rbf_probe=None)))


def test_what_stands_upstream_is_told():
    depths = (
        ProbeScores("a", {"linear": 0.8}, {}, {}),
        ProbeScores("b", {"linear": 0.9}, {}, {}),
        ProbeScores("c", {"linear": 0.5}, {}, {}),
    )
    assert "on the way: at 'b' a probe finds it at 90.0 %" in verdict(
        "class 4", (BASE, MASK, replace(EDIT, depths=depths))
    )
    low = tuple(replace(one, probes={"linear": 0.5}) for one in depths)
    assert "on the way" not in verdict("class 4", (BASE, MASK, replace(EDIT, depths=low)))


def test_relearning_is_told_by_the_step_at_which_half_is_back():
    back = replace(EDIT, relearning=(curve("all parameters", 0.0, 0.2, 0.9), curve("K alone", 0.0, 0.1, 0.2)))
    said = verdict("class 4", (BASE, MASK, replace(RETRAINED, relearning=(curve("all parameters", 0.6),)), back))
    assert "all parameters moved, half of the base model's forget accuracy is back by step 5, and it is 90.0 %" in said
    assert "K alone moved, it stays below half of the base model's forget accuracy for 5 steps (at most 20.0 %)" in said
    assert "The retrained reference: all parameters moved" in said
    assert "half of the base model's forget accuracy is there from the start" in said


def test_membership_is_told_with_its_error():
    told = verdict("class 4", (BASE, MASK, replace(EDIT, membership=Membership(0.61, 0.04, 0.5, 0.04))))
    assert "Training rows are told from held-out ones: 61.0 ± 4.0 by loss, 50.0 ± 4.0 by confidence" in told
    saw_none = replace(RETRAINED, membership=Membership(0.54, 0.04, 0.39, 0.04))
    beside = verdict("class 4", (BASE, MASK, saw_none, replace(EDIT, membership=Membership(0.61, 0.04, 0.5, 0.04))))
    assert (
        "The control is the retrained reference, which saw none of them and gives 54.0 ± 4.0 and 39.0 ± 4.0" in beside
    )
    assert "Without a retrained reference as the control" in told
    assert "Without" not in beside
    not_told = verdict("class 4", (BASE, MASK, replace(EDIT, membership=Membership(0.53, 0.04, 0.5, 0.04))))
    assert "tell nothing that chance would not: 53.0 ± 4.0" in not_told
