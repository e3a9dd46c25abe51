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
from koopman_interp.auditing.findings import Audit
from koopman_interp.auditing.membership import Membership
from koopman_interp.auditing.probes import probe_accuracy, prototype_recall
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import read_json, write_json

LABEL = 1
BASELINES = ["host", "logit mask", "mean difference", *(["LEACE"] if has_leace() else [])]


def figures(case, logits, host_logits):
    """Recognised, right and divergent, counted directly."""
    guess, gone = logits.argmax(1), len(case.forget[1])
    logp, host = log_softmax(logits[gone:], axis=1), log_softmax(host_logits[gone:], axis=1)
    kl = np.where(np.isneginf(logp), 0, np.exp(logp) * (np.where(np.isneginf(logp), 0, logp) - host)).sum(1).mean()
    return (guess[:gone] == LABEL).mean(), (guess[gone:] == case.retain[1].numpy()).mean(), kl


def agrees(row, expected):
    assert (row.forgotten, row.retained) == pytest.approx(expected[:2], abs=1e-12)
    assert row.kl == pytest.approx(expected[2], rel=1e-4, abs=1e-9)


def test_the_rows_are_there_in_order(found):
    assert [row.name for row in found.rows] == [*BASELINES, "retrained", "edit (delta)"]
    assert (found.forget_rows, found.retain_rows, found.label) == (100, 200, LABEL)
    assert found["retrained"] is found.rows[-2]
    assert found.edit == "erase class 1"


def test_without_a_retrained_model_there_is_no_such_row(case, found):
    without = case.audited(mode="replace")
    assert [row.name for row in without.rows] == [*BASELINES, "edit (replace)"]
    assert without["host"].retrained_js is None
    for ours, theirs in zip(without.rows[:-1], found.rows[: len(BASELINES)], strict=True):
        measured = replace(theirs, retrained_js=None, retrained_kl=None, intervals=ours.intervals)
        assert replace(ours) == measured
    assert without.rows[-1].kl != found.rows[-1].kl


def test_the_hosts_row_is_the_host(case, found):
    states, logits = case.states_and_logits(case.model)
    agrees(found["host"], figures(case, logits, logits))
    assert found["host"].kl == 0
    assert found["host"].forgotten > 0.9
    gone = torch.arange(300) < 100
    labels = torch.cat([case.forget[1], case.retain[1]])
    states = torch.from_numpy(states)
    assert found["host"].linear_probe == probe_accuracy(states, gone, kernel="linear")
    assert found["host"].rbf_probe == probe_accuracy(states, gone, kernel="rbf")
    assert found["host"].prototype == prototype_recall(states, labels, LABEL)


def test_the_mask_forgets_everything_and_changes_no_representation(case, found):
    _, logits = case.states_and_logits(case.model)
    masked = logits.copy()
    masked[:, LABEL] = -np.inf
    agrees(found["logit mask"], figures(case, masked, logits))
    row = found["logit mask"]
    assert row.forgotten == 0
    assert 0 < row.kl < np.inf
    assert (row.linear_probe, row.rbf_probe, row.prototype) == (
        found["host"].linear_probe,
        found["host"].rbf_probe,
        found["host"].prototype,
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
    agrees(found["retrained"], figures(case, theirs, logits))
    assert found["retrained"].forgotten == 0


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_the_edits_row_is_the_patched_host(case, mode):
    _, logits = case.states_and_logits(case.model)
    with ki.patched(case.model, case.koopman, case.edit, mode=mode):
        states, changed = case.states_and_logits(case.model)
    row = case.audited(mode=mode).rows[-1]
    agrees(row, figures(case, changed, logits))
    gone = torch.arange(300) < 100
    # The probe reads the state that the patch has written.
    assert row.linear_probe == probe_accuracy(torch.from_numpy(states), gone, kernel="linear")


def test_the_edit_forgets_and_keeps(found):
    ours = found.rows[-1]
    assert ours.forgotten < 0.2 < 0.9 < found["host"].forgotten
    assert ours.retained > found["host"].retained - 0.05


def test_an_edit_of_strength_nothing_is_the_host(case):
    found = case.audited(edit=case.edit.scaled(0.0))
    assert replace(found.rows[-1], name="host") == found["host"]


def test_several_edits_are_audited_together(case):
    second = ki.erase_class(case.koopman, label=2, site=2)
    both = case.audited(edit=[case.edit, second])
    assert both.edit == "erase class 1, then erase class 2"
    with ki.patched(case.model, case.koopman, [case.edit, second]):
        _, changed = case.states_and_logits(case.model)
    _, logits = case.states_and_logits(case.model)
    agrees(both.rows[-1], figures(case, changed, logits))


def test_batches_are_as_good_as_tensors(case, found):
    def cut(pair):
        return list(zip(pair[0].split(37), pair[1].split(37), strict=True))

    batched = case.audited(forget=cut(case.forget), retain=cut(case.retain))
    for ours in batched.rows:
        theirs = found[ours.name]
        assert ours.forgotten == pytest.approx(theirs.forgotten, abs=1e-12)
        assert ours.retained == pytest.approx(theirs.retained, abs=1e-12)
        assert ours.kl == pytest.approx(theirs.kl, rel=1e-4, abs=1e-9)


def test_a_seed_fixes_the_audit(case, found):
    assert case.audited(retrained=case.retrained).rows == found.rows
    other = case.audited(retrained=case.retrained, seed=1)
    assert other.rows != found.rows
    assert [row.forgotten for row in other.rows] == [row.forgotten for row in found.rows]


# --- beside training rows and a yardstick -------------------------------------------------------------------


def test_training_rows_are_judged_as_they_are(case, whole):
    with torch.no_grad():
        guess = [case.model(x).argmax(1) for x, _ in (case.forget_training, case.retain_training)]
    host = whole["host"]
    assert host.forgotten_training == pytest.approx(float((guess[0] == LABEL).double().mean()))
    assert host.retained_training == pytest.approx(float((guess[1] == case.retain_training[1]).double().mean()))
    assert (whole.forget_training_rows, whole.retain_training_rows) == (200, 400)
    assert whole["logit mask"].forgotten_training == 0


def test_a_yardstick_is_at_no_distance_from_itself(case, found):
    assert found["retrained"].retrained_kl == 0
    assert found["retrained"].retrained_js == pytest.approx(0, abs=1e-14)
    assert found["host"].js == pytest.approx(0, abs=1e-14)
    same = case.audited(retrained=case.model)
    assert replace(same["retrained"], name="host", drift=0.0) == same["host"]


def test_a_yardstick_may_be_trained_on_the_way(case, found):
    made = case.audited(retrain=lambda: copy.deepcopy(case.retrained).train())
    assert made.rows == found.rows
    with pytest.raises(InputError, match="not both"):
        case.audited(retrained=case.retrained, retrain=lambda: case.retrained)


def test_divergences_are_counted_row_by_row(case, found):
    _, logits = case.states_and_logits(case.model)
    _, theirs = case.states_and_logits(case.retrained)
    host, retrained = softmax(logits, axis=1), softmax(theirs, axis=1)
    for row, name, rows, others in (
        (found["retrained"], "js", retrained[100:], host[100:]),
        (found["host"], "retrained_js", host[:100], retrained[:100]),
    ):
        # scipy gives the root of the divergence.
        expected = np.mean([jensenshannon(p, q, base=2) ** 2 for p, q in zip(rows, others, strict=True)])
        assert getattr(row, name) == pytest.approx(expected, rel=1e-4)
        low, high = row.intervals[name]
        assert low < getattr(row, name) < high
    kl = (host[:100] * np.log(host[:100] / retrained[:100])).sum(1).mean()
    assert found["host"].retrained_kl == pytest.approx(kl, rel=1e-4)


def test_a_projection_at_the_last_site_drifts_as_far_as_it_moves_retained_rows(case, found):
    states, _ = case.states_and_logits(case.model)
    with ki.patched(case.model, case.koopman, case.edit):
        moved, _ = case.states_and_logits(case.model)
    spread = np.sqrt(((states - states.mean(0)) ** 2).sum(1).mean())
    expected = np.sqrt(((moved - states)[100:] ** 2).sum(1).mean()) / spread
    assert found["edit (delta)"].drift == pytest.approx(expected, rel=1e-5)
    assert found["host"].drift == found["logit mask"].drift == 0
    assert found["retrained"].drift is None


def pairs_above(high, low):
    return ((high[:, None] > low[None]) + 0.5 * (high[:, None] == low[None])).double().mean()


def test_membership_compares_the_classs_training_rows_with_its_held_out_ones(case, whole):
    for name, model in (("host", case.model), ("retrained", case.retrained)):
        with torch.no_grad():
            seen, unseen = (model(x).double().log_softmax(1) for x, _ in (case.forget_training, case.forget))
        found = whole[name].membership
        assert found.loss == pytest.approx(float(pairs_above(seen[:, LABEL], unseen[:, LABEL])), abs=1e-3)
        assert found.confidence == pytest.approx(float(pairs_above(seen.amax(1), unseen.amax(1))), abs=1e-3)
        assert found.loss != pytest.approx(0.5, abs=1e-3)
    assert "The control is the retrained model" in whole.verdict


def test_intervals_are_of_as_many_rows_as_the_share(case, whole):
    row = whole["host"]
    counted = {
        "forgotten": (row.forgotten, 100),
        "retained": (row.retained, 200),
        "forgotten_training": (row.forgotten_training, 200),
        "retained_training": (row.retained_training, 400),
        "linear_probe": (row.linear_probe, 100),
    }
    for name, (share, rows) in counted.items():
        expected = binomtest(round(share * rows), rows).proportion_ci(0.95, method="wilson")
        assert row.intervals[name] == pytest.approx((expected.low, expected.high), abs=1e-9), name
    _, host = case.states_and_logits(case.model)
    _, theirs = case.states_and_logits(case.retrained)
    p, q = (softmax(logits[100:], axis=1) for logits in (theirs, host))
    kl = (p * np.log(p / q)).sum(1)
    assert whole["retrained"].intervals["kl"] == pytest.approx(norm.interval(0.95, kl.mean(), sem(kl)), rel=1e-3)


# --- written in place ---------------------------------------------------------------------------------------


def test_edits_written_at_each_site_are_audited_as_they_are_patched(case):
    edits = ki.each_site(case.koopman, lambda site: ki.erase_class(case.koopman, label=LABEL, site=site), [1, 3])
    more = {"forget_training": case.forget_training, "retain_training": case.retain_training}
    found = case.audited(edit=edits, at="each site", probes=(), relearn=ki.Relearning(at=(0,)), **more)
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
        assert row.found == max(last.probes.values())


def test_upstream_of_the_patch_stands_the_host_and_downstream_what_was_patched(case, whole):
    host, ours = whole["host"], whole["edit (delta)"]
    assert ours.depths[:-1] == host.depths[:-1]
    assert ours.depths[-1] != host.depths[-1]
    early = case.audited(depths="all", target=-2, source=1, edit=ki.erase_class(case.koopman, label=LABEL, site=1))
    there = early.rows[-1]
    assert there.depths[:-2] == early["host"].depths[:-2]
    assert there.depths[-2] != early["host"].depths[-2]
    assert there.depths[-1] != early["host"].depths[-1]


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
        assert tuple(reading.site for reading in found["host"].depths) == sites
    assert found.rows[-1].depths[0] == found["host"].depths[0]
    assert "by depth" in str(found)


def test_without_probes_none_are_made(case):
    bare = case.audited(probes=())
    assert bare.rows[-1].found is None
    assert bare.rows[-1].linear_probe is None
    assert "probe" not in cells(str(bare), "at the output, %")
    assert bare.rows[-1].prototype == case.audited().rows[-1].prototype


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_an_audit_leaves_no_trace(case, mode, traces):
    before = traces(case.model), traces(case.retrained), case.koopman.digest()
    case.audited(mode=mode, retrained=case.retrained)
    with pytest.raises(RuntimeError):
        case.audited(mode=mode, retain=(torch.zeros(30, 99), case.retain[1][:30]))
    assert (traces(case.model), traces(case.retrained), case.koopman.digest()) == before


# --- what is refused ----------------------------------------------------------------------------------------


def test_rows_to_forget_of_several_classes_are_refused(case):
    with pytest.raises(InputError, match=r"held-out rows to forget should be of one class; they are of \[0, 1, 2\]"):
        case.audited(forget=case.blobs(90, seed=2))


def test_training_rows_of_another_class_are_refused(case):
    with pytest.raises(InputError, match=r"training rows to forget are of class 0, the held-out ones of class 1"):
        case.audited(forget_training=(case.retain[0][::2], torch.zeros(100, dtype=torch.long)))
    with pytest.raises(InputError, match="training rows to retain hold rows of class 1"):
        case.audited(retain_training=case.forget)


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
    with pytest.raises(InputError, match=r"no row 'edit'; there are host, logit mask"):
        found["edit"]


def test_no_rows_to_forget_are_refused(case):
    with pytest.raises(InputError, match="should be of one class"):
        case.audited(forget=[])


def test_retained_rows_of_the_class_are_refused(case):
    with pytest.raises(InputError, match="held-out rows to retain hold rows of class 1"):
        case.audited(retain=case.blobs(90, seed=2))


def test_no_retained_rows_are_refused(case):
    with pytest.raises(InputError, match="All held-out rows are of class 1"):
        case.audited(retain=[])


@pytest.mark.parametrize("part", ["forget", "retain"])
def test_too_few_rows_are_refused(case, part):
    few = {
        "forget": (case.forget[0][:19], case.forget[1][:19]),
        "retain": (case.retain[0][:38], case.retain[1][:38]),
    }
    with pytest.raises(InputError, match=r"has 19 held-out rows; .* need 20 or more"):
        case.audited(**{part: few[part]})
    enough = {
        "forget": (case.forget[0][:20], case.forget[1][:20]),
        "retain": (case.retain[0][:40], case.retain[1][:40]),
    }
    assert len(case.audited(**enough).rows) == len(BASELINES) + 1


def test_as_many_labels_as_inputs(case):
    with pytest.raises(InputError, match="got 100 inputs and 99 labels"):
        case.audited(forget=(case.forget[0], case.forget[1][:99]))
    with pytest.raises(InputError, match=r"Expected 200 labels, one a sample.*got 150"):
        case.audited(retain=[(case.retain[0], case.retain[1][:150])])


def test_batches_that_are_no_pairs_are_refused(case, unchecked):
    with pytest.raises(InputError, match="pairs of inputs and labels"):
        case.audited(retain=[case.retain[0], case.retain[0]])


def test_another_host_is_refused(case):
    with pytest.raises(ki.KoopmanInterpError, match="another host"):
        ki.audit(case.retrained, case.koopman, case.edit, forget=case.forget, retain=case.retain)


# --- what comes out -----------------------------------------------------------------------------------------


def test_everything_measured_comes_back_from_its_file(whole, tmp_path):
    whole.save(tmp_path / "kept" / "audit.json")
    assert Audit.load(tmp_path / "kept" / "audit.json") == whole
    stored = read_json(tmp_path / "kept" / "audit.json")
    assert stored["verdict"] == whole.verdict
    assert json.loads(json.dumps(whole.as_dict(), allow_nan=False))["rows"][0]["name"] == "host"


def test_a_file_of_another_kind_or_with_parts_missing_is_refused(whole, tmp_path):
    path = tmp_path / "audit.json"
    write_json(path, {"kind": "something else"})
    with pytest.raises(FileFormatError, match="does not hold an audit"):
        Audit.load(path)
    whole.save(path)
    values = read_json(path)
    del values["rows"][0]["relearning"]
    write_json(path, values)
    with pytest.raises(FileFormatError, match="lacks parts of an audit"):
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
    same = case.audited(forget=(x, torch.ones_like(y)), retain=(x, torch.zeros_like(y)), probes=())
    assert same["mean difference"].drift < 1e-6
    assert same["mean difference"].kl < 1e-9


def cells(text, title):
    """The lines of a table by the names of their rows; cells are parted by two spaces or more."""
    lines = text.split(title)[1].split("\n\n")[0].split("\n")[1:]
    return {line.split("  ")[0]: re.split(r" {2,}", line)[1:] for line in lines}


def test_the_printed_tables_hold_the_figures(found):
    output, states = cells(str(found), "at the output, %"), cells(str(found), "in the last states, %")
    for row in found.rows:
        shown = output[row.name]
        low, high = row.intervals["forgotten"]
        assert shown[:2] == [f"{100 * row.forgotten:.2f}", f"{100 * low:.1f} … {100 * high:.1f}"]
        assert shown[2] == f"{100 * row.retained:.2f}"
        assert shown[4:] == [f"{row.kl:.4f}", f"{100 * row.js:.1f}", f"{100 * row.retrained_js:.1f}"]
        read = (row.linear_probe, row.rbf_probe, row.one_shot, row.five_shot, row.prototype)
        assert states[row.name][:5] == [f"{100 * share:.1f}" for share in read]
    assert "reversible suppression" in str(found)
    assert f"{found.rows[-1].forgotten:.1%} of class 1" in repr(found)


def test_the_tables_of_training_depths_and_steps_hold_the_figures(whole):
    training = cells(str(whole), "on training rows, %")
    depths = cells(str(whole), "by depth: best probe / 10-shot prototype, %")
    steps = cells(str(whole), "relearned after steps: forgotten / retained, %")
    for row in whole.rows:
        found = row.membership
        assert training[row.name] == [
            f"{100 * row.forgotten_training:.2f}",
            f"{100 * row.retained_training:.2f}",
            f"{100 * found.loss:.1f} ± {100 * found.loss_error:.1f}",
            f"{100 * found.confidence:.1f} ± {100 * found.confidence_error:.1f}",
        ]
        assert depths[row.name] == [
            f"{100 * max(reading.probes.values()):.1f} / {100 * reading.prototypes[10]:.1f}" for reading in row.depths
        ]
        for curve in row.relearning:
            assert steps[f"{row.name}, {curve.moved}"] == [
                f"{100 * forgotten:.0f} / {100 * retained:.0f}"
                for forgotten, retained in zip(curve.forgotten, curve.retained, strict=True)
            ]


def test_what_was_not_measured_has_no_column(found, whole):
    for title in ("MLP probe", "on training rows", "membership by loss", "relearned", "by depth"):
        assert title not in str(found)
        assert title in str(whole)


def test_an_audit_copies_nothing_into_the_surrogate(case):
    before = copy.deepcopy(case.koopman.state_dict())
    case.audited()
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.koopman.state_dict().items())
