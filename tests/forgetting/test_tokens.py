"""Of tokens, positions that are skipped are neither patched nor judged, and the mode is the one asked for."""

import pytest
import torch
from torch import nn

import koopman_interp as ki

LABEL = 1


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.tanh(self.fc(x))


class Tokens(nn.Module):
    """A row of logits a token; no position sees another."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def case():
    """A host whose own answers are the labels, so that it is right everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Tokens().eval()
        ids = torch.randint(0, 11, (80, 5))
    with torch.no_grad():
        labels = model(ids).argmax(2)
    assert torch.unique(labels).tolist() == [0, 1, 2]
    trajectories = ki.attach(model).observe(ids, labels.flatten(), progress=False)
    koopman = ki.fit(trajectories, ki.FitConfig(observables=12), method="least_squares")
    return model, koopman, trajectories, (ids, labels)


@pytest.mark.parametrize("mode", ["delta", "replace"])
@pytest.mark.parametrize("skip", [0, 2])
def test_what_is_chosen_is_judged_where_it_is_patched(case, mode, skip):
    """What was skipped in the fit is neither patched nor judged, without a word of it in the call."""
    model, _, _, (ids, labels) = case
    trajectories = ki.attach(model, skip=skip).observe(ids, labels.flatten(), progress=False)
    koopman = ki.fit(trajectories, ki.FitConfig(observables=12), method="least_squares")
    edit = ki.erase_class(koopman, label=LABEL, site=2, strength=2.0)
    forgetting = ki.forget(
        model, koopman, fitted=trajectories, label=LABEL, held_out=(ids, labels), candidates=[edit], mode=mode
    )
    with torch.no_grad():
        own = model(ids)[:, skip:].double().log_softmax(2)
        with ki.patched(model, koopman, edit, mode=mode, positions=slice(skip, None)):
            logp = model(ids)[:, skip:].double().log_softmax(2)
    gone = labels[:, skip:] == LABEL
    right = logp.argmax(2) == labels[:, skip:]
    assert forgetting.forget_rows == int(gone.sum())
    assert forgetting.chosen.forget_accuracy == pytest.approx(float(right[gone].double().mean()))
    assert forgetting.chosen.retain_accuracy == pytest.approx(float(right[~gone].double().mean()))
    kl = (logp.exp() * (logp - own)).sum(2)[~gone].mean()
    assert forgetting.chosen.kl == pytest.approx(float(kl), rel=1e-3, abs=1e-7)
    assert forgetting.chosen.kl > 1e-4


def test_a_gradient_sees_the_chosen_positions_only(case):
    model, koopman, _, (ids, _) = case
    start = ki.erase_class(koopman, label=LABEL, site=2)
    with torch.no_grad():
        plain = model(ids)
    changed = []

    def objective(host):
        logits = host(ids)
        changed.append((logits != plain).any(2).any(0).tolist())
        return logits.square().mean()

    ki.gradient_edit(model, koopman, objective, start=start, positions=[0, 3], steps=1, progress=False)
    assert changed == [[True, False, False, True, False]]
