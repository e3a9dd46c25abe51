"""The tokens of one forward pass: which rows of a state are real, and where in its sequence each one stands.

Knows the conventions of Hugging Face models (`input_ids`, `attention_mask`, `position_ids`, a cache), which host
frameworks share, and nothing of models themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hosts.arguments import cache_of, cached_length, mask_of, matrix_of_ids, vectors_of

Tokenizer = Any
"""A tokenizer of Hugging Face's kind, which is called with texts; None where there is none."""

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
        document: `[batch, position]`, which of the sequences that are packed into one row a token belongs to, as
            restarting `position_ids` tell; None where each row is one.
        placed: False where the pass goes on from a cache that does not tell how long it is, so that `place` counts
            from this pass alone.
    """

    real: Bool[Tensor, "batch position"]
    place: Int[Tensor, "batch position"]
    ids: Int[Tensor, "batch position"] | None = None
    document: Int[Tensor, "batch position"] | None = None
    placed: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and positions."""
        return self.real.shape[0], self.real.shape[1]

    def at(self, positions: Positions) -> Bool[Tensor, "batch position"]:
        """Mark the real tokens at chosen places.

        Raises:
            InputError: places counted from the end, which a pass with a cache cannot know; a function that gives no
                mask; or places in a pass that goes on from a cache of unknown length.
        """
        if positions is not None and positions != slice(0, None):
            self.require_placed()
        return self.real & _chosen(self.place, positions)

    def require_placed(self) -> None:
        """Check that it is known where in its sequence each token stands.

        Raises:
            InputError: it is not.
        """
        if not self.placed:
            raise InputError(
                "This pass goes on from a cache that does not tell its length (the states of a state-space model, for "
                "one), so the places of its tokens are not known. Call without a cache (use_cache=False), or choose "
                "all places: positions=slice(0, None), and attach without skip."
            )

    @classmethod
    def of_call(cls, args: Sequence[Any], kwargs: Mapping[str, object]) -> Tokens | None:
        """Read a call whose function is not at hand; see `of_arguments`."""
        unnamed = {f"argument {index}": value for index, value in enumerate(args)}
        return cls.of_arguments({**unnamed, **kwargs})

    @classmethod
    def of_arguments(cls, arguments: Mapping[str, object]) -> Tokens | None:
        """Read the arguments of a call, by the names that Hugging Face gives them.

        Args:
            arguments: by name, in the order of the function's parameters. Of an encoder-decoder, which has
                `decoder_input_ids` among them, given or not, the decoder's tokens are read. Without a name that is
                known, the first argument stands for `input_ids` if it is a matrix of whole numbers.

        Returns:
            The tokens, or None for a call that has none (images, plain rows).

        Raises:
            InputError: a mask of which it is not known what it says of padding.
        """
        start = "decoder_" if "decoder_input_ids" in arguments else ""
        ids = matrix_of_ids(arguments.get(f"{start}input_ids"))
        if ids is None and not start and arguments:
            ids = matrix_of_ids(next(iter(arguments.values())))
        entries = ids if ids is not None else vectors_of(arguments, start)
        if entries is None:
            return None
        shape = (entries.shape[0], entries.shape[1])
        if ids is None and (mask := mask_of(arguments, start, shape)) is not None and mask.shape == shape[::-1]:
            shape = shape[::-1]  # vectors whose positions come first
        cached = cached_length(cache_of(arguments))
        mask = mask_of(arguments, start, shape)
        tokens = cls.of_mask(mask, shape, cached or 0, entries, ids)
        if cached is None and mask is None:
            tokens = replace(tokens, placed=False)
        return tokens._told(arguments.get(f"{start}position_ids"), entries)

    def _told(self, position_ids: Any, like: Tensor) -> Tokens:
        """Take the places that the caller tells, and part the sequences that are packed into one row."""
        if not (isinstance(position_ids, Tensor) and position_ids.ndim == 2 and position_ids.shape[1] == self.shape[1]):
            return self
        place = position_ids.to(like.device).expand(self.shape)
        restarts = (place[:, 1:] <= place[:, :-1]) & self.real[:, 1:] & self.real[:, :-1]
        if not bool(restarts.any()):
            return replace(self, place=place, placed=True)
        document = torch.nn.functional.pad(restarts.long().cumsum(1), (1, 0))
        return replace(self, place=place, document=document, placed=True)

    @classmethod
    def of_mask(
        cls,
        mask: Bool[Tensor, "batch keys"] | Int[Tensor, "batch keys"] | Float[Tensor, "batch keys"] | None,
        shape: tuple[int, int],
        cached: int,
        like: Tensor,
        ids: Int[Tensor, "batch position"] | None = None,
    ) -> Tokens:
        """Build from an attention mask `[batch, cached + position]`, or without one where nothing is padded.

        Args:
            mask: the mask, or None.
            shape: batch and positions of the pass.
            cached: tokens that stand before these in a cache.
            like: a tensor on the device to use.
            ids: token ids.

        Returns:
            The tokens of the pass.
        """
        batch, positions = shape
        if mask is not None and mask.shape[0] == batch and mask.shape[1] >= positions:
            attended = mask.to(like.device).bool()
            place = attended.long().cumsum(1) - 1
            return cls(attended[:, -positions:], place[:, -positions:].clamp_min(0), ids)
        real = torch.ones(batch, positions, dtype=torch.bool, device=like.device)
        place = torch.arange(cached, cached + positions, device=like.device).expand(batch, -1)
        return cls(real, place, ids)


def padded(tokenizer: Tokenizer, texts: Sequence[str], **settings: object) -> dict[str, Tensor]:
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


def token_names(tokenizer: Any) -> Callable[[int], str]:
    """Return how a tokenizer of Hugging Face's kind names an id; without one, ids are their own names.

    An id past the vocabulary, as models padded to a round number have, is its own name too.
    """
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return partial(_piece, tokenizer)
    if hasattr(tokenizer, "decode"):
        return lambda number: str(tokenizer.decode([number]))
    return str


def _piece(tokenizer: Any, number: int) -> str:
    """Name one id; a leading space is written ▁, which byte-level vocabularies write Ġ."""
    piece = tokenizer.convert_ids_to_tokens(number)
    if piece is None:
        return str(number)
    name = str(piece).replace("Ġ", "▁")
    if name.removeprefix("▁").isascii() or not hasattr(tokenizer, "decode"):
        return name
    # Byte-level vocabularies write letters past ASCII byte by byte; a token that ends within one stays as written.
    text = str(tokenizer.decode([number]))
    readable = text.strip().isprintable() and text.strip() and "\ufffd" not in text
    return "▁" * name.startswith("▁") + text.strip() if readable else name


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


def shown_in_text(at: Mapping[int, int], here: int, tokenizer: Tokenizer, around: int) -> str:
    """Show the token at a place in its text, between ⟦ and ⟧, with an ellipsis where the neighbouring one is not there.

    Args:
        at: token ids by place.
        here: the place.
        tokenizer: whose `decode` turns ids to text.
        around: the most tokens to show on each side.
    """
    start = next(place for place in range(here, -1, -1) if place - 1 not in at or place == here - around)
    stop = next(place for place in count(here + 1) if place not in at or place == here + around + 1)
    ids = [at[place] for place in range(start, stop)]
    whole = tokenizer.decode(ids)
    # Decoded on its own a token can lose its leading space, so it is cut out of the whole.
    cut = [_shared(tokenizer.decode(ids[:end]), whole) for end in (here - start, here - start + 1)]
    before, after = "… " if start > 0 else "", " …" if stop in at else ""
    return f"{before}{whole[: cut[0]]}⟦{whole[cut[0] : cut[1]]}⟧{whole[cut[1] :]}{after}"


def _shared(first: str, second: str) -> int:
    """Length of the longest common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (ours, theirs) in pairs if ours != theirs), min(len(first), len(second)))
