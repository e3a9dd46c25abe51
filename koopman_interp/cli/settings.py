"""Settings of a fit on the command line: their meanings, from the docstrings that say them, and `key=value`.

Nothing here knows a setting by name.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import click

Assignment = tuple[tuple[str, ...], Any]
"""A name, in parts where it is nested, and its value."""

_SECTION = re.compile(r"^Attributes:\n((?:[ ]+.*\n|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: as `fit --set` takes it, dotted where it is nested.
        default: its value; of what is nested, by name.
        meaning: what it does.
    """

    name: str
    default: Any
    meaning: str


def settings_of(config: Any, prefix: str = "") -> list[Setting]:
    """List the fields of a frozen configuration, each followed by those nested in it."""
    told, found = _meanings(type(config)), []
    for field in fields(config):
        value = getattr(config, field.name)
        nested = is_dataclass(value) and not isinstance(value, type)
        found.append(Setting(prefix + field.name, asdict(value) if nested else value, told.get(field.name, "")))
        if nested:
            found += settings_of(value, f"{prefix}{field.name}.")
    return found


def _meanings(kind: type) -> dict[str, str]:
    """Read what the Attributes of a class and of its bases say; what a class adds follows what its base says."""
    told: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        section = _SECTION.search(inspect.cleandoc(each.__dict__.get("__doc__") or "") + "\n")
        parts = _ENTRY.split(section[1])[1:] if section else []
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            sentence = " ".join(text.split())
            told[name] = f"{told[name]} {sentence[:1].upper()}{sentence[1:]}" if name in told else sentence
    return told


class _Assignment(click.ParamType):  # type: ignore[type-arg]  # it is plain in click 8.1
    """`key=value`, the value in JSON, or a word as it is."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Assignment:
        key, equals, text = value.partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is not of the form key=value, such as steps=2000.", param, ctx)
        try:
            return tuple(key.split(".")), json.loads(text)
        except ValueError:
            return tuple(key.split(".")), text


ASSIGNMENT = _Assignment()


def assigned(values: dict[str, Any], assignments: tuple[Assignment, ...]) -> dict[str, Any]:
    """Return values by name with some set anew; `("normalization", "dimension")` is a name within a name."""
    values = dict(values)
    for (key, *within), value in assignments:
        if within:
            inner = values.get(key)
            value = assigned(inner if isinstance(inner, dict) else {}, ((tuple(within), value),))
        values[key] = value
    return values
