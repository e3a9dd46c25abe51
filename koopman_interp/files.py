"""Reading and writing files that cannot execute code and are never half written.

Tensors go to safetensors with a JSON header that names what kind of value it is; everything else is JSON or
text. Each write goes to a temporary name beside its target, is flushed to disk and then renamed, so that a
kill or a full disk leaves the old file or none. This module knows nothing of what it stores.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from koopman_interp.errors import FileFormatError

Json = Any
"""What JSON holds, by whose own words it is read back: numbers, texts, lists and mappings of these, or None."""

HEADER_KEY = "koopman_interp"
FORMAT_VERSION = 1


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` when the block ends without an exception.

    Args:
        path: the file to write; missing parent folders are made.

    Yields:
        A path in the same folder, with the same suffix, to write to.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # Only now: some writers put a file of their own, with other rights, in this one's place.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, kind: str, header: Mapping[str, Json]
) -> None:
    """Write tensors and a JSON header to one safetensors file.

    Args:
        path: the file to write.
        tensors: what to store, by name; moved to the CPU and made contiguous.
        kind: what the file holds ("edit", "trajectories", …); `read_tensors` asks for it again.
        header: JSON-able facts stored beside the tensors.
    """
    described = json.dumps({"kind": kind, "version": FORMAT_VERSION, **header})
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata={HEADER_KEY: described})


def read_tensors(
    path: str | os.PathLike[str], *, kind: str | tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Read what `write_tensors` wrote.

    Args:
        path: the file to read.
        kind: the kind that the caller expects, or several.

    Returns:
        The tensors by name (on the CPU) and the header.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is truncated, is not ours, or holds something of another kind.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        with safe_open(source, framework="pt") as opened:
            described = (opened.metadata() or {}).get(HEADER_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{source} is not a whole safetensors file ({error}). It was cut short or is something else: "
            "write it again from its source."
        ) from error
    try:
        header = json.loads(described or "null")
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict):
        raise FileFormatError(f"{source} is a safetensors file, but was not written by koopman-interp.")
    kinds = (kind,) if isinstance(kind, str) else kind
    if header.get("kind") not in kinds:
        asked = " or ".join(map(repr, kinds))
        raise FileFormatError(f"{source} holds {header.get('kind')!r}, not the {asked} that was asked for.")
    if header.get("version") != FORMAT_VERSION:
        raise FileFormatError(
            f"{source} has format version {header.get('version')}; this release reads {FORMAT_VERSION}. "
            "Install the release that wrote it, or write it again."
        )
    return tensors, header


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Bring a value to what JSON has; a number that is not finite becomes null, which a page shows as a dash."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is not JSON.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{source} is not whole JSON ({error}). Write it again from its source.") from error
