"""Labels in whichever form a user has them, and values of any kind brought to one a sample.

Values come one a sample, one an observed input, one a token or one a position; which of these they are follows from
their number alone. Knows nothing of how samples come about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from koopman_interp.errors import InputError

IGNORED = -100
"""Label of what is to be left out, in the convention of Hugging Face."""


@dataclass(frozen=True, eq=False)
class Form:
    """A form in which values may be given.

    Attributes:
        what: what there is one value of, in words: "a sample", "an observed input".
        count: how many of these there are.
        index: `[sample]` which of them each sample belongs to, or a mask of those that are samples; None where they
            are the samples themselves.
    """

    what: str
    count: int
    index: Shaped[Tensor, " _"] | None = None


def forms_of(sequence: Int[Tensor, " sample"]) -> tuple[Form, ...]:
    """Return the forms of values of rows whose inputs are known: one a sample, or one an observed input."""
    inputs = int(sequence.max()) + 1 if len(sequence) else 0
    return Form("a sample", len(sequence)), Form("an observed input", inputs, sequence)


def spread(values: Shaped[Tensor, "..."], forms: Sequence[Form], noun: str = "labels") -> Shaped[Tensor, "..."]:
    """Bring values to one a sample.

    Args:
        values: `[value]`, or `[value, column]` for several at once.
        forms: what there may be one value of; the first whose number fits is taken.
        noun: what the values are called in messages.

    Returns:
        `[sample]`, or `[sample, column]`.

    Raises:
        InputError: their number fits none of the forms.
    """
    if values.ndim in (1, 2):
        for form in forms:
            if len(values) == form.count:
                return values if form.index is None else values[form.index]
    named: dict[int, str] = {}
    for form in forms:  # a number that several share is named by the first of them
        named.setdefault(form.count, form.what)
    expected = ", or ".join(f"{count:,} {noun}, one {what}" for count, what in named.items())
    got = f"{len(values):,}" if values.ndim == 1 else f"the shape {tuple(values.shape)}"
    raise InputError(f"Expected {expected}; got {got}.")


def spread_labels(labels: Any, forms: Sequence[Form]) -> Int[Tensor, " sample"]:
    """Bring labels, as `whole_numbers` takes them, to one a sample.

    Raises:
        InputError: their number fits none of the forms, or they are not whole numbers.
    """
    numbers = whole_numbers(labels)
    if len(numbers) not in [form.count for form in forms] and isinstance(labels, Tensor) and one_hot(labels):
        raise InputError(
            f"Labels are whole numbers, one a class; got the shape {tuple(labels.shape)}, whose rows each have a "
            "single 1, in a column a class. Give y.argmax(1)."
        )
    return spread(numbers, forms)


def whole_numbers(labels: Any) -> Int[Tensor, " _"]:
    """Flatten labels to one axis: tensors, arrays, or sequences of numbers or of these, nested to any depth.

    Truth values are the classes 0 and 1.

    Raises:
        InputError: they are not whole numbers.
    """
    if not isinstance(labels, Tensor) and hasattr(labels, "__array__"):
        labels = np.array(labels)  # a copy, since torch takes no array that cannot be written
    elif isinstance(labels, Iterable) and not isinstance(labels, (list, tuple, Tensor)):
        labels = list(labels)
    if isinstance(labels, (list, tuple)) and any(isinstance(part, (list, tuple, Tensor)) for part in labels):
        return torch.cat([whole_numbers(part) for part in labels])
    try:
        numbers = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        if any(isinstance(label, str) for label in getattr(labels, "flat", labels)):
            raise InputError(
                "Labels are whole numbers, one a class; got texts. Number them: names = sorted(set(y)), and give "
                "[names.index(name) for name in y]."
            ) from error
        raise InputError(f"Labels are whole numbers, one a class; got {type(labels).__name__}: {error}.") from error
    if numbers.numel() and (numbers.is_floating_point() or numbers.is_complex()):
        raise InputError(f"Labels are whole numbers, one a class; got {numbers.dtype}. {_remedy(numbers)}")
    return numbers.flatten().long()


def require_outputs(labels: Int[Tensor, " row"], outputs: int) -> None:
    """Check that each label but those that are ignored is the number of one of a model's outputs.

    Raises:
        InputError: one is not.
    """
    outside = labels[(labels != IGNORED) & ((labels < 0) | (labels >= outputs))]
    if len(outside):
        raise InputError(
            f"Label {int(outside[0])} is none of the {outputs} outputs of the model, so that it cannot be predicted. "
            f"Mark the samples of such labels by {IGNORED}, which leaves them out."
        )


def one_hot(numbers: Shaped[Tensor, "..."]) -> bool:
    """Whether it is a matrix whose rows each have a single 1 among zeros."""
    if numbers.ndim != 2 or numbers.shape[1] < 2 or not len(numbers):
        return False
    return bool(((numbers == 0) | (numbers == 1)).all()) and bool((numbers.sum(1) == 1).all())


def _remedy(numbers: Tensor) -> str:
    """Say what to give in place of labels that are not whole numbers."""
    if one_hot(numbers):
        return "Each row has a single 1, in a column a class: give y.argmax(1)."
    if numbers.ndim == 2 and numbers.shape[1] > 1 and bool(((numbers == 0) | (numbers == 1)).all()):
        return (
            "Rows of several 1s are of several concepts and of no one class: observe without them, and give a column "
            "to erase_concept(…, attribute=y[:, column])."
        )
    if not numbers.is_complex() and bool((numbers == numbers.round()).all()):
        return "Give y.long()."
    return "A quantity is no class: observe without it, and give it to erase_concept(…, attribute=y)."


def classes_named(labels: Sequence[int]) -> str:
    """Name classes in a sentence.

    >>> classes_named([4]), classes_named([4, 7, 2])
    ('class 4', 'classes 4, 7, 2')
    """
    return f"class{'es' if len(labels) > 1 else ''} {', '.join(map(str, labels))}"
