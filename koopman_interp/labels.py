"""Labels in whichever form a user has them, brought to one whole number a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from koopman_interp.errors import InputError

IGNORED = -100
"""Label of what is to be left out, in the convention of Hugging Face."""


def whole_numbers(labels: Any) -> Int[Tensor, " _"]:
    """Flatten labels, a tensor or lists nested to any depth, to one axis.

    Raises:
        InputError: they are not whole numbers.
    """
    if isinstance(labels, (list, tuple)) and any(isinstance(part, (list, tuple, Tensor)) for part in labels):
        return torch.cat([whole_numbers(part) for part in labels])
    try:
        given = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"Labels are whole numbers, one a class; got {type(labels).__name__}: {error}.") from error
    if given.numel() and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
        raise InputError(f"Labels are whole numbers, one a class; got {given.dtype}.")
    return given.flatten().long()


def labels_of_rows(labels: Any, sequence: Int[Tensor, " sample"]) -> Int[Tensor, " sample"]:
    """Bring labels, one a row or one an observed input, to one a row.

    Raises:
        InputError: their number fits neither, or they are not whole numbers.
    """
    given = whole_numbers(labels)
    if len(given) == len(sequence):
        return given
    inputs = int(sequence.max()) + 1 if len(sequence) else 0
    if len(given) == inputs:
        return given[sequence]
    raise InputError(
        f"Expected {len(sequence):,} labels, one a sample"
        + (f", or {inputs:,}, one an observed input" if inputs != len(sequence) else "")
        + f"; got {len(given):,}."
    )


def classes_named(labels: Sequence[int]) -> str:
    """Name classes in a sentence.

    >>> classes_named([4]), classes_named([4, 7, 2])
    ('class 4', 'classes 4, 7, 2')
    """
    return f"class{'es' if len(labels) > 1 else ''} {', '.join(map(str, labels))}"
