"""An audit's rows are what a direct computation gives, and it leaves the host as it was."""

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest, norm, sem

import koopman_interp as ki
from koopman_interp.auditing.baselines import has_leace
from koopman_interp.auditing.membership import Membership
from koopman_interp.auditing.probes import probe_accuracy, prototype_recall
from koopman_interp.auditing.result import Audit
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import json_digest, read_json, write_json
from koopman_interp.testing import ResidualMLP
from tests.naming import named

LABEL = 1
BASELINES = ["base model", "logit mask", "mean difference", *(["LEACE"] if has_leace() else [])]


def figures(case, logits, host_logits):
    """Recognised, right and divergent, counted directly."""
    guess, gone = logits.argmax(1), len(case.forget[1])
    logp, host = log_softmax(logits[gone:], axis=1), log_softmax(host_logits[gone:], axis=1)
    kl = np.where(np.isneginf(logp), 0, np.exp(logp) * (np.where(np.isneginf(logp), 0, logp) - host)).sum(1).mean()
    return (guess[:gone] == LABEL).mean(), (guess[gone:] == case.retain[1].numpy()).mean(), kl


def agrees(row, expected):
    assert (row.forget_accuracy, row.retain_accuracy) == pytest.approx(expected[:2], abs=1e-12)
    assert row.kl == pytest.approx(expected[2], rel=1e-4, abs=1e-9)


def test_the_rows_are_there_in_order(found):
    assert [row.name for row in found.rows] == [*BASELINES, "retrained reference", "edit (delta)"]
    assert (found.forget_rows, found.retain_rows, found.labels) == (100, 200, (LABEL,))
    assert found["retrained reference"] is found.rows[-2]
    assert found.edit == "erase class 1"


def test_without_a_retrained_model_there_is_no_such_row(case, found):
    without = case.audited(mode="replace")
    assert [row.name for row in without.rows] == [*BASELINES, "edit (replace)"]
    assert without["base model"].retrained_js is None
    for ours, theirs in zip(without.rows[:-1], found.rows[: len(BASELINES)], strict=True):
        measured = replace(theirs, retrained_js=None, retrained_kl=None, intervals=ours.intervals)
        assert replace(ours) == measured
    assert without.rows[-1].kl != found.rows[-1].kl


def test_the_base_models_row_is_the_model(case, found):
    states, logits = case.states_and_logits(case.model)
    agrees(found["base model"], figures(case, logits, logits))
    assert found["base model"].kl == 0
    assert found["base model"].forget_accuracy > 0.9
    gone = torch.arange(300) < 100
    labels = torch.cat([case.forget[1], case.retain[1]])
    states = torch.from_numpy(states)
    assert found["base model"].linear_probe == probe_accuracy(states, gone, kernel="linear")
    assert found["base model"].rbf_probe == probe_accuracy(states, gone, kernel="rbf")
    assert found["base model"].prototype == prototype_recall(states, labels, [LABEL])


def test_the_mask_forgets_everything_and_changes_no_representation(case, found):
    _, logits = case.states_and_logits(case.model)
    masked = logits.copy()
    masked[:, LABEL] = -np.inf
    agrees(found["logit mask"], figures(case, masked, logits))
    row = found["logit mask"]
    assert row.forget_accuracy == 0
    assert 0 < row.kl < np.inf
    assert (row.linear_probe, row.rbf_probe, row.prototype) == (
        found["base model"].linear_probe,
        found["base model"].rbf_probe,
        found["base model"].prototype,
    )


def test_the_mean_difference_is_projected_out(case, found):
    states, logits = case.states_and_logits(case.model)
    gone = np.arange(300) < 100
    fitted = np.arange(300) % 2 == 0
    centre = states[fitted & ~gone].mean(0)
    direction = states[fitted & gone].mean(0) - centre
    direction /= np.linalg.norm(direction)
    projected = states - np.outer((states - centre) @ direction, direction)
    head = case.model.head
    changed = projected @ head.weight.detach().double().numpy().T + head.bias.detach().double().numpy()
    agrees(found["mean difference"], figures(case, changed, logits))
    assert found["mean difference"].kl > 0


def test_the_retrained_models_row_is_that_model(case, found):
    _, logits = case.states_and_logits(case.model)
    _, theirs = case.states_and_logits(case.retrained)
    agrees(found["retrained reference"], figures(case, theirs, logits))
    assert found["retrained reference"].forget_accuracy == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "replace"},
        {"source": 0},
        {"source": 0, "target": 2, "mode": "replace"},
        {"source": 1, "target": "blocks.1"},
        {"at": "each site"},
    ],
    ids=named,
)
def test_the_edits_row_is_the_patched_model(case, options):
    _, logits = case.states_and_logits(case.model)
    patch = case.patch(ki.erase_class(case.koopman, label=LABEL, site=1), **options)
    with patch:
        states, changed = case.states_and_logits(case.model)
    row = ki.audit(patch, held_out=case.held_out).rows[-1]
    agrees(row, figures(case, changed, logits))
    gone = torch.arange(300) < 100
    # The probe reads the state that the patch has written.
    assert row.linear_probe == probe_accuracy(torch.from_numpy(states), gone, kernel="linear")
    assert row.kl > 0
    # The patch that was judged is the one that is deployed, afterwards too.
    with patch:
        assert (case.states_and_logits(case.model)[1] == changed).all()


def test_the_edit_forgets_and_keeps(found):
    ours = found.rows[-1]
    assert ours.forget_accuracy < 0.2 < 0.9 < found["base model"].forget_accuracy
    assert ours.retain_accuracy > found["base model"].retain_accuracy - 0.05


def test_an_edit_of_strength_nothing_is_the_base_model(case):
    found = case.audited(edit=case.edit.scaled(0.0))
    assert replace(found.rows[-1], name="base model") == found["base model"]


def test_several_edits_are_audited_together(case):
    second = ki.erase_class(case.koopman, label=2, site=2)
    both = case.audited(edit=[case.edit, second], label=LABEL)
    assert both.edit == "erase class 1, then erase class 2"
    with ki.patched(case.model, case.koopman, [case.edit, second]):
        _, changed = case.states_and_logits(case.model)
    _, logits = case.states_and_logits(case.model)
    agrees(both.rows[-1], figures(case, changed, logits))


def test_batches_are_as_good_as_tensors(case, found):
    cut = list(zip(*(part.split(37) for part in case.held_out), strict=True))
    for batched in (case.audited(held_out=cut), case.audited(batch_size=41)):
        for ours in batched.rows:
            theirs = found[ours.name]
            assert ours.forget_accuracy == pytest.approx(theirs.forget_accuracy, abs=1e-12)
            assert ours.retain_accuracy == pytest.approx(theirs.retain_accuracy, abs=1e-12)
            assert ours.kl == pytest.approx(theirs.kl, rel=1e-4, abs=1e-9)


def test_a_seed_fixes_the_audit(case, found):
    assert case.audited(retrained=case.retrained).rows == found.rows
    other = case.audited(retrained=case.retrained, seed=1)
    assert other.rows != found.rows
    assert [row.forget_accuracy for row in other.rows] == [row.forget_accuracy for row in found.rows]


# --- beside training rows and a reference -------------------------------------------------------------------


def test_training_rows_are_judged_as_they_are(case, whole):
    with torch.no_grad():
        guess = [case.model(x).argmax(1) for x, _ in (case.forget_training, case.retain_training)]
    host = whole["base model"]
    assert host.forget_accuracy_training == pytest.approx(float((guess[0] == LABEL).double().mean()))
    assert host.retain_accuracy_training == pytest.approx(float((guess[1] == case.retain_training[1]).double().mean()))
    assert (whole.forget_training_rows, whole.retain_training_rows) == (200, 400)
    assert whole["logit mask"].forget_accuracy_training == 0


def test_a_reference_is_at_no_distance_from_itself(case, found):
    assert found["retrained reference"].retrained_kl == 0
    assert found["retrained reference"].retrained_js == pytest.approx(0, abs=1e-14)
    assert found["base model"].js == pytest.approx(0, abs=1e-14)
    same = case.audited(retrained=case.model)
    assert replace(same["retrained reference"], name="base model", drift=0.0) == same["base model"]


def test_a_reference_may_be_trained_on_the_way(case, found):
    def train():
        assert torch.is_grad_enabled()
        return copy.deepcopy(case.retrained).train()

    assert case.audited(retrained=train).rows == found.rows


def test_divergences_are_counted_row_by_row(case, found):
    _, logits = case.states_and_logits(case.model)
    _, theirs = case.states_and_logits(case.retrained)
    host, retrained = softmax(logits, axis=1), softmax(theirs, axis=1)
    for row, name, rows, others in (
        (found["retrained reference"], "js", retrained[100:], host[100:]),
        (found["base model"], "retrained_js", host[:100], retrained[:100]),
    ):
        # scipy gives the root of the divergence.
        expected = np.mean([jensenshannon(p, q, base=2) ** 2 for p, q in zip(rows, others, strict=True)])
        assert getattr(row, name) == pytest.approx(expected, rel=1e-4)
        low, high = row.intervals[name]
        assert low < getattr(row, name) < high
    kl = (host[:100] * np.log(host[:100] / retrained[:100])).sum(1).mean()
    assert found["base model"].retrained_kl == pytest.approx(kl, rel=1e-4)


def test_a_projection_at_the_last_site_drifts_as_far_as_it_moves_retained_rows(case, found):
    states, _ = case.states_and_logits(case.model)
    with ki.patched(case.model, case.koopman, case.edit):
        moved, _ = case.states_and_logits(case.model)
    spread = np.sqrt(((states - states.mean(0)) ** 2).sum(1).mean())
    expected = np.sqrt(((moved - states)[100:] ** 2).sum(1).mean()) / spread
    assert found["edit (delta)"].drift == pytest.approx(expected, rel=1e-5)
    assert found["base model"].drift == found["logit mask"].drift == 0
    assert found["retrained reference"].drift is None


def pairs_above(high, low):
    return ((high[:, None] > low[None]) + 0.5 * (high[:, None] == low[None])).double().mean()


def test_membership_compares_the_classs_training_rows_with_its_held_out_ones(case, whole):
    for name, model in (("base model", case.model), ("retrained reference", case.retrained)):
        with torch.no_grad():
            seen, unseen = (model(x).double().log_softmax(1) for x, _ in (case.forget_training, case.forget))
        found = whole[name].membership
        assert found.loss == pytest.approx(float(pairs_above(seen[:, LABEL], unseen[:, LABEL])), abs=1e-3)
        assert found.confidence == pytest.approx(float(pairs_above(seen.amax(1), unseen.amax(1))), abs=1e-3)
        assert found.loss != pytest.approx(0.5, abs=1e-3)
    assert "The control is the retrained reference" in whole.verdict


def test_intervals_are_of_as_many_rows_as_the_share(case, whole):
    row = whole["base model"]
    counted = {
        "forget_accuracy": (row.forget_accuracy, 100),
        "retain_accuracy": (row.retain_accuracy, 200),
        "forget_accuracy_training": (row.forget_accuracy_training, 200),
        "retain_accuracy_training": (row.retain_accuracy_training, 400),
        "linear_probe": (row.linear_probe, 100),
    }
    for name, (share, rows) in counted.items():
        expected = binomtest(round(share * rows), rows).proportion_ci(0.95, method="wilson")
        assert row.intervals[name] == pytest.approx((expected.low, expected.high), abs=1e-9), name
    _, host = case.states_and_logits(case.model)
    _, theirs = case.states_and_logits(case.retrained)
    p, q = (softmax(logits[100:], axis=1) for logits in (theirs, host))
    kl = (p * np.log(p / q)).sum(1)
    assert whole["retrained reference"].intervals["kl"] == pytest.approx(
        norm.interval(0.95, kl.mean(), sem(kl)), rel=1e-3
    )


# --- written in place ---------------------------------------------------------------------------------------


def test_edits_written_at_each_site_are_audited_as_they_are_patched(case):
    edits = ki.each_site(case.koopman, lambda site: ki.erase_class(case.koopman, label=LABEL, site=site), [1, 3])
    relearn = ki.Relearning(steps=(0,))
    found = case.audited(edit=edits, at="each site", probes=(), relearn=relearn, training=case.training)
    _, logits = case.states_and_logits(case.model)
    with ki.patched(case.model, case.koopman, edits, at="each site"):
        _, changed = case.states_and_logits(case.model)
    row = found["edit (each site)"]
    agrees(row, figures(case, changed, logits))
    assert row.kl != pytest.approx(case.audited(edit=edits, probes=()).rows[-1].kl, rel=1e-2)
    # No K stands between an edit and where it is written.
    assert [curve.moved for curve in row.relearning] == ["all parameters"]
    with pytest.raises(InputError, match="written in place"):
        case.audited(edit=edits, at="each site", source=0)


# --- depth --------------------------------------------------------------------------------------------------


def test_every_site_is_read_and_the_last_is_that_of_the_row(case, whole):
    for row in whole.rows:
        assert [reading.site for reading in row.depths] == list(case.koopman.sites)
        last = row.depths[-1]
        assert last.probes == {"linear": row.linear_probe, "rbf": row.rbf_probe, "mlp": row.mlp_probe}
        assert last.prototypes == {1: row.one_shot, 5: row.five_shot, 10: row.prototype}
        assert row.best_probe == last.best_probe == max(last.probes.values())


def test_upstream_of_the_patch_stands_the_base_model_and_downstream_what_was_patched(case, whole):
    base, ours = whole["base model"], whole["edit (delta)"]
    assert ours.depths[:-1] == base.depths[:-1]
    assert ours.depths[-1] != base.depths[-1]
    early = case.audited(depths="all", target=-2, source=1, edit=ki.erase_class(case.koopman, label=LABEL, site=1))
    there = early.rows[-1]
    assert there.depths[:-2] == early["base model"].depths[:-2]
    assert there.depths[-2] != early["base model"].depths[-2]
    assert there.depths[-1] != early["base model"].depths[-1]


def test_a_skipped_span_is_read_at_its_ends(case):
    sites = case.koopman.sites
    for source, target in ((None, None), (1, -2), (1, 2)):
        found = case.audited(
            depths="all",
            mode="replace",
            edit=ki.erase_class(case.koopman, label=LABEL, site=source or 0),
            probes=(),
            source=source,
            target=target,
        )
        first, last = source or 0, sites.index(sites[-1 if target is None else target])
        assert tuple(reading.site for reading in found.rows[-1].depths) == sites[: first + 1] + sites[last:]
        assert tuple(reading.site for reading in found["base model"].depths) == sites
    assert found.rows[-1].depths[0] == found["base model"].depths[0]
    assert "By depth" in str(found)


def test_without_probes_none_are_made(case):
    bare = case.audited(probes=())
    assert bare.rows[-1].best_probe is None
    assert bare.rows[-1].linear_probe is None
    assert [column.name for column in bare.tables()[1].columns][1] == "1-shot prototype"
    assert bare.rows[-1].prototype == case.audited().rows[-1].prototype


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_an_audit_leaves_no_trace(case, mode, traces):
    before = traces(case.model), traces(case.retrained), case.koopman.digest()
    case.audited(mode=mode, retrained=case.retrained)
    with pytest.raises(RuntimeError):
        case.audited(mode=mode, held_out=[case.held_out, (torch.zeros(30, 99), case.held_out[1][:30])])
    assert (traces(case.model), traces(case.retrained), case.koopman.digest()) == before


# --- what is refused ----------------------------------------------------------------------------------------


def test_what_is_no_patch_is_refused_with_the_line_to_write(case, unchecked):
    with pytest.raises(
        InputError,
        match=r"as Patch; got ResidualMLP\. One is made by patched\(model, koopman, edit\)",
    ):
        ki.audit(case.model, held_out=case.held_out)


def test_a_patch_that_is_installed_is_refused_and_stays_installed(case):
    patch = case.patch()
    with patch:
        with torch.no_grad():
            before = case.model(case.held_out[0])
        with pytest.raises(InputError, match="installed already"):
            ki.audit(patch, held_out=case.held_out)
        with torch.no_grad():
            assert torch.equal(case.model(case.held_out[0]), before)


def test_edits_that_do_not_say_what_they_forget_need_a_label(case, found):
    silent = replace(case.edit, labels=())
    with pytest.raises(InputError, match=r"do not say which classes they forget.*label=4"):
        case.audited(edit=silent)
    assert case.audited(edit=silent, label=LABEL, retrained=case.retrained).rows == found.rows
    with pytest.raises(InputError, match="each once"):
        case.audited(label=(1, 1))


def test_rows_that_lack_the_class_or_the_others_are_refused(case):
    with pytest.raises(InputError, match="None of the held-out rows is of class 1; they are of 0, 2"):
        case.audited(held_out=case.retain)
    with pytest.raises(InputError, match="None of the held-out rows is of class 7; they are of 0, 1, 2"):
        case.audited(label=7)
    with pytest.raises(InputError, match="All held-out rows are of class 1; rows of other classes"):
        case.audited(held_out=case.forget)
    with pytest.raises(InputError, match="they are of no class at all"):
        case.audited(held_out=[])


def test_held_out_rows_that_are_training_rows_are_told(case):
    x, y = case.held_out
    inputs = len(torch.unique(x, dim=0))
    assert any(f"{inputs} of {inputs} held-out inputs" in note for note in case.audited(training=(x, y)).left_out)
    training = tuple(torch.cat(pair) for pair in zip(case.forget_training, case.retain_training, strict=True))
    few = case.audited(
        training=tuple(torch.cat([ours, theirs[:3]]) for ours, theirs in zip(training, (x, y), strict=True))
    )
    assert any(f"3 of {len(torch.unique(x, dim=0))} held-out inputs" in note for note in few.left_out)
    assert not any("held-out inputs" in note for note in case.audited(training=training).left_out)


def test_what_is_no_reference_and_no_seed_is_refused(case, unchecked):
    for wrong in (3, lambda: 3, "model"):
        with pytest.raises(InputError, match=r"retrained= is a model .* got (int|str)\."):
            case.audited(retrained=wrong)
    with pytest.raises(InputError, match="seed is a whole number, 0 or more; got -1"):
        case.audited(seed=-1)


def test_a_label_that_the_model_has_no_output_for_is_refused(case):
    x, y = case.held_out
    outside = torch.where(torch.arange(len(y)) == 5, 3, y)
    with pytest.raises(InputError, match=r"Label 3 is none of the 3 outputs.*-100"):
        case.audited(held_out=(x, outside))
    with pytest.raises(InputError, match=r"Label 9 is none of the 3 outputs"):
        case.audited(held_out=(x, torch.where(y == 2, 9, y)), label=9)


def test_training_rows_of_one_kind_say_what_they_can(case, found):
    for training, missing in ((case.forget_training, "retain"), (case.retain_training, "forget")):
        row = case.audited(training=training, retrained=case.retrained).rows[0]
        assert getattr(row, f"{missing}_accuracy_training") is None
        assert f"{missing}_accuracy_training" not in row.intervals
        assert (row.membership is None) == (missing == "forget")
        # Baselines are fitted on held-out rows, as without.
        both = case.audited(training=training, retrained=case.retrained)["mean difference"]
        assert (both.kl, both.drift) == (found["mean difference"].kl, found["mean difference"].drift)


def test_an_unknown_depth_is_refused(case, unchecked):
    with pytest.raises(InputError, match="neither 'last' nor 'all'"):
        case.audited(depths="first")


@pytest.mark.parametrize("probes", [("svm",), "linear"])
def test_an_unknown_probe_is_refused(case, probes, unchecked):
    with pytest.raises(InputError, match="probes are several of linear, rbf, mlp"):
        case.audited(probes=probes)


def test_no_edit_is_refused_and_no_such_row(case, found):
    with pytest.raises(InputError, match="no edit to audit"):
        case.audited(edit=[])
    with pytest.raises(InputError, match=r"no row 'edit'; there are base model, logit mask"):
        found["edit"]


@pytest.mark.parametrize("label", [0, LABEL])
def test_too_few_rows_of_any_class_are_refused(case, label):
    x, y = case.held_out

    def with_rows_of(count):
        kept = (y != label) | ((y == label).cumsum(0) <= count)
        return x[kept], y[kept]

    with pytest.raises(InputError, match=rf"Class {label} has 19 held-out rows; .* need 20 or more"):
        case.audited(held_out=with_rows_of(19))
    assert len(case.audited(held_out=with_rows_of(20)).rows) == len(BASELINES) + 1


def test_as_many_labels_as_inputs(case):
    x, y = case.held_out
    with pytest.raises(InputError, match="got 300 inputs and 299 labels"):
        case.audited(held_out=(x, y[:299]))
    with pytest.raises(InputError, match=r"Expected 300 labels, one a sample.*got 150"):
        case.audited(held_out=[(x, y[:150])])


def test_batches_that_are_no_pairs_are_refused(case, unchecked):
    with pytest.raises(InputError, match="pairs of inputs and labels"):
        case.audited(held_out=[case.held_out[0], case.held_out[0]])
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        case.audited(batch_size=0)


def test_another_model_is_refused(case):
    with pytest.raises(ki.KoopmanInterpError, match="another host"):
        ki.audit(ki.patched(case.retrained, case.koopman, case.edit), held_out=case.held_out)


def test_a_reference_of_another_width_of_output_is_refused(case):
    other = ResidualMLP(4, 10, 3, 5).eval()
    with pytest.raises(InputError, match="a retrained model of the same architecture"):
        case.audited(retrained=other)


# --- what comes out -----------------------------------------------------------------------------------------


def test_everything_measured_comes_back_from_its_file(whole, tmp_path):
    whole.save(tmp_path / "kept" / "audit.json")
    assert Audit.load(tmp_path / "kept" / "audit.json") == whole
    stored = read_json(tmp_path / "kept" / "audit.json")
    assert stored["verdict"] == whole.verdict
    assert json.loads(json.dumps(whole.as_dict(), allow_nan=False))["rows"][0]["name"] == "base model"


def test_a_file_of_another_kind_or_with_parts_missing_is_refused(whole, tmp_path):
    path = tmp_path / "audit.json"
    write_json(path, {"kind": "something else"})
    with pytest.raises(FileFormatError, match="does not hold a value of the kind Audit"):
        Audit.load(path)
    whole.save(path)
    values = read_json(path)
    del values["rows"][0]["relearning"]
    write_json(path, values)
    with pytest.raises(FileFormatError, match="does not hold what was written to it"):
        Audit.load(path)
    kept = {name: each for name, each in values.items() if name not in ("kind", "digest")}
    write_json(path, {"kind": "Audit", "digest": json_digest(kept), **kept})
    with pytest.raises(FileFormatError, match="lacks parts of the Audit"):
        Audit.load(path)


def test_a_figure_that_is_not_finite_comes_back_as_not_a_number(found, tmp_path):
    odd = replace(found.rows[0], kl=float("inf"), membership=Membership(0.5, float("nan"), 0.5, 0.1))
    replace(found, rows=(odd,)).save(tmp_path / "audit.json")
    (row,) = Audit.load(tmp_path / "audit.json").rows
    assert np.isnan(row.kl)
    assert np.isnan(row.membership.loss_error)
    assert replace(row, kl=0.0, membership=None) == replace(odd, kl=0.0, membership=None)


def test_classes_with_one_mean_leave_nothing_to_project(case):
    x, y = case.retain
    held_out = torch.cat([x, x]), torch.cat([torch.ones_like(y), torch.zeros_like(y)])
    same = case.audited(held_out=held_out, probes=())
    assert same["mean difference"].drift < 1e-6
    assert same["mean difference"].kl < 1e-9


def cells(text, title):
    """The lines of a table by the names of their rows; cells are parted by two spaces or more."""
    lines = text.split(title)[1].split("\n\n")[0].split("\n")[2:]
    return {line.split("  ")[0]: re.split(r" {2,}", line)[1:] for line in lines}


def test_the_printed_tables_hold_the_figures(found):
    output, states = cells(str(found), "At the output, %"), cells(str(found), "What the last states still hold, %")
    for row in found.rows:
        shown = output[row.name]
        low, high = row.intervals["forget_accuracy"]
        assert shown[:2] == [f"{100 * row.forget_accuracy:.2f}", f"{100 * low:.1f} … {100 * high:.1f}"]
        assert shown[2] == f"{100 * row.retain_accuracy:.2f}"
        assert shown[4:] == [f"{row.kl:.4f}", f"{100 * row.js:.1f}", f"{100 * row.retrained_js:.1f}"]
        read = (row.linear_probe, row.rbf_probe, row.one_shot, row.five_shot, row.prototype)
        assert states[row.name][:5] == [f"{100 * share:.1f}" for share in read]
    assert "100 held-out rows of class 1, 200 of the others" in str(found)
    assert "reversible suppression" in str(found)
    assert f"forget accuracy of class 1 {100 * found.rows[-1].forget_accuracy:.2f} % ↓" in repr(found)


def test_the_tables_of_training_depths_and_steps_hold_the_figures(whole):
    training = cells(str(whole), "On rows that were trained on, %")
    depths = cells(str(whole), "By depth: best probe / 10-shot prototype, %")
    steps = cells(str(whole), "forget accuracy / retain accuracy, %")
    for row in whole.rows:
        attacks = row.membership
        assert training[row.name] == [
            f"{100 * row.forget_accuracy_training:.2f}",
            f"{100 * row.retain_accuracy_training:.2f}",
            f"{100 * attacks.loss:.1f} ± {100 * attacks.loss_error:.1f}",
            f"{100 * attacks.confidence:.1f} ± {100 * attacks.confidence_error:.1f}",
        ]
        assert depths[row.name] == [
            f"{100 * max(scores.probes.values()):.1f} / {100 * scores.prototypes[10]:.1f}" for scores in row.depths
        ]
        for curve in row.relearning:
            assert steps[f"{row.name}, {curve.moved}"] == [
                f"{100 * forget:.0f} / {100 * retain:.0f}"
                for forget, retain in zip(curve.forget_accuracy, curve.retain_accuracy, strict=True)
            ]


def test_a_frame_and_a_notebook_hold_the_same_figures(found):
    frame = found.to_frame()
    assert frame["forget accuracy ↓"].tolist() == [row.forget_accuracy for row in found.rows]
    assert frame["KL to base model"].tolist() == [row.kl for row in found.rows]
    assert frame["method"].tolist() == [row.name for row in found.rows]
    shown = found._repr_html_()
    assert shown.count("<table>") == len(found.tables()) == 2
    assert '<tr class="marked"><th scope="row">edit (delta)' in shown


def test_what_was_not_measured_has_no_column(found, whole):
    for title in ("MLP probe", "On rows that were trained on", "membership by loss", "Relearning", "By depth"):
        assert title not in str(found)
        assert title in str(whole)


def test_an_audit_copies_nothing_into_the_surrogate(case):
    before = copy.deepcopy(case.koopman.state_dict())
    case.audited()
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.koopman.state_dict().items())
