"""The tokens of one forward pass: which rows of a state are real, and where in its sequence each one stands.

Knows the conventions of Hugging Face models (`input_ids`, `attention_mask`, `position_ids`, a cache), which host
frameworks share, and nothing of models themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from koopman_interp.errors import InputError

Positions = slice | Sequence[int] | Callable[[Tensor], Tensor] | None
"""Places in a sequence, counted from its first real token: a slice, several whole numbers, or a function from places
`[batch, position]` to a mask of the same shape. None is all of them."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """What one forward pass was called with.

    Attributes:
        real: `[batch, position]`, False at padding.
        place: `[batch, position]`, where in its sequence each token stands: from 0 at the first real one, and going
            on from the cached ones where there is a cache. Meaningless at padding.
        ids: `[batch, position]` token ids, or None where the model was not called with any.
    """

    real: Bool[Tensor, "batch position"]
    place: Int[Tensor, "batch position"]
    ids: Int[Tensor, "batch position"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and positions."""
        return self.real.shape[0], self.real.shape[1]

    def at(self, positions: Positions) -> Bool[Tensor, "batch position"]:
        """Mark the real tokens at chosen places.

        Raises:
            InputError: places counted from the end, which a pass with a cache cannot know, or a function that
                gives no mask.
        """
        return self.real & _chosen(self.place, positions)

    @classmethod
    def of_call(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tokens | None:
        """Read a call in the conventions of Hugging Face.

        Args:
            args: positional arguments; the first stands for `input_ids` if it holds whole numbers.
            kwargs: keyword arguments.

        Returns:
            The tokens, or None for a call that has none (images, plain rows).
        """
        ids = kwargs.get("input_ids")
        if ids is None and args and isinstance(args[0], Tensor) and not args[0].is_floating_point():
            ids = args[0]
        ids = ids if isinstance(ids, Tensor) and ids.ndim == 2 else None
        embedded = kwargs.get("inputs_embeds")
        if ids is None and not (isinstance(embedded, Tensor) and embedded.ndim == 3):
            return None
        entries = ids if ids is not None else embedded
        assert entries is not None
        told = kwargs.get("position_ids")
        tokens = cls.of_mask(
            kwargs.get("attention_mask"),
            (entries.shape[0], entries.shape[1]),
            _cached_length(cache_of(kwargs)),
            entries,
            ids,
        )
        if isinstance(told, Tensor) and told.ndim == 2 and told.shape[1] == entries.shape[1]:
            return replace(tokens, place=told.to(entries.device).expand(tokens.shape))
        return tokens

    @classmethod
    def of_mask(cls, mask: Any, shape: tuple[int, int], cached: int, like: Tensor, ids: Tensor | None = None) -> Tokens:
        """Build from an attention mask `[batch, cached + position]`, or without one where nothing is padded.

        Args:
            mask: the mask; anything that is not one of this shape is taken as no padding.
            shape: batch and positions of the pass.
            cached: tokens that stand before these in a cache.
            like: a tensor on the device to use.
            ids: token ids.

        Returns:
            The tokens of the pass.
        """
        batch, positions = shape
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == batch and mask.shape[1] >= positions:
            attended = mask.to(like.device).bool()
            place = attended.long().cumsum(1) - 1
            return cls(attended[:, -positions:], place[:, -positions:].clamp_min(0), ids)
        real = torch.ones(batch, positions, dtype=torch.bool, device=like.device)
        place = torch.arange(cached, cached + positions, device=like.device).expand(batch, -1)
        return cls(real, place, ids)


def padded(tokenizer: Any, texts: Sequence[str], **settings: Any) -> dict[str, Tensor]:
    """Tokenise texts into one batch, padded on the right.

    The tokenizer is left as it is: one without a padding token needs none, since the mask tells what is real.

    Args:
        tokenizer: of Hugging Face's kind; called with the texts.
        texts: one a sequence.
        **settings: passed to the tokenizer.

    Returns:
        `input_ids` and `attention_mask`, both `[batch, position]`.
    """
    fill = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
    return right_padded(tokenizer(list(texts), **settings)["input_ids"], fill)


def right_padded(sequences: Sequence[Any], fill: int) -> dict[str, Tensor]:
    """Put token ids of several lengths into one batch, with the mask that says which are real.

    >>> {name: tensor.tolist() for name, tensor in right_padded([[5, 6], [7]], fill=0).items()}
    {'input_ids': [[5, 6], [7, 0]], 'attention_mask': [[1, 1], [1, 0]]}
    """
    ids = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return {"input_ids": pad(ids, padding_value=fill), "attention_mask": pad([torch.ones_like(one) for one in ids])}


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """Find the key-value cache among the arguments of a Hugging Face model, None without one."""
    # Called `cache` by transformers from 5.24 on.
    return next((kwargs[name] for name in ("past_key_values", "cache") if kwargs.get(name) is not None), None)


def _cached_length(cache: Any) -> int:
    """Length of a Hugging Face cache, new (an object) or old (tuples of keys and values)."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    if isinstance(cache, (tuple, list)) and cache and isinstance(cache[0], (tuple, list)):
        return int(cache[0][0].shape[-2])
    return 0


def _chosen(place: Tensor, positions: Positions) -> Tensor:
    if positions is None:
        return torch.ones_like(place, dtype=torch.bool)
    if isinstance(positions, slice):
        start, stop, step = positions.start or 0, positions.stop, positions.step or 1
        if start < 0 or (stop is not None and stop < 0) or step < 1:
            raise InputError(
                f"Positions count from the first token on, since a pass with a cache does not know the last; got "
                f"{positions}. Give whole numbers that are not negative, or a function of the places."
            )
        inside = (place >= start) & ((place - start) % step == 0)
        return inside if stop is None else inside & (place < stop)
    if callable(positions):
        mask = positions(place)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != place.shape:
            raise InputError(
                f"Expected the function of the places to return a mask of shape {tuple(place.shape)}; got "
                f"{getattr(mask, 'dtype', type(mask).__name__)} {tuple(getattr(mask, 'shape', ()))}."
            )
        return mask
    if any(one < 0 for one in positions):
        raise InputError(f"Positions count from the first token on; got {list(positions)}.")
    return torch.isin(place, torch.as_tensor(list(positions), device=place.device))
