"""The shape of the representation at each depth, by persistent homology.

Of the model's states, or of what a surrogate makes of them; of some hundred or thousand rows, drawn at random or as
farthest points, with the bound that such a subset admits. Scales are relative to each cloud's own diameter unless
told otherwise, so that a cloud that only grows does not change. 1,000 points at six depths take some seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from koopman_interp.analysis.shapes import landmarks
from koopman_interp.analysis.shapes.clouds import Of, clouds
from koopman_interp.analysis.shapes.diagrams_by_depth import Topology as Topology
from koopman_interp.analysis.shapes.diagrams_by_depth import Unit
from koopman_interp.analysis.shapes.persistence import Engine, Persistence, persistence
from koopman_interp.errors import InputError, NonFiniteError, TooLargeError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

PAIRS = 0.15
"""Unless a threshold is given, loops are followed to the scale within which this share of all pairs lie."""


@own_kinds
def topology(
    trajectories: Rows,
    koopman: KoopmanAutoencoder | None = None,
    *,
    of: Of | None = None,
    times: Sequence[float] | None = None,
    label: int | None = None,
    points: int = 400,
    sampling: landmarks.Sampling = "random",
    seed: int = 0,
    max_dimension: int = 1,
    threshold: float | None = None,
    pairs: float = PAIRS,
    unit: Unit = "own",
    engine: Engine | None = None,
    most_memory: float = 4.0,
    progress: bool | None = None,
) -> Topology:
    """Compute persistent homology at each depth, of the model or of what a surrogate makes of its states.

    Args:
        trajectories: the model's states.
        koopman: if given, the clouds are `K^n E(x)` from the first depth on, in place of the model's states.
        of: other clouds of a surrogate: `normalized` states, `encoded` E(x_l), `iterates`, or `predicted`
            D(K^n E(x)), which lie in the model's own coordinates.
        times: of the iterates, in operator steps from the first depth; those of the depths by default.
        label: take the samples of this class alone.
        points: size of the subset; the same samples at each depth.
        sampling: how it is drawn: at `random`, or `farthest` points first, which covers outliers. Random subsets
            come nearer on average, and show by how much they vary; farthest points keep a smaller bound.
        seed: of the subset.
        max_dimension: highest homology dimension.
        threshold: largest scale at which loops and higher holes are followed, in units; None takes, per cloud, the
            scale within which the share `pairs` of all pairs lie, and at least 0.2 diameters where no more than half
            of them lie within that. Pieces are followed at all scales.
        pairs: that share. The time that loops take grows faster than its square.
        unit: what scales are shares of: each cloud's `own` diameter, that of the `first` cloud, or `none`.
        engine: ripser or gudhi, for loops and higher holes; None is gudhi where it is installed.
        most_memory: GiB that one cloud may take.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        Diagrams per depth.

    Raises:
        InputError: fewer than two samples, an argument out of its range, a label that does not occur, or points that
            all coincide.
        NonFiniteError: NaN or infinity in a cloud.
        TooLargeError: a cloud would take more memory than it may.
    """
    trajectories = in_memory(trajectories)
    chosen = trajectories if label is None else of_class(trajectories, label)
    _check(len(chosen), points, max_dimension, threshold, pairs, unit)
    if sampling not in get_args(landmarks.Sampling):
        raise InputError(f"There is no sampling {sampling!r}; there are {', '.join(get_args(landmarks.Sampling))}.")
    views = clouds(chosen, koopman, of, times=times)
    part = len(chosen) > points
    if part:
        chosen.require_finite()  # rows outside of the subset count for its bound
    sketched = landmarks.sketch(chosen.states if part else (), rows=len(chosen), seed=seed)
    rows = landmarks.choose(sketched, points, sampling, seed=seed)
    asked: dict[str, Any] = {"max_dimension": max_dimension, "threshold": threshold, "pairs": pairs, "engine": engine}
    persistences = _persistences(views, rows, unit, progress, most_bytes=most_memory * 2**30, **asked)
    covering = []
    if part:
        assigned = landmarks.assign(sketched, rows)
        pairs_of = zip(views.values(), persistences, strict=True)
        covering = [landmarks.covering_radius(view, rows, assigned) / each.unit for view, each in pairs_of]
    return Topology(
        names=tuple(views),
        diagrams=tuple(each.diagrams for each in persistences),
        diameters=tuple(each.diameter for each in persistences),
        thresholds=tuple(each.threshold for each in persistences),
        points=len(rows),
        rows=len(chosen),
        covering=tuple(covering),
        unit=unit,
        engine=persistences[0].engine,
    )


def _persistences(
    views: Mapping[str, landmarks.Rows], rows: Int[Tensor, " row"], unit: Unit, progress: bool | None, **asked: Any
) -> list[Persistence]:
    persistences: list[Persistence] = []
    hidden = None if progress is None else not progress
    for name, view in tqdm(views.items(), desc="topology", unit="cloud", disable=hidden):
        cloud = view(rows).double().numpy()
        if not np.isfinite(cloud).all():
            raise NonFiniteError(f"The cloud of {name!r} holds NaN or infinity. Drop those rows, or observe anew.")
        length = {"own": None, "first": persistences[0].diameter if persistences else None, "none": 1.0}[unit]
        try:
            persistences.append(persistence(cloud, unit=length, **asked))
        except (InputError, TooLargeError) as error:
            raise type(error)(f"At {name!r}: {error}") from error
    return persistences


@own_kinds
def topology_by_class(
    trajectories: Rows, koopman: KoopmanAutoencoder | None = None, **options: Any
) -> dict[int, Topology]:
    """Compute the topology of each class on its own.

    Args:
        trajectories: labelled.
        koopman: as in `topology`.
        **options: those of `topology`, but for `label`.

    Returns:
        By label.

    Raises:
        InputError: there are no labels, or what `topology` refuses.
    """
    trajectories = None if trajectories is None else in_memory(trajectories)
    if trajectories.labels is None:
        raise InputError("The trajectories have no labels; observe with labels=, or add them by with_labels.")
    return {label: topology(trajectories, koopman, label=label, **options) for label in trajectories.classes}


def of_class(trajectories: Trajectories, label: int) -> Trajectories:
    """Keep the samples of one class.

    Raises:
        InputError: the label does not occur.
    """
    if label not in trajectories.classes:
        raise InputError(f"No sample has the label {label}; there are {', '.join(map(str, trajectories.classes))}.")
    assert trajectories.labels is not None
    return trajectories[trajectories.labels == label]


def _check(rows: int, points: int, max_dimension: int, threshold: float | None, pairs: float, unit: str) -> None:
    if min(rows, points) < 2:
        raise InputError(f"A shape needs two or more points; got {min(rows, points)}.")
    if unit not in get_args(Unit):
        raise InputError(f"There is no unit {unit!r}; there are {', '.join(get_args(Unit))}.")
    if max_dimension < 0:
        raise InputError(f"Homology has dimensions from 0 up; got {max_dimension}.")
    if threshold is not None and unit == "own" and not 0 < threshold <= 1:
        raise InputError(f"The threshold is a share of the diameter, between 0 and 1; got {threshold}.")
    if threshold is not None and not threshold > 0:
        raise InputError(f"The threshold is a scale past 0; got {threshold}.")
    if not 0 < pairs <= 1:
        raise InputError(f"pairs is a share of all pairs, between 0 and 1; got {pairs}.")
