"""The state of a descent in a file, and whose it is: a descent goes on only from its own.

One file, written whole or not at all, by one call at a time. Knows nothing of what is trained.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from torch import Tensor

from koopman_interp.errors import FileFormatError, FitInterrupted, InputError, TooLargeError
from koopman_interp.files import read_tensors, write_tensors
from koopman_interp.locks import locked
from koopman_interp.memory import is_out_of_memory
from koopman_interp.processes import Processes

Resume = bool | Literal["auto"]
"""Whether to go on from a checkpoint; `auto` is where there is one."""

PROLONGING = ("steps", "seconds", "patience")
"""Settings that say only how long a descent lasts, so that one may go on with others."""

_KIND = "checkpoint"
_SETTINGS = "settings"
_ABSENT = object()
_READABLE = 30
"""Characters of two values beyond which they are not told."""

_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")


@dataclass(frozen=True)
class Kept:
    """What a checkpoint holds.

    Attributes:
        tensors: weights and the optimizer's state, by name.
        progress: where the descent stood.
        before: settings of `PROLONGING` that were others when it was written, with the values of then.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    before: dict[str, Any]


class Checkpoint:
    """Where the state of a descent is kept.

    Args:
        path: the file; None keeps nothing.
        identity: all that must agree for a descent to go on from the file: settings, host, data; JSON has to hold it.
            Among its `settings` those of `PROLONGING` may differ.
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

    def read(self) -> Kept:
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
        progress, identity = header.get("progress"), header.get("identity")
        if not isinstance(progress, dict) or not isinstance(identity, dict):
            raise self.misshapen()
        settings = _differing(*(each.get(_SETTINGS, {}) for each in (identity, self._identity)))
        before = {name: settings.pop(name)[0] for name in PROLONGING if name in settings}
        others = _differing(*({**each, _SETTINGS: None} for each in (identity, self._identity)))
        told = [f"{name}{_values(*pair)}" for name, pair in (*settings.items(), *others.items())]
        if told:
            raise InputError(
                f"The checkpoint {self.path} is of another call of {self.call}: {', '.join(told)} "
                f"{'differs' if len(told) == 1 else 'differ'}. Resume with the same host, data and configuration, of "
                f"which {', '.join(PROLONGING)} alone may be others, or start anew elsewhere."
            )
        return Kept(tensors, progress, before)

    def misshapen(self) -> FileFormatError:
        """Return the error of a file that holds no state of this descent."""
        return FileFormatError(
            f"{self.path} does not hold the state of a descent that its header describes. Start anew elsewhere, or "
            "delete it."
        )

    def how_to_go_on(self, step: int, steps: int, kept: int | None) -> str:
        """Say, after an interruption, what was kept and how to go on.

        Args:
            step: that was reached.
            steps: that were allowed.
            kept: step that the file holds; None where nothing was written.
        """
        return f"Interrupted at step {step} of {steps}; " + _what_was_kept(self.call, self.path, kept)


def with_checkpoint(function: Callable[_Arguments, _Returned]) -> Callable[_Arguments, _Returned]:
    """Wrap a public function that descends: its `checkpoint` is its own while it runs, and Ctrl-C says what was kept.

    That of the steps is said by the descent; this says it of what comes before and after them, and of memory that runs
    out there.
    """

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
        given: Any = kwargs.get("checkpoint")
        path = None if given is None else Path(given)
        try:
            with nullcontext() if path is None or not Processes.here().is_first else locked(path):
                return function(*args, **kwargs)
        except FitInterrupted:
            raise
        except KeyboardInterrupt as interrupt:
            kept = _what_was_kept(function.__name__, path, _step_in(path))
            raise FitInterrupted(f"Interrupted before the first step or after the last; {kept}") from interrupt
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TooLargeError(
                f"Memory does not hold what {function.__name__} needs before its first step or after its last. Give it "
                "fewer rows or, of a surrogate, fewer observables; or run it where there is more memory."
            ) from error

    return wrapped


def _what_was_kept(call: str, path: Path | None, step: int | None) -> str:
    if path is None or step is None or not path.exists():
        return f"nothing was kept. With {call}(…, checkpoint=path) the last look is."
    return f"{path} holds step {step}. Go on with the same call and resume=True."


def _step_in(path: Path | None) -> int | None:
    """Return the step that a checkpoint holds; None where there is no whole one."""
    try:
        return None if path is None else int(read_tensors(path, kind=_KIND)[1]["progress"]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _differing(then: object, now: object) -> dict[str, tuple[Any, Any]]:
    """Return the entries of two mappings that differ, as pairs; what is no mapping has none."""
    before, after = (each if isinstance(each, dict) else {} for each in (then, now))
    pairs = {name: (before.get(name, _ABSENT), after.get(name, _ABSENT)) for name in (*after, *before)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _values(then: Any, now: Any) -> str:
    """Say both values in brackets, where they are short enough to be read."""
    values = f"{then!r} there, {now!r} here"
    return "" if _ABSENT in (then, now) or len(values) > _READABLE else f" ({values})"
