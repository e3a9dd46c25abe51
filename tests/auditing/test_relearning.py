"""Relearning is the fine-tuning that it says it is, on a copy; nothing of the user's is touched."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

import koopman_interp as ki
from koopman_interp.auditing import relearning
from koopman_interp.auditing.labelled import drawn
from koopman_interp.errors import InputError
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.patching.motion import Motion
from koopman_interp.patching.stepped_motion import SteppedMotion

LABEL = 1


def audited(case, **changes):
    return case.audited(**({"probes": (), "training": case.training} | changes))


def test_no_steps_are_the_row_itself(case):
    found = audited(case, relearn=ki.Relearning(steps=(0,)), retrained=case.retrained)
    for row in found.rows:
        for curve in row.relearning:
            assert curve.steps == (0,)
            assert (curve.forget_accuracy, curve.retain_accuracy) == ((row.forget_accuracy,), (row.retain_accuracy,))
    assert [curve.moved for curve in found.rows[-1].relearning] == ["all parameters", "K alone"]
    learning = [row.name for row in found.rows if row.relearning]
    assert learning[0] == "mean difference"
    assert learning[-2:] == ["retrained reference", "edit (delta)"]


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_fine_tuning_the_host_is_adam_on_the_drawn_rows_with_the_patch_in_place(case, mode):
    settings = ki.Relearning(rows=6, beside=4, steps=(0, 1, 3), rate=5e-3)
    found = audited(case, relearn=settings, mode=mode, seed=5).rows[-1].relearning[0]
    ((x, y),) = drawn([case.training], [LABEL], rows=settings.rows, beside=settings.beside, seed=5)
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    with ki.patched(model, case.koopman, case.edit, mode=mode, check_weights=False):
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            forgotten = (model(case.forget[0]).argmax(1) == LABEL).double().mean()
            retained = (model(case.retain[0]).argmax(1) == case.retain[1]).double().mean()
    assert found.forget_accuracy[-1] == pytest.approx(float(forgotten), abs=0.011)
    assert found.retain_accuracy[-1] == pytest.approx(float(retained), abs=0.011)


def test_enough_steps_bring_the_class_back(case, whole):
    curve = whole.rows[-1].relearning[0]
    assert curve.forget_accuracy[0] < 0.2
    assert curve.forget_accuracy[-1] > 0.8
    assert curve.steps_to(0.8) in curve.steps[1:]
    assert curve.steps_to(1.01) is None
    assert curve.steps_to(0.0) == 0


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_the_learning_motion_starts_as_the_motion_of_the_patch(case, mode):
    first, last = 1, len(case.koopman.sites) - 1
    second = ki.erase_class(case.koopman, label=2, site=2)
    edits = (ki.erase_class(case.koopman, label=LABEL, site=1), second)
    prepared = Motion(case.koopman, first, last, edits, mode)
    acting = [(edit.depth, edit) for edit in edits]
    learning = SteppedMotion(case.koopman, first, last, acting, mode, operator=copy.deepcopy(case.koopman.operator))
    rows = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).abs()
    torch.testing.assert_close(learning(rows), prepared(rows), rtol=1e-4, atol=1e-4)


def test_k_alone_moves_and_nothing_else(case):
    operator, last = copy.deepcopy(case.koopman.operator).requires_grad_(True), len(case.koopman.sites) - 1
    motion = SteppedMotion(case.koopman, 0, last, [(case.edit.depth, case.edit)], "delta", operator=operator)
    learning = [name for name, parameter in motion.named_parameters() if parameter.requires_grad]
    assert learning == [f"operator.{name}" for name, _ in case.koopman.operator.named_parameters()]
    before = case.koopman.digest()
    motion(torch.randn(20, 10)).square().mean().backward()
    torch.optim.SGD(motion.operator.parameters(), lr=0.1).step()
    assert case.koopman.digest() == before
    assert not torch.equal(motion.operator.matrix(), case.koopman.K)


def test_k_alone_brings_the_class_back_with_a_rate_to_match(case):
    settings = ki.Relearning(rows=30, beside=60, steps=(0, 15), operator_rate=5e-2)
    curve = audited(case, relearn=settings).rows[-1].relearning[1]
    assert curve.moved == "K alone"
    assert curve.forget_accuracy[1] > curve.forget_accuracy[0] + 0.3


def test_an_edit_that_does_nothing_leaves_nothing_for_k_to_learn(case):
    found = audited(case, relearn=ki.Relearning(steps=(0,)), edit=case.edit.scaled(0.0))
    assert [curve.moved for curve in found.rows[-1].relearning] == ["all parameters"]


def test_the_users_models_stay_as_they_were(case, monkeypatch):
    def state():
        return [
            (weight_digest(model), model.training, [(p.requires_grad, p.grad) for p in model.parameters()])
            for model in (case.model, case.retrained, case.koopman)
        ]

    before = state()
    audited(case, relearn=ki.Relearning(steps=(0, 2)), retrained=case.retrained)
    assert state() == before

    def failing(*_):
        raise RuntimeError("in the middle of a step")

    monkeypatch.setattr(relearning, "nll_loss", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        audited(case, relearn=ki.Relearning(steps=(0, 2)))
    assert state() == before


def test_a_seed_fixes_the_curves(case):
    settings = ki.Relearning(steps=(0, 2), rate=3e-3)
    curves = [audited(case, relearn=settings, seed=seed).rows[-1].relearning for seed in (0, 0)]
    assert curves[0] == curves[1]


def test_relearning_needs_rows_to_learn_from(case):
    with pytest.raises(InputError, match=r"Relearning needs rows to learn from: give training=\(x, y\)"):
        case.audited(relearn=ki.Relearning())
    with pytest.raises(InputError, match="All training rows are of class 1"):
        case.audited(relearn=ki.Relearning(), training=case.forget_training)
    with pytest.raises(InputError, match="None of the training rows is of class 1"):
        case.audited(relearn=ki.Relearning(), training=case.retain_training)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rows": 0}, "one forget row or more"),
        ({"beside": -1}, "none or more beside"),
        ({"steps": ()}, "rising order"),
        ({"steps": (1, 2)}, "the first of them 0"),
        ({"steps": (0, 5, 2)}, "rising order"),
        ({"rate": 0.0}, "rates are positive"),
        ({"operator_rate": float("nan")}, "rates are positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        ki.Relearning(**settings)
