"""How far two rows of diagrams are apart: a model beside its surrogate, or a depth beside the next.

Bottleneck and Wasserstein distances, exact, up to the scale that both sides know. Some hundred features a diagram take
tens of milliseconds. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from koopman_interp.analysis.shapes.diagrams import bottleneck, clipped, finite, wasserstein
from koopman_interp.analysis.shapes.diagrams_by_depth import SHOWN, Topology
from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import PlainResult
from koopman_interp.tables import Column, Table, digits


@dataclass(frozen=True, eq=False, repr=False)
class TopologyDistances(PlainResult):
    """Distances between the diagrams of two topologies, cloud by cloud.

    Attributes:
        names: the two clouds of each row.
        bottleneck: `[cloud, dimension]`, in units: the farthest that a feature must move.
        wasserstein: `[cloud, dimension]`, in units: how far all features must move together.
        limits: `[cloud]`, the scale up to which dimensions past 0 were compared.
        scale_name: what the units are.
    """

    names: tuple[tuple[str, str], ...]
    bottleneck: Float[ndarray, "cloud dimension"]
    wasserstein: Float[ndarray, "cloud dimension"]
    limits: Float[ndarray, " cloud"]
    scale_name: str

    def __repr__(self) -> str:
        return f"TopologyDistances({len(self.names)} pairs of clouds, in {self.scale_name})"

    def tables(self) -> tuple[Table]:
        """Return the distances by dimension; one row a pair of clouds."""
        pairs = tuple(first if first == second else f"{first} | {second}" for first, second in self.names)
        dimensions = range(self.bottleneck.shape[1])
        columns = (
            Column("clouds", pairs),
            *(Column(f"bottleneck H{k}", tuple(self.bottleneck[:, k].tolist()), digits(4)) for k in dimensions),
            *(Column(f"Wasserstein H{k}", tuple(self.wasserstein[:, k].tolist()), "{:.4g}".format) for k in dimensions),
            Column("loops to", tuple(self.limits.tolist()), SHOWN),
        )
        return (Table(columns, f"How far diagrams are apart, in {self.scale_name}."),)


@own_kinds
def topology_distances(first: Topology, second: Topology) -> TopologyDistances:
    """Compare two topologies cloud by cloud.

    Depth beside depth is `topology_distances(topology[:-1], topology[1:])`.

    Args:
        first: a topology.
        second: another, with as many clouds and in the same units.

    Returns:
        Distances of the diagrams: of the pieces at all scales, of loops and higher holes up to the smaller of the two
        thresholds, where a feature that lives on counts as one that ends there.

    Raises:
        InputError: the numbers of clouds, the homology dimensions or the units differ.
    """
    if len(first) != len(second) or first.max_dimension != second.max_dimension:
        raise InputError(
            "Topologies are compared cloud by cloud in each dimension: these have "
            f"{len(first)} and {len(second)} clouds, up to dimensions {first.max_dimension} and "
            f"{second.max_dimension}. Compute both alike, or take some clouds by a slice."
        )
    if first.unit != second.unit:
        raise InputError(f"Scales in {first.scale_name} and in {second.scale_name} do not compare; choose one unit.")
    limits = np.minimum(first.thresholds, second.thresholds)
    distances = np.zeros((2, len(first), first.max_dimension + 1))
    for cloud, (ours, theirs) in enumerate(zip(first.diagrams, second.diagrams, strict=True)):
        for dimension, pair in enumerate(zip(ours, theirs, strict=True)):
            known = [finite(each) if dimension == 0 else clipped(each, float(limits[cloud])) for each in pair]
            distances[:, cloud, dimension] = bottleneck(*known), wasserstein(*known)
    names = tuple(zip(first.names, second.names, strict=True))
    return TopologyDistances(names, distances[0], distances[1], limits, first.scale_name)
