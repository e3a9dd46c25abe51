"""What is told of a descent while it runs: figures on what is held out, look by look, to whoever listens.

A callback is given all looks so far when a descent begins or goes on, so that what it writes of a run that was killed
and resumed is what it would have written of one that never was. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from koopman_interp.errors import InputError
from koopman_interp.files import jsonable, storage_error, write_text
from koopman_interp.surrogates.record import Look


class Callback:
    """Is told of a descent; a subclass overrides what it wants to hear."""

    def on_start(self, looks: Sequence[Look], /) -> None:
        """Hear that steps are about to be taken.

        Args:
            looks: figures of the looks so far; none where a descent begins, those that its checkpoint holds where it
                goes on.
        """

    def on_look(self, step: int, figures: Look, /) -> None:
        """Hear what a look at the held-out inputs found, after it was kept in the checkpoint.

        Args:
            step: steps taken.
            figures: by name, `step` among them.
        """

    def on_end(self, why: str, /) -> None:
        """Hear what ended the descent: steps, time, patience, or the name of an exception."""


class JSONLines(Callback):
    """Writes a line of JSON for each look; of a resumed descent, each look once.

    Args:
        path: the file; that of an earlier descent there is replaced.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_start(self, looks: Sequence[Look], /) -> None:
        """Write the looks so far, in place of whatever a killed run wrote beyond its checkpoint."""
        write_text(self.path, "".join(map(_line, looks)))

    def on_look(self, _step: int, figures: Look, /) -> None:
        """Append a line."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(figures))
        except OSError as error:
            raise storage_error(self.path, 0, error) from error


class TensorBoard(Callback):
    """Writes each figure as a scalar for TensorBoard; a resumed descent takes back what was written beyond its start.

    Args:
        folder: of the event files.

    Raises:
        InputError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        _imported("tensorboard", "TensorBoard")
        self._writer: Any = None

    def on_start(self, looks: Sequence[Look], /) -> None:
        """Open the event file, which hides events of an earlier process beyond the looks so far."""
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(os.fspath(self.folder), purge_step=int(looks[-1]["step"]) + 1 if looks else 0)

    def on_look(self, step: int, figures: Look, /) -> None:
        """Write the figures."""
        for name, value in figures.items():
            if name != "step":
                self._writer.add_scalar(f"held-out/{name}", value, step)
        self._writer.flush()

    def on_end(self, _why: str, /) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases(Callback):
    """Logs each look to a run of Weights & Biases: the one that is open, or one that it opens and ends.

    Args:
        **init: of `wandb.init`, such as `project=` or `dir=`; not needed where a run is open. For a resumed descent to
            go on in its own run, give `id=` and `resume="allow"`.

    Raises:
        InputError: wandb is not installed.
    """

    def __init__(self, **init: Any) -> None:
        self._wandb, self._init = _imported("wandb", "WeightsAndBiases"), init
        self._run: Any = None
        self._is_own = False

    def on_start(self, looks: Sequence[Look], /) -> None:
        """Open a run where none is open, and log the looks so far that it does not have."""
        self._is_own = self._wandb.run is None
        self._run = self._wandb.init(**self._init) if self._is_own else self._wandb.run
        for look in looks:
            self.on_look(int(look["step"]), look)

    def on_look(self, step: int, figures: Look, /) -> None:
        """Log the figures, unless the run is further than they are."""
        if step >= self._run.step:
            named = {f"held-out/{name}": value for name, value in figures.items() if name != "step"}
            self._run.log(named, step=step)

    def on_end(self, _why: str, /) -> None:
        """End the run that it opened."""
        if self._is_own:
            self._run.finish()


def require_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check that each is one, before the long work.

    Raises:
        InputError: one is something else.
    """
    for each in callbacks:
        if not isinstance(each, Callback):
            raise InputError(
                f"callbacks= takes instances of ki.Callback, such as ki.JSONLines('metrics.jsonl'); got {each!r}."
            )


def tell_all(callbacks: Sequence[Callback], looks: Sequence[Look], why: str) -> None:
    """Tell of a fit that took no steps: its looks, one after the other, and what it was."""
    require_callbacks(callbacks)
    for each in callbacks:
        each.on_start(())
        for look in looks:
            each.on_look(int(look.get("step", 0)), look)
        each.on_end(why)


def _line(figures: Look) -> str:
    return json.dumps(jsonable(figures)) + "\n"


def _imported(package: str, name: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(
            f"ki.{name} needs {package}, which is not installed: pip install 'koopman-interp[{package}]'. "
            "ki.JSONLines needs nothing."
        ) from error
