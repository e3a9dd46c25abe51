"""Digests of what a host is called with, one an input, by which inputs are known again in whatever batch they come.

They are of the inputs themselves and not of the host's states, whose last bits depend on the batch. Costs one pass over
the bytes. Knows nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hashing import joined_digests, row_digests, token_digests
from koopman_interp.observing.samples import Samples

_IDS, _MASK = "input_ids", "attention_mask"


def input_digests(batch: object, samples: Samples | None = None) -> Int[Tensor, " input"]:
    """Digest each input of a batch.

    Token ids, as a tensor `[input, position]` or as `input_ids`, are digested as the sequence of real ones: padding,
    as `attention_mask` tells it, makes no difference, and neither does what else there is one of a token. Of
    everything else it is the bytes, the shape and the dtype of each entry along the first axis.

    Args:
        batch: for `Host.call`: a tensor, or a mapping or a sequence of which the tensors hold one entry an input.
        samples: of the pass over the batch, to check the number of inputs by.

    Returns:
        64 bits an input; equal inputs have equal ones.

    Raises:
        InputError: nothing in the batch has one entry an input.
    """
    digests = _tensor_digests(batch) if isinstance(batch, Tensor) else _mapping_digests(named_parts(batch))
    if samples is not None and len(digests) != samples.inputs:
        raise InputError(
            f"The batch has {len(digests)} entries along its first axis, but the pass over it had {samples.inputs} "
            "inputs, so that it is not known which entry is which input. Call the model with inputs along the first "
            "axis."
        )
    return digests


def named_parts(batch: object) -> dict[str, Tensor]:
    """Name the tensors of a mapping or a sequence that hold one entry an input: as many as the first of them holds.

    Raises:
        InputError: there are none.
    """
    parts: dict[str, object] = {}
    if isinstance(batch, Mapping):
        parts = {str(name): part for name, part in batch.items()}
    elif isinstance(batch, (tuple, list)):
        parts = {str(index): part for index, part in enumerate(batch)}
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor) and part.ndim}
    if not tensors:
        raise InputError(
            f"A batch is a {type(batch).__name__} without a tensor in it, so that its inputs cannot be told apart. "
            "Give tensors, or mappings of tensors."
        )
    inputs = len(tensors.get(_IDS, next(iter(tensors.values()))))
    return {name: tensor for name, tensor in tensors.items() if len(tensor) == inputs}


def _tensor_digests(batch: Tensor) -> Int[Tensor, " input"]:
    if not batch.ndim:
        raise InputError("A batch is a tensor without axes, so that its inputs cannot be told apart.")
    return token_digests(batch) if _are_ids(batch) else row_digests(batch)


def _mapping_digests(parts: Mapping[str, Tensor]) -> Int[Tensor, " input"]:
    ids = parts.get(_IDS)
    if ids is None or not _are_ids(ids):
        return joined_digests((name, row_digests(part)) for name, part in parts.items())
    mask = parts.get(_MASK)
    tokens = token_digests(ids, mask.bool() if mask is not None and mask.shape == ids.shape else None)
    rest = {name: part for name, part in parts.items() if part.shape[:2] != ids.shape}
    # Ids alone are the same input whether they come as a tensor or by name.
    named = ((name, row_digests(part)) for name, part in rest.items())
    return joined_digests([(_IDS, tokens), *named]) if rest else tokens


def _are_ids(x: Tensor) -> bool:
    return x.ndim == 2 and not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool
