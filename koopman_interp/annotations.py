"""Whether a value is what its annotations say: for what comes from files, which can say anything.

Plain types, tuples, mappings, optional parts and shapes (jaxtyping) are looked at; what is annotated otherwise is not.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jaxtyping import AbstractArray, jaxtyped

Value = TypeVar("Value")

_WIDENED: dict[type, tuple[type, ...]] = {float: (int, float), complex: (int, float, complex)}


def as_annotated(value: Value, /) -> Value:
    """Return a dataclass whose fields are as annotated, axes of one name as long as each other.

    Raises:
        TypeError: a field is otherwise; the message names it.
    """
    kind: Any = type(value)
    hints = _hints(kind)
    with jaxtyped("context"):
        for field in fields(kind):
            found = getattr(value, field.name)
            if not _fits(found, hints.get(field.name, Any)):
                raise TypeError(f"{field.name} of {kind.__name__} is no {hints[field.name]}: {found!r:.60}.")
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except NameError:  # of a name that only a type checker imports
        return {}


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        entries = parts[:1] * len(value) if parts[1:] == (Ellipsis,) else parts
        return len(entries) == len(value) and all(map(_fits, value, entries))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(name, parts[0]) and _fits(each, parts[1]) for name, each in value.items()
        )
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is Any or not isinstance(hint, type):
        return True
    if issubclass(hint, AbstractArray):
        return isinstance(value, hint)
    if hint in (int, float, complex, str, bool):
        is_bool = isinstance(value, bool)
        return is_bool if hint is bool else not is_bool and isinstance(value, _WIDENED.get(hint, hint))
    if is_dataclass(hint) and isinstance(value, hint):
        as_annotated(value)
    return isinstance(value, hint)
