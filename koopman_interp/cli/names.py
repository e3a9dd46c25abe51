"""Models and data sets that the command line names as `module:callable`, and the kinds of paths it takes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def called(name: str) -> Any:
    """Import `module:callable` and call it."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise click.BadParameter(f"{name!r} is not of the form module:callable.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"{name!r} could not be imported: {error}.") from error
    finally:
        sys.path.pop(0)
    if not callable(target):
        raise click.BadParameter(f"{name!r} is a {type(target).__name__}, which cannot be called.")
    return target()


def labelled(name: str) -> tuple[Tensor, Tensor]:
    """Gather inputs and labels of a data set given as module:callable."""
    import torch

    found = called(name)
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], torch.Tensor):
        return found
    pairs = list(found) if isinstance(found, Iterable) else []
    if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise click.BadParameter(f"{name!r} must give one or more pairs of inputs and labels.")
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
