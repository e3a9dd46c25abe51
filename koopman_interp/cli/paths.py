"""Paths that a verb reads and writes, checked while the command is read: before torch is imported or an hour spent.

What can be seen without reading a file is seen here; what is in it is for whoever reads it.
"""

from __future__ import annotations

import json
import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import click

from koopman_interp.errors import FileFormatError, InputError, StorageError

METRICS, TRAJECTORIES, KOOPMAN = "metrics.json", "trajectories.safetensors", "koopman"
EDIT, LENS = "edit.safetensors", "lens.safetensors"
"""Where `report.folder` keeps parts of a run; told again, since to ask it costs an import of torch."""


class _Kind(click.Path, ABC):
    """A path of one kind, looked at when the command is read."""

    def __init__(self, *, folder: bool) -> None:
        super().__init__(file_okay=not folder, dir_okay=folder, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        self.look(path)
        return path

    @abstractmethod
    def look(self, path: Path) -> None:
        """Refuse a path that cannot serve."""


class _Source(_Kind):
    """A file or folder to read, which is there."""

    def look(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"There is no {'folder' if self.dir_okay else 'file'} {path}.")


class _Rows(_Source):
    """A file of trajectories, or the folder of a store."""

    def __init__(self) -> None:
        super().__init__(folder=True)
        self.file_okay = True

    def look(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"There is no file of trajectories, and no folder of a store, {path}.")


class _Saved(_Kind):
    """A folder of a surrogate, or a name on the Hub."""

    def look(self, path: Path) -> None:
        if not path.is_dir() and str(path).count("/") != 1:
            raise FileNotFoundError(f"There is no folder {str(path)!r}; a name on the Hub would be owner/name.")


class _Target(_Kind):
    """A file or folder to write, in a folder that can be written to."""

    def look(self, path: Path) -> None:
        folder = path if self.dir_okay else path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise StorageError(f"{path} cannot be written: {folder} is a file, and not a folder. Choose another path.")
        try:
            with tempfile.TemporaryFile(dir=folder):  # root may do what a look at the rights forbids, and the reverse
                pass
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {folder} takes no files ({error.strerror}). Choose a folder that is yours, "
                "or change its rights. Nothing was begun."
            ) from error


class _BegunRun(_Target):
    """A run folder that holds a surrogate already, by which results are kept."""

    def look(self, path: Path) -> None:
        super().look(path)
        if not (path / METRICS).is_file():
            raise InputError(f"{path} holds no run yet. Begin one: koopman-interp fit TRAJECTORIES --run {path}.")


class _Settings(_Source):
    """A JSON file that holds values by name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} cannot be read as JSON ({error}). Write it again.") from error
        if not isinstance(settings, dict):
            raise FileFormatError(
                f'{path} holds a {type(settings).__name__}; expected settings by name: {{"steps": 2000}}.'
            )
        return settings


IN_FILE, IN_FOLDER, IN_ROWS = _Source(folder=False), _Source(folder=True), _Rows()
OUT_FILE, OUT_FOLDER = _Target(folder=False), _Target(folder=True)
BEGUN_RUN = _BegunRun(folder=True)
SURROGATE = _Saved(folder=True)
SETTINGS = _Settings(folder=False)
