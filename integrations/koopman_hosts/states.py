"""The state in what a block is called with and in what it returns, as torch models hand it on.

A block may take its state as first argument or by keyword, and return it alone, or in a tuple, list, mapping, dataclass
or ModelOutput, beside other things. Where it is not clear which of several tensors is the state, the call is refused.
Knows no framework; nothing given is written into.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from koopman_interp.errors import UnsupportedHostError

NO_STATE = torch.empty(0)
"""Stands where the state was in a frame, which is an output without its state."""

_NAMES = ("hidden_states", "last_hidden_state", "hidden_state", "hidden", "state", "x", "input", "output", "out", "src")
"""What models call a state, where they give it a name."""


def input_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Find the state among a block's arguments: the first positional one, or the keyword that names a state.

    Raises:
        UnsupportedHostError: there is none, or it is not clear which one.
    """
    if args and _is_state(args[0]):
        state: Tensor = args[0]
        return state
    name = _named(kwargs)
    if name is None:
        listed = ", ".join(f"{key} {tuple(value.shape)}" for key, value in kwargs.items() if _is_state(value))
        raise UnsupportedHostError(
            "A block was called without a floating-point tensor that is clearly its state"
            + (f": its arguments are {listed}" if listed else "")
            + ". Choose other sites with sites=, the outputs of modules for one."
        )
    named: Tensor = kwargs[name]
    return named


def output_state(output: Any, like: Tensor | None = None) -> Tensor:
    """Find the state in a module's output.

    Args:
        output: what it returned.
        like: the state that it was called with, if that is known: where several tensors could be meant, it is the one
            of its shape.

    Returns:
        The tensor itself; of a tuple or list the first entry; of a mapping, dataclass or ModelOutput the one that is
        named as a state, or the only one.

    Raises:
        UnsupportedHostError: there is none, or it is not clear which one.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return _first(output, like)
    fields = _fields(output)
    name = None if fields is None else _place(output, fields)
    if fields is None or name is None:
        inside = "" if fields is None else f" with {', '.join(fields)}"
        raise UnsupportedHostError(
            f"A module returned {type(output).__name__}{inside}, in which no state was found; known are a tensor, a "
            f"tuple whose first entry is one, and a mapping or dataclass that names it ({', '.join(_NAMES[:3])}, …) or "
            "holds a single one. Choose other sites with sites=."
        )
    state: Tensor = fields[name]
    return state


def with_state(output: Any, state: Tensor) -> Any:
    """Return an output of the same kind that carries another state; the given output is left alone."""
    if isinstance(output, Tensor):
        return state
    if isinstance(output, (tuple, list)):
        if hasattr(output, "_fields"):  # a named tuple
            return type(output)(state, *output[1:])
        return type(output)((state, *output[1:]))
    fields = _fields(output)
    assert fields is not None
    name = _place(output, fields)
    assert name is not None
    if not isinstance(output, Mapping):
        return dataclasses.replace(output, **{name: state})
    changed = fields | {name: state}
    return changed if type(output) is dict else type(output)(**changed)


def is_handed_on(state: Tensor, handed: Tensor) -> bool:
    """Whether a state is the one that was handed on, or a copy of it on another device."""
    return state is handed or (state.device != handed.device and state.shape == handed.shape)


def is_bare(frame: Any) -> bool:
    """Whether an output frame carries nothing beside the place of its state that a later pass could want anew.

    Tensors do, and so do objects that a pass writes into, such as a key-value cache.
    """
    if isinstance(frame, (tuple, list)):
        return all(map(is_bare, frame))
    fields = _fields(frame)
    if fields is not None:
        return all(map(is_bare, fields.values()))
    return frame is NO_STATE or frame is None or isinstance(frame, (bool, int, float, str))


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _fields(output: Any) -> dict[str, Any] | None:
    """The entries of a mapping or dataclass by name; None of anything else."""
    if isinstance(output, Mapping):
        return dict(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return None


def _named(entries: Mapping[str, Any]) -> str | None:
    """Name the entry that is a state by its name, or by being the only tensor of floating-point numbers."""
    by_name = next((name for name in _NAMES if _is_state(entries.get(name)) or entries.get(name) is NO_STATE), None)
    if by_name is not None:
        return by_name
    states = [name for name, value in entries.items() if _is_state(value)]
    return states[0] if len(states) == 1 else None


def _place(output: Any, entries: Mapping[str, Any]) -> str | None:
    found = _named(entries)
    if found is None and isinstance(output, Mapping) and type(output) is not dict:
        # The first of a ModelOutput is what its model hands on.
        first = next(iter(entries), None)
        return first if first is not None and isinstance(entries[first], Tensor) else None
    return found


def _first(output: Sequence[Any], like: Tensor | None) -> Tensor:
    first = output[0] if output else None
    if not isinstance(first, Tensor):
        raise UnsupportedHostError(
            f"A module returned a {type(output).__name__} whose first entry is {type(first).__name__}; a state is "
            "looked for there. Choose other sites with sites=."
        )
    others = [entry for entry in output[1:] if _is_state(entry) and like is not None and entry.shape == like.shape]
    if like is not None and others and first.shape != like.shape:
        raise UnsupportedHostError(
            f"A module returned a {type(output).__name__} whose first entry has the shape {tuple(first.shape)}, and "
            f"another has the shape of what went in, {tuple(like.shape)}: it is not clear which is the state. Choose "
            "other sites with sites=, such as the input of the module that follows."
        )
    return first
