"""What a motion whose encoder looks back needs of a pass: how its rows follow each other, and the columns before them.

Columns that went before stand in the model's own cache, as one more layer of it (`hosts.cache_layers`), and are put
there when the pass is over. Without a cache there are none. Knows nothing of motions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

import torch
from jaxtyping import Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hosts.arguments import cache_of
from koopman_interp.hosts.cache_layers import ExtraLayer, add_layer, extra_layer
from koopman_interp.hosts.passes import Pass
from koopman_interp.hosts.tokens import Tokens
from koopman_interp.patching.places import tokens_of
from koopman_interp.sequences import Sequences
from koopman_interp.surrogates.context import Past

CALLED_ALONE = (
    "{site!r} was called by itself, outside of a pass of the model, so the patch, whose encoder looks back "
    "(context='causal'), does not know what its rows follow. Call the model."
)


def new_owner() -> str:
    """Return a name of a span's own, by which its layer in a cache is known, in whatever process."""
    return uuid4().hex


@dataclass(eq=False)
class LookingBack:
    """Of one span in one pass.

    Attributes:
        sequences: how the rows of the state at its source follow each other.
        past: of the columns in the cache; None where there are none.
        seen: of the columns of this pass, once the motion has seen them.
    """

    sequences: Sequences
    past: Past | None
    seen: Past | None = None

    @classmethod
    def of(cls, running: Pass, state: Tensor, site: str, skip: int, owner: str) -> LookingBack:
        """Read it off the pass.

        Args:
            running: the pass.
            state: at the source of the span.
            site: its name.
            skip: leading places of each sequence that are not looked back on.
            owner: name of the span.

        Raises:
            InputError: the state has no positions, their places are not known, or the pass goes on from a cache that
                was filled without this span.
        """
        if state.ndim != 3:
            raise InputError(
                f"An encoder with context='causal' looks back along positions, but the state at {site!r} has the shape "
                f"{tuple(state.shape)}; expected [batch, position, width]."
            )
        tokens = tokens_of(running, state, site)
        tokens.require_placed()
        before = running.cached
        layer = extra_layer(running.cache, owner) if before else None
        if before != 0 and (layer is None or layer.keys.shape[::2] != (len(state), before)):
            raise InputError(
                f"This pass goes on from a cache of {before or 'unknown'} tokens, and the patch, whose encoder looks "
                "back on them (context='causal'), has not seen them, or not as they are there. Fill the cache with the "
                "patch installed, or call without one: use_cache=False."
            )
        if layer is not None and tokens.document is not None:
            raise InputError(
                "Sequences that are packed into one row cannot go on from a cache under a patch whose encoder looks "
                "back (context='causal'). Give each a row of its own, or call without a cache: use_cache=False."
            )
        return cls(_in_columns(tokens, skip), None if layer is None else _read(layer))


def require_seen(chosen: Int[Tensor, " row"] | None, back: LookingBack | None, skip: int) -> None:
    """Check that all rows to be written are among those that the encoder sees.

    Raises:
        InputError: they are not.
    """
    if chosen is None or back is None:
        return
    rows = back.sequences.rows
    if not bool(torch.isin(chosen, rows[rows >= 0].to(chosen.device)).all()):
        raise InputError(
            f"positions= choose among the first {skip} places of a sequence, which a surrogate with context='causal' "
            f"neither was fitted on (skip={skip}) nor looks back on. Choose later ones: positions=slice({skip}, None)."
        )


def keep(running: Pass, owner: str, back: LookingBack) -> None:
    """Put the columns of a pass that is over behind those in the model's cache, where there is one."""
    cache = running.cache if running.cache is not None else _made(running.result)
    if back.seen is None or cache is None:
        return
    # Whether there is a row stands as one more number beside each key.
    real = back.seen.real[:, None, :, None].expand(-1, back.seen.keys.shape[1], -1, 1)
    keys = torch.cat([back.seen.keys, real.to(back.seen.keys)], 3).detach()
    layer = extra_layer(cache, owner)
    if layer is None:
        add_layer(cache, ExtraLayer(owner, keys, back.seen.values.detach()))
    else:
        layer.extend(keys, back.seen.values.detach())


def _read(layer: ExtraLayer) -> Past:
    return Past(layer.keys[..., :-1], layer.values, layer.keys[:, 0, :, -1] > 0)


def _in_columns(tokens: Tokens, skip: int) -> Sequences:
    """Lay the rows of a pass out as it has them, or each of the sequences that are packed into one row by itself."""
    seen = (tokens.at(slice(skip, None)) if skip else tokens.real).flatten()
    number = torch.arange(len(seen), device=seen.device)
    if tokens.document is None:
        rows = torch.where(seen, number, -1)
        return Sequences(rows.view(tokens.shape), tokens.place)
    entry = number // tokens.shape[1] * (int(tokens.document.max()) + 1) + tokens.document.flatten()
    laid = Sequences.of(entry[seen], tokens.place.flatten()[seen])
    return Sequences(torch.where(laid.real, number[seen][laid.rows.clamp_min(0)], -1), laid.place)


def _made(result: object) -> object:
    """Find the cache that a model has made in a pass, in what it returns."""
    if isinstance(result, Mapping):
        return cache_of(result)
    parts = result if isinstance(result, (tuple, list)) else ()
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)
