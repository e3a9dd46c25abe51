"""Models and data sets that the command line names as `module:callable`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click


class _Name(click.ParamType):  # type: ignore[type-arg]  # it is plain in click 8.1
    """`module:callable`, whose form alone is looked at when the command is read."""

    name = "module:callable"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        module, colon, attribute = value.partition(":")
        if not (colon and module and attribute):
            self.fail(f"{value!r} is not of the form module:callable.", param, ctx)
        return value


NAME = _Name()


def called(*names: str) -> list[Any]:
    """Import all that is named, then call each: a misspelt data set is refused before a model is loaded."""
    return [target() for target in [imported(name) for name in names]]


def imported(name: str) -> Any:
    """Import what `module:callable` names, without a call."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"{name!r} could not be imported: {error}.") from error
    finally:
        sys.path.pop(0)
    if not callable(target):
        raise click.BadParameter(f"{name!r} is a {type(target).__name__}, which cannot be called.")
    return target
