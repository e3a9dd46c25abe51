"""Labelled batches: the rows that an audit is made on, and a few of them drawn for relearning.

Holds the inputs that it is given, cut into batches. Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from koopman_interp.errors import InputError
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED, whole_numbers
from koopman_interp.observing.batches import calls
from koopman_interp.observing.digests import input_digests

Labelled = tuple[Any, Any] | Iterable[Any]
"""Inputs and labels, or several batches of them, in the forms that `Tap.observe` takes."""

Batch = tuple[Any, Any]
"""What to call a model with, and labels."""

_NAMED = 12


def labelled_batches(host: Host, data: Labelled, batch_size: int) -> list[Batch]:
    """Bring a pair of inputs and labels, or batches, to what to call the model with, and labels.

    Raises:
        InputError: labels are missing, or are not as many as the inputs.
    """
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Mapping) and _inputs(data[0]) != len(data[1]):
        data = [data]  # one label a token cannot be cut with the inputs
    batches = list(calls(host, data, batch_size=batch_size))
    if any(y is None for _, y in batches):
        raise InputError("An audit takes pairs of inputs and labels: (x, y), or batches of such pairs.")
    return batches


def require_classes(batches: Sequence[Batch], labels: Sequence[int], what: str) -> None:
    """Refuse rows that lack one of the classes, or have no others.

    Args:
        batches: the rows.
        labels: the classes.
        what: the rows are called in the sentence.

    Raises:
        InputError: they do.
    """
    given = torch.cat([torch.empty(0, dtype=torch.long), *(whole_numbers(y) for _, y in batches)])
    present = torch.unique(given[given != IGNORED]).tolist()
    shown = ", ".join(map(str, present[:_NAMED])) + (", …" if len(present) > _NAMED else "")
    for label in labels:
        if label not in present:
            raise InputError(f"None of the {what} rows is of class {label}; they are of {shown or 'no class at all'}.")
    if len(present) == len(labels):
        raise InputError(f"All {what} rows are of class {shown}; rows of other classes are needed beside them.")


def repeated(held_out: Sequence[Batch], training: Sequence[Batch]) -> str:
    """Say that some held-out inputs are among the training ones; nothing where none is, or that is not known."""
    if not training:
        return ""
    try:
        judged, taught = (torch.unique(torch.cat([input_digests(x) for x, _ in each])) for each in (held_out, training))
    except InputError:  # inputs that cannot be told apart
        return ""
    both = int(torch.isin(judged, taught).sum())
    if not both:
        return ""
    return (
        f"{both:,} of {len(judged):,} held-out inputs are among the training ones, by which accuracy and membership of "
        "the two are alike; baselines that were fitted on training rows are judged on these too."
    )


def drawn(batches: Sequence[Batch], labels: Sequence[int], *, rows: int, beside: int, seed: int) -> list[Batch]:
    """Draw a few inputs of some classes, and a few of the others.

    An input is of the classes if one of its labels is. A batch whose labels are not one entry an input counts as one
    input, and is drawn whole.

    Args:
        batches: to draw from.
        labels: the classes.
        rows: inputs of the classes; all where there are fewer.
        beside: inputs of the others.
        seed: of the draw.

    Returns:
        The inputs with their labels, in as few batches as their shapes allow.
    """
    members, others = list[tuple[int, int]](), list[tuple[int, int]]()
    for index, (x, y) in enumerate(batches):
        by_input = _labels_by_input(x, y)
        inside = torch.isin(by_input, torch.tensor(labels)).any(1)
        outside = (by_input != IGNORED).any(1) & ~inside
        members += [(index, row) for row in inside.nonzero().flatten().tolist()]
        others += [(index, row) for row in outside.nonzero().flatten().tolist()]
    chosen: dict[int, list[int]] = {}
    for places, count in ((members, rows), (others, beside)):
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        for index, row in sorted(places[place] for place in order):
            chosen.setdefault(index, []).append(row)
    return _joined([_taken(*batches[index], part) for index, part in chosen.items()])


def _inputs(x: Any) -> int:
    """Count the inputs of a batch; 0 where that is not known."""
    if isinstance(x, Mapping):
        return next((len(value) for value in x.values() if isinstance(value, Tensor) and value.ndim), 0)
    return len(x) if isinstance(x, Tensor) else 0


def _labels_by_input(x: Any, y: Any) -> Int[Tensor, "input label"]:
    if _inputs(x) != len(y):
        return whole_numbers(y)[None]
    if isinstance(y, Tensor):
        return y.cpu().reshape(len(y), -1)
    return pad_sequence([whole_numbers([entry]) for entry in y], batch_first=True, padding_value=IGNORED)


def _taken(x: Any, y: Any, rows: list[int]) -> Batch:
    if _inputs(x) != len(y):
        return x, y

    def take(part: Any) -> Any:
        return part[rows] if isinstance(part, Tensor) else [part[row] for row in rows]

    return _rows_of(x, len(y), take), take(y)


def _rows_of(x: Any, size: int, take: Callable[[Any], Any]) -> Any:
    """Take rows of a batch's inputs; in a mapping, of what has one entry an input."""
    if not isinstance(x, Mapping):
        return take(x)
    return {name: take(value) if _is_by_input(value, size) else value for name, value in x.items()}


def _is_by_input(value: Any, size: int) -> bool:
    if isinstance(value, Tensor):
        return bool(value.ndim) and len(value) == size
    return isinstance(value, (list, tuple)) and len(value) == size


def _joined(parts: Sequence[Batch]) -> list[Batch]:
    """Put tensors of one form together, so that a step takes few passes."""
    groups: dict[object, list[Batch]] = {}
    for x, y in parts:
        alike = isinstance(x, Tensor) and isinstance(y, Tensor)
        groups.setdefault((x.shape[1:], x.dtype, y.shape[1:]) if alike else len(groups), []).append((x, y))
    return [
        (torch.cat([x for x, _ in group]), torch.cat([y for _, y in group])) if len(group) > 1 else group[0]
        for group in groups.values()
    ]
