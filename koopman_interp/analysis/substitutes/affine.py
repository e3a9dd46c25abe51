"""Affine maps between depths by least squares: what any surrogate has to beat.

One map costs a pass over the rows and a solve of the width, in float64. Knows nothing of hosts or surrogates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.fitting.least_squares import ridge

_RIDGE = 1e-6
"""Relative to the mean square of each input."""
_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class AffineMap:
    """`x → (x − centre) weight + bias`, on rows.

    Attributes:
        centre: `[inputs]`, mean of the inputs.
        weight: `[inputs, outputs]`.
        bias: `[outputs]`; after `fit`, the mean of the outputs.
    """

    centre: Float[Tensor, " inputs"]
    weight: Float[Tensor, "inputs outputs"]
    bias: Float[Tensor, " outputs"]

    @classmethod
    def fit(cls, inputs: Float[Tensor, "sample inputs"], outputs: Float[Tensor, "sample outputs"]) -> AffineMap:
        """Minimise `Σ‖(x − centre) weight + bias − y‖²` over rows, with a ridge of 1e-6 of the mean square of x."""
        sums = AffineSums(inputs.shape[1], outputs.shape[1], inputs.device)
        sums.update(inputs, outputs)
        return sums.solved()

    def __call__(self, rows: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Map rows in the map's dtype, and return them in their own."""
        centre, weight, bias = (part.to(rows.device) for part in (self.centre, self.weight, self.bias))
        return ((rows.to(centre.dtype) - centre) @ weight + bias).to(rows)

    def then(self, other: AffineMap) -> AffineMap:
        """Return this map followed by another, as one."""
        return AffineMap(self.centre, self.weight @ other.weight, other(self.bias))

    def to(self, device: torch.device, dtype: torch.dtype) -> AffineMap:
        """Return a copy on a device and in a dtype, without a gradient."""
        parts = (self.centre, self.weight, self.bias)
        return AffineMap(*(part.detach().to(device, dtype, copy=True) for part in parts))

    @property
    def parameters(self) -> int:
        """Fitted numbers: weight and bias."""
        return self.weight.numel() + self.bias.numel()


class AffineSums:
    """What a least-squares affine map needs of its rows, gathered chunk by chunk: the map is that of all of them.

    Products are taken about the running means and merged with each chunk's (Chan, Golub & LeVeque 1983), in float64.

    Args:
        inputs: width of the inputs.
        outputs: width of the outputs.
        device: of the rows.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | None = None) -> None:
        self.rows = 0
        self._x, self._y = (torch.zeros(width, dtype=torch.float64, device=device) for width in (inputs, outputs))
        self._gram, self._cross = (
            torch.zeros(inputs, width, dtype=torch.float64, device=device) for width in (inputs, outputs)
        )

    def update(self, inputs: Float[Tensor, "sample inputs"], outputs: Float[Tensor, "sample outputs"]) -> None:
        """Add rows."""
        for x, y in zip(inputs.split(_CHUNK), outputs.split(_CHUNK), strict=True):
            if len(x):
                self._add(x.double(), y.double())

    def solved(self) -> AffineMap:
        """Return the map."""
        return AffineMap(self._x, ridge(self._gram, self._cross, _RIDGE), self._y)

    def _add(self, x: Tensor, y: Tensor) -> None:
        total = self.rows + len(x)
        x_mean, y_mean = x.mean(0), y.mean(0)
        centred, x_jump, y_jump = x - x_mean, x_mean - self._x, y_mean - self._y
        weight = self.rows * len(x) / total
        self._gram += centred.T @ centred + weight * torch.outer(x_jump, x_jump)
        self._cross += centred.T @ (y - y_mean) + weight * torch.outer(x_jump, y_jump)
        self._x = self._x + x_jump * (len(x) / total)
        self._y = self._y + y_jump * (len(x) / total)
        self.rows = total
