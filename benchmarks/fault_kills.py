"""Killing what writes: SIGKILL at a moment drawn at random, then what a reader finds, and what the next write leaves.

Each job is one function that gives a `Job`; another writer is tried by another such function in `JOBS`. Of a job that
several processes do, one is killed or all are, by lot; who is left has to end with a sentence.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist
from fault_values import Values, digest_of

import koopman_interp as ki
from koopman_interp.files import read_tensors
from koopman_interp.report.folder import read_run
from koopman_interp.sources.store import INDEX

Read = Callable[[Path], tuple[str, ...]]

_SAID = 3
"""Exit status of a process that ended with a sentence of ours."""
_PATIENCE = timedelta(seconds=20)
"""How long one waits for another that may have been killed."""


@dataclass(frozen=True)
class Job:
    """Something that writes to a folder.

    Attributes:
        name: of it.
        prepare: writes what stands there before.
        work: writes anew; what it gives back has to be the same whatever killed an earlier attempt.
        read: digests of the parts that a reader finds, each of which has to be that of before or of after.
        ranks: processes that work at it at once.
    """

    name: str
    prepare: Callable[[Path], None]
    work: Callable[[Path], str]
    read: Read
    ranks: int = 1


def fit_job(values: Values) -> Job:
    """A fit into a checkpoint, which goes on where it was killed."""

    def read(folder: Path) -> tuple[str, ...]:
        path = folder / "kept.safetensors"
        if path.exists():
            read_tensors(path, kind="checkpoint")
        return ("whole or none",)

    return Job("fit", lambda _: None, lambda folder: digest_of(values.fit(folder)), read)


def observe_job(values: Values) -> Job:
    """An observation to a store, which goes on where it was killed."""
    return Job("observe", lambda _: None, lambda folder: digest_of(values.observe(folder).trajectories()), _read_store)


def observe_together_job(values: Values) -> Job:
    """The same by two processes, as torchrun starts them."""
    return replace(observe_job(values), name="observe, two processes", ranks=2)


def _read_store(folder: Path) -> tuple[str, ...]:
    if (folder / INDEX).exists():
        with warnings.catch_warnings():  # that it did not come to its end
            warnings.simplefilter("ignore", UserWarning)
            store = ki.Store(folder)
        if len(store):
            store.trajectories()
    return ("whole or none",)


def save_job(values: Values) -> Job:
    """A surrogate, and the values made from it, in place of others."""
    before, after = (
        (koopman, ki.erase_class(koopman, label=label, site=1), values.trajectories[rows])
        for koopman, label, rows in ((values.koopman, 1, slice(0, 200)), (values.other, 2, slice(100, 300)))
    )

    def save(of: tuple[ki.KoopmanAutoencoder, ki.OperatorEdit, ki.Trajectories], folder: Path) -> None:
        of[0].save_pretrained(folder / "koopman")
        of[1].save(folder / "edit.safetensors")
        of[2].save(folder / "trajectories.safetensors")

    def read(folder: Path) -> tuple[str, ...]:
        return (
            digest_of(ki.KoopmanAutoencoder.from_pretrained(folder / "koopman")),
            digest_of(ki.OperatorEdit.load(folder / "edit.safetensors")),
            digest_of(ki.Trajectories.load(folder / "trajectories.safetensors")),
        )

    def work(folder: Path) -> str:
        save(after, folder)
        return str(read(folder))

    return Job("save", lambda folder: save(before, folder), work, read)


def run_job(values: Values) -> Job:
    """A run's folder and page, in place of another run's."""
    before, after = (
        (koopman, ki.spectrum(koopman, values.trajectories), title)
        for koopman, title in ((values.koopman, "before"), (values.other, "after"))
    )

    def write(of: tuple[ki.KoopmanAutoencoder, ki.Spectrum, str], folder: Path) -> None:
        ki.write_run(folder / "run", of[0], spectrum=of[1], title=of[2])

    def read(folder: Path) -> tuple[str, ...]:
        run = read_run(folder / "run")
        return ("".join([digest_of(run.koopman), digest_of(run.spectrum), run.title]),)

    def work(folder: Path) -> str:
        write(after, folder)
        return str(read(folder))

    return Job("write_run", lambda folder: write(before, folder), work, read)


JOBS: tuple[Callable[[Values], Job], ...] = (fit_job, observe_job, observe_together_job, save_job, run_job)


def killed(job: Job, trials: int, seed: int) -> dict[str, int]:
    """Kill a job at random moments of it.

    Args:
        job: what to kill.
        trials: how often.
        seed: of the moments.

    Returns:
        How many there were of: `killed`; `old or new`, by what a reader found; `same after`, by what the next attempt
        gave; `left over`, files that are not there after an attempt that was never killed; `unsaid`, processes that
        were left and ended otherwise than with a sentence.
    """
    draw, counts = random.Random(seed), Counter(killed=0, old_or_new=0, same_after=0, left_over=0, unsaid=0)
    for _ in range(2):  # the first is longer, since it imports and sets up
        with tempfile.TemporaryDirectory() as clean:
            folder = Path(clean)
            job.prepare(folder)
            old = job.read(folder)
            started = time.perf_counter()
            result = _done(job, folder)
            seconds = time.perf_counter() - started
            new, names = job.read(folder), _names(folder)
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            job.prepare(folder)
            statuses = _killed_after(draw.uniform(0, seconds), draw.randrange(job.ranks + 1), job, folder)
            counts["killed"] += -signal.SIGKILL in statuses
            counts["unsaid"] += sum(status not in (0, _SAID, -signal.SIGKILL) for status in statuses)
            counts["old_or_new"] += _is_old_or_new(job, folder, old, new)
            counts["same_after"] += _done(job, folder) == result and job.read(folder) == new
            counts["left_over"] += len(_names(folder) ^ names)
    return dict(counts)


def _done(job: Job, folder: Path) -> str:
    """Do a job that nothing kills: one alone here, several in processes of their own, of which the result is read."""
    if job.ranks > 1:
        statuses = _ended(_begun(job, folder))
        if any(statuses):
            return f"ended with {statuses}"
    return job.work(folder) if job.ranks == 1 else digest_of(ki.Store(folder).trajectories())


def _killed_after(seconds: float, victim: int, job: Job, folder: Path) -> list[int]:
    """Let processes of their own do a job, and kill one, or all where that is none of them; return how they ended."""
    processes = _begun(job, folder)
    time.sleep(seconds)
    for process in processes if victim == job.ranks else [processes[victim]]:
        os.kill(process, signal.SIGKILL)
    return _ended(processes)


def _begun(job: Job, folder: Path) -> list[int]:
    """Fork the processes of a job, and return their numbers once they have met."""
    begun = list[int]()
    read, write = os.pipe()
    with tempfile.TemporaryDirectory() as meeting:
        for rank in range(job.ranks):
            process = os.fork()
            if process == 0:
                _one(job, folder, rank, Path(meeting) / "meeting", write)
            begun.append(process)
        for _ in begun:
            os.read(read, 1)
    os.close(read)
    os.close(write)
    return begun


def _one(job: Job, folder: Path, rank: int, meeting: Path, met: int) -> NoReturn:
    status = _SAID + 1
    try:
        if job.ranks > 1:
            place = dist.FileStore(str(meeting), job.ranks)
            dist.init_process_group("gloo", store=place, rank=rank, world_size=job.ranks, timeout=_PATIENCE)
        os.write(met, b".")
        job.work(folder)
        status = 0
    except ki.KoopmanInterpError:
        status = _SAID
    finally:
        os._exit(status)


def _ended(processes: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def _is_old_or_new(job: Job, folder: Path, old: tuple[str, ...], new: tuple[str, ...]) -> bool:
    try:
        found = job.read(folder)
    except (ki.KoopmanInterpError, FileNotFoundError):
        return False
    return all(part in pair for part, *pair in zip(found, old, new, strict=True))


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
