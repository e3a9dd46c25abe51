"""What a model is called with, by name: ids, vectors, masks and caches, as Hugging Face and torch name them.

Knows nothing of what is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import Signature
from typing import Any

import torch
from torch import Tensor

from koopman_interp.errors import InputError

_PADDING_MASKS = ("src_key_padding_mask", "key_padding_mask", "padding_mask")


def bound(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a call: those given, in the order of the function's parameters.

    What a function gathers in `**kwargs` stands under its own names. `decoder_input_ids` stands there as None where the
    function has such a parameter and the call gives none, since it says that the function is an encoder-decoder.

    Args:
        signature: of the function.
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        The arguments by name; positional ones beyond the function's own are left out.
    """
    try:
        binding = signature.bind_partial(*args, **kwargs)
    except TypeError:  # which the call itself will raise
        return dict(kwargs)
    arguments = dict(binding.arguments)
    for name, parameter in signature.parameters.items():
        if name in arguments and parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name)
        elif name in arguments and parameter.kind is parameter.VAR_POSITIONAL:
            arguments |= {f"{name} {index}": value for index, value in enumerate(arguments.pop(name))}
    if "decoder_input_ids" in signature.parameters:
        arguments.setdefault("decoder_input_ids", None)
    return arguments


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """Find the cache among the arguments of a model, by the names of Hugging Face and TransformerLens; None without."""
    # Called `cache` by transformers from 5.24 on, and `cache_params` by state-space models.
    names = ("past_key_values", "cache", "cache_params", "past_kv_cache")
    return next((arguments[name] for name in names if arguments.get(name) is not None), None)


def cached_length(cache: Any) -> int | None:
    """Length of a Hugging Face cache, new (an object) or old (tuples of keys and values); None where it tells none."""
    if cache is None:
        return 0
    if isinstance(cache, (tuple, list)) and cache and isinstance(cache[0], (tuple, list)):
        return int(cache[0][0].shape[-2])
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError, NotImplementedError):  # the states of a state-space model have no length
        layers = getattr(cache, "layers", [cache])
        begun = any(isinstance(held, Tensor) for layer in layers for held in _held(layer))
        return None if begun else 0


def _held(layer: object) -> Iterator[object]:
    """Go through what a layer of a cache holds, one level of lists and mappings deep."""
    for value in getattr(layer, "__dict__", {}).values():
        if isinstance(value, Mapping):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def matrix_of_ids(value: Any) -> Tensor | None:
    """Return a value that can be token ids, a matrix of whole numbers; else None."""
    whole = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    return value if whole and value.ndim == 2 and value.dtype != torch.bool else None


def vectors_of(arguments: Mapping[str, Any], start: str) -> Tensor | None:
    """Find what stands for tokens where there are no ids: embeddings, or a sequence of vectors beside its mask."""
    given = arguments.get(f"{start}inputs_embeds")
    if given is None and not start and arguments:
        first = next(iter(arguments.values()))
        masks = (arguments.get(name) for name in (*_PADDING_MASKS, "attention_mask"))
        if any(isinstance(mask, Tensor) and mask.ndim == 2 for mask in masks):
            given = first
    vectors = isinstance(given, Tensor) and given.is_floating_point() and given.ndim == 3
    return given if vectors else None


def mask_of(arguments: Mapping[str, Any], start: str, shape: tuple[int, ...]) -> Tensor | None:
    """Find the mask of real tokens, `[batch, keys]`; None where nothing is padded.

    Raises:
        InputError: there is a mask of which it is not known what it says of padding.
    """
    padding = next((arguments[name] for name in _PADDING_MASKS if isinstance(arguments.get(name), Tensor)), None)
    if not start and padding is not None and padding.ndim == 2:
        # Torch's own: true, or minus infinity, at padding.
        return ~padding if padding.dtype == torch.bool else padding == 0
    mask = arguments.get(f"{start}attention_mask")
    masks = list(mask.values()) if isinstance(mask, Mapping) else [mask]
    for one in masks:
        if not isinstance(one, Tensor):
            continue
        if one.ndim == 2 and one.shape[0] == shape[0]:
            return one if one.shape[1] >= shape[1] else None
        if one.ndim > 2 and not _pads_nothing(one):
            raise InputError(
                f"An attention mask of shape {tuple(one.shape)} says who attends to whom, and not which tokens are "
                "padding. Give the model a mask [batch, position] (attention_mask=…, 1 at real tokens), or call it on "
                "unpadded inputs without a mask."
            )
    return None


def _pads_nothing(mask: Tensor) -> bool:
    """Whether a mask of queries and keys is the same for all inputs, and plainly leaves no token out.

    It is where all attend to all, or where each query attends to one stretch of keys that ends with its own, and the
    first one's begins with the first key: a causal mask, banded or not, in a cache of any length.
    """
    attended = mask.bool() if not mask.is_floating_point() else mask > torch.finfo(mask.dtype).min / 2
    attended = attended.flatten(0, -3)
    one = attended[0]
    if not bool((attended == one).all()) or not bool(one.any(1).all()):
        return False
    places = torch.arange(one.shape[1], device=mask.device)
    last = torch.where(one, places, -1).amax(1)
    first = torch.where(one, places, one.shape[1]).amin(1)
    in_one = one.sum(1) == last - first + 1
    causal = last == last[0] + torch.arange(len(last), device=mask.device)
    return bool(one.all()) or (bool(in_one.all() and causal.all()) and int(first[0]) == 0)
