"""A folder that is whole or not there: written beside its place, then swapped into it.

A kill at any moment leaves the old folder or the new one, never a mix of both; what it leaves beside them is cleared
by the next write of the same folder. One process writes a folder at a time. Knows nothing of what a folder holds.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from koopman_interp.errors import InputError, LockedError, StorageError
from koopman_interp.locks import locked

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2."""


@contextmanager
def swapped(folder: str | os.PathLike[str], *, ours: Callable[[str], bool]) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when the block ends without an exception.

    Args:
        folder: the folder to write; missing parents are made.
        ours: says of a name in it whether it is replaced; all else that lies there is kept.

    Yields:
        A folder beside it to write to.

    Raises:
        InputError: it is the folder that the process works in, or holds it.
        LockedError: another process is writing it.
        StorageError: it cannot be written. What stood there is as it was.
    """
    target = Path(folder).resolve()
    if Path.cwd().is_relative_to(target):
        raise InputError(
            f"{target} is swapped as a whole, and is the folder that you work in, or holds it. Name a folder of its "
            f"own, such as {target / 'koopman-run'}."
        )
    if target.exists() and not target.is_dir():
        raise StorageError(f"{target} is a file, and not a folder. Name another folder; the file is as it was.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            new = _beside(target, "new")
            _recover(target)
            _clear(new)
            new.mkdir()
            try:
                yield new
                _keep_others(target, new, ours)
                _swap(new, target)
            finally:
                _clear(new)  # after the swap, the old one
    except OSError as error:
        if isinstance(error, (StorageError, LockedError)):
            raise
        raise StorageError(
            f"The folder {target} could not be written ({error.strerror or error}). Choose a folder that is yours, or "
            "make room; what stood there is as it was."
        ) from error


def recover(folder: str | os.PathLike[str]) -> None:
    """Bring a folder back that a kill left between two names, unless it is just being written."""
    target = Path(folder).resolve()
    if not target.exists() and _beside(target, "old").exists():
        with locked(target):
            _recover(target)


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _recover(target: Path) -> None:
    old = _beside(target, "old")
    if old.exists() and not target.exists():
        old.rename(target)
    _clear(old)


def _clear(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _keep_others(target: Path, new: Path, ours: Callable[[str], bool]) -> None:
    """Let the new folder hold what else lies in the old one: the same files, by a second name, or copies."""
    for each in target.iterdir() if target.is_dir() else ():
        if ours(each.name) or (new / each.name).exists():
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.copytree(each, new / each.name, symlinks=True, copy_function=_second_name)
        else:
            _second_name(each, new / each.name)


def _second_name(source: str | Path, copy: str | Path) -> None:
    try:
        os.link(source, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, copy, follow_symlinks=False)


def _swap(new: Path, target: Path) -> None:
    """Put one folder in the place of another: in one step where the system has it, else by two renames."""
    if not target.exists():
        new.rename(target)
    elif not _exchanged(new, target):
        old = _beside(target, "old")
        target.rename(old)  # from here to the next line a kill leaves the old one, under this name
        new.rename(target)
        _clear(old)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step, where the system and the disk can; say whether it was done."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    return exchange is not None and exchange(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
