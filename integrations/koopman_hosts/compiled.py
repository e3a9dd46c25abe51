"""Compiled code set aside: what `torch.compile` traced without our hooks would run without them.

Torch has one switch a process. It is turned by the first who needs it and turned back by the last, in whatever order
they leave. A process in which nothing was ever compiled is left alone.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_users = 0
_switch = ExitStack()


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code as it was written for the time of a context, in this process."""
    global _users  # the switch is the process's, and so is the count of those who need it
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            _switch.enter_context(_stance())
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _switch.close()


def _stance() -> AbstractContextManager[Any]:
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
