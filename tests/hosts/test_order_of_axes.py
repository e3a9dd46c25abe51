"""Where positions come before the batch, in the states or in the ids, rows are told apart rightly or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.errors import UnsupportedHostError
from tests.hosts.odd_models import llama
from tests.hosts.situations import refused, right

INPUTS, PLACES = 12, 5
IDS = torch.arange(INPUTS * PLACES).reshape(INPUTS, PLACES) * 7 % 59
STATES_FIRST = "position batch width"


class TorchLayers(nn.Module):
    """Ids through torch's own layers, which take positions first, as torch's tutorials have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(59, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, 0.0) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        state = self.embed(ids)
        for layer in self.layers:
            state = layer(state)
        return state


class BatchFirst(nn.Module):
    """A model of positions first, called with the batch first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids.T).transpose(0, 1)


class Turning(nn.Module):
    """Brings positions first by itself, as XLNet and many models of signals do."""

    def __init__(self, *, of_ids: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(59, 8) if of_ids else nn.Identity()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        state = self.embed(x).transpose(0, 1)
        for block in self.blocks:
            state = block(state)
        return state.transpose(0, 1)


def observed(model: nn.Module, x: Tensor, layout: str | None = None) -> ki.Trajectories:
    sites = "blocks.*" if isinstance(model, Turning) else None
    return ki.attach(model.eval(), sites, layout=layout).observe(x, progress=False)


def require_rows(found: ki.Trajectories, states: Tensor, inputs: int) -> None:
    """Check where each row came from, and that it is what stands there, `states` being the batch first."""
    assert found.sequence.tolist() == torch.arange(inputs).repeat_interleave(PLACES).tolist()
    assert found.position.tolist() == list(range(PLACES)) * inputs
    torch.testing.assert_close(found.states[-1], states.flatten(0, 1))
    assert len(found.digests.unique()) == inputs


@refused(
    "Axes of a state",
    "ids that reach torch's own layers, positions first, with their axes as they are",
    "which of the two comes first is not known; `batch_first=True`, a wrapper, or `layout=`",
)
def test_ids_that_reach_torchs_layers_as_they_are_may_have_either_order() -> None:
    with pytest.raises(UnsupportedHostError, match=r"batch_first=True.*layout='batch position width'.*ids\.T"):
        observed(TorchLayers(), IDS)


@right("Axes of a state", "the same in a wrapper that is called with the batch first, also where both are as many")
@pytest.mark.parametrize("inputs", [INPUTS, PLACES])
def test_a_wrapper_says_which_axis_of_the_ids_is_the_batch(inputs: int) -> None:
    model = BatchFirst(TorchLayers())
    found = observed(model, IDS[:inputs])
    require_rows(found, model(IDS[:inputs]), inputs)
    assert found.tokens is not None
    assert found.tokens.tolist() == IDS[:inputs].flatten().tolist()


def test_what_is_said_of_torchs_layers_holds_and_is_not_turned_twice() -> None:
    model, states = TorchLayers(), torch.randn(PLACES, INPUTS, 8)
    layers = nn.Sequential(*model.layers)
    found = observed(layers, states)
    require_rows(found, layers(states).transpose(0, 1), INPUTS)
    said = observed(layers, states, STATES_FIRST)
    assert torch.equal(said.states[-1], found.states[-1])
    other = observed(layers, states, "batch position width")
    torch.testing.assert_close(other.states[-1], layers(states).flatten(0, 1))


@refused(
    "Axes of a state",
    "a model that brings positions first by itself (XLNet)",
    "states have the axes of the input in the other order; `layout='position batch width'` says so",
)
@pytest.mark.parametrize("x", [IDS, torch.randn(INPUTS, PLACES, 8)], ids=["ids", "vectors"])
def test_states_whose_axes_are_those_of_the_input_in_the_other_order(x: Tensor) -> None:
    model = Turning(of_ids=x is IDS)
    with pytest.raises(UnsupportedHostError, match="layout='position batch width'"):
        observed(model, x)
    require_rows(observed(model, x, STATES_FIRST), model(x), INPUTS)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_chosen_positions_are_those_of_the_tokens_in_either_order(mode: str) -> None:
    model = Turning(of_ids=True).eval()
    tap = ki.attach(model, "blocks.*", layout=STATES_FIRST)
    koopman = ki.fit(tap.observe(IDS, torch.arange(INPUTS) % 2, progress=False), ki.FitConfig(steps=2), progress=False)
    with torch.no_grad():
        before = model(IDS)
        with ki.patched(model, koopman, ki.erase_class(koopman, label=1, site=-1), mode=mode, positions=[2]):
            after = model(IDS)
    changed = (before != after).any(-1)
    assert changed[:, 2].all()
    assert changed.sum() == INPUTS


class Masking(nn.Module):
    """Tells the model in it what is padding, which its own caller does not say."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(
            ids, attention_mask=(torch.arange(ids.shape[1]) < ids.shape[1] - 1).expand_as(ids).long()
        ).logits


def test_ids_that_are_the_same_in_either_order_are_read_as_the_innermost_call_has_them() -> None:
    same = torch.full((PLACES, PLACES), 3)
    found = ki.attach(Masking(llama()).eval()).observe(same, progress=False)
    assert found.position.tolist() == list(range(PLACES - 1)) * PLACES
