"""Torch's own layers that take positions first, unless they are made with `batch_first=True`.

Ids that reach them with their axes as they are may have positions first too, or the batch, over which these layers then
attend: nothing tells which.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from koopman_interp.errors import UnsupportedHostError
from koopman_interp.hosts.laid_out import advanced_in, in_layout
from koopman_interp.hosts.layouts import Layout
from koopman_interp.hosts.passes import Passes
from koopman_interp.hosts.protocol import Hook

POSITIONS_FIRST = Layout("position batch width")


def takes_positions_first(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers, or stacks of them, that take states `[position, batch, width]`."""
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
        return takes_positions_first(module.layers[0])
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        return not module.self_attn.batch_first
    return isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and not module.batch_first


def hook_of_positions_first(hook: Hook, passes: Passes) -> Hook:
    """Bring the states of such a module to `[batch, position, width]` for a hook, and back."""
    return partial(_called, hook, in_layout(hook, POSITIONS_FIRST), passes)


def advance_of_positions_first(advance: Callable[[Tensor], Tensor], passes: Passes) -> Callable[[Tensor], Tensor]:
    """The same for a function from the state at a source to the one at a target."""
    return partial(_called, advance, partial(advanced_in, POSITIONS_FIRST, advance), passes)


def _called(as_is: Callable[..., Any], laid_out: Callable[..., Any], passes: Passes, state: Tensor) -> Any:
    return laid_out(state) if _are_first(state, passes) else as_is(state)


def _are_first(state: Tensor, passes: Passes) -> bool:
    tokens = None if passes.current is None else passes.current.tokens
    shape = tuple(state.shape[:2])
    if state.ndim == 3 and tokens is not None and tokens.shape == shape != shape[::-1]:
        raise UnsupportedHostError(
            f"Token ids of shape {shape} reach one of torch's layers as a state of shape {tuple(state.shape)}, and it "
            "takes positions first unless it is made with batch_first=True. If the batch is the first axis, it "
            "mixes inputs with each other: make it with batch_first=True or, if that is meant, attach(model, "
            "layout='batch position width'). If positions are, wrap the model in a module that is called with the "
            "batch first: def forward(self, ids): return self.model(ids.T).transpose(0, 1)."
        )
    return state.ndim == 3
