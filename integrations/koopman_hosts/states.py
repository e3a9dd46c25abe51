"""The state in what a block is called with and in what it returns, as torch models hand it on.

A block may take its state as first argument or by keyword, and return it alone, or first in a tuple, list, mapping
or ModelOutput. Knows no framework; nothing given is written into.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from koopman_interp.errors import UnsupportedHostError

NO_STATE = torch.empty(0)
"""Stands where the state was in a frame, which is an output without its state."""


def input_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Find the state among a block's arguments: the first positional, or Hugging Face's keyword."""
    candidates = [*args[:1], kwargs.get("hidden_states"), *kwargs.values()]
    for candidate in candidates:
        if isinstance(candidate, Tensor) and candidate.is_floating_point():
            return candidate
    raise UnsupportedHostError(
        "A block was called without a floating-point tensor to read as its state. Choose other sites with sites=."
    )


def output_state(output: Any) -> Tensor:
    """Find the state in a module's output: the tensor, or the first entry of a tuple or ModelOutput."""
    first = output
    if isinstance(output, Mapping) and output:
        first = next(iter(output.values()))
    elif isinstance(output, (tuple, list)) and output:
        first = output[0]
    if isinstance(first, Tensor):
        return first
    raise UnsupportedHostError(
        f"A module returned {type(output).__name__}, in which no state was found; known are a tensor, or a tuple or "
        "mapping whose first entry is one. Choose other sites with sites=."
    )


def with_state(output: Any, state: Tensor) -> Any:
    """Return an output of the same kind that carries another state; the given output is left alone."""
    if isinstance(output, Tensor):
        return state
    if isinstance(output, Mapping):
        key = next(iter(output))
        changed = dict(output) | {key: state}
        return changed if type(output) is dict else type(output)(**changed)
    if hasattr(output, "_fields"):  # a named tuple
        return type(output)(state, *output[1:])
    return type(output)((state, *output[1:]))


def is_handed_on(state: Tensor, handed: Tensor) -> bool:
    """Whether a state is the one that was handed on, or a copy of it on another device."""
    return state is handed or (state.device != handed.device and state.shape == handed.shape)


def is_bare(frame: Any) -> bool:
    """Whether an output frame carries nothing beside the place of its state that a later pass could want anew.

    Tensors do, and so do objects that a pass writes into, such as a key-value cache.
    """
    if isinstance(frame, Mapping):
        return all(map(is_bare, frame.values()))
    if isinstance(frame, (tuple, list)):
        return all(map(is_bare, frame))
    return frame is NO_STATE or frame is None or isinstance(frame, (bool, int, float, str))
