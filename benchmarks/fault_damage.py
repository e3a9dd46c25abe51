"""Damaging what was written: bits flipped at random, and files made to do harm, each read as it would be used.

A reader has to say, with the path, that the file is not what it should be, or give the same as before. Anything else
is counted: a value that differs, as silent; an exception that is no sentence of ours, as raw.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fault_values import Kind, digest_of
from safetensors.torch import load, save_file

import koopman_interp as ki
from koopman_interp.files import HEADER_KEY, json_digest, write_tensors

OTHERS: tuple[Any, ...] = (None, True, -1, 10**30, 1e308, "x", "", [], [[[]]], {}, {"x": []})
"""What a part of a header is replaced by."""
_DEEP = "[" * 100_000
_LENGTH = 8
"""Bytes at the beginning of a safetensors file that say how long its header is."""


def outcome(act: Callable[[], Any], path: Path | None, same: str | None = None) -> tuple[str, str]:
    """Do something to a file, and say how it went, in a word and with the exception.

    Args:
        act: what to do; gives a value.
        path: the file, which a refusal has to name, or one beside it; None where there is none to name.
        same: digest of the value that would be right; None where any would.
    """
    try:
        value = act()
    except (ki.KoopmanInterpError, FileNotFoundError) as error:
        # Of files that belong together, either may be the one that is amiss.
        named = path is None or path.name in str(error) or f"{path.parent}{os.sep}" in str(error)
        return ("noticed" if named else "noticed, not named"), f"{type(error).__name__}: {error}"
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    if same is None or digest_of(value) == same:
        return "same" if same is not None else "taken", ""
    return "silent", ""


def flipped(kind: Kind, bits: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """Flip one bit at a time, half of them in the header, and count what readers say.

    Args:
        kind: of file.
        bits: how many.
        seed: of which.

    Returns:
        Outcomes by name, and the exceptions that were none of ours.
    """
    draw, counts, raw = random.Random(seed), Counter(noticed=0, same=0, silent=0, raw=0), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kind.save(folder)
        path = folder / kind.file
        whole, same = path.read_bytes(), digest_of(kind.load(folder))
        header = _LENGTH + int.from_bytes(whole[:_LENGTH], "little") if path.suffix == ".safetensors" else 0
        for number in range(bits):
            first, last = (0, header) if header and number % 2 else (header, len(whole))
            at = draw.randrange(8 * first, 8 * last)
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(damaged)
            word, said = outcome(lambda: kind.load(folder), path, same)
            counts[word] += 1
            raw += [f"{kind.name}, bit {at}: {said}"] if word not in ("noticed", "same") else []
    return dict(counts), raw


def hostile(kind: Kind, most: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """Read files that are cut short, deep, huge or of wrong types, and count what readers say.

    Args:
        kind: of file.
        most: files to read, drawn where there are more.
        seed: of the draw.

    Returns:
        Outcomes by name, and the exceptions that were none of ours. `taken` are values that were made: a header that
        says something else, in a file that is whole, is somebody's own value.
    """
    counts, raw = Counter(noticed=0, taken=0, raw=0), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kind.save(folder)
        path = folder / kind.file
        damages = list(_damages(path, path.read_bytes()))
        for name, damage in random.Random(seed).sample(damages, min(most, len(damages))):
            damage()
            word, said = outcome(lambda: kind.load(folder), path)
            counts[word] += 1
            raw += [f"{kind.name}, {name}: {said}"] if word not in ("noticed", "taken") else []
    return dict(counts), raw


def _damages(path: Path, whole: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    """Go through what is done to a file, each with a name."""
    for kept in (0, 1, 7, 8, 9, 40, len(whole) // 2, len(whole) - 1):
        yield f"cut to {kept} bytes", lambda kept=kept: path.write_bytes(whole[:kept])
    yield "twice as long", lambda: path.write_bytes(whole + whole)
    for text in (b"\xff\xfe", _DEEP.encode(), b"9" * 5000, b"{}", b"[]", b"null", b'{"kind": []}', b"\x00" * 64):
        yield f"the text {text[:12]!r}", lambda text=text: path.write_bytes(text)
    if path.suffix == ".safetensors":
        yield from _of_safetensors(path, whole)
    else:
        yield from _of_json(path, json.loads(whole))


def _of_safetensors(path: Path, whole: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    for length in (0, 1, 2**31, 2**62, 2**64 - 1):
        begun = length.to_bytes(_LENGTH, "little") + whole[_LENGTH:]
        yield f"a header of {length} bytes", lambda begun=begun: path.write_bytes(begun)
    size = int.from_bytes(whole[:_LENGTH], "little")
    outer, data = json.loads(whole[_LENGTH : _LENGTH + size]), whole[_LENGTH + size :]
    name = next(name for name in outer if name != "__metadata__")
    for part, values in (
        ("dtype", ("X", 7, None)),
        ("shape", ([2**62, 2**62], [-1], "x", [])),
        ("data_offsets", ([0, 2**62], [2**62, 0], [5, 3], [])),
    ):
        for value in values:
            text = json.dumps(outer | {name: outer[name] | {part: value}}).encode()
            changed = len(text).to_bytes(_LENGTH, "little") + text + data
            yield f"{part} {value!r}", lambda changed=changed: path.write_bytes(changed)
    metadata, tensors = outer["__metadata__"], load(whole)
    key = HEADER_KEY if HEADER_KEY in metadata else next(iter(metadata))
    for text in (_DEEP, "9" * 5000, "null", "[]", '"x"', "{"):
        said = metadata | {key: text}
        yield f"our header {text[:8]!r}", lambda said=said: save_file(tensors, path, metadata=said)
    header = json.loads(metadata[key])
    header = {name: value for name, value in header.items() if name not in ("kind", "version")}

    def written(changed: dict[str, torch.Tensor], said: dict[str, Any]) -> Callable[[], object]:
        if key != HEADER_KEY:
            return lambda: save_file(changed, path, metadata={key: json.dumps(said)})
        stored = json.loads(metadata[key])["kind"]
        return lambda: write_tensors(path, changed, kind=stored, header=said)

    for place, changed in _changed(header):
        yield f"header: {place}", written(tensors, changed)
    for name, tensor in tensors.items():
        without = {other: kept for other, kept in tensors.items() if other != name}
        yield f"without {name}", written(without, header)
        others = (torch.empty(0), tensor.reshape(-1)[:-1], tensor[None], torch.tensor(3.5), torch.ones(2, 2).bool())
        for other in others:
            yield f"{name} {other.dtype} {tuple(other.shape)}", written(without | {name: other.clone()}, header)


def _of_json(path: Path, values: dict[str, Any]) -> Iterator[tuple[str, Callable[[], object]]]:
    beside: tuple[str, ...] = ("digest", "kind")
    if values.get("digest") == json_digest({name: value for name, value in values.items() if name != "digest"}):
        beside = ("digest",)
    for place, changed in _changed(values):
        if "digest" in changed:  # such as whoever changes a file could write
            said = {name: value for name, value in changed.items() if name not in beside}
            changed = changed | {"digest": json_digest(said)}
        text = json.dumps(changed)
        yield place, lambda text=text: path.write_text(text)


def _changed(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Go through copies of a JSON value in which one part is missing or another; of a list the first is changed."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for name, part in entries:
        at = f"{place}.{name}"
        if isinstance(value, dict):
            yield f"without {at}", {other: kept for other, kept in value.items() if other != name}
        changes = [(f"{at} = {other!r}", other) for other in OTHERS if other != part]
        for told, other in (*changes, *_changed(part, at)):
            yield told, ({**value, name: other} if isinstance(value, dict) else [other, *value[1:]])
