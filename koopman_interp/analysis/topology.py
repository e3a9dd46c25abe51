"""The shape of the representation at each depth: Vietoris–Rips persistence and Betti curves.

Computed by ripser on a random subset and up to a distance threshold, which is what makes it affordable: without
either, 2,000 points take minutes and gigabytes. Scales are relative to each cloud's own diameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from ripser import ripser
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from koopman_interp.autoencoder import KoopmanAutoencoder
from koopman_interp.errors import InputError
from koopman_interp.tables import table
from koopman_interp.trajectories import Trajectories

REPORTED_SCALES = (0.05, 0.1, 0.2)
"""Scales at which Betti numbers are printed, in diameters; the curves show all scales."""


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """Persistence diagrams of one point cloud a depth.

    Attributes:
        names: name of each cloud.
        diagrams: per cloud and homology dimension, births and deaths `[feature, 2]`, relative to the diameter;
            a death of infinity is a feature that outlives the threshold.
        diameters: largest distance in each cloud.
        threshold: largest scale computed, relative to the diameter.
        points: points in each cloud.
    """

    names: tuple[str, ...]
    diagrams: tuple[tuple[Float[ndarray, "_ 2"], ...], ...]
    diameters: tuple[float, ...]
    threshold: float
    points: int

    def betti(self, scale: float) -> list[list[int]]:
        """Count the features alive at a scale, per cloud and homology dimension.

        Args:
            scale: relative to the diameter, at most the threshold.

        Raises:
            InputError: the scale lies past the threshold, where nothing was computed.
        """
        if not 0 <= scale <= self.threshold:
            raise InputError(f"Scales were computed from 0 to {self.threshold:g} diameters; got {scale:g}.")
        return [
            [int(((diagram[:, 0] <= scale) & (diagram[:, 1] > scale)).sum()) for diagram in diagrams]
            for diagrams in self.diagrams
        ]

    def __repr__(self) -> str:
        return f"Topology({len(self.names)} clouds of {self.points} points, up to {self.threshold:g} diameters)"

    def __str__(self) -> str:
        header = ["", *(f"β{k} at {s:g}" for s in REPORTED_SCALES for k in range(len(self.diagrams[0])))]
        counted = [self.betti(scale) for scale in REPORTED_SCALES if scale <= self.threshold]
        rows = [
            [name, *(str(number) for scale in counted for number in scale[cloud])]
            for cloud, name in enumerate(self.names)
        ]
        return f"{self!r}\n" + table(header[: len(rows[0])], rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: Betti numbers at the reported scales."""
        return {
            "points": self.points,
            "threshold": self.threshold,
            "diameters": list(self.diameters),
            "betti": {
                f"{scale:g}": dict(zip(self.names, self.betti(scale), strict=True))
                for scale in REPORTED_SCALES
                if scale <= self.threshold
            },
        }


def topology(
    trajectories: Trajectories,
    koopman: KoopmanAutoencoder | None = None,
    *,
    points: int = 400,
    max_dimension: int = 1,
    threshold: float = 0.5,
    seed: int = 0,
) -> Topology:
    """Compute persistent homology at each depth, of the host or of the surrogate's iterates.

    Args:
        trajectories: the host's states.
        koopman: if given, the clouds are `K^n E(x)` from the first depth on, in place of the host's states.
        points: size of the random subset; the same samples at each depth.
        max_dimension: highest homology dimension.
        threshold: largest scale, relative to the cloud's diameter.
        seed: of the subset.

    Returns:
        Diagrams per depth.

    Raises:
        InputError: fewer than two samples, a threshold that is not between 0 and 1, or points that all coincide.
    """
    if len(trajectories) < 2 or points < 2:
        raise InputError(f"A shape needs two or more points; got {min(len(trajectories), points)}.")
    if not 0 < threshold <= 1:
        raise InputError(f"The threshold is a share of the diameter, between 0 and 1; got {threshold}.")
    order = torch.randperm(len(trajectories), generator=torch.Generator().manual_seed(seed))
    subset = trajectories[order[:points]]
    clouds = list(subset.states) if koopman is None else _iterates(subset, koopman)
    names = subset.sites if koopman is None else tuple(f"K^{time:g}" for time in koopman.config.times)
    diagrams, diameters = [], []
    for name, cloud in zip(names, clouds, strict=True):
        distances = pdist(cloud.double().numpy())
        diameter = float(distances.max())
        if diameter == 0:
            raise InputError(f"All {len(cloud)} points coincide at {name!r}, so they have no shape.")
        found = ripser(squareform(distances / diameter), distance_matrix=True, maxdim=max_dimension, thresh=threshold)
        diagrams.append(tuple(np.asarray(diagram, dtype=float) for diagram in found["dgms"]))
        diameters.append(diameter)
    return Topology(names, tuple(diagrams), tuple(diameters), threshold, len(subset))


@torch.no_grad()
def _iterates(trajectories: Trajectories, koopman: KoopmanAutoencoder) -> list[Tensor]:
    z = koopman.encode(trajectories.states[0], 0)
    start = koopman.config.times[0]
    return [koopman.operator.advance(z, time - start) for time in koopman.config.times]
