"""How far eigenvalues and residuals would move had other samples been observed: bootstrap intervals over inputs.

The observed inputs are cut into shards, whose Gram matrices add up; shards are then drawn with replacement, which
costs nothing but small solves (bagging, as in Sashidhar & Kutz's BOP-DMD, arXiv 2107.10878). Samples of one input
stay together, and so do the depths of one sample: what is drawn anew is what was drawn in the first place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Complex, Float
from numpy import ndarray

from koopman_interp.analysis.grams import Grams

LEADING = 64
"""Modes that are given intervals: the slowest."""

LEAST_SHARDS = 8
"""Shards with samples below which a bootstrap says nothing."""

ROWS_PER_MODE = 10
"""Samples for each mode below which that many modes cannot be told apart on the data."""

_RANK = 1e-10
_AT_ONCE = 50


@dataclass(frozen=True, eq=False, repr=False)
class Intervals:
    """Intervals of the slowest modes; infinite on both sides where the data do not say.

    Attributes:
        estimate: λ̂, what the data give for each eigenvalue, `[mode]`; NaN where they do not say. It is the diagonal of
            the least-squares operator in the coordinates of the surrogate's own eigenfunctions: to first order, the
            eigenvalue of a K that is solved anew on these samples with the same encoder.
        decay: of |λ̂|, low and high, `[mode, 2]`.
        rotation: of arg λ̂ in radians, unwrapped around arg λ, `[mode, 2]`.
        residual: of the residual about zero, `[mode, 2]`.
        level: the share of draws inside.
        draws: how many draws were made.
        shards: shards with samples.
        samples: rows.
    """

    estimate: Complex[ndarray, " mode"]
    decay: Float[ndarray, "mode 2"]
    rotation: Float[ndarray, "mode 2"]
    residual: Float[ndarray, "mode 2"]
    level: float
    draws: int
    shards: int
    samples: int

    def __repr__(self) -> str:
        told = int(np.isfinite(self.estimate).sum())
        return (
            f"Intervals({told} of {len(self.estimate)} modes, {self.level:.0%} of {self.draws} draws of {self.shards} "
            f"shards, {self.samples:,} samples)"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; None stands for infinity."""
        pairs = {name: _plain(getattr(self, name)) for name in ("decay", "rotation", "residual")}
        return pairs | {"level": self.level, "draws": self.draws, "shards": self.shards}


def intervals(
    grams: Grams,
    values: Complex[ndarray, " mode"],
    readers: Complex[ndarray, "observable mode"],
    *,
    level: float = 0.95,
    draws: int = 400,
    seed: int = 0,
) -> Intervals:
    """Bootstrap the slowest modes over shards.

    With `Φ = Z W` on a draw and a gap of g steps, `M = (Φ*Φ)⁻¹ Φ*Φ⁺` estimates `diag(λ^g)`, and λ̂ is λ moved by what
    the diagonal of M differs from λ^g, over `g λ^(g−1)`; several gaps are averaged by their pairs of depths.

    Args:
        grams: per shard.
        values: λ of as many modes as are to be given intervals.
        readers: their left eigenvectors.
        level: the share of draws inside.
        draws: how often shards are drawn.
        seed: of the draws.

    Returns:
        The intervals. All are infinite where fewer than 8 shards have samples, or there are fewer than 10 samples a
        mode; one is where the data never tell its eigenfunction from the others'.
    """
    count = grams.count.sum(0).numpy()
    filled = np.flatnonzero(count)
    rows = int(count.sum())
    if len(filled) < LEAST_SHARDS or rows < ROWS_PER_MODE * len(values):
        return _unknown(len(values), level, len(filled), rows)
    by_shard = _in_modes(grams, readers, filled)
    gaps = np.array([span.gap for span in grams.spans])
    pairs = np.array([len(span.starts) for span in grams.spans], dtype=float)
    weights = np.random.default_rng(seed).multinomial(len(filled), [1 / len(filled)] * len(filled), draws)
    estimates, residuals = [], []
    # All of the shards first, as they were drawn in the first place.
    for some in np.array_split(np.concatenate([np.ones((1, len(filled))), weights]), 1 + draws // _AT_ONCE):
        moved, left = _estimated(by_shard, some, values, gaps, pairs)
        estimates.append(moved)
        residuals.append(left)
    (estimate, moved), (residual, left) = (
        (whole[0], whole[1:]) for whole in map(np.concatenate, (estimates, residuals))
    )
    turned = np.angle(values) + np.angle(moved * np.exp(-1j * np.angle(values)))
    return Intervals(
        estimate=np.where(np.isfinite(estimate) & np.isfinite(moved).all(0), estimate, np.nan),
        decay=_quantiles(np.abs(moved), level),
        rotation=_quantiles(turned, level),
        residual=_quantiles(np.where(np.isfinite(residual), left, np.nan), level),
        level=level,
        draws=draws,
        shards=len(filled),
        samples=rows,
    )


def _in_modes(grams: Grams, readers: ndarray, shards: ndarray) -> ndarray:
    """Gram matrices of eigenfunctions, scaled to the same size: `[G A L, span, shard, mode, mode]`."""
    W = readers if grams.basis is None else grams.basis.numpy().T @ readers
    stacked = np.stack([gram.sum(1)[:, shards].numpy() for gram in (grams.G, grams.A, grams.L)])
    inner: ndarray = W.conj().T @ stacked @ W
    size = np.einsum("smii->i", inner[0]).real
    scale = np.where(size > 0, size, 1) ** -0.5
    return inner * scale[:, None] * scale


def _estimated(
    by_shard: Complex[ndarray, "gram span shard mode mode"],
    weights: Float[ndarray, "draw shard"],
    values: Complex[ndarray, " mode"],
    gaps: Float[ndarray, " span"],
    pairs: Float[ndarray, " span"],
) -> tuple[Complex[ndarray, "draw mode"], Float[ndarray, "draw mode"]]:
    """Estimate eigenvalues and residuals on weighted shards; NaN where the data do not say."""
    shape = (len(weights), len(values))
    moved, missed, size, told = np.zeros(shape, complex), np.zeros(shape), np.zeros(shape), np.ones(shape, dtype=bool)
    for index, (gap, share) in enumerate(zip(gaps, pairs / pairs.sum(), strict=True)):
        now, across, after = np.tensordot(by_shard[:, index], weights, axes=(1, 1)).transpose(0, 3, 1, 2)
        spread, vectors = np.linalg.eigh(now)
        kept = spread > _RANK * np.maximum(spread[:, -1:], 0)
        told &= 1 - (kept[:, None] * np.abs(vectors) ** 2).sum(2) < 1e-6
        inverse = (vectors * np.where(kept, 1 / np.where(kept, spread, 1), 0)[:, None]) @ vectors.conj().mT
        power = values**gap
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.einsum("dkm,dmk->dk", inverse, across) - power
            moved += share * change / (gap * values ** (gap - 1))
        own, follows, covary = (np.einsum("dkk->dk", gram) for gram in (now, after, across))
        missed += follows.real - 2 * (power * covary.conj()).real + np.abs(power) ** 2 * own.real
        size += own.real
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = np.sqrt(np.maximum(missed, 0) / size)
    return np.where(told & np.isfinite(moved), values + moved, np.nan), residual


def _quantiles(drawn: Float[ndarray, "draw mode"], level: float) -> Float[ndarray, "mode 2"]:
    outside = (1 - level) / 2
    found = np.quantile(drawn, [outside, 1 - outside], axis=0).T
    return np.where(np.isfinite(drawn).all(0)[:, None], found, [-np.inf, np.inf])


def _unknown(modes: int, level: float, shards: int, rows: int) -> Intervals:
    open_ends = np.tile([-np.inf, np.inf], (modes, 1))
    return Intervals(np.full(modes, np.nan + 0j), open_ends, open_ends, open_ends, level, 0, shards, rows)


def _plain(pairs: Float[ndarray, "mode 2"]) -> list[list[float | None]]:
    return [[end if np.isfinite(end) else None for end in pair] for pair in pairs.tolist()]
