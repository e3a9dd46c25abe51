"""TransformerLens's JacobianLens in the form that lenses have here: a map from each depth to the last.

It transports the output of block l to that of the last block by one matrix, `x J_lᵀ`, for the model's final norm and
unembedding to read. Importing this module imports no TransformerLens: who has such a lens has loaded it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from koopman_interp.errors import HostMismatchError, InputError

_SKIPPED = "skip_first_positions"


class TransportedLens:
    """A JacobianLens, looked through from the sites of a trajectory.

    Args:
        lens: the JacobianLens.
        blocks: for each depth the block whose output it is, None where it is none's.

    Attributes:
        name: what tables call it.
    """

    def __init__(self, lens: Any, blocks: Sequence[int | None]) -> None:
        self.name = "Jacobian lens"
        self._lens = lens
        self._blocks = tuple(blocks)

    @property
    def parameters(self) -> int:
        """Entries of the matrices that are used."""
        used = {block for block in self._blocks if block in self._lens.jacobians}
        return sum(int(self._lens.jacobians[block].numel()) for block in used)

    def at(self, depth: int) -> Callable[[Tensor], Tensor] | None:
        """Return the map from rows at a depth to rows at the last; None where no block's output was fitted."""
        if depth == len(self._blocks) - 1:
            return _unchanged
        block = self._blocks[depth]
        if block is None or block not in self._lens.jacobians:
            return None
        return partial(self._transported, block)

    def _transported(self, block: int, rows: Tensor) -> Tensor:
        moved: Tensor = self._lens.transport(rows, block)
        return moved.to(rows)


def is_jacobian_lens(lens: object) -> bool:
    """Whether a value is a JacobianLens of TransformerLens, or of a class made from it."""
    return any(
        kind.__name__ == "JacobianLens" and kind.__module__.partition(".")[0] == "transformer_lens"
        for kind in type(lens).__mro__
    )


def transported(lens: Any, model: Any, sites: Sequence[str], points: Mapping[str, Any], skip: int) -> TransportedLens:
    """Bring a JacobianLens to the form of lenses here.

    Args:
        lens: the JacobianLens.
        model: the bridge.
        sites: the depths to look from; the last is to be the output of the last block.
        points: the model's hook points by name.
        skip: leading places of each sequence that are left out.

    Raises:
        HostMismatchError: the lens was fitted on another model.
        InputError: none of the sites is the output of a block that it was fitted at, the last site is not that of the
            last block, or it was fitted with other leading places left out, or does not say with which.
    """
    try:
        lens.validate_model(model)
    except (TypeError, ValueError) as error:
        raise HostMismatchError(f"This JacobianLens does not fit the model: {error}") from error
    last = len(model.blocks) - 1
    blocks = [_block_before(points.get(site), points, last + 1) for site in sites]
    if blocks[-1] != last:
        raise InputError(
            f"A JacobianLens goes to the output of the last block, blocks.{last}.hook_resid_post; the last site here "
            f"is {sites[-1]!r}. Attach to sites that end there, and fit anew."
        )
    if not any(block in lens.jacobians for block in blocks[:-1]):
        raise InputError(
            f"The JacobianLens was fitted at the outputs of blocks {', '.join(map(str, lens.source_layers))}, and none "
            f"of the sites is one: {', '.join(sites[:-1])}. Fit it with source_layers= of these sites."
        )
    skipped = lens.metadata.get(_SKIPPED)
    if skipped != skip:
        unknown = (
            "does not say how many leading positions it left out. If it is "
            f"{skip}, say so: lens.metadata[{_SKIPPED!r}] = {skip}."
        )
        other = (
            f"left out the first {skipped} positions, and here it is the first {skip}, so that they would be judged on "
            f"other states than one was fitted on. Fit it with {_SKIPPED}={skip}, or observe with skip={skipped}."
        )
        raise InputError(f"This JacobianLens {unknown if skipped is None else other}")
    return TransportedLens(lens, blocks)


def _block_before(point: Any, points: Mapping[str, Any], blocks: int) -> int | None:
    """Return the block whose output a hook point has, as its own or as the input of the next block."""
    for block in range(blocks):
        names = [f"blocks.{block}.{end}" for end in ("hook_resid_post", "hook_out")]
        names += [f"blocks.{block + 1}.{start}" for start in ("hook_resid_pre", "hook_in")]
        if point is not None and any(points.get(name) is point for name in names):
            return block
    return None


def _unchanged(rows: Tensor) -> Tensor:
    return rows
