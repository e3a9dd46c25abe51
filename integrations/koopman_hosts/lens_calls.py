"""Where a pass of a TransformerLens model starts and ends, and what its tokens are.

A bridge calls the model that it wraps in each of its ways (called, `run_with_cache`, `run_with_hooks`, `generate`,
`hf_generate`), so the wrapped model is hooked. `HookedTransformer` calls its own `forward`, past torch's hooks, so
that method gets a stand-in.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from koopman_hosts.containers import containers, followed
from koopman_hosts.skipping import overridden
from koopman_interp.hosts.arguments import cache_of
from koopman_interp.hosts.passes import Arguments, Pass, Passes
from koopman_interp.hosts.tokens import Tokens


@contextmanager
def each_call(
    model: nn.Module, modules: Sequence[nn.Module] = (), ended: Callable[[Pass], None] | None = None
) -> Iterator[Passes]:
    """Follow the passes of a model, whichever of TransformerLens's ways starts them.

    Args:
        model: a bridge or HookedTransformer.
        modules: hook points that the passes are to reach.
        ended: called with each pass that ends without an exception.

    Yields:
        The passes under way.
    """
    padding = _Padding(model)
    with ExitStack() as stack:
        stack.enter_context(overridden(model, "to_tokens", padding.to_tokens))
        if hasattr(type(model), "original_model"):
            wrapped: Any = model.original_model
            yield stack.enter_context(followed(containers(wrapped, modules), ended, _BridgeTokens(padding).read))
        else:
            yield stack.enter_context(followed([model], ended, _HookedTokens(model, padding).read))


def argument(function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Find one argument in a call of a function, by keyword or by position; None where it is not given."""
    if name in kwargs:
        return kwargs[name]
    return inspect.signature(function).bind_partial(*args).arguments.get(name) if len(args) > 1 else None


class _Padding:
    """Tells padding from tokens in batches without an attention mask.

    Right padding changes nothing for a causal model, so TransformerLens makes no mask for it.
    """

    def __init__(self, model: Any) -> None:
        self._tokenizer: Any = getattr(model, "tokenizer", None)
        self._batch: Tensor | None = None
        self._real: Tensor | None = None

    def to_tokens(self, original: Callable[..., Tensor], texts: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Tokenise, and note how long each text is; a stand-in for the model's own."""
        batch = original(texts, *args, **kwargs)
        if isinstance(texts, list) and len(texts) > 1:
            lengths = torch.tensor([original([text], *args, **kwargs).shape[-1] for text in texts]).unsqueeze(1)
            side = argument(original, "padding_side", (texts, *args), kwargs)
            side = side if side in ("left", "right") else self._tokenizer.padding_side
            places = torch.arange(batch.shape[-1])
            self._batch = batch.cpu()
            self._real = places < lengths if side == "right" else places >= batch.shape[-1] - lengths
        return batch

    def real(self, ids: Tensor) -> Tensor | None:
        """Mark the real tokens of a batch, or return None where nothing tells of padding."""
        seen = self._batch
        if seen is not None and self._real is not None and seen.shape == ids.shape and bool((seen == ids.cpu()).all()):
            return self._real
        pad = getattr(self._tokenizer, "pad_token_id", None)
        if pad is None or pad in (self._tokenizer.eos_token_id, self._tokenizer.bos_token_id):
            return None
        token = ids != pad
        if bool(token.all()):
            return None
        # Padding is at the ends; the same id between tokens is one of them.
        return (token.long().cumsum(1) > 0) & (token.flip(1).long().cumsum(1) > 0).flip(1)


class _BridgeTokens:
    """Reads the tokens of a call of the model that a bridge wraps."""

    def __init__(self, padding: _Padding) -> None:
        self._padding = padding

    def read(self, arguments: Arguments) -> Tokens | None:
        """Read them; where no mask tells of padding, TransformerLens's own way to pad does."""
        tokens = Tokens.of_arguments(arguments)
        if tokens is None or tokens.ids is None or "decoder_input_ids" in arguments:
            return tokens
        if arguments.get("attention_mask") is not None or cache_of(arguments) is not None:
            return tokens
        return Tokens.of_mask(self._padding.real(tokens.ids), tokens.shape, 0, tokens.ids, tokens.ids)


class _HookedTokens:
    """Reads the tokens of a call of a HookedTransformer."""

    def __init__(self, model: Any, padding: _Padding) -> None:
        self._model = model
        self._padding = padding

    def read(self, call: Arguments) -> Tokens | None:
        """Read them; texts are tokenised, and the mask is computed, as the model does for itself."""
        cache = call.get("past_kv_cache")
        ids, given = call["input"], {name: call[name] for name in ("prepend_bos", "padding_side") if name in call}
        if call.get("start_at_layer") is not None:  # `generate` is such a call: it embeds the tokens itself
            shape, cached = (ids.shape[0], ids.shape[1]), 0 if cache is None else cache[0].past_keys.shape[1]
            return Tokens.of_mask(call.get("attention_mask"), shape, cached, ids)
        if isinstance(ids, (str, list)):
            ids = self._model.to_tokens(ids, **given)
        ids = ids if ids.ndim == 2 else ids[None]
        mask: Any = call.get("attention_mask")
        mask = self._computed_mask(ids, given, cache) if mask is None else mask
        if cache is not None:
            mask = torch.cat([cache.previous_attention_mask.to(mask.device), mask], 1)
        mask = self._padding.real(ids) if mask is None else mask
        return Tokens.of_mask(mask, (ids.shape[0], ids.shape[1]), 0, ids, ids)

    def _computed_mask(self, ids: Tensor, given: Mapping[str, Any], cache: Any) -> Tensor | None:
        """Compute the mask where the model itself does: for left padding, and to keep it with a cache."""
        tokenizer = self._model.tokenizer
        side = given.get("padding_side")
        side = side if side in ("left", "right") else getattr(tokenizer, "padding_side", "right")
        if side != "left" and cache is None:
            return None
        bos = given.get("prepend_bos")
        bos = bos if isinstance(bos, bool) else self._model.cfg.default_prepend_bos
        computed = sys.modules["transformer_lens.utilities.tokenize_utils"].get_attention_mask
        return computed(tokenizer, ids, bos, side)
