"""How far eigenvalues and residuals would move had other samples been observed: bootstrap intervals over inputs.

The observed inputs are cut into shards, whose Gram matrices add up; shards are then drawn with replacement, which
costs nothing but small solves (bagging, as in Sashidhar & Kutz's BOP-DMD, arXiv 2107.10878). Samples of equal inputs
stay together, and so do the depths of one sample: what is drawn anew is what was drawn in the first place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Complex, Float
from numpy import ndarray

from koopman_interp.analysis.spectra.grams import Grams, Span
from koopman_interp.tables import in_percent

LEADING = 32
"""Modes that are given intervals: the slowest."""

LEAST_SHARDS = 8
"""Shards with samples below which a bootstrap says nothing."""

ROWS_PER_MODE = 10
"""Samples for each mode below which that many modes cannot be told apart on the data."""

_RANK = 1e-10
"""Variance of a combination of eigenfunctions, relative to the largest, below which it counts as zero."""
_CORRELATED = 0.5
"""Correlation from which an eigenfunction solved for anew is taken for the mode's own."""
_MOST_SOLVED = 512
"""Modes past which the operator is not solved anew for all of them."""
_AT_ONCE = 50
"""Draws whose Gram matrices are held together."""


@dataclass(frozen=True, eq=False, repr=False)
class Intervals:
    """Intervals of the slowest modes; infinite on both sides where the data do not say.

    Attributes:
        estimate: λ̂, what the data give for each eigenvalue, `[mode]`; NaN where they do not say. It is an eigenvalue
            of the operator that is solved anew on these samples by least squares, among the surrogate's own
            eigenfunctions: that whose eigenfunction is most correlated with the mode's.
        correlation: of the two eigenfunctions on the data, `[mode]`: low where the data know no such mode.
        decay: of |λ̂|, low and high, `[mode, 2]`.
        rotation: of arg λ̂ in radians, unwrapped around arg λ, `[mode, 2]`.
        residual: of the residual about each depth's mean, `[mode, 2]`.
        level: the share of draws inside.
        draws: how many draws were made.
        shards: shards with samples.
        samples: rows.
        parts: shards that the inputs were cut into; fewer have samples where inputs are few.
    """

    estimate: Complex[ndarray, " mode"]
    correlation: Float[ndarray, " mode"]
    decay: Float[ndarray, "mode 2"]
    rotation: Float[ndarray, "mode 2"]
    residual: Float[ndarray, "mode 2"]
    level: float
    draws: int
    shards: int
    samples: int
    parts: int

    def __repr__(self) -> str:
        told = int(np.isfinite(self.estimate).sum())
        return (
            f"Intervals({told} of {len(self.estimate)} modes, {in_percent(self.level, 0)} of {self.draws} draws of "
            f"{self.shards} shards, {self.samples:,} samples)"
        )

    def times(self, factor: Float[ndarray, " mode"]) -> Intervals:
        """Return the intervals of eigenvalues that are a positive factor larger."""
        return replace(self, estimate=self.estimate * factor, decay=self.decay * factor[:, None])

    def note(self) -> str | None:
        """Say where the inputs are too few; None where they are not."""
        if self.shards == self.parts:
            return None
        what = "There are no intervals" if self.shards < LEAST_SHARDS else "Intervals are too narrow"
        return (
            f"{what}: the samples are of so few different inputs that {self.shards} of {self.parts} shards have any. "
            "Observe more inputs."
        )

    def as_dict(self) -> dict[str, object]:
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

    With `Φ = Z W` on a draw, less the mean at each depth, and a gap of g steps, `M = (Φ*Φ)⁻¹ Φ*Φ⁺` is solved for; its
    eigenvalues are those of K^g, and of several gaps the roots are averaged by their pairs of depths. Along
    combinations of eigenfunctions that are zero on the data, M is what K says.

    Args:
        grams: per shard.
        values: λ of as many modes as are to be given intervals.
        readers: their left eigenvectors.
        level: the share of draws inside.
        draws: how often shards are drawn.
        seed: of the draws.

    Returns:
        The intervals. All are infinite where fewer than 8 shards have samples, or there are fewer than 10 samples a
        mode; one is where no eigenfunction of M has a correlation of 0.5 or more with the mode's.
    """
    count = grams.count.sum(0).numpy()
    filled = np.flatnonzero(count)
    rows = int(count.sum())
    if len(filled) < LEAST_SHARDS or rows < ROWS_PER_MODE * len(values):
        return _unknown(len(values), level, len(filled), rows, len(count))
    by_shard = _OfModes.of(grams, readers, filled)
    weights = np.random.default_rng(seed).multinomial(len(filled), [1 / len(filled)] * len(filled), draws)
    # All of the shards first, as they were drawn in the first place.
    parts = np.array_split(np.concatenate([np.ones((1, len(filled))), weights]), 1 + draws // _AT_ONCE)
    estimates = [_estimated(by_shard, some, values) for some in parts]
    radius, turn, residual, correlation = (np.concatenate(pieces) for pieces in zip(*estimates, strict=True))
    told = correlation[0] > _CORRELATED
    return Intervals(
        estimate=np.where(told, radius[0] * np.exp(1j * turn[0]), np.nan),
        correlation=np.where(np.isfinite(correlation[0]), correlation[0], 0.0),
        decay=_quantiles(radius[1:], told, level),
        rotation=_quantiles(turn[1:], told, level),
        residual=_quantiles(residual[1:], np.isfinite(residual[0]), level),
        level=level,
        draws=draws,
        shards=len(filled),
        samples=rows,
        parts=len(count),
    )


def solved_anew(
    grams: Grams, values: Complex[ndarray, " mode"], readers: Complex[ndarray, "observable mode"]
) -> Complex[ndarray, " mode"]:
    """Return for each eigenvalue the nearest that the data give, as `Intervals.estimate` does, of all modes together.

    NaN where the data do not say: with fewer than 10 samples a mode, past 512 modes, or where no eigenfunction of the
    operator solved anew has a correlation of 0.5 or more with the mode's. Costs a decomposition of that operator.
    """
    if len(values) > _MOST_SOLVED or grams.samples < ROWS_PER_MODE * len(values):
        return np.full(len(values), np.nan + 0j)
    whole = _OfModes.of(grams.pooled(), readers, np.arange(1))
    radius, turn, _, correlation = (each[0] for each in _estimated(whole, np.ones((1, 1)), values))
    told = correlation > _CORRELATED
    given = (radius * np.exp(1j * turn))[told]
    nearest = np.full(len(values), np.nan + 0j)
    if len(given):
        nearest[told] = given[np.abs(given[None] - values[told][:, None]).argmin(1)]
    return nearest


@dataclass(frozen=True, eq=False)
class _OfModes:
    """Gram matrices of eigenfunctions by shard, scaled to the same size, and what centring them takes."""

    grams: Complex[ndarray, "gram span shard mode mode"]
    sums: Complex[ndarray, "depth shard mode"]
    count: Float[ndarray, " shard"]
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, grams: Grams, readers: Complex[ndarray, "observable mode"], shards: ndarray) -> _OfModes:
        W = grams.coordinates(readers)
        stacked = np.stack([gram.sum(1)[:, shards].numpy() for gram in (grams.G, grams.A, grams.L)])
        inner = W.conj().T @ stacked @ W
        size = np.einsum("smii->i", inner[0]).real
        scale = np.where(size > 0, size, 1) ** -0.5
        sums = grams.sums.sum(1)[:, shards].numpy() @ W * scale
        return cls(inner * scale[:, None] * scale, sums, grams.count.sum(0)[shards].numpy(), grams.spans)

    def drawn(self, weights: Float[ndarray, "draw shard"], index: int) -> Complex[ndarray, "gram draw mode mode"]:
        """Return G, A and L of one span about each depth's mean, on weighted shards."""
        starts = list(self.spans[index].starts)
        sums = np.einsum("qs,dsk->qdk", weights, self.sums) / np.sqrt(weights @ self.count)[:, None, None]
        now, later = sums[:, starts], sums[:, [start + 1 for start in starts]]
        means = np.stack([left.conj().mT @ right for left, right in ((now, now), (now, later), (later, later))])
        whole: ndarray = np.tensordot(self.grams[:, index], weights, axes=(1, 1)).transpose(0, 3, 1, 2)
        return whole - means


def _estimated(
    by_shard: _OfModes, weights: Float[ndarray, "draw shard"], values: Complex[ndarray, " mode"]
) -> tuple[Float[ndarray, "draw mode"], ...]:
    """Return |λ̂|, arg λ̂, the residual about the mean and the correlation, on weighted shards."""
    radius, turn, missed, size, alike = (np.zeros((len(weights), len(values))) for _ in range(5))
    pairs = sum(len(span.starts) for span in by_shard.spans)
    for index, span in enumerate(by_shard.spans):
        gap, share = span.gap, len(span.starts) / pairs
        now, across, after = by_shard.drawn(weights, index)
        power = values**gap
        refitted, correlation = _counterparts(now, across, power)
        radius += share * np.abs(refitted) ** (1 / gap)
        turn += share * (np.angle(values) + np.angle(refitted * np.exp(-1j * np.angle(power))) / gap)
        alike += share * correlation
        own, follows, covary = (np.einsum("dkk->dk", gram) for gram in (now, after, across))
        missed += follows.real - 2 * (power * covary.conj()).real + np.abs(power) ** 2 * own.real
        size += own.real
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = np.sqrt(np.maximum(missed, 0) / size)
    return radius, turn, residual, alike


def _counterparts(
    now: Complex[ndarray, "draw mode mode"],
    across: Complex[ndarray, "draw mode mode"],
    power: Complex[ndarray, " mode"],
) -> tuple[Complex[ndarray, "draw mode"], Float[ndarray, "draw mode"]]:
    """Solve for M, and return for each mode the eigenvalue of its most correlated eigenfunction, and how correlated."""
    spread, vectors = np.linalg.eigh(now)
    kept = spread > _RANK * np.maximum(spread[:, -1:], 0)
    inverse = (vectors * np.where(kept, 1 / np.where(kept, spread, 1), 0)[:, None]) @ vectors.conj().mT
    refitted, functions = np.linalg.eig(np.diag(power) + inverse @ (across - now * power))
    shared = now @ functions
    lengths = np.sqrt(np.maximum(np.einsum("dmj,dmj->dj", functions.conj(), shared).real, 0))
    own = np.sqrt(np.maximum(np.einsum("dkk->dk", now).real, 0))
    both = own[:, :, None] * lengths[:, None]
    correlation = np.where(both > 0, np.abs(shared) / np.where(both > 0, both, 1), 0)
    best = correlation.argmax(2)
    return np.take_along_axis(refitted, best, 1), np.take_along_axis(correlation, best[:, :, None], 2)[:, :, 0]


def _quantiles(drawn: Float[ndarray, "draw mode"], told: ndarray, level: float) -> Float[ndarray, "mode 2"]:
    outside = (1 - level) / 2
    ends = np.quantile(drawn, [outside, 1 - outside], axis=0).T
    return np.where(told[:, None] & np.isfinite(ends), ends, [-np.inf, np.inf])


def _unknown(modes: int, level: float, shards: int, rows: int, parts: int) -> Intervals:
    open_ends = np.tile([-np.inf, np.inf], (modes, 1))
    return Intervals(
        np.full(modes, np.nan + 0j), np.zeros(modes), open_ends, open_ends, open_ends, level, 0, shards, rows, parts
    )


def _plain(pairs: Float[ndarray, "mode 2"]) -> list[list[float | None]]:
    return [[end if np.isfinite(end) else None for end in pair] for pair in pairs.tolist()]
