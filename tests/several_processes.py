"""Processes to kill, and such as `torchrun` would start, forked from one that has imported all there is to import."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from koopman_interp.errors import ProcessError

SAID = 3
"""Exit status of a process that ended with a sentence."""

FORKED = multiprocessing.get_context("forkserver")
"""What starts a process from a clean one, in a fraction of the time that the imports take."""
FORKED.set_forkserver_preload([__name__, "koopman_interp.fitting.fit", "koopman_interp.observing.tap"])

_PATIENCE = timedelta(seconds=10)

Work = Callable[[int, Path], None]
"""What each process does, with its rank and the folder that it was given."""


def run_by(ranks: int, work: Work, folder: Path) -> list[int]:
    """Run something in several processes at once.

    Args:
        ranks: how many.
        work: what each does; a function of a module.
        folder: where; what a process says when it ends with a sentence is in `said-<rank>` beside it.

    Returns:
        Their exit statuses, in order; of one that was killed, less the signal.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    meeting = folder.parent / "meeting"
    meeting.unlink(missing_ok=True)
    processes = [FORKED.Process(target=_one, args=(rank, ranks, meeting, work, folder)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        process.join()
    return [process.exitcode or 0 for process in processes]


def die() -> None:
    """End this process as no handler can see."""
    os.kill(os.getpid(), signal.SIGKILL)


def _one(rank: int, ranks: int, meeting: Path, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(meeting), ranks), rank=rank, world_size=ranks, timeout=_PATIENCE
    )
    try:
        work(rank, folder)
    except ProcessError as error:
        (folder.parent / f"said-{rank}").write_text(str(error))
        raise SystemExit(SAID) from error
    finally:
        dist.destroy_process_group()
