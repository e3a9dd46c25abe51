"""What `module:callable` names: its module is looked for while the command is read, and imported before all work."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from koopman_interp.errors import InputError, nearest


def known(name: str) -> str:
    """Return `module:callable` with its module as Python names it, if there is such a module.

    Raises:
        InputError: it is of another form, or there is no such module.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise InputError(f"{name!r} is not of the form module:callable.{_in_module(name)}")
    module = _dotted(module)
    if not _found(module):
        raise InputError(
            f"There is no module {module!r} to take {attribute!r} from, neither here nor installed.{_modules(module)}"
        )
    return f"{module}:{attribute}"


def is_module(name: str) -> bool:
    """Whether a name without a colon is that of a Python file here, which lacks the part after the colon."""
    return name.endswith(".py") or Path(f"{name.replace('.', '/')}.py").is_file()


def imported(name: str) -> Any:
    """Import what `module:callable` names, without a call.

    Raises:
        InputError: it cannot be imported, or is nothing to call.
    """
    module, _, attribute = name.partition(":")
    with _here():
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"{name!r} could not be imported: {error}.") from error
    if not hasattr(loaded, attribute):
        there = [each for each, value in vars(loaded).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"{name!r} could not be imported: {module} has no {attribute}. {nearest(attribute, there)}")
    target = getattr(loaded, attribute)
    if not callable(target):
        raise InputError(f"{name!r} is a {type(target).__name__}, which cannot be called. Name a function.")
    return target


def _dotted(module: str) -> str:
    """Name a module as Python does, of a path too."""
    return module.removesuffix(".py").replace("/", ".") if module.endswith(".py") else module


def _found(module: str) -> bool:
    """Look for the outermost part of a module; nothing is imported."""
    with _here():
        importlib.invalidate_caches()
        try:
            return importlib.util.find_spec(module.partition(".")[0]) is not None
        except ValueError:  # it is loaded and has no spec of its own, as __main__ has
            return module in sys.modules


@contextmanager
def _here() -> Iterator[None]:
    """Have the working directory on the path."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _modules(module: str) -> str:
    there = sorted(path.stem for path in Path().glob("*.py"))
    return f" {nearest(module, there)}" if there else ""


def _in_module(name: str) -> str:
    """Say what could follow the colon, of a Python file that is named without one; nothing is imported."""
    path = Path(name if name.endswith(".py") else f"{name.replace('.', '/')}.py")
    if not path.is_file():
        return ""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):
        return ""
    made = [each.name for each in body if isinstance(each, (ast.FunctionDef, ast.ClassDef)) and each.name[0] != "_"]
    module = ".".join(path.with_suffix("").parts)
    return f" Did you mean {', '.join(f'{module}:{each}' for each in made[:6])}?" if made else ""
