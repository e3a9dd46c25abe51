"""One more layer in a model's own key-value cache, for what a patch has to keep from pass to pass.

Whatever is done to the cache is done to all its layers: beams that are reordered, entries that are repeated or taken
out, tokens that are cropped, a copy. So what stands here follows the tokens as the model's own keys and values do, and
lives and dies with the generation that it belongs to. Knows the layer protocol of Hugging Face caches by its names, and
imports nothing of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from koopman_interp.errors import InputError


class ExtraLayer:
    """Tensors `[batch, part, column, size]`, one column a token of the cache.

    Args:
        owner: whose it is.
        keys: of the columns so far.
        values: the same; both names are the protocol's.
    """

    is_croppable = True
    supports_early_init = False
    is_initialized = True

    def __init__(self, owner: str, keys: Tensor, values: Tensor) -> None:
        self.owner = owner
        self.is_compileable = self.is_sliding = False
        self.keys = keys
        self.values = values

    def extend(self, keys: Tensor, values: Tensor) -> None:
        """Put columns behind the ones that are here."""
        self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def get_seq_length(self) -> int:
        """How many columns there are."""
        return self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of keys and offset under which a mask would be made, by the protocol."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No most, by the protocol."""
        return -1

    get_max_cache_shape = get_max_length

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Refuse to be a layer of the model."""
        raise InputError(
            "This cache was filled while a patch skipped blocks of the model, which now ask for what they would have "
            "cached. Begin anew without a cache."
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take entries of the batch in another order."""
        self._each(lambda held: held.index_select(0, beam_idx.to(held.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each entry of the batch."""
        self._each(lambda held: held.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some entries of the batch."""
        self._each(lambda held: held[indices])

    def crop(self, tokens: int) -> None:
        """Remove as many columns from the end as a negative number says, or keep as many as a positive one."""
        if tokens:
            self._each(lambda held: held[:, :, :tokens])

    def reset(self) -> None:
        """Forget all columns."""
        self._each(lambda held: held[:, :, :0])

    def offload(self) -> None:
        """Stay on the device, since it is small."""

    def prefetch(self) -> None:
        """Be there."""

    def _each(self, do: Any) -> None:
        self.keys, self.values = do(self.keys), do(self.values)


def extra_layer(cache: Any, owner: str) -> ExtraLayer | None:
    """Find the layer of an owner in a cache; None where there is none."""
    layers = _layers(cache) or ()
    return next((layer for layer in layers if isinstance(layer, ExtraLayer) and layer.owner == owner), None)


def add_layer(cache: Any, layer: ExtraLayer) -> bool:
    """Put a layer behind those of a model, once these are there, which is when a pass is over.

    Returns:
        Whether the cache is of a kind that has layers.
    """
    layers = _layers(cache)
    if layers is None:
        return False
    # By these, of all layers, masks are made: those of a cache of fixed length have to hide what is not yet filled, and
    # those of a window are of its length.
    for name in ("is_compileable", "is_sliding"):
        setattr(layer, name, bool(layers) and all(getattr(own, name, False) for own in layers))
    layers.append(layer)
    return True


def _layers(cache: Any) -> list[Any] | None:
    # Of an encoder-decoder, the decoder's own tokens are what is cached by column.
    layers = getattr(getattr(cache, "self_attention_cache", cache), "layers", None)
    return layers if isinstance(layers, list) else None
