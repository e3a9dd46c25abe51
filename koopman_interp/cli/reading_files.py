"""Files and data sets as columns: texts, rows, tensors, and splits of data sets of Hugging Face.

Holds what it reads, but for data sets, which stay on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from koopman_interp.errors import FileFormatError, InputError

_READERS = {".jsonl": "from_json", ".json": "from_json", ".csv": "from_csv", ".parquet": "from_parquet"}


def texts(path: Path) -> list[str]:
    """Read texts: one a paragraph where empty lines part them, else one a line.

    Raises:
        FileFormatError: it is not in UTF-8, or holds no text.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except ValueError as error:
        raise FileFormatError(f"{path} is not a text in UTF-8 ({error}). Save it in UTF-8.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    parts = lines if all(line.strip() for line in lines) else "\n".join(lines).split("\n\n")
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise FileFormatError(f"{path} holds no text.")
    return found


def tensors(path: Path) -> dict[str, Any]:
    """Read tensors by name.

    Raises:
        FileFormatError: the file is not whole.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as {path.suffix[1:]} ({error}). Write it again.") from error


def rows(path: Path) -> Any:
    """Read rows with the names of their columns.

    Raises:
        FileFormatError: the file does not hold such rows.
    """
    from datasets import Dataset

    with _quietly() as said:
        try:
            return getattr(Dataset, _READERS[path.suffix])(str(path))
        except Exception as error:  # of its readers, anything
            raise FileFormatError(f"{path} cannot be read as {path.suffix[1:]}: {said(error)}") from error


def splits(name: str) -> list[str]:
    """List the splits of a data set, by its folder or its name on the Hub.

    Raises:
        InputError: there is no such data set.
    """
    from datasets import get_dataset_split_names, load_from_disk

    if _was_saved(name):
        saved = load_from_disk(name)
        return [*saved] if isinstance(saved, dict) else ["train"]
    with _quietly() as said:
        try:
            return list(get_dataset_split_names(name))
        except Exception as error:  # of the network, of files and of their readers, anything
            raise InputError(f"The data set {name} could not be found: {said(error)}") from error


def data_set(name: str, split: str) -> Any:
    """Load one split of a data set, or a part of one: `train[:500]`.

    Raises:
        InputError: it cannot be loaded.
    """
    from datasets import load_dataset, load_from_disk

    if _was_saved(name):
        if "[" in split:
            raise InputError(f"{name} was written by save_to_disk, of which whole splits are taken; got {split}.")
        saved = load_from_disk(name)
        return saved[split] if isinstance(saved, dict) else saved
    with _quietly() as said:
        try:
            return load_dataset(name, split=split)
        except Exception as error:  # as above
            raise InputError(f"{name}:{split} could not be loaded: {said(error)}") from error


def _was_saved(name: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((Path(name) / each).is_file() for each in ("state.json", "dataset_dict.json"))


@contextmanager
def _quietly() -> Iterator[Callable[[Exception], str]]:
    """Keep the bars of `datasets` off what is no terminal; give how to say its errors in one line."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield lambda error: str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    finally:
        if not hidden:
            enable_progress_bars()
