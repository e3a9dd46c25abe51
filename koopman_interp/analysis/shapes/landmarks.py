"""A few trajectories that stand for many: random or farthest-point subsets, and how far they leave any row.

The Vietoris–Rips diagrams of a cloud and of a subset lie within twice the subset's covering radius of each other in
bottleneck distance (Chazal, de Silva & Oudot 2014), so the radius is what a subset has to answer for. It is measured
over all rows, depth by depth, in blocks: no step holds all pairs of all rows. Knows nothing of homology.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Sampling = Literal["random", "farthest"]
Rows = Callable[[Int[Tensor, " row"]], Float[Tensor, "row width"]]
"""A cloud too large to hold: hands out the points of some rows."""

_CANDIDATES = 4096
"""Rows among which farthest points are sought, drawn at random where there are more."""
_SKETCHED_WIDTH = 4
"""Coordinates that each depth keeps in the sketch on which rows are assigned to landmarks."""
_BLOCK = 1024
_MOST_BLOCKS = 8
"""Blocks of rows whose nearest landmark is sought exactly, the ones farthest from their assigned landmark first."""


def sketch(states: Sequence[Float[Tensor, "sample _"]], *, rows: int, seed: int) -> Float[Tensor, "sample sketched"]:
    """Put all depths side by side, each by a few random projections and divided by its own spread.

    Distances in it stand for those between whole trajectories; what is decided on it is measured elsewhere.

    Args:
        states: of each depth that is to count.
        rows: in each.
        seed: of the projections.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.zeros(rows, 0)]
    for state in states:
        width = state.shape[1]
        kept = min(width, _SKETCHED_WIDTH)
        onto = torch.eye(width) if kept == width else torch.randn(width, kept, generator=generator)
        part = torch.cat([block.cpu().float() @ onto for block in state.split(8 * _BLOCK)])
        part = part - part.mean(0)
        parts.append(part / part.square().sum(1).mean().sqrt().clamp_min(torch.finfo(part.dtype).tiny))
    return torch.cat(parts, 1)


def choose(sketched: Float[Tensor, "sample sketched"], count: int, sampling: Sampling, *, seed: int) -> Tensor:
    """Choose rows, the same for all depths.

    Args:
        sketched: what `sketch` made; where rows are drawn at random only its length counts.
        count: how many; all rows if there are no more.
        sampling: `random`, or `farthest`: each next row is the one that lies farthest from those before, in the
            sketch, among 4,096 candidates (Gonzalez 1985).
        seed: of the draw.

    Returns:
        Row indices, `[row]`.
    """
    order = torch.randperm(len(sketched), generator=torch.Generator().manual_seed(seed))
    if count >= len(order) or sampling == "random":
        return order[:count]
    candidates = order[: max(_CANDIDATES, count)]
    points = sketched[candidates]
    sizes = points.square().sum(1)
    chosen = torch.zeros(count, dtype=torch.long)
    nearest = torch.full_like(sizes, torch.inf)
    for index in range(1, count):
        last = chosen[index - 1]
        nearest = torch.minimum(nearest, sizes + sizes[last] - 2 * (points @ points[last]))
        chosen[index] = nearest.argmax()
    return candidates[chosen]


def assign(sketched: Float[Tensor, "sample sketched"], rows: Int[Tensor, " row"]) -> Int[Tensor, " sample"]:
    """Find each sample's nearest landmark in the sketch; `[sample]` places in `rows`."""
    chosen = sketched[rows]
    return torch.cat([_nearest(block, chosen) for block in sketched.split(_BLOCK)])


def covering_radius(cloud: Rows, rows: Int[Tensor, " row"], assigned: Int[Tensor, " sample"]) -> float:
    """Measure how far the farthest point of a cloud is from its nearest landmark, or a bound on it.

    All points are first measured against the landmark that they were assigned to, which is never too near; then those
    that come out farthest look for their nearest, block by block, until no other can be farther. After 8,192 the rest
    keeps its first distance: the result is then a bound from above, and where it stopped earlier it is exact.

    Args:
        cloud: hands out points.
        rows: the landmarks' indices.
        assigned: of each sample, the place in `rows` of a landmark close to it.

    Returns:
        The radius, in the cloud's units.
    """
    landmarks = cloud(rows)
    every = torch.arange(len(assigned))
    reach = torch.cat([_apart(cloud(block), landmarks[assigned[block]]) for block in every.split(8 * _BLOCK)])
    farthest = reach.topk(min(len(reach), _MOST_BLOCKS * _BLOCK + 1)).indices
    largest = 0.0
    for number, block in enumerate(farthest.split(_BLOCK)):
        if float(reach[block[0]]) <= largest or number == _MOST_BLOCKS:
            return max(largest, float(reach[block[0]]))
        points = cloud(block)
        exact = _apart(points, landmarks[_nearest(points.float(), landmarks.float())])
        largest = max(largest, float(torch.minimum(exact, reach[block]).max()))
    return largest


def _nearest(points: Tensor, landmarks: Tensor) -> Tensor:
    # Of the two, min finds the place of a row's least entry in a third of argmin's time.
    return torch.addmm(landmarks.square().sum(1), points, landmarks.T, alpha=-2).min(1).indices


def _apart(points: Tensor, others: Tensor) -> Tensor:
    return (points.double() - others.double()).norm(dim=1)
