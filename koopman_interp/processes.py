"""Several processes at one task, as `torchrun` starts them: who this one is, and what they say to each other.

All is a matter of course where there is one process alone. Sums go over gloo on the CPU in float64, or nccl on CUDA.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from koopman_interp.errors import ProcessError

_PATIENCE = timedelta(minutes=float(os.environ.get("KOOPMAN_INTERP_TIMEOUT_MINUTES", "30")))
"""How long a process waits for the others, who may be in a long solve, before it takes them for dead."""


@dataclass(frozen=True)
class Processes:
    """The processes of one task.

    Attributes:
        rank: number of this one.
        ranks: how many there are.
    """

    rank: int = 0
    ranks: int = 1

    @classmethod
    def here(cls) -> Processes:
        """Say which process this is, by what `torchrun` sets, and join the others.

        Raises:
            ProcessError: another process did not come.
        """
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if not dist.is_available() or (ranks == 1 and not dist.is_initialized()):
            return cls()
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            try:
                dist.init_process_group(backend, timeout=_PATIENCE)
            except RuntimeError as error:
                raise ProcessError(
                    f"Process {os.environ.get('RANK', '?')} of {ranks} did not find the others ({_in_short(error)}). "
                    "See what the first that ended said, then start all again."
                ) from error
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and decides."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.ranks > 1

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors of all processes up, in place.

        Raises:
            ProcessError: another process is gone.
        """
        if not self.are_several:
            return
        for tensor in tensors:
            flat = tensor.contiguous()
            self._asked(lambda flat=flat: dist.all_reduce(flat))
            if flat is not tensor:
                tensor.copy_(flat)

    def given(self, value: Any) -> Any:
        """Return what the first process has.

        Raises:
            ProcessError: another process is gone.
        """
        if not self.are_several:
            return value
        box = [value]
        self._asked(lambda: dist.broadcast_object_list(box, src=0))
        return box[0]

    def all_of(self, value: Any) -> list[Any]:
        """Return what each process has, in order.

        Raises:
            ProcessError: another process is gone.
        """
        if not self.are_several:
            return [value]
        found: list[Any] = [None] * self.ranks
        self._asked(lambda: dist.all_gather_object(found, value))
        return found

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Take over the tensors of the first process, in place.

        Raises:
            ProcessError: another process is gone.
        """
        if self.are_several:
            for tensor in tensors:
                self._asked(lambda tensor=tensor: dist.broadcast(tensor, src=0))

    def wait(self) -> None:
        """Wait until all have come here.

        Raises:
            ProcessError: another process is gone.
        """
        self.all_of(None)

    def _asked(self, ask: Any) -> None:
        try:
            ask()
        except RuntimeError as error:  # dist.DistBackendError and gloo's own are such
            raise ProcessError(
                f"Process {self.rank} of {self.ranks} has lost the others ({_in_short(error)}). See what the "
                "first that ended said, then start all again; a fit with a checkpoint goes on with resume='auto', and "
                "an observation where it was."
            ) from error


def _leave() -> None:
    """Leave the others before the process ends: threads of theirs that still run would abort it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _in_short(error: RuntimeError) -> str:
    """Return the first sentence of what a backend says, without places in its source."""
    return re.sub(r"\[/.*?\]\s*", "", str(error)).split(". ")[0].split("\n")[0].removesuffix(".")
