"""Each baseline is the direct computation on the same states."""

import pytest
import torch

import koopman_interp as ki
from koopman_interp.auditing import baselines
from koopman_interp.auditing.baselines import has_leace, leace
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for

LABEL = 1


@pytest.fixture(scope="module")
def audits(case):
    """Fitted on half of the held-out rows, and on the training rows."""
    return case.audited(probes=()), case.audited(probes=(), training=case.training)


def last_states(case, forget, retain):
    found = []
    handle = case.model.head.register_forward_hook(lambda _, args, __: found.append(args[0].double()))
    with torch.no_grad():
        case.model(torch.cat([forget[0], retain[0]]))
    handle.remove()
    return found[0], torch.arange(len(found[0])) < len(forget[0])


def judged(case, states):
    head = case.model.head
    guess = (states @ head.weight.double().T + head.bias.double()).argmax(1)
    gone = len(case.forget[0])
    return float((guess[:gone] == LABEL).double().mean()), float((guess[gone:] == case.retain[1]).double().mean())


@pytest.mark.parametrize("trained", [False, True])
def test_leace_is_concept_erasures_on_the_rows_it_may_see(case, audits, trained):
    concept_erasure = pytest.importorskip("concept_erasure")
    states, gone = last_states(case, case.forget, case.retain)
    fitted, forgotten = (states[::2], gone[::2])
    if trained:
        fitted, forgotten = last_states(case, case.forget_training, case.retain_training)
    erased = concept_erasure.LeaceEraser.fit(fitted, forgotten.double()[:, None])(states)
    row = audits[trained]["LEACE"]
    assert (row.forget_accuracy, row.retain_accuracy) == pytest.approx(judged(case, erased), abs=1e-12)
    spread = (states - states.mean(0)).square().sum(1).mean().sqrt()
    drift = (erased - states)[~gone].square().sum(1).mean().sqrt() / spread
    assert row.drift == pytest.approx(float(drift), rel=1e-5)


def test_mean_difference_is_fitted_on_training_rows_where_there_are_some(case, audits):
    states, _ = last_states(case, case.forget, case.retain)
    fitted, forgotten = last_states(case, case.forget_training, case.retain_training)
    centre = fitted[~forgotten].mean(0)
    direction = torch.nn.functional.normalize(fitted[forgotten].mean(0) - centre, dim=0)
    moved = states - torch.outer((states - centre) @ direction, direction)
    row = audits[1]["mean difference"]
    assert (row.forget_accuracy, row.retain_accuracy) == pytest.approx(judged(case, moved), abs=1e-12)
    assert row.drift != audits[0]["mean difference"].drift


def test_after_leace_no_linear_probe_finds_the_class_in_the_rows_it_was_fitted_on(case):
    pytest.importorskip("concept_erasure")
    states, gone = last_states(case, case.forget, case.retain)
    site = case.koopman.sites[-1]
    found = []
    host = host_for(case.model)
    read = host.hooked({site: lambda state: found.append(state.double())})
    with torch.no_grad(), leace(host, site, states, gone.long(), [1]).running(), read:
        case.model(torch.cat([case.forget[0], case.retain[0]]))
    means = found[0][gone].mean(0) - found[0][~gone].mean(0)
    # To what concept-erasure's own shrinkage of the covariance leaves: its guarantee is for the shrunk one.
    before = states[gone].mean(0) - states[~gone].mean(0)
    assert means.norm() < 0.01 * before.norm()


def test_without_concept_erasure_the_row_is_missing_and_the_audit_says_so(case, monkeypatch):
    monkeypatch.setattr(baselines, "has_leace", lambda: False)
    found = case.audited(probes=())
    assert "LEACE" not in [row.name for row in found.rows]
    assert 'pip install "koopman-interp[leace]"' in str(found)
    with pytest.raises(InputError, match=r"koopman-interp\[leace\]"):
        leace(host_for(case.model), "head", torch.zeros(4, 2), torch.tensor([1, 0, 1, 0]), [1])


def test_states_too_wide_for_leace_go_without_and_the_audit_says_so(case, monkeypatch):
    pytest.importorskip("concept_erasure")
    monkeypatch.setattr(baselines, "WIDEST", 9)
    found = case.audited(probes=())
    assert "LEACE" not in [row.name for row in found.rows]
    assert "as wide as the states, 10; the limit is 9" in str(found)


def test_with_it_nothing_is_noted(case, audits):
    assert audits[0].left_out == () or not has_leace()


def test_the_audit_names_are_in_the_catalogue():
    for name in ("audit", "Audit", "AuditRow", "Relearning", "LanguageChecks", "LanguageAudit", "audit_language"):
        assert hasattr(ki, name)
