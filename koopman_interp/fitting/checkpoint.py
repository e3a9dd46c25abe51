"""The state of a descent in a file, and whose it is: a descent goes on only from its own.

One file, written whole or not at all. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.files import read_tensors, write_tensors

Resume = bool | Literal["auto"]
"""Whether to go on from a checkpoint; `auto` is where there is one."""

_KIND = "checkpoint"


class Checkpoint:
    """Where the state of a descent is kept.

    Args:
        path: the file; None keeps nothing.
        identity: all that must agree for a descent to go on from the file: settings, host, data; JSON has to hold it.
        call: name of the public function that descends, for messages.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: Mapping[str, Any], call: str) -> None:
        self.path = None if path is None else Path(path)
        self.call = call
        # As it will come back from the file: without tuples.
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))

    def is_gone_on_from(self, resume: Resume) -> bool:
        """Say whether a descent goes on from here, and refuse to write over the state of another call.

        Raises:
            InputError: there is a file, and nothing was said of going on from it.
        """
        there = self.path is not None and self.path.exists()
        if resume == "auto":
            return there
        if there and not resume:
            raise InputError(f"There is a checkpoint at {self.path}. Go on from it with resume=True, or delete it.")
        return resume

    def write(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Keep weights and progress, where there is a file to keep them in."""
        if self.path is not None:
            write_tensors(self.path, tensors, kind=_KIND, header={"progress": progress, "identity": self._identity})

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights and the progress that were kept.

        Raises:
            InputError: there is no file to go on from, or it is another descent's.
            FileNotFoundError: there is no such file.
            FileFormatError: it is truncated or foreign.
        """
        if self.path is None:
            raise InputError(
                f"resume=True needs the checkpoint to go on from: {self.call}(…, checkpoint=path, resume=True)."
            )
        tensors, header = read_tensors(self.path, kind=_KIND)
        kept = header["identity"]
        names = dict.fromkeys([*self._identity, *kept])
        if differing := [name for name in names if kept.get(name) != self._identity.get(name)]:
            raise InputError(
                f"The checkpoint {self.path} is of another call of {self.call}: {', '.join(differing)} differ. "
                "Resume with the same configuration, host and data, or start anew elsewhere."
            )
        return tensors, header["progress"]

    def how_to_go_on(self, step: int, steps: int, last_look: int | None) -> str:
        """Say, after an interruption, what was kept and how to go on."""
        interrupted = f"Interrupted at step {step} of {steps}"
        if self.path is None or last_look is None or not self.path.exists():
            return f"{interrupted}; nothing was kept. With {self.call}(…, checkpoint=path) the last look is."
        return f"{interrupted}; {self.path} holds step {last_look}. Go on with the same call and resume=True."
