"""An audit's rows are what a direct computation gives, and it leaves the host as it was."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.files import read_json
from koopman_interp.hosts import weight_digest
from koopman_interp.probes import probe_accuracy, prototype_recall
from koopman_interp.testing import ResidualMLP, train_classifier

CENTRES = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0]])
LABEL = 1


def blobs(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    return CENTRES[labels] + 0.6 * torch.randn(rows, 4, generator=generator), labels


def trained(classes):
    x, y = blobs(600, seed=0)
    kept = torch.isin(y, torch.tensor(classes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualMLP(4, 10, 3, 3)
    return train_classifier(model, x[kept], y[kept], epochs=12, batch_size=50)


class Case:
    """A trained host, its surrogate, an edit, and rows held out."""

    def __init__(self):
        self.model = trained([0, 1, 2])
        self.retrained = trained([0, 2])
        x, y = blobs(600, seed=0)
        trajectories = ki.attach(self.model).observe(x, y, progress=False)
        self.koopman = ki.fit(trajectories, ki.FitConfig(observables=14), method="least_squares")
        self.edit = ki.erase_class(self.koopman, label=LABEL)
        x, y = blobs(300, seed=1)
        self.forget = x[y == LABEL], y[y == LABEL]
        self.retain = x[y != LABEL], y[y != LABEL]

    def audited(self, **changes):
        settings = {"forget": self.forget, "retain": self.retain}
        edit = changes.pop("edit", self.edit)
        return ki.audit(self.model, self.koopman, edit, **(settings | changes))

    def states_and_logits(self, model):
        """At the last site, then at the output; forgotten rows first."""
        found = []
        handle = model.head.register_forward_hook(lambda _, args, logits: found.extend((args[0], logits)))
        with torch.no_grad():
            model(torch.cat([self.forget[0], self.retain[0]]))
        handle.remove()
        return [part.double().numpy() for part in found]


@pytest.fixture(scope="module")
def case():
    return Case()


@pytest.fixture(scope="module")
def found(case):
    return case.audited(retrained=case.retrained)


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
    names = ["host", "logit mask", "mean difference", "retrained", "edit (delta)"]
    assert [row.name for row in found.rows] == names
    assert (found.forget_rows, found.retain_rows, found.label) == (100, 200, LABEL)
    assert found["retrained"] is found.rows[3]
    assert found.edit == "erase class 1"


def test_without_a_retrained_model_there_is_no_such_row(case, found):
    without = case.audited(mode="replace")
    assert [row.name for row in without.rows] == ["host", "logit mask", "mean difference", "edit (replace)"]
    assert without.rows[:3] == found.rows[:3]
    assert without.rows[3].forgotten != found.rows[4].forgotten or without.rows[3].kl != found.rows[4].kl


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
    for ours, theirs in zip(batched.rows, (*found.rows[:3], found.rows[4]), strict=True):
        assert ours.name == theirs.name
        assert ours.forgotten == pytest.approx(theirs.forgotten, abs=1e-12)
        assert ours.retained == pytest.approx(theirs.retained, abs=1e-12)
        assert ours.kl == pytest.approx(theirs.kl, rel=1e-4, abs=1e-9)


def test_a_seed_fixes_the_audit(case, found):
    assert case.audited(retrained=case.retrained).rows == found.rows
    other = case.audited(retrained=case.retrained, seed=1)
    assert other.rows != found.rows
    assert [row.forgotten for row in other.rows] == [row.forgotten for row in found.rows]


def traces(model):
    hooks = [name for name in vars(model) if "hooks" in name]
    return {
        name: (
            {key: dict(value) for key in hooks if isinstance(value := getattr(module, key), dict)},
            vars(module).get("forward"),
            sorted(vars(module)),
            module.training,
            [parameter.requires_grad for parameter in module.parameters()],
        )
        for name, module in model.named_modules()
    }, weight_digest(model)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_an_audit_leaves_no_trace(case, mode):
    before = traces(case.model), traces(case.retrained), case.koopman.digest()
    case.audited(mode=mode, retrained=case.retrained)
    with pytest.raises(RuntimeError):
        case.audited(mode=mode, retain=(torch.zeros(30, 99), case.retain[1][:30]))
    assert (traces(case.model), traces(case.retrained), case.koopman.digest()) == before


# --- what is refused ----------------------------------------------------------------------------------------


def test_rows_to_forget_of_several_classes_are_refused(case):
    with pytest.raises(InputError, match=r"should be of one class; they are of \[0, 1, 2\]"):
        case.audited(forget=blobs(90, seed=2))


def test_no_rows_to_forget_are_refused(case):
    with pytest.raises(InputError, match="should be of one class"):
        case.audited(forget=[])


def test_retained_rows_of_the_class_are_refused(case):
    with pytest.raises(InputError, match="The retained rows hold rows of class 1"):
        case.audited(retain=blobs(90, seed=2))


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
    assert len(case.audited(**enough).rows) == 4


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


def test_plain_values_go_through_json_and_a_file(found, tmp_path):
    values = found.as_dict()
    assert json.loads(json.dumps(values, allow_nan=False))["rows"][0]["name"] == "host"
    found.save(tmp_path / "kept" / "audit.json")
    stored = read_json(tmp_path / "kept" / "audit.json")
    assert stored["rows"] == [dict(row) for row in values["rows"]]
    assert {key: stored[key] for key in ("label", "edit", "forget_rows", "retain_rows")} == {
        "label": 1,
        "edit": "erase class 1",
        "forget_rows": 100,
        "retain_rows": 200,
    }


def test_the_printed_table_holds_the_figures(found):
    lines = str(found).split("\n")
    assert [line.split("  ")[0] for line in lines[1:6]] == [row.name for row in found.rows]
    for line, row in zip(lines[1:6], found.rows, strict=True):
        shown = [float(cell) for cell in line.removeprefix(row.name).split()]
        expected = [row.forgotten, row.retained, row.kl / 100, row.linear_probe, row.rbf_probe, row.prototype]
        assert shown == pytest.approx([100 * value for value in expected], abs=0.06)
    assert "reversible suppression" in str(found)
    assert f"{found.rows[-1].forgotten:.1%} of class 1" in repr(found)


def test_an_audit_copies_nothing_into_the_surrogate(case):
    before = copy.deepcopy(case.koopman.state_dict())
    case.audited()
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.koopman.state_dict().items())
