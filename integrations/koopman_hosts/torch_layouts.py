"""Torch's own layers that take positions first, unless they are made with `batch_first=True`.

People also hand them states with the batch first, and get attention across the batch. Where the pass has tokens, these
tell which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

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
    return state.ndim == 3 and (tokens is None or tokens.shape != shape or shape[0] == shape[1])
