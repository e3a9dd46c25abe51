"""Killing what writes: SIGKILL at a moment drawn at random, then what a reader finds, and what the next write leaves.

Each job is one function that gives a `Job`; another writer is tried by another such function in `JOBS`.
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
from dataclasses import dataclass
from pathlib import Path

from fault_values import Values, digest_of

import koopman_interp as ki
from koopman_interp.files import read_tensors
from koopman_interp.report.folder import read_run
from koopman_interp.sources.store import INDEX

Read = Callable[[Path], tuple[str, ...]]


@dataclass(frozen=True)
class Job:
    """Something that writes to a folder.

    Attributes:
        name: of it.
        prepare: writes what stands there before.
        work: writes anew; what it gives back has to be the same whatever killed an earlier attempt.
        read: digests of the parts that a reader finds, each of which has to be that of before or of after.
    """

    name: str
    prepare: Callable[[Path], None]
    work: Callable[[Path], str]
    read: Read


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

    def read(folder: Path) -> tuple[str, ...]:
        if (folder / INDEX).exists():
            with warnings.catch_warnings():  # that it did not come to its end
                warnings.simplefilter("ignore", UserWarning)
                store = ki.Store(folder)
            if len(store):
                store.trajectories()
        return ("whole or none",)

    return Job("observe", lambda _: None, lambda folder: digest_of(values.observe(folder).trajectories()), read)


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


JOBS: tuple[Callable[[Values], Job], ...] = (fit_job, observe_job, save_job, run_job)


def killed(job: Job, trials: int, seed: int) -> dict[str, int]:
    """Kill a job at random moments of it.

    Args:
        job: what to kill.
        trials: how often.
        seed: of the moments.

    Returns:
        How many there were of: `killed`; `old or new`, by what a reader found; `same after`, by what the next attempt
        gave; `left over`, files that are not there after an attempt that was never killed.
    """
    draw, counts = random.Random(seed), Counter(killed=0, old_or_new=0, same_after=0, left_over=0)
    for _ in range(2):  # the first is longer, since it imports and sets up
        with tempfile.TemporaryDirectory() as clean:
            folder = Path(clean)
            job.prepare(folder)
            old = job.read(folder)
            started = time.perf_counter()
            result = job.work(folder)
            seconds = time.perf_counter() - started
            new, names = job.read(folder), _names(folder)
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            job.prepare(folder)
            counts["killed"] += _killed_after(draw.uniform(0, seconds), job, folder)
            counts["old_or_new"] += _is_old_or_new(job, folder, old, new)
            counts["same_after"] += job.work(folder) == result and job.read(folder) == new
            counts["left_over"] += len(_names(folder) ^ names)
    return dict(counts)


def _killed_after(seconds: float, job: Job, folder: Path) -> bool:
    """Let a process of its own do the job, and kill it; say whether it was still at it."""
    process = os.fork()
    if process == 0:
        try:
            job.work(folder)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def _is_old_or_new(job: Job, folder: Path, old: tuple[str, ...], new: tuple[str, ...]) -> bool:
    try:
        found = job.read(folder)
    except (ki.KoopmanInterpError, FileNotFoundError):
        return False
    return all(part in pair for part, *pair in zip(found, old, new, strict=True))


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
