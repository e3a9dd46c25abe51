"""Coordinates that an operator acts in: what may be asked of a normalisation, and what was chosen.

Frozen values, checked when they are made. Knows nothing of states.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from koopman_interp.errors import InputError

Basis = Literal["shared", "per depth"]
Scale = Literal["common", "geometric", "per depth"]
Centre = Literal["common", "per depth"]


@dataclass(frozen=True)
class NormalizationConfig:
    """Which steps a normalisation takes.

    Attributes:
        dimension: number of principal components kept; None is as many as `variance` asks for.
        variance: share of the variance that the kept components hold. Accuracy lives in small directions, so it is
            cut late, and never below 64 components.
        basis: `shared`, one for all depths, or `per depth`; None shares it where all widths agree.
        centre: `common` to all depths, which leaves a motion that is the same map at each depth the same, or `per
            depth`; `auto` is common where the motion is such a map, and per depth elsewhere. It counts as one where
            one affine map leaves no more than a tenth of it, and no more than twice what a map for each step leaves.
        scale: `common`, `geometric` in depth, or `per depth`; `auto` is common where the centre is or the motion is one
            linear operator. Elsewhere it is geometric where sizes grow evenly with depth (no depth is off by more than
            a half) or where one linear operator explains 99 % of the motion, and per depth where not.
        whiten: exponent α of `λ^(−α/2)`, by which each component is scaled: 0 is off, 1 is full whitening.
        align: rotate each depth onto the last by orthogonal Procrustes, as the paper does. It changes the operator.
    """

    dimension: int | None = None
    variance: float = 0.999
    basis: Basis | None = None
    centre: Centre | Literal["auto"] = "auto"
    scale: Scale | Literal["auto"] = "auto"
    whiten: float = 0.0
    align: bool = False

    def __post_init__(self) -> None:
        if self.dimension is not None and self.dimension < 1:
            raise InputError(f"The dimension after normalisation must be positive; got {self.dimension}.")
        if not 0.0 < self.variance <= 1.0:
            raise InputError(f"variance is the share that is kept, above 0 and at most 1; got {self.variance}.")
        if self.basis not in (None, "shared", "per depth"):
            raise InputError(f"basis={self.basis!r} is neither 'shared' nor 'per depth' nor None.")
        if self.centre not in ("auto", "common", "per depth"):
            raise InputError(f"centre={self.centre!r} is none of 'auto', 'common' and 'per depth'.")
        if self.scale not in ("auto", "common", "geometric", "per depth"):
            raise InputError(f"scale={self.scale!r} is none of 'auto', 'common', 'geometric' and 'per depth'.")
        if not 0.0 <= self.whiten <= 1.0:
            raise InputError(f"Partial whitening takes an exponent between 0 and 1; got {self.whiten}.")


@dataclass(frozen=True)
class Coordinates:
    """In which coordinates a surrogate's operator acts, and why.

    Attributes:
        basis: `shared` by all depths, or one `per depth`.
        scale: `common`, `geometric` or `per depth`.
        growth: g, by which the host's states grow in one operator step under a geometric scale: eigenvalues in the
            host's own units are g times those of K; 1 under a common scale. None where each depth has a scale of its
            own, or a basis of its own: there are no such units then.
        aligned: whether depths were rotated onto the last.
        centre: `common` or `per depth`.
        reason: why the scale is what it is, in words.
        outlying: coordinates of the host that outlie the others, and were brought down; the most of any depth.
    """

    basis: Basis = "per depth"
    scale: Scale = "per depth"
    growth: float | None = None
    aligned: bool = False
    centre: Centre = "per depth"
    reason: str = ""
    outlying: int = 0

    def __str__(self) -> str:
        basis = "one basis for all depths" if self.basis == "shared" else "a basis of its own at each depth"
        centre = {"common": "one centre", "per depth": "each depth centred"}[self.centre]
        scale = {
            "common": "one size",
            "geometric": f"sizes that grow by {self.growth:.3g} a step"
            if self.growth is not None
            else "geometric sizes",
            "per depth": "each depth scaled to size 1",
        }[self.scale]
        outlying = f", {self.outlying} of its coordinates brought down" if self.outlying else ""
        return f"{basis}{outlying}, {centre}, {scale}" + (", rotated onto the last depth" if self.aligned else "")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Coordinates:
        """Rebuild from plain values."""
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
