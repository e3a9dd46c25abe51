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
        pairs = list(zip(inputs.split(_CHUNK), outputs.split(_CHUNK), strict=True))
        centre = torch.stack([x.double().sum(0) for x, _ in pairs]).sum(0) / len(inputs)
        bias = torch.stack([y.double().sum(0) for _, y in pairs]).sum(0) / len(inputs)
        gram = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64, device=inputs.device)
        cross = torch.zeros(inputs.shape[1], outputs.shape[1], dtype=torch.float64, device=inputs.device)
        for x, y in pairs:
            centred = x.double() - centre
            gram += centred.T @ centred
            cross += centred.T @ (y.double() - bias)
        return cls(centre, ridge(gram, cross, _RIDGE), bias)

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
