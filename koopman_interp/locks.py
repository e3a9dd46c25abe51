"""Keeping two processes from writing to one file or folder at once.

The lock is the system's, on a small file beside what it guards, so that it is free again when its holder is killed; the
file goes with the lock, and what a killed holder left of it is taken over by the next. Readers need none: what is
written is replaced whole.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from koopman_interp.errors import LockedError
from koopman_interp.files import clear_leftovers, storage_error


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a file or folder, which need not be there yet, while the context lasts.

    What killed writers of it left beside it is cleared away first.

    Args:
        path: what is written to; missing parent folders are made.

    Raises:
        LockedError: somebody else holds it, in this process or another; the message says who, and since when.
        StorageError: its folder cannot be written to.
    """
    target = Path(path).resolve()
    beside = target.with_name(f".{target.name}.lock")
    # Read before the attempt, since some versions of filelock empty the file that they try to lock.
    holder = _holder(beside)
    lock = FileLock(beside, is_singleton=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise LockedError(
            f"{target} is being written to by {holder}. Wait until that has ended, stop it, or write elsewhere."
        ) from None
    except OSError as error:
        raise storage_error(target, 0, error) from error
    try:
        with suppress(OSError):
            clear_leftovers(target)
        with suppress(OSError):  # where a file that is locked cannot be written to, it says less
            beside.write_text(json.dumps(_own()), encoding="utf-8")
        yield
    finally:
        # While it is held: who waits for this file finds, once it has it, that it has no name any more, and tries anew.
        with suppress(OSError):
            beside.unlink()
        lock.release()


def _own() -> dict[str, str | int]:
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "machine": socket.gethostname(), "since": now}


def _holder(beside: Path) -> str:
    """Say who wrote into a lock's file that it holds the lock."""
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        return f"process {said['pid']} on {said['machine']} since {said['since']}"
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return "another process"
