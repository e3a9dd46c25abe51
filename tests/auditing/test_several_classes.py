"""Of several classes at once an audit says what a direct computation says of their rows together."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

import koopman_interp as ki
from koopman_interp.auditing.baselines import mean_difference
from koopman_interp.auditing.intervals import area_under_curve
from koopman_interp.auditing.probes import probe_accuracy, prototype_recall
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for

LABELS = (2, 0)


@pytest.fixture(scope="module")
def edit(case):
    return ki.erase_class(case.koopman, label=LABELS, strength=0.45)


@pytest.fixture(scope="module")
def found(case, edit):
    return case.audited(edit=edit, retrained=case.retrained, training=case.training)


@torch.no_grad()
def run(model, rows):
    """States at the last site and logits, in float64."""
    states = []
    handle = model.head.register_forward_hook(lambda _, args, __: states.append(args[0].double()))
    logits = model(rows[0]).double()
    handle.remove()
    return states[0], logits


def accuracies(logits, y):
    right, forgotten = logits.argmax(1) == y, torch.isin(y, torch.tensor(LABELS))
    return float(right[forgotten].double().mean()), float(right[~forgotten].double().mean())


def headed(case, states):
    return states @ case.model.head.weight.detach().double().T + case.model.head.bias.detach().double()


def test_they_are_those_of_the_edit_and_are_named_together(found):
    assert found.labels == LABELS
    assert (found.forget_rows, found.retain_rows) == (200, 100)
    assert (found.forget_training_rows, found.retain_training_rows) == (400, 200)
    assert "200 held-out rows of classes 2, 0, 100 of the others" in str(found)
    assert "classes 2, 0" in found.verdict


def test_each_forget_row_is_right_as_its_own_class_only(case, edit, found):
    for name, model in (("base model", case.model), ("retrained reference", case.retrained)):
        _, logits = run(model, case.held_out)
        row = found[name]
        expected = accuracies(logits, case.held_out[1])
        assert (row.forget_accuracy, row.retain_accuracy) == pytest.approx(expected, abs=1e-12)
    with case.patch(edit):
        _, logits = run(case.model, case.held_out)
        _, on_training = run(case.model, case.training)
    ours = found.rows[-1]
    expected = accuracies(logits, case.held_out[1])
    assert (ours.forget_accuracy, ours.retain_accuracy) == pytest.approx(expected, abs=1e-12)
    expected = accuracies(on_training, case.training[1])
    assert (ours.forget_accuracy_training, ours.retain_accuracy_training) == pytest.approx(expected, abs=1e-12)
    assert 0 < ours.forget_accuracy < 0.9 * found["base model"].forget_accuracy


def test_a_row_that_is_named_as_another_class_to_forget_is_not_right(case, edit):
    x, y = case.held_out
    swapped = case.audited(edit=edit, held_out=(x, 2 - y), probes=())["base model"]
    assert swapped.forget_accuracy < 0.05
    assert swapped.retain_accuracy > 0.9


def test_the_mask_forbids_all_of_them(case, found):
    row = found["logit mask"]
    assert (row.forget_accuracy, row.retain_accuracy) == (0, 1)
    _, logits = run(case.model, case.held_out)
    # What is left is class 1 alone: KL of a certainty is the surprise of it.
    retain = case.held_out[1] == 1
    assert row.kl == pytest.approx(float(-logits.log_softmax(1)[retain, 1].mean()), rel=1e-4)


def test_the_span_of_the_differences_of_their_means_is_projected_out(case, found):
    states, _ = run(case.model, case.held_out)
    fitted, _ = run(case.model, case.training)
    y = case.training[1]
    centre = fitted[y == 1].mean(0)
    differences = torch.stack([fitted[y == label].mean(0) - centre for label in LABELS], 1)
    basis, _ = torch.linalg.qr(differences)
    row = found["mean difference"]
    moved = states - (states - centre) @ basis @ basis.T
    expected = accuracies(headed(case, moved), case.held_out[1])
    assert (row.forget_accuracy, row.retain_accuracy) == pytest.approx(expected, abs=1e-12)
    spread = (states - states.mean(0)).square().sum(1).mean().sqrt()
    drift = (moved - states)[case.held_out[1] == 1].square().sum(1).mean().sqrt() / spread
    assert row.drift == pytest.approx(float(drift), rel=1e-5)


def test_classes_with_one_mean_have_one_direction_between_them(case):
    host, site = host_for(case.model), case.koopman.sites[-1]
    states, _ = run(case.model, case.training)
    labels = case.training[1]
    twice = torch.cat([states, states[labels == 0]])
    more = torch.cat([labels, torch.full_like(labels[labels == 0], 3)])
    outputs = []
    for method in (mean_difference(host, site, states, labels, [0]), mean_difference(host, site, twice, more, [0, 3])):
        with torch.no_grad(), method.running():
            outputs.append(case.model(case.held_out[0]))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_leace_has_a_column_for_each(case, found):
    concept_erasure = pytest.importorskip("concept_erasure")
    states, _ = run(case.model, case.held_out)
    fitted, _ = run(case.model, case.training)
    columns = torch.stack([case.training[1] == label for label in LABELS], 1).double()
    erased = concept_erasure.LeaceEraser.fit(fitted, columns)(states)
    row = found["LEACE"]
    expected = accuracies(headed(case, erased), case.held_out[1])
    assert (row.forget_accuracy, row.retain_accuracy) == pytest.approx(expected, abs=1e-12)


def test_probes_tell_them_from_the_rest_and_prototypes_are_averaged(case, edit, found):
    with case.patch(edit):
        states, _ = run(case.model, case.held_out)
    y = case.held_out[1]
    ours = found.rows[-1]
    assert ours.linear_probe == probe_accuracy(states, torch.isin(y, torch.tensor(LABELS)), kernel="linear")
    recalls = [prototype_recall(states, y, [label]) for label in LABELS]
    assert ours.prototype == pytest.approx(np.mean(recalls), abs=1e-12)
    assert recalls[0] != recalls[1]


def test_the_distance_to_the_reference_and_membership_are_of_all_their_rows(case, found):
    forgotten = torch.isin(case.held_out[1], torch.tensor(LABELS))
    base, retrained = (run(model, case.held_out)[1] for model in (case.model, case.retrained))
    p, q = (softmax(logits[forgotten].numpy(), axis=1) for logits in (base, retrained))
    expected = np.mean([jensenshannon(one, other, base=2) ** 2 for one, other in zip(p, q, strict=True)])
    assert found["base model"].retrained_js == pytest.approx(expected, rel=1e-4)
    losses = []
    for x, y in (case.training, case.held_out):
        logp = run(case.model, (x, y))[1].log_softmax(1)
        rows = torch.isin(y, torch.tensor(LABELS))
        losses.append(logp[rows].gather(1, y[rows, None]).squeeze(1))
    area, error = area_under_curve(*losses)
    attacks = found["base model"].membership
    assert (attacks.loss, attacks.loss_error) == pytest.approx((area, error), abs=1e-3)


def test_one_in_a_tuple_is_that_one(case):
    assert case.audited(label=(1,), probes=()).rows == case.audited(label=1, probes=()).rows


def test_all_there_are_cannot_be_forgotten(case):
    with pytest.raises(InputError, match="All held-out rows are of class 0, 1, 2"):
        case.audited(label=(0, 1, 2))
    assert not math.isnan(case.audited(label=(0, 1), probes=()).rows[-1].kl)


def test_they_come_back_together(case, edit):
    relearn = ki.Relearning(rows=20, beside=20, steps=(0, 20), rate=5e-3)
    curve = (
        case.audited(edit=edit.scaled(2.0), training=case.training, relearn=relearn, probes=()).rows[-1].relearning[0]
    )
    assert curve.forget_accuracy[1] > curve.forget_accuracy[0] + 0.2
