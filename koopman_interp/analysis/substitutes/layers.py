"""Layers as TransformerLens counts them, to depths: layer l is the output of block l, and depth 0 lies before it."""

from __future__ import annotations

from collections.abc import Sequence

from koopman_interp.depths import depth_of
from koopman_interp.errors import InputError
from koopman_interp.observing.site_times import block_outputs

Layers = Sequence[str | int] | str | int | None
"""Sites by name, or the numbers of the blocks whose outputs they are, negative ones from the last; None is all."""


def depths_of_layers(sites: Sequence[str], layers: Layers) -> tuple[int, ...]:
    """Resolve layers to depths, in order, each once.

    Args:
        sites: in order of depth.
        layers: names of sites, or numbers of blocks.

    Returns:
        The depths.

    Raises:
        InputError: a layer is none of the sites, the names of the sites do not tell their blocks, or there are none.

    >>> depths_of_layers(["blocks.0:input", "blocks.0", "blocks.1"], [-1, "blocks.0:input"])
    (0, 2)
    """
    if layers is None:
        return tuple(range(len(sites)))
    given = [layers] if isinstance(layers, (str, int)) else list(layers)
    if not given:
        raise InputError("Expected one layer or more; got none.")
    return tuple(sorted({depth_of(sites, one) if isinstance(one, str) else _output_of(one, sites) for one in given}))


def _output_of(layer: int, sites: Sequence[str]) -> int:
    blocks = block_outputs(sites)
    known = {block: depth for depth, block in enumerate(blocks) if block is not None}
    if not known:
        raise InputError(f"The sites' names do not tell which is layer {layer}. Name it: layers=[{sites[-1]!r}].")
    block = layer if layer >= 0 else max(known) + 1 + layer
    if block not in known:
        raise InputError(
            f"There is no layer {layer} among the sites; a layer is the output of a block, and there are those of "
            f"blocks {', '.join(map(str, known))}. The input of the first block goes by its name, {sites[0]!r}."
        )
    return known[block]
