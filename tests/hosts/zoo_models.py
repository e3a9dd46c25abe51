"""The models of the zoo: made from a plan, and called as a pass of it says. Knows nothing of observing or patching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.hosts.zoo import Kind, Pass, Plan

WIDTH, TOKENS, POSITIONS, CLASSES = 4, 11, 3, 3


class Notes:
    """What a block has to say beside its state, in an object that is no tensor; caches are such."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Named(NamedTuple):
    hidden: Tensor
    extra: Any = None


@dataclass(frozen=True)
class Held:
    hidden: Tensor
    extra: Any = None


def _model_output(hidden: Tensor, extra: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=extra)


_PACKED = {
    "tensor": lambda x, extra: x,
    "tuple": lambda x, extra: (x, extra),
    "list": lambda x, extra: [x, extra],
    "named tuple": Named,
    "dict": lambda x, extra: {"hidden_states": x, "extra": extra},
    "model output": _model_output,
    "extra first": lambda x, extra: {"extra": extra, "hidden_states": x},
    "dataclass": Held,
}


def unpacked(output: Any) -> tuple[Tensor, Any]:
    """Take a block's output apart into its state and what is beside it."""
    match output:
        case Tensor():
            return output, None
        case Held():
            return output.hidden, output.extra
        case {"hidden_states": state, "extra": extra}:
            return state, extra
        case {"last_hidden_state": state}:
            return state, output.get("past_key_values")
    return output[0], output[1]


def repacked(output: Any, state: Tensor) -> Any:
    """Put another state in a block's output."""
    _, extra = unpacked(output)
    match output:
        case Tensor():
            return state
        case {"hidden_states": _}:
            return {key: state if key == "hidden_states" else extra for key in output}
        case {"last_hidden_state": _}:
            return _model_output(state, extra)
        case Named() | Held():
            return type(output)(state, extra)
    return type(output)((state, extra))


class Block(nn.Module):
    """Adds a branch to its state, which a mask of floating-point numbers may switch off."""

    def __init__(self, plan: Plan, kind: Kind) -> None:
        super().__init__()
        self.plan, self.kind = plan, kind
        images = plan.layout == "images"
        self.fc = nn.Conv2d(2, 2, 3, padding=1) if images else nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Any:
        return self.advance(hidden_states, mask)

    def advance(self, x: Tensor, mask: Tensor | None) -> Any:
        extra: Any = None
        if self.plan.extra != "nothing":
            extra = _mean(x)
            extra = Notes(extra) if self.plan.extra == "object" else extra
        if self.kind != "as it came":
            branch = torch.tanh(self.fc(x)) if mask is None else torch.tanh(self.fc(x)) * mask
            if self.kind == "in place":
                x += branch
            else:
                x = x + branch
        return _PACKED[self.plan.output](x, extra)


class BlockOfX(Block):
    """The same with another name for the state, called with the mask first."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:  # type: ignore[override]  # that name is the point
        return self.advance(x, mask)


class Trunk(nn.Module):
    """Embedding and blocks; returns the last state and the sum of what blocks said beside it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        embeds = {"tokens": lambda: nn.Embedding(TOKENS, WIDTH), "images": lambda: nn.Conv2d(1, 2, 1)}
        self.embed = embeds.get(plan.layout, lambda: nn.Linear(WIDTH, WIDTH))()
        self.blocks = nn.ModuleList((BlockOfX if plan.called == "x=" else Block)(plan, kind) for kind in plan.blocks)

    def forward(
        self, inputs: Tensor, attention_mask: Tensor | None = None, drop: tuple[int, ...] = (), stop: int | None = None
    ) -> tuple[Tensor, Tensor]:
        x = self.embed(inputs)
        told = torch.zeros_like(_mean(x))
        mask = torch.ones(len(x), *[1] * (x.ndim - 1))
        for call, index in enumerate(self.plan.calls[:stop]):
            if call in drop:
                continue
            x, extra = unpacked(self._call(self.blocks[index], x, mask))
            if extra is not None:
                told = told + (extra.value if isinstance(extra, Notes) else extra)
            x = self._between(x)
        return x, told

    def _call(self, block: nn.Module, x: Tensor, mask: Tensor) -> Any:
        if self.plan.checkpointed != "no" and torch.is_grad_enabled():
            return checkpoint(block, x, mask, use_reentrant=self.plan.checkpointed == "reentrant")
        match self.plan.called:
            case "hidden_states=":
                return block(mask=mask, hidden_states=x)
            case "x=":
                return block(mask=mask, x=x)
        return block(x, mask)

    def _between(self, x: Tensor) -> Tensor:
        match self.plan.between:
            case "new":
                return x * 0.9
            case "in place":
                return x.mul_(0.9)
            case "relu in place":
                return torch.relu_(x)
        return x


class TokenTrunk(Trunk):
    """Called with tokens, in Hugging Face's words."""

    def forward(  # type: ignore[override]  # Hugging Face's names are the point
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        drop: tuple[int, ...] = (),
        stop: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        return super().forward(input_ids, attention_mask, drop, stop)


class Model(nn.Module):
    """Trunk and head; returns logits."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.trunk = (TokenTrunk if plan.layout == "tokens" else Trunk)(plan)
        self.head = nn.Linear(8 if plan.layout == "images" else WIDTH, CLASSES)

    def forward(self, inputs: Tensor, **told: Any) -> Tensor:
        return self.logits(self.trunk(inputs, **told))

    def logits(self, output: tuple[Tensor, Tensor]) -> Tensor:
        x, told = output
        return self.head(x.flatten(1) if x.ndim == 4 else x) + told


class TokenModel(Model):
    """Called with tokens, in Hugging Face's words."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **told: Any) -> Tensor:  # type: ignore[override]  # as above
        return self.logits(self.trunk(input_ids=input_ids, attention_mask=attention_mask, **told))


class Wrapper(nn.Module):
    """A module around a model, as PEFT and data parallelism put one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def build(plan: Plan) -> nn.Module:
    """Make the model of a plan, with the same weights each time, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (TokenModel if plan.layout == "tokens" else Model)(plan).eval()
    return Wrapper(model).eval() if plan.wrapped else model


def inputs_of(plan: Plan, forward: Pass) -> dict[str, Tensor]:
    """Draw the tensors that a pass is called with; of tokens some are padding, on either side."""
    generator = torch.Generator().manual_seed(forward.seed)
    if plan.layout != "tokens":
        shape = {"rows": (WIDTH,), "positions": (POSITIONS, WIDTH), "images": (1, 2, 2)}[plan.layout]
        return {"inputs": torch.randn(forward.batch, *shape, generator=generator)}
    ids = torch.randint(TOKENS, (forward.batch, POSITIONS), generator=generator)
    lengths = torch.randint(1, POSITIONS + 1, (forward.batch, 1), generator=generator)
    mask = (torch.arange(POSITIONS) < lengths).long()
    return {"input_ids": ids, "attention_mask": mask.flip(1) if forward.seed % 2 else mask}


def call(plan: Plan, whole: nn.Module, forward: Pass) -> Tensor:
    """Make a pass; of a bare trunk the last state is returned."""
    model = whole.get_submodule("model") if plan.wrapped and forward.entry != "whole" else whole
    entry = model.get_submodule("trunk") if forward.entry == "trunk" else model
    given, told = inputs_of(plan, forward), {"drop": forward.drop, "stop": forward.stop}
    output = entry(**given, **told) if forward.keywords else entry(*given.values(), **told)
    return output[0] if isinstance(output, tuple) else output


def _mean(x: Tensor) -> Tensor:
    return (x.flatten(1) if x.ndim == 4 else x).mean(-1, keepdim=True)
