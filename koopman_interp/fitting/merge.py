"""merge(): from shards that were gathered apart to one surrogate.

K is solved anew by the ridge regression that starts every fit, on Gram matrices added up over shards, each row counting
the same; the moments are those of all rows. Both are what one machine with all rows would have found, to rounding. What
is no function of sums stays as it was: normalisation, encoder and decoder. Costs one solve of the observables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Literal

import torch
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.least_squares import solve_operator
from koopman_interp.fitting.shards import RowSums, ShardStatistics, added_up
from koopman_interp.own_kinds import own_kinds
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

_GATHER = "parts = [gather_shard(koopman, tap.observe(shard)) for shard in shards]"


@own_kinds
@torch.no_grad()
def merge(
    koopman: KoopmanAutoencoder,
    shards: Sequence[ShardStatistics],
    *,
    operator: Literal["solved", "kept"] = "solved",
) -> KoopmanAutoencoder:
    """Merge shards of data, gathered apart with one surrogate's encoder, into a surrogate of all of them.

    Args:
        koopman: the surrogate whose encoder the shards were gathered with; it is not changed.
        shards: as `gather_shard` gives them, that of the data it was fitted on among them, if that is to count.
        operator: `solved`, K from the Gram matrices of all shards; or `kept` as it is, where only the moments, by which
            classes and concepts are erased, are to be those of all shards. What is solved for is one step: over many
            steps a K that a fit has stepped can be better, so judge both by `fidelity`.

    Returns:
        A new surrogate, in eval mode, on the CPU. Its record says how large the held-out residual of a step is under
        the new K and the old. Edits made for the old one do not fit it where K is solved anew.

    Raises:
        InputError: no shards, shards that share inputs, shards of another surrogate's observables, surrogates in place
            of shards, or a distilled surrogate, whose K is not to be solved for.

    Examples:
        >>> import torch, koopman_interp as ki
        >>> from koopman_interp.testing import ResidualMLP
        >>> tap = ki.attach(ResidualMLP(inputs=4, width=8, blocks=3, outputs=2).eval())
        >>> shards = torch.randn(3, 100, 4)
        >>> koopman = ki.fit(tap.observe(shards[0]), method="least_squares")
        >>> whole = ki.merge(koopman, [ki.gather_shard(koopman, tap.observe(shard)) for shard in shards])
        >>> whole.moments.rows + whole.heldout_moments.rows
        300
    """
    if operator not in ("solved", "kept"):
        raise InputError(f"operator={operator!r} is neither 'solved' nor 'kept'.")
    _require_shards(koopman, shards)
    if operator == "solved" and koopman.record.distilled:
        raise InputError(
            "This surrogate was distilled: its K is fitted to what the model says, which no sum over states tells. "
            "Keep it, merge(koopman, shards, operator='kept'); or merge first, and distil the result."
        )
    merged = deepcopy(koopman).cpu()
    fitted, held_out = (added_up([getattr(shard, side) for shard in shards]) for side in ("fitted", "held_out"))
    said = f"merged from {len(shards)} shards, {fitted.moments.rows:,} rows fitted: "
    if operator == "solved":
        before = _residual(merged, held_out)
        turn = solve_operator(merged, _by_gap(merged, fitted), _ridge(koopman))
        if turn is not None:
            fitted, held_out = fitted.turned(turn), held_out.turned(turn)
        after = _residual(merged, held_out)
        rows = f"{held_out.moments.rows:,} held-out rows"
        said += f"K solved anew on all of them, residual of a step on {rows} {after:.3g} for {before:.3g}"
    else:
        said += "K kept, and the moments those of all of them"
    merged.moments, merged.heldout_moments = fitted.moments, held_out.moments
    inputs = torch.unique(torch.cat([koopman.record.held_out, *(shard.held_out_inputs for shard in shards)]))
    merged.record = replace(koopman.record, held_out=inputs, choices=(*koopman.record.choices, said))
    return merged.eval().requires_grad_(False)


def _by_gap(koopman: KoopmanAutoencoder, sums: RowSums) -> dict[float, tuple[Tensor, Tensor]]:
    """Add up the sums of all pairs of depths that lie equally many steps apart."""
    gaps = [later - earlier for earlier, later in pairwise(koopman.config.times)]
    return {
        gap: (
            torch.stack([sums.second(depth) for depth, own in enumerate(gaps) if own == gap]).sum(0),
            torch.stack([sums.cross[depth] for depth, own in enumerate(gaps) if own == gap]).sum(0),
        )
        for gap in sorted(set(gaps))
    }


def _residual(koopman: KoopmanAutoencoder, sums: RowSums) -> float:
    """Return `Σ‖z_next − K z‖² / Σ‖z_next − mean‖²` over all steps; of no rows NaN."""
    left = whole = 0.0
    for depth in range(len(sums.cross)):
        M = koopman.operator.power(koopman.steps(depth, depth + 1)).double()
        now, after, cross = sums.second(depth), sums.second(depth + 1), sums.cross[depth]
        left += float(after.trace() - 2 * (M * cross.T).sum() + (M @ now * M).sum())
        whole += sums.moments.rows * float(sums.moments.covariance[depth + 1].trace())
    return left / whole if whole else math.nan


def _ridge(koopman: KoopmanAutoencoder) -> float:
    """Strength of the ridge of the surrogate's own fit."""
    strength = koopman.record.settings.get("ridge", FitConfig().ridge)
    return float(strength)


def _require_shards(koopman: KoopmanAutoencoder, shards: Sequence[ShardStatistics]) -> None:
    if not isinstance(shards, Sequence) or not shards:
        raise InputError(f"Expected shards in a list; got {shards!r}. Gather them: {_GATHER}.")
    for shard in shards:
        if isinstance(shard, KoopmanAutoencoder):
            raise InputError(
                "Surrogates that were fitted apart have encoders of their own, whose observables are different "
                "functions, so that there is no mean of them. Fit one encoder, on one shard or a sample of all, and "
                f"gather every shard with it: {_GATHER}; merge(koopman, parts)."
            )
        if not isinstance(shard, ShardStatistics):
            raise InputError(f"Expected shards; got {type(shard).__name__}. Gather them: {_GATHER}.")
    digest = koopman.digest()
    foreign = [place for place, shard in enumerate(shards) if shard.surrogate != digest]
    if foreign:
        raise InputError(
            f"Shard {foreign[0]} was gathered with another surrogate, so that its observables are others. Gather it "
            "with this one: gather_shard(koopman, …)."
        )
    for (first, one), (second, other) in combinations(enumerate(shards), 2):
        shared = int(torch.isin(one.inputs, other.inputs).sum())
        if shared:
            raise InputError(
                f"Shards {first} and {second} share {shared:,} inputs, whose rows would count twice. Give shards that "
                "have inputs of their own."
            )
