"""Normalisation: one affine map per depth that brings all depths to one width, scale and orientation.

The steps are centring, principal components, partial whitening, scaling and orthogonal alignment to the last
depth; composed, they are `y = (x − mean) forward`, undone by `x = mean + y inverse`. All of them come from means
and second moments, which one streamed pass gathers. Widths past `EXACT_WIDTH` are gathered as sketches, so that
time and memory stay linear in the width. Knows nothing of hosts or operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from koopman_interp.errors import InputError

EXACT_WIDTH = 2048
"""Widths up to this are gathered as whole second-moment matrices."""

_DEFAULT_DIMENSION = 1024
_OVERSAMPLING = 32
_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class NormalizationConfig:
    """Which steps a normalisation takes.

    Attributes:
        dimension: number of principal components kept at each depth; None is the smallest width, at most 1,024.
        whiten: exponent α of `λ^(−α/2)`, by which each component is scaled: 0 is off, 1 is full whitening.
        scale: root mean square of a coordinate afterwards, the same at each depth; None leaves scales alone.
        align: rotate each depth onto the last by orthogonal Procrustes.
    """

    dimension: int | None = None
    whiten: float = 0.0
    scale: float | None = 1.0
    align: bool = True

    def __post_init__(self) -> None:
        if self.dimension is not None and self.dimension < 1:
            raise InputError(f"The dimension after normalisation must be positive; got {self.dimension}.")
        if not 0.0 <= self.whiten <= 1.0:
            raise InputError(f"Partial whitening takes an exponent between 0 and 1; got {self.whiten}.")
        if self.scale is not None and self.scale <= 0:
            raise InputError(f"The scale must be positive; got {self.scale}.")


class Normalization(nn.Module):
    """Affine maps between the states of each depth and one common space; made by `fit_normalization`.

    Args:
        widths: width of the state at each depth.
        dimension: width of the common space.

    The maps are buffers `mean_l [width]`, `forward_l [width, dimension]` and `inverse_l [dimension, width]`, with
    `inverse_l @ forward_l` the identity. So normalising undoes denormalising exactly, and denormalising undoes
    normalising on the range of `inverse_l`: everywhere, where no component was dropped.
    """

    def __init__(self, widths: Sequence[int], dimension: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.dimension = dimension
        for depth, width in enumerate(self.widths):
            self.register_buffer(f"mean_{depth}", torch.zeros(width))
            self.register_buffer(f"forward_{depth}", torch.eye(width, dimension))
            self.register_buffer(f"inverse_{depth}", torch.eye(dimension, width))

    def normalize(self, states: Float[Tensor, "*batch width"], depth: int) -> Float[Tensor, "*batch dimension"]:
        """Map states at a depth to the common space."""
        mean, forward, _ = self.maps(depth)
        return (states.to(mean.dtype) - mean) @ forward

    def denormalize(self, points: Float[Tensor, "*batch dimension"], depth: int) -> Float[Tensor, "*batch width"]:
        """Map points of the common space back to states at a depth."""
        mean, _, inverse = self.maps(depth)
        return mean + points @ inverse

    def denormalize_difference(
        self, difference: Float[Tensor, "*batch dimension"], depth: int
    ) -> Float[Tensor, "*batch width"]:
        """Map a difference of two points back to a difference of two states at a depth."""
        return difference @ self.maps(depth)[2]

    def maps(self, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, forward and inverse of a depth."""
        return (
            self.get_buffer(f"mean_{depth}"),
            self.get_buffer(f"forward_{depth}"),
            self.get_buffer(f"inverse_{depth}"),
        )


def fit_normalization(
    batches: Iterable[Sequence[Float[Tensor, "_ _"]]],
    config: NormalizationConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Normalization:
    """Fit a normalisation in one pass.

    Args:
        batches: chunks of trajectories, each a sequence with one tensor of rows a depth.
        config: which steps to take.
        dtype: of the maps; the solves run in float64.

    Returns:
        The fitted maps.

    Raises:
        InputError: there are fewer samples than the kept dimension needs, or a depth never varies.
    """
    config = config or NormalizationConfig()
    moments: _Moments | None = None
    for states in batches:
        if moments is None:
            moments = _Moments([state.shape[1] for state in states], config)
        moments.update(states)
    if moments is None or moments.count == 0:
        raise InputError("There are no samples to fit a normalisation on.")
    return moments.solve(dtype)


class _Moments:
    """Means, second moments and cross moments with the last depth, whole or sketched, from one pass.

    For a wide depth the matrix `C` is gathered as `C Ω` with a Gaussian test matrix Ω, and recovered by the
    Nyström approximation (Tropp et al., arXiv 1706.05736; Nakatsukasa, arXiv 2009.11392 for the cross moments).
    Rows are taken relative to the mean of the first chunk, against cancellation.
    """

    def __init__(self, widths: Sequence[int], config: NormalizationConfig) -> None:
        self.widths = widths
        self.config = config
        self.dimension = config.dimension or min(*widths, _DEFAULT_DIMENSION)
        if self.dimension > min(widths):
            raise InputError(
                f"Cannot keep {self.dimension} components of a depth of width {min(widths)}. "
                f"Set NormalizationConfig(dimension=…) to {min(widths)} or less."
            )
        self.rotated = config.whiten > 0 or any(width != self.dimension for width in widths)
        self.count = 0
        generator = torch.Generator().manual_seed(0)
        self._tests = [self._test_matrix(width, generator) for width in widths]
        sketched = [width if test is None else test.shape[1] for width, test in zip(widths, self._tests, strict=True)]
        self._origins: list[Tensor] = []
        self._sums = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self._squares = torch.zeros(len(widths), dtype=torch.float64)
        self._own = [
            torch.zeros(width, size if self.rotated else 0, dtype=torch.float64)
            for width, size in zip(widths, sketched, strict=True)
        ]
        # Cross moments `X_lᵀ X_L`: whole where either side is narrow, else sketched from both sides.
        last_wide = self._tests[-1] is not None
        self._right = [
            torch.zeros(width, sketched[-1], dtype=torch.float64) if config.align else torch.zeros(0)
            for width in widths
        ]
        self._left = [
            torch.zeros(size, widths[-1], dtype=torch.float64) if config.align and last_wide else torch.zeros(0)
            for size in sketched
        ]

    def update(self, states: Sequence[Tensor]) -> None:
        """Add a chunk of rows, one tensor a depth."""
        if not self._origins:
            self._origins = [state.double().mean(0) for state in states]
        rows = [state.double() - origin for state, origin in zip(states, self._origins, strict=True)]
        self.count += len(rows[0])
        last = self._sketch(rows[-1], -1)
        for depth, row in enumerate(rows):
            self._sums[depth] += row.sum(0)
            self._squares[depth] += row.square().sum()
            if self.rotated:
                self._own[depth] += row.T @ self._sketch(row, depth)
            if self.config.align:
                self._right[depth] += row.T @ last
                if self._tests[-1] is not None:
                    self._left[depth] += self._sketch(row, depth).T @ rows[-1]

    def solve(self, dtype: torch.dtype) -> Normalization:
        """Turn the moments into maps."""
        if self.rotated and self.count <= self.dimension:
            raise InputError(
                f"{self.dimension} principal components need more than {self.dimension} samples; got {self.count}. "
                "Observe more, or set NormalizationConfig(dimension=…) lower."
            )
        normalization = Normalization(self.widths, self.dimension).to(dtype)
        maps = [self._scaled_components(depth) for depth in range(len(self.widths))]
        last_forward = maps[-1][0]
        for depth, (forward, inverse) in enumerate(maps):
            if self.config.align and depth < len(maps) - 1:
                rotation = _procrustes(self._cross(depth, forward, last_forward))
                forward, inverse = forward @ rotation, rotation.T @ inverse
            buffers = normalization.maps(depth)
            for buffer, value in zip(buffers, (self._mean(depth), forward, inverse), strict=True):
                buffer.copy_(value)
        return normalization

    def _mean(self, depth: int) -> Tensor:
        return self._origins[depth] + self._sums[depth] / self.count

    def _scaled_components(self, depth: int) -> tuple[Tensor, Tensor]:
        """Return forward and inverse of everything but the alignment."""
        shift = self._sums[depth] / self.count
        variance = float(self._squares[depth] / self.count - shift.square().sum())
        if variance <= 0:
            raise InputError(
                f"The state at depth {depth} is the same for all {self.count} samples, so it cannot be normalised. "
                "Leave that site out, or observe varied inputs."
            )
        width = self.widths[depth]
        forward = torch.eye(width, dtype=torch.float64)
        inverse = forward
        kept = variance
        if self.rotated:
            values, vectors = self._components(depth, shift)
            spread = values.clamp_min(values[0] * _RANK_TOLERANCE) ** (self.config.whiten / 2)
            forward, inverse = vectors / spread, (vectors * spread).T
            kept = float((values.clamp_min(0) / spread.square()).sum())
        if self.config.scale is not None:
            factor = self.config.scale / (kept / self.dimension) ** 0.5
            forward, inverse = forward * factor, inverse / factor
        return forward, inverse

    def _components(self, depth: int, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the leading eigenvalues (descending) and eigenvectors of the covariance."""
        test = self._tests[depth]
        own = self._own[depth] / self.count
        if test is None:
            values, vectors = torch.linalg.eigh(own - torch.outer(shift, shift))
            return values.flip(0)[: self.dimension], vectors.flip(1)[:, : self.dimension]
        sketch = own - torch.outer(shift, shift @ test)
        # A small multiple of the identity keeps the core positive definite; it is taken off again.
        nudge = torch.finfo(torch.float64).eps ** 0.5 * sketch.norm()
        sketch = sketch + nudge * test
        core = test.T @ sketch
        factor = torch.linalg.cholesky((core + core.T) / 2)
        half = torch.linalg.solve_triangular(factor, sketch.T, upper=False).T
        vectors, singular, _ = torch.linalg.svd(half, full_matrices=False)
        values = (singular.square() - nudge).clamp_min(0)
        return values[: self.dimension], vectors[:, : self.dimension]

    def _cross(self, depth: int, forward: Tensor, last_forward: Tensor) -> Tensor:
        """Return `Y_lᵀ Y_L / n` of the centred, scaled components of a depth and the last."""
        shift, last_shift = self._sums[depth] / self.count, self._sums[-1] / self.count
        test, last_test = self._tests[depth], self._tests[-1]
        right = self._right[depth] / self.count
        if last_test is None:
            return forward.T @ (right - torch.outer(shift, last_shift)) @ last_forward
        left = self._left[depth] / self.count
        if test is None:
            return forward.T @ (left - torch.outer(shift, last_shift)) @ last_forward
        right = right - torch.outer(shift, last_shift @ last_test)
        left = left - torch.outer(shift @ test, last_shift)
        core = torch.linalg.pinv(test.T @ right, rtol=1e-8)
        return (forward.T @ right) @ core @ (left @ last_forward)

    def _test_matrix(self, width: int, generator: torch.Generator) -> Tensor | None:
        size = 2 * self.dimension + _OVERSAMPLING
        if width <= EXACT_WIDTH or size >= width:
            return None
        return torch.randn(width, size, generator=generator, dtype=torch.float64)

    def _sketch(self, rows: Tensor, depth: int) -> Tensor:
        test = self._tests[depth]
        return rows if test is None else rows @ test


def _procrustes(cross: Float[Tensor, "dimension dimension"]) -> Float[Tensor, "dimension dimension"]:
    """Return the orthogonal R that minimises ‖Y_l R − Y_L‖, from `Y_lᵀ Y_L` (Schönemann 1966)."""
    left, _, right = torch.linalg.svd(cross)
    return left @ right
