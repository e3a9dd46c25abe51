"""Writing and reading where the system says no: a full disk, a folder that is not ours, memory that runs out.

Each attempt is a process of its own under a limit. What stood there has to stand there still, and nothing beside it.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fault_damage import outcome
from fault_kills import Job
from fault_values import Kind, Values, digest_of

import koopman_interp as ki

_NOBODY = 65534
_FEW_BYTES = 200
_LITTLE_MEMORY, _LARGE = 16 * 2**20, 256 * 2**20
"""Bytes that a process may still take, and that a file has: more than the allocator keeps of what it was given back."""


def refused(values: Values, kinds: tuple[Kind, ...], jobs: tuple[Job, ...]) -> tuple[dict[str, int], list[str]]:
    """Try all of it.

    Args:
        values: to write and to fit.
        kinds: of files, to write and to read.
        jobs: that write several.

    Returns:
        Outcomes by name, `lost` among them for what did not stand there any more, and the exceptions that were none of
        ours.
    """
    counts, raw = Counter(noticed=0, same=0, lost=0, raw=0), []
    for name, word, said in (*_full(kinds, jobs), *_not_ours(kinds, jobs), *_short_of_memory(values)):
        counts[word] += 1
        raw += [f"{name}: {said}"] if word not in ("noticed", "same") else []
    return dict(counts), raw


def _full(kinds: tuple[Kind, ...], jobs: tuple[Job, ...]) -> Iterator[tuple[str, str, str]]:
    """Write where the disk is full, by what may be written, and as it shows only when it is flushed."""
    for name, limit in (("full disk", _no_room), ("full disk, told late", _no_room_to_flush)):
        for kind in kinds:
            yield _written(f"{name}, {kind.name}", kind.save, kind.save, partial(_of, kind), limit)
        for job in jobs:
            yield _written(f"{name}, {job.name}", job.prepare, job.work, job.read, limit)


def _not_ours(kinds: tuple[Kind, ...], jobs: tuple[Job, ...]) -> Iterator[tuple[str, str, str]]:
    """Write to a folder that is not to be written to, and read what is not to be read."""
    for kind in kinds:
        yield _written(f"not ours, {kind.name}", kind.save, kind.save, partial(_of, kind), _leave)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            kind.save(folder)
            _open_to_all(folder)
            (folder / kind.file).chmod(0)
            yield (f"unreadable {kind.name}", *_in_child(lambda kind=kind, at=folder: kind.load(at), kind.file, _leave))
    for job in jobs:
        yield _written(f"not ours, {job.name}", job.prepare, job.work, job.read, _leave)


def _short_of_memory(values: Values) -> Iterator[tuple[str, str, str]]:
    """Read, write and fit what memory does not hold."""
    short = values.trajectories[:2]
    rows = _LARGE // (4 * sum(short.widths))
    large = short[torch.zeros(rows, dtype=torch.int64)]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "large.safetensors"
        large.save(path)
        yield ("memory, reading", *_in_child(lambda: ki.Trajectories.load(path), path.name, _little_memory))
        yield ("memory, writing", *_in_child(lambda: large.save(path), path.name, _little_memory))
        whole = digest_of(ki.Trajectories.load(path)) == digest_of(large)
        yield "memory, what stood there", "same" if whole else "lost", ""
    generator = torch.Generator().manual_seed(0)
    states = tuple(torch.randn(rows, width, generator=generator) for width in short.widths)
    own = replace(large, states=states, sequence=torch.arange(rows), digests=torch.arange(rows))
    config = ki.FitConfig(steps=10, observables=12)
    yield ("memory, fitting", *_in_child(lambda: ki.fit(own, config, progress=False), None, _little_memory))


def _written(
    name: str,
    prepare: Callable[[Path], Any],
    work: Callable[[Path], Any],
    read: Callable[[Path], Any],
    limit: Callable[[Path], object],
) -> tuple[str, str, str]:
    """Try to write where it cannot be, and see that what stood there does."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        before, names = read(folder), _names(folder)
        _open_to_all(folder)
        word, said = _in_child(lambda: work(folder), "", lambda: limit(folder))
        stands = read(folder) == before and _names(folder) == names
    return name, word if stands else "lost", said if stands else f"{said} what stood there does not, or more does"


def _in_child(act: Callable[[], Any], named: str | None, limit: Callable[[], object]) -> tuple[str, str]:
    """Do something in a process of its own under a limit, and say how it went."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            limit()
            said = outcome(act, None if named is None else Path(named))
        except BaseException as error:
            said = "raw", f"{type(error).__name__}: {error}"
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        os.write(writing, json.dumps(said).encode()[:4096])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said_there:
        told = said_there.read()
    ended = os.waitpid(process, 0)[1]
    if not told:
        return "raw", f"ended with status {ended}"
    word, said = json.loads(told)
    return ("not refused" if word == "taken" else word), said


def _no_room(_: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FEW_BYTES, _FEW_BYTES))


def _no_room_to_flush(_: Path) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = full


def _leave(folder: Path | None = None) -> None:
    """Become somebody whose folder it is not."""
    if folder is not None:
        for each in (folder, *folder.rglob("*")):
            each.chmod(0o555 if each.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.setuid(_NOBODY)


def _little_memory() -> None:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    now = int(line.split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (now + _LITTLE_MEMORY, resource.RLIM_INFINITY))


def _open_to_all(folder: Path) -> None:
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)


def _of(kind: Kind, folder: Path) -> str:
    return digest_of(kind.load(folder))


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
