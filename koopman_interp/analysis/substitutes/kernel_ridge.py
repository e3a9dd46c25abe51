"""Kernel ridge regression from one depth to later ones: what a function of no given form makes of the same rows.

A Gaussian kernel on states scaled to unit variance, by scikit-learn. It costs the cube of the rows that it is fitted
on, so these are a few evenly spaced ones; width of the kernel and ridge are those that do best on a fifth of them.
Knows nothing of hosts or surrogates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

ROWS = 2000
"""Rows that a kernel regression is fitted on at most."""

_WIDTHS = (0.1, 1.0)
"""Of the kernel: its γ times the median squared distance of two rows."""
_RIDGES = (1e-6, 1e-3, 1e-1)
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class KernelMap:
    """A kernel regression, on rows.

    Attributes:
        regression: from scaled inputs to scaled outputs.
        scales: mean and size of inputs and of outputs.
        outputs: columns of the regression's output that are this map's.
        rows: that it was fitted on.
    """

    regression: KernelRidge
    scales: tuple[tuple[ndarray, float], tuple[ndarray, float]]
    outputs: slice
    rows: int

    def __call__(self, inputs: Float[Tensor, "row inputs"]) -> Float[Tensor, "row _"]:
        """Map rows in float64, and return them in their own dtype."""
        (centre, size), (bias, spread) = self.scales
        parts = []
        for chunk in inputs.detach().double().cpu().split(_CHUNK):
            found = self.regression.predict((chunk.numpy() - centre) / size)[:, self.outputs]
            parts.append(torch.from_numpy(found * spread + bias))
        return torch.cat(parts).to(inputs)


def fit_kernel_maps(
    inputs: Float[Tensor, "sample inputs"], targets: Sequence[Float[Tensor, "sample _"]]
) -> list[KernelMap]:
    """Fit maps from one depth to each of several, which share a solve.

    Args:
        inputs: rows at the first depth.
        targets: the same rows at the later ones.

    Returns:
        One map a target.
    """
    stride = -(-len(inputs) // ROWS)
    x, *ys = (state[::stride].detach().double().cpu().numpy() for state in (inputs, *targets))
    ours = _scale(x)
    scales = [_scale(y) for y in ys]
    x = (x - ours[0]) / ours[1]
    together = np.concatenate([(y - bias) / spread for y, (bias, spread) in zip(ys, scales, strict=True)], 1)
    regression = KernelRidge(kernel="rbf", **_chosen(x, together)).fit(x, together)
    ends = np.cumsum([0, *(y.shape[1] for y in ys)]).tolist()
    slices = (slice(start, stop) for start, stop in pairwise(ends))
    return [KernelMap(regression, (ours, own), place, len(x)) for own, place in zip(scales, slices, strict=True)]


def _scale(rows: ndarray) -> tuple[ndarray, float]:
    """Return the mean, and the root mean square about it."""
    return rows.mean(0), float(rows.std()) or 1.0


def _chosen(x: ndarray, y: ndarray) -> dict[str, float]:
    """Return the width and the ridge that do best on every fifth row."""
    held_out = np.arange(len(x)) % 5 == 0
    apart = np.square(x[1:] - x[:-1]).sum(1)
    median = float(np.median(apart)) or 1.0
    settings = [{"gamma": width / median, "alpha": ridge} for width in _WIDTHS for ridge in _RIDGES]

    def missed(setting: dict[str, float]) -> float:
        found = KernelRidge(kernel="rbf", **setting).fit(x[~held_out], y[~held_out]).predict(x[held_out])
        return float(np.square(found - y[held_out]).sum())

    return min(settings, key=missed)
