"""How strongly each mode is there: eigenfunctions on data, per sample, class, token and depth.

The eigenfunction of a mode is `φ(x) = E(x) · w`; a state is `Σ φ v`. Where the surrogate is right, φ is multiplied by λ
at every step, and nothing else happens to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from numpy import ndarray
from torch import Tensor

from koopman_interp.analysis.encoding import Encoded
from koopman_interp.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class Amplitudes:
    """Means and mean squares of eigenfunctions over the samples of each class, at each depth.

    Attributes:
        mean: of φ, `[depth, class, mode]`.
        square: mean of |φ|², `[depth, class, mode]`.
        count: samples of each class.
        labels: the classes, ascending; empty for unlabelled data, which is one class.
    """

    mean: Complex[ndarray, "depth class mode"]
    square: Float[ndarray, "depth class mode"]
    count: Float[ndarray, " class"]
    labels: tuple[int, ...]

    def __repr__(self) -> str:
        depths, classes, modes = self.square.shape
        kinds = f"{classes} classes" if self.labels else "unlabelled"
        return f"Amplitudes({modes} modes at {depths} depths, {int(self.count.sum()):,} samples, {kinds})"

    @property
    def share(self) -> Float[ndarray, " class"]:
        """Share of the samples that are of each class."""
        return self.count / self.count.sum()

    @property
    def spread(self) -> Float[ndarray, "depth mode"]:
        """Standard deviation of φ over all samples, at each depth."""
        mean = np.einsum("c,dcm->dm", self.share, self.mean)
        square = np.einsum("c,dcm->dm", self.share, self.square)
        # What is left of a constant is rounding.
        return np.sqrt(np.where(square - np.abs(mean) ** 2 > 1e-12 * square, square - np.abs(mean) ** 2, 0))

    def contrast(self, depth: int = 0) -> Float[ndarray, "class mode"]:
        """Return `|E_class φ − E φ|` over the standard deviation of φ: how far each class stands out in each mode.

        Zero where φ is the same for all samples.
        """
        whole = self.share @ self.mean[depth]
        spread = self.spread[depth]
        return np.abs(self.mean[depth] - whole) / np.where(spread > 0, spread, np.inf)

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "labels": list(self.labels),
            "count": self.count.tolist(),
            "rms": np.sqrt(self.square).tolist(),
            "spread": self.spread.tolist(),
        }


class AmplitudePass:
    """Gathers `Amplitudes` chunk by chunk.

    Args:
        readers: left eigenvectors, in the coordinates of the chunks.
    """

    def __init__(self, readers: Complex[ndarray, "coordinate mode"]) -> None:
        self._readers = torch.from_numpy(readers)
        self._sums: dict[int | None, tuple[Tensor, Tensor, int]] = {}

    def update(self, chunk: Encoded) -> None:
        """Add a chunk."""
        W = self._readers.to(chunk.z.device)
        phi = torch.complex(chunk.z @ W.real, chunk.z @ W.imag)
        for label in [None] if chunk.labels is None else torch.unique(chunk.labels).tolist():
            own = phi if label is None or chunk.labels is None else phi[:, (chunk.labels == label).to(phi.device)]
            mean, square, count = own.sum(1), own.abs().square().sum(1), own.shape[1]
            if label in self._sums:
                before = self._sums[label]
                mean, square, count = mean + before[0], square + before[1], count + before[2]
            self._sums[label] = (mean, square, count)

    def amplitudes(self) -> Amplitudes:
        """Return what was gathered.

        Raises:
            InputError: some parts had labels and others none.
        """
        if None in self._sums and len(self._sums) > 1:
            raise InputError("Some parts have labels and others have none. Give labels with all or with none.")
        labels = tuple(sorted(label for label in self._sums if label is not None))
        sums = [self._sums[label] for label in labels or (None,)]
        count = np.array([float(samples) for _, _, samples in sums])
        mean = torch.stack([total for total, _, _ in sums], 1).cpu().numpy()
        square = torch.stack([total for _, total, _ in sums], 1).cpu().numpy()
        return Amplitudes(mean / count[:, None], square / count[:, None], count, labels)


def by_group(
    values: Complex[ndarray, "sample mode"], groups: Int[Tensor, " sample"] | ndarray
) -> tuple[Int[ndarray, " group"], Float[ndarray, "group mode"], Int[ndarray, " group"]]:
    """Average |φ|² over groups of samples: token ids, positions, sequences or classes.

    Args:
        values: eigenfunctions on data.
        groups: of each sample, a whole number.

    Returns:
        The groups, ascending; the root mean square of φ in each; and how many samples each has.
    """
    distinct, of_sample, count = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    square = np.zeros((len(distinct), values.shape[1]))
    np.add.at(square, of_sample, np.abs(values) ** 2)
    return distinct, np.sqrt(square / count[:, None]), count
