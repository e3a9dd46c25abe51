"""Means, second moments and cross moments of states, whole or sketched, from one streamed pass.

Rows are summed in float32 blocks about the mean of the first chunk, and the blocks in float64: products cost half of
what they do in float64, and cancellation is no matter. Widths up to `PRECISE_WIDTH`, which cost little, are summed in
float64, so that coordinates of very different sizes are all seen. Means are of all rows; second moments, where there
are many more rows than a basis needs, of evenly spaced ones. Widths past `EXACT_WIDTH` are gathered as sketches `C Ω`
with a Gaussian test matrix Ω, and recovered by the Nyström approximation (Tropp et al., arXiv 1706.05736; Nakatsukasa,
arXiv 2009.11392 for the cross moments), so that time and memory stay linear in the width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.processes import Processes

PRECISE_WIDTH = 128
"""Widths up to this are summed in float64."""
EXACT_WIDTH = 2048
"""Widths up to this are gathered as whole second-moment matrices."""

_OVERSAMPLING = 32
_BLOCK = 1024
"""Rows that are summed in float32 before they are added up in float64."""
_TRIED_ROWS = 2048
"""Rows on which it is asked how linear the motion of the states themselves is."""


@dataclass(frozen=True)
class Linearity:
    """Shares of the variance of all steps that linear maps leave, each step in units of the size of where it arrives.

    Attributes:
        centred: one linear operator on the states about each depth's mean.
        affine: one affine map on the states as they are. Where it leaves hardly more than maps of their own do, the
            motion is one and the same map.
        own: an affine map of its own for each step.
    """

    centred: float
    affine: float
    own: float


class StateMoments:
    """Moments of the states at each depth.

    Args:
        widths: of the states.
        components: how many principal components are to be had at most.
        align: whether cross moments with the last depth are wanted.
        stride: second moments are of each row whose number this divides.
        processes: that each gather rows of their own, about one origin; `add_up` then joins them.
    """

    def __init__(
        self,
        widths: Sequence[int],
        components: int,
        *,
        align: bool,
        stride: int = 1,
        processes: Processes | None = None,
    ) -> None:
        self._processes = processes or Processes()
        self.widths = tuple(widths)
        self.count = 0
        self.precise = max(widths) <= PRECISE_WIDTH
        self._stride = stride
        self._all = 0
        self._totals = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self._components = components
        self._align = align
        generator = torch.Generator().manual_seed(0)
        tests = {width: self._test_matrix(width, generator) for width in dict.fromkeys(self.widths)}
        # One test matrix a width, so that sketches of depths that share a basis can be added.
        self._tests = [tests[width] for width in self.widths]
        sizes = [width if test is None else test.shape[1] for width, test in zip(self.widths, self._tests, strict=True)]
        self._origins: list[Tensor] = []
        self._sums = [torch.zeros(width, dtype=torch.float64) for width in self.widths]
        self._squares = [torch.zeros(width, dtype=torch.float64) for width in self.widths]
        self._own = [
            torch.zeros(width, size, dtype=torch.float64) for width, size in zip(self.widths, sizes, strict=True)
        ]
        # Cross moments `X_lᵀ X_L`: whole where either side is narrow, else sketched from both sides.
        empty = torch.zeros(0)
        last_wide = self._tests[-1] is not None
        self._right = [torch.zeros(width, sizes[-1], dtype=torch.float64) if align else empty for width in self.widths]
        self._left = [
            torch.zeros(size, self.widths[-1], dtype=torch.float64) if align and last_wide else empty for size in sizes
        ]
        self._tried: list[list[Tensor]] = []

    def update(self, states: Sequence[Float[Tensor, "sample _"]]) -> None:
        """Add a chunk of rows, one tensor a depth."""
        if not self._origins:
            # One origin for all processes: sums about different ones are of different things.
            self._origins = self._processes.given([state.double().mean(0) for state in states])
        held = sum(len(part[0]) for part in self._tried)
        if held < _TRIED_ROWS and 4 * self.widths[0] <= _TRIED_ROWS:
            self._tried.append([state[: _TRIED_ROWS - held].cpu() for state in states])
        first = -self._all % self._stride
        self._all += len(states[0])
        for depth, state in enumerate(states):
            for block in state.split(_BLOCK):
                rows = block.double() if self.precise else block.to(torch.promote_types(block.dtype, torch.float32))
                self._totals[depth] += (rows - self._origins[depth].to(rows)).sum(0, dtype=torch.float64).cpu()
        some = [state[first :: self._stride] for state in states]
        for start in range(0, len(some[0]), _BLOCK):
            self._add([state[start : start + _BLOCK] for state in some])

    def _add(self, states: Sequence[Tensor]) -> None:
        rows = [
            (state - origin.to(state.device)).to(
                torch.float64 if self.precise else torch.promote_types(state.dtype, torch.float32)
            )
            for state, origin in zip(states, self._origins, strict=True)
        ]
        self.count += len(rows[0])
        last = self._sketch(rows[-1], -1)
        for depth, row in enumerate(rows):
            self._sums[depth] += row.sum(0, dtype=torch.float64).cpu()
            self._squares[depth] += row.square().sum(0, dtype=torch.float64).cpu()
            self._own[depth] += (row.T @ self._sketch(row, depth)).cpu()
            if self._align:
                self._right[depth] += (row.T @ last).cpu()
                if self._tests[-1] is not None:
                    self._left[depth] += (self._sketch(row, depth).T @ rows[-1]).cpu()

    def add_up(self) -> None:
        """Add up what all processes have gathered, so that each has the moments of all rows."""
        if not self._processes.are_several:
            return
        counts = torch.tensor([self.count, self._all], dtype=torch.float64)
        sums = [*self._totals, *self._sums, *self._squares, *self._own, *self._right, *self._left]
        self._processes.add_up([counts, *(tensor for tensor in sums if tensor.numel())])
        self.count, self._all = int(counts[0]), int(counts[1])
        self._tried = self._processes.given(self._tried)

    def mean(self, depth: int) -> Float[Tensor, " width"]:
        """Mean of the states at a depth, over all rows."""
        return self._origins[depth].cpu() + self._totals[depth] / self._all

    def variances(self, depth: int) -> Float[Tensor, " width"]:
        """Variance of each coordinate of the states at a depth."""
        return (self._squares[depth] / self.count - self._shift(depth).square()).clamp_min(0)

    def components(
        self,
        depths: Sequence[int],
        weights: Sequence[float],
        centres: Sequence[Float[Tensor, " width"]],
        factors: Float[Tensor, " width"],
    ) -> tuple[Float[Tensor, " component"], Float[Tensor, "width component"]]:
        """Return the leading eigenvalues, descending, and eigenvectors of a weighted sum of second moments.

        Args:
            depths: of one width.
            weights: of their second moments.
            centres: about which these are.
            factors: by which each coordinate is multiplied first.
        """
        test = self._tests[depths[0]]
        sketch = torch.zeros_like(self._own[depths[0]])
        for depth, weight, centre in zip(depths, weights, centres, strict=True):
            shift, offset = self._shift(depth), self.mean(depth) - centre
            within = self._own[depth] / self.count - torch.outer(shift, shift if test is None else shift @ test)
            sketch += weight * (within + torch.outer(offset, offset if test is None else offset @ test))
        # A sketch `C Ω` is one of `D C D` by the test matrix `D⁻¹ Ω`.
        sketch = factors[:, None] * sketch
        if test is None:
            sketch = sketch * factors
            values, vectors = torch.linalg.eigh((sketch + sketch.T) / 2)
            return values.flip(0), vectors.flip(1)
        test = test / factors[:, None]
        # A small multiple of the identity keeps the core positive definite; it is taken off again.
        nudge = torch.finfo(torch.float64).eps ** 0.5 * sketch.norm()
        sketch = sketch + nudge * test
        core = test.T @ sketch
        factor = torch.linalg.cholesky((core + core.T) / 2)
        half = torch.linalg.solve_triangular(factor, sketch.T, upper=False).T
        vectors, singular, _ = torch.linalg.svd(half, full_matrices=False)
        return (singular.square() - nudge).clamp_min(0)[: self._components], vectors[:, : self._components]

    def cross(
        self, depth: int, forward: Float[Tensor, "width dimension"], last_forward: Float[Tensor, "last dimension"]
    ) -> Float[Tensor, "dimension dimension"]:
        """Return `Y_lᵀ Y_L / n` of the centred, scaled components of a depth and the last."""
        shift, last_shift = self._shift(depth), self._shift(-1)
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

    def linearity(self, factors: Float[Tensor, " width"]) -> Linearity | None:
        """Say how linear the motion of the states is; None where widths differ or rows are too few to ask.

        Args:
            factors: by which each coordinate is multiplied first.
        """
        width = self.widths[0]
        if len(set(self.widths)) > 1 or sum(len(part[0]) for part in self._tried) < 4 * width:
            return None
        rows = [
            torch.cat([part[depth] for part in self._tried]).double() * factors for depth in range(len(self.widths))
        ]
        centred = [row - row.mean(0) for row in rows]
        sizes = [float(row.square().mean().sqrt()) for row in centred[1:]]
        affine = [torch.cat([row, row.new_ones(len(row), 1)], 1) for row in rows]
        own = [_left_by_one(pair, [size]) for pair, size in zip(itertools.pairwise(affine), sizes, strict=True)]
        whole = len(sizes) * rows[0].numel()
        return Linearity(_left_by_one(centred, sizes) / whole, _left_by_one(affine, sizes) / whole, sum(own) / whole)

    def _shift(self, depth: int) -> Float[Tensor, " width"]:
        return self._sums[depth] / self.count

    def _test_matrix(self, width: int, generator: torch.Generator) -> Tensor | None:
        size = 2 * self._components + _OVERSAMPLING
        if width <= EXACT_WIDTH or size >= width:
            return None
        return torch.randn(width, size, generator=generator, dtype=torch.float64)

    def _sketch(self, rows: Tensor, depth: int) -> Tensor:
        test = self._tests[depth]
        return rows if test is None else rows @ test.to(rows)


def _left_by_one(rows: Sequence[Float[Tensor, "sample column"]], sizes: Sequence[float]) -> float:
    """Sum of the squares of what the best one linear map of rows leaves of all steps, each in units of a size."""
    before = torch.cat([row / size for row, size in zip(rows[:-1], sizes, strict=True)])
    after = torch.cat([row / size for row, size in zip(rows[1:], sizes, strict=True)])
    gram = before.T @ before
    scale = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).rsqrt()
    gram = scale[:, None] * gram * scale + 1e-12 * torch.eye(len(gram), dtype=gram.dtype)
    operator = scale[:, None] * torch.linalg.solve(gram, scale[:, None] * (before.T @ after))
    return float((after - before @ operator).square().sum())
