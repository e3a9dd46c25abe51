"""Reading and writing files that cannot execute code and are never half written.

Tensors go to safetensors with a JSON header that names what kind of value it is, and with a digest of all of it, so
that a flipped bit is noticed; everything else is JSON or text. Each write goes to a temporary name beside its target,
is flushed to disk and then renamed, so that a kill or a full disk leaves the old file or none; what a killed process
left is cleared away by the next write of the same file. This module knows nothing of what it stores.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from koopman_interp.errors import FileFormatError, KoopmanInterpError, StorageError, TooLargeError
from koopman_interp.memory import is_out_of_memory

Json = Any
"""What JSON holds, by whose own words it is read back: numbers, texts, lists and mappings of these, or None."""

HEADER_KEY, DIGEST_KEY = "koopman_interp", "koopman_interp_digest"
FORMAT_VERSION = 2


@contextmanager
def replacing(path: str | os.PathLike[str], *, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` when the block ends without an exception.

    Args:
        path: the file to write; missing parent folders are made.
        needed: bytes that it will take, where they are known.

    Yields:
        A path with the same name, in a folder beside it, to write to.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full. The old file is as it was.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        _require_room(target, needed)
        # A folder, since some writers put temporary files of their own beside the one that they write.
        own = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}{os.getpid()}-", suffix=target.suffix, dir=target.parent))
        temporary = own / target.name
        try:
            temporary.touch()
            yield temporary
            # Only now: some writers put a file of their own, with other rights, in this one's place.
            temporary.chmod(0o666 & ~_umask())
            _flush(temporary)
            temporary.replace(target)
            _flush_folder(target.parent)
        finally:
            shutil.rmtree(own, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(target, needed, error) from error


def made_lasting(paths: Iterable[Path]) -> None:
    """Flush files of one folder to the disk, and their names.

    Raises:
        StorageError: the disk is full.
    """
    folder: Path | None = None
    for path in paths:
        try:
            _flush(path)
        except OSError as error:
            raise storage_error(path, 0, error) from error
        folder = path.parent
    if folder is not None:
        _flush_folder(folder)


@contextmanager
def replacing_together(
    first: str | os.PathLike[str], *others: str | os.PathLike[str], needed: int = 0
) -> Iterator[tuple[Path, ...]]:
    """Yield temporary paths of a file that holds all, and of others that say parts of it for other readers.

    After a kill the first is the old or the new one, and the others are its own or not there.

    Args:
        first: the file that holds all.
        *others: files beside it.
        needed: bytes that the first will take.

    Yields:
        Paths to write to, in the order given.

    Raises:
        StorageError: as `replacing`; all files are as they were.
    """
    with ExitStack() as stack:
        beside = [stack.enter_context(replacing(path)) for path in others]
        yield (whole := stack.enter_context(replacing(first, needed=needed)), *beside)
        for temporary in (whole, *beside):
            _flush(temporary)
        for path in others:
            Path(path).unlink(missing_ok=True)
        _flush_folder(Path(first).parent)


def _prefix(target: Path) -> str:
    """Beginning of the temporary names of a file's writers on this machine, before their process's number."""
    return f".{target.stem}-{socket.gethostname()}-"


def clear_leftovers(target: Path) -> None:
    """Delete what writers of a file left that were killed: their processes are no more."""
    prefix = _prefix(target)
    for left in target.parent.iterdir():
        if left.name.startswith(prefix) and left.suffix == target.suffix:
            process = left.name.removeprefix(prefix).partition("-")[0]
            if process.isdecimal() and not _is_alive(int(process)):
                shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _require_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise StorageError(
            f"{target} needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there. Make room, or write "
            "elsewhere; what stood there is as it was."
        )


def storage_error(target: Path, needed: int, error: Exception) -> StorageError:
    """Say in a sentence why a file could not be written.

    Args:
        target: the file.
        needed: bytes that it takes, or 0 where that is not known.
        error: what the system said.
    """
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC or "No space left" in str(error):
        size = f", which needs {needed / 1e6:,.1f} MB" if needed else ""
        why, remedy = f"the disk is full{size}", "Make room, or write elsewhere"
    elif number in (errno.EACCES, errno.EROFS, errno.EPERM):
        why, remedy = "the folder is not to be written to", "Choose a folder that is yours, or change its rights"
    elif number in (errno.ENOTDIR, errno.EEXIST):
        why, remedy = "a part of its path is a file, and not a folder", "Choose another path"
    else:
        why, remedy = f"the system says: {error}", "Check the path and the disk"
    return StorageError(f"{target} could not be written: {why}. {remedy}; what stood there is as it was.")


def _flush(path: Path) -> None:
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where folders can be flushed."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    kind: str,
    header: Mapping[str, Json],
    beside: Mapping[Path, str] | None = None,
) -> None:
    """Write tensors and a JSON header to one safetensors file.

    Args:
        path: the file to write.
        tensors: what to store, by name; moved to the CPU and made contiguous.
        kind: what the file holds ("edit", "trajectories", …); `read_tensors` asks for it again.
        header: JSON-able facts stored beside the tensors.
        beside: texts for other readers that say parts of it, by path; after a kill they are of this file or gone.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full. The old files are as they were.
        TooLargeError: memory does not hold a copy of what is stored.
    """
    described = json.dumps({"kind": kind, "version": FORMAT_VERSION, **header})
    try:
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLargeError(
            f"{os.fspath(path)} was not written: memory does not hold a copy of the "
            f"{sum(tensor.nbytes for tensor in tensors.values()) / 1e6:,.1f} MB to store. Let go of something else, or "
            "store it in parts; what stood there is as it was."
        ) from error
    size = sum(tensor.nbytes for tensor in plain.values()) + len(described)
    texts = beside or {}
    with replacing_together(path, *texts, needed=size) as (temporary, *others):
        for other, text in zip(others, texts.values(), strict=True):
            other.write_text(text, encoding="utf-8")
        save_file(plain, temporary, metadata={HEADER_KEY: described, DIGEST_KEY: _digest(plain, described)})


def _digest(tensors: Mapping[str, Tensor], described: str) -> str:
    """Digest names, types, shapes and bytes of contiguous tensors, and what is said of them: 128 bits of XXH3."""
    digest = xxhash.xxh3_128(described.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
        FileFormatError: the file is truncated or changed, is not ours, or holds something of another kind.
        StorageError: the system does not let it be read.
        TooLargeError: it does not fit into memory.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        with safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except PermissionError as error:
        raise unreadable(source, error) from error
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _too_large(source) from error
        raise FileFormatError(
            f"{source} is not a whole safetensors file ({error}). It was cut short or is something else: "
            "write it again from its source."
        ) from error
    described = metadata.get(HEADER_KEY, "null")
    header = _parsed(described)
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
    if metadata.get(DIGEST_KEY) != _digest(tensors, described):
        raise FileFormatError(
            f"{source} does not hold what was written to it: its digest differs. A bit flipped, or somebody changed a "
            "part. Copy it again from where it is whole, or write it again from its source."
        )
    return tensors, header


@contextmanager
def rebuilding(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Say with the path of a file whatever shows, while a value is put together, that the file does not hold it.

    Args:
        path: the file.
        what: it should hold, as the object of a sentence.

    Raises:
        FileFormatError: a part is missing or is of another kind, shape or value than the value has.
        TooLargeError: it does not fit into memory.
    """
    try:
        yield
    except FileFormatError:
        raise
    except (KoopmanInterpError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _lacking(path, what) from error
    except (RuntimeError, MemoryError) as error:
        raise (_too_large(Path(path)) if is_out_of_memory(error) else _lacking(path, what)) from error


def _lacking(path: str | os.PathLike[str], what: str) -> FileFormatError:
    return FileFormatError(f"{os.fspath(path)} lacks parts of {what}. Write it again from its source.")


def unreadable(source: Path, error: OSError) -> StorageError:
    """Say in a sentence that the system does not let a file be read."""
    return StorageError(f"{source} could not be read: {error.strerror}. Change its rights, or copy it elsewhere.")


def _too_large(source: Path) -> TooLargeError:
    return TooLargeError(
        f"{source} holds {source.stat().st_size / 1e6:,.1f} MB, and there is not as much memory left. Read it "
        "where there is more."
    )


def _parsed(text: str) -> Json:
    """Parse JSON that may be anybody's: None where it is none, is nested too deep or holds too long a number."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Write a value as indented JSON; NaN and infinity are refused."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def jsonable(value: Any) -> Any:
    """Bring a value to what JSON has; a number that is not finite becomes null, which a page shows as a dash."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def json_digest(value: Json) -> str:
    """Digest a value as JSON holds it, whatever the order of its names: 128 bits of XXH3."""
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is not JSON.
        StorageError: the system does not let it be read.
        TooLargeError: it does not fit into memory.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(source, error) from error
    except MemoryError as error:
        raise _too_large(source) from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{source} is not whole JSON ({error}). Write it again from its source.") from error
