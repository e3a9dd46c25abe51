"""Telling that memory ran out from whatever says so: torch on each device, the system's allocator, or Python."""

from __future__ import annotations

import re

import torch

from koopman_interp.errors import KoopmanInterpError

_SAYS_SO = re.compile(r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc", re.I)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that memory ran out; what this package refuses of itself does not."""
    if isinstance(error, KoopmanInterpError):
        return False
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # Of the processor torch says it as a plain RuntimeError, and a mapped file as an OSError.
    return isinstance(error, (RuntimeError, OSError)) and _SAYS_SO.search(str(error)) is not None
