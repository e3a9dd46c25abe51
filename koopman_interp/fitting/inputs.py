"""Which inputs are trained on at the output, and which it is judged by.

Batches are taken apart by the digests of their inputs, so that what the fit held out is never trained on, in whatever
batch it comes. Holds all inputs. Knows nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hashing import drawn, tensor_digest
from koopman_interp.observing.digests import input_digests, named_parts

Batch = Any
"""What `Host.call` takes."""


@dataclass(frozen=True)
class PartedInputs:
    """Batches to train on, and batches of the inputs held out.

    Attributes:
        train: without the inputs held out.
        held_out: those alone.
        digest: of all inputs in order, and of which are held out.
    """

    train: tuple[Batch, ...]
    held_out: tuple[Batch, ...]
    digest: str

    @classmethod
    def of(
        cls, batches: Iterable[Batch], validation: float, seed: int, held_out: Int[Tensor, " input"] | None = None
    ) -> PartedInputs:
        """Take batches apart.

        Args:
            batches: what the model is to be called with.
            validation: share of the distinct inputs to hold out, where none of them was held out by a fit.
            seed: of the draw.
            held_out: digests of what a fit held out.

        Returns:
            The parts.

        Raises:
            InputError: none would be left to train on, or to judge by, or a batch cannot be taken apart.
        """
        whole = list(batches)
        digests = [input_digests(batch) for batch in whole]
        every = torch.cat(digests) if digests else torch.empty(0, dtype=torch.int64)
        inputs = torch.unique(every)
        if held_out is None or not torch.isin(inputs, held_out).any():
            if len(inputs) < 2:
                raise InputError(
                    f"One input or more is held out and the others are trained on; got {len(inputs)} in all. Give more."
                )
            count = min(len(inputs) - 1, max(1, round(validation * len(inputs))))
            held_out = drawn(inputs, count, seed)
        if torch.isin(inputs, held_out).all():
            raise InputError(
                f"The fit held out all {len(inputs)} inputs, so that none is left to train on. Give others beside them."
            )
        masks = [torch.isin(each, held_out) for each in digests]
        train = [_taken(batch, ~mask) for batch, mask in zip(whole, masks, strict=True) if not mask.all()]
        judged = [_taken(batch, mask) for batch, mask in zip(whole, masks, strict=True) if mask.any()]
        size = max(map(len, masks))
        return cls(tuple(train), tuple(_joined(judged, size)), tensor_digest([("inputs", every), ("held", held_out)]))


def _taken(batch: Batch, inputs: Bool[Tensor, " input"]) -> Batch:
    """Take some inputs out of a batch."""
    if inputs.all():
        return batch
    if isinstance(batch, Tensor):
        return batch[inputs.to(batch.device)]
    taken = {name: part[inputs.to(part.device)] for name, part in named_parts(batch).items()}
    if isinstance(batch, Mapping):
        return dict(batch) | taken
    parts = [taken.get(str(index), part) for index, part in enumerate(batch)]
    return tuple(parts) if isinstance(batch, tuple) else parts


def _joined(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Join neighbours of the same shapes up to a number of inputs, since a pass over one costs nearly as much."""
    joined: list[Batch] = []
    for batch in batches:
        together = _together(joined[-1], batch, size) if joined else None
        if together is None:
            joined.append(batch)
        else:
            joined[-1] = together
    return joined


def _together(first: Batch, second: Batch, size: int) -> Batch | None:
    """Join two batches, tensors or mappings of nothing but such; None where that cannot be done."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = (first.shape[1:], first.dtype, first.device) == (second.shape[1:], second.dtype, second.device)
        return torch.cat([first, second]) if alike and len(first) + len(second) <= size else None
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        parts = {name: _together(part, second[name], size) for name, part in first.items()}
        return parts if all(part is not None for part in parts.values()) else None
    return None
