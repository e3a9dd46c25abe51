"""The point clouds whose shape can be asked for: of the model's states, and of what a surrogate makes of them.

Each is handed out by rows, so that none is ever held whole beyond the states themselves. Knows nothing of shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.analysis.encoding import require_sites
from koopman_interp.analysis.shapes.landmarks import Rows
from koopman_interp.errors import InputError
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.operators import Propagator
from koopman_interp.trajectories import Trajectories

Of = Literal["states", "normalized", "encoded", "iterates", "predicted"]
"""`states`: the model's x_l. `normalized`: what the encoder sees of them. `encoded`: E(x_l). `iterates`: K^t E(x_0).
`predicted`: D(K^t E(x_0)), in the model's own coordinates."""


def clouds(
    trajectories: Trajectories,
    koopman: KoopmanAutoencoder | None = None,
    of: Of | None = None,
    *,
    times: Sequence[float] | None = None,
) -> dict[str, Rows]:
    """Name the clouds of trajectories, one a depth, or one a time.

    Args:
        trajectories: the model's states.
        koopman: the surrogate, for all but the model's own states.
        of: which clouds; the model's states without a surrogate, and its iterates with one.
        times: of the iterates, in operator steps from the first depth; those of the depths by default.

    Returns:
        By name, functions from row indices to points.

    Raises:
        InputError: a surrogate is missing, or has other sites, or `of` or `times` ask for what there is not.
    """
    of = of or ("states" if koopman is None else "iterates")
    if of not in get_args(Of):
        raise InputError(f"There are no clouds of {of!r}; there are those of {', '.join(get_args(Of))}.")
    if times is not None and of != "iterates":
        raise InputError(f"Times are chosen for iterates; clouds of {of!r} have one a depth.")
    if of == "states":
        return dict(zip(trajectories.sites, (partial(_rows, state) for state in trajectories.states), strict=True))
    if koopman is None:
        raise InputError(f"Clouds of {of!r} are a surrogate's; give koopman=, or take of='states'.")
    require_sites(koopman, trajectories)
    if of == "normalized":
        return {
            site: partial(_normalized, koopman, trajectories.states[depth], depth)
            for depth, site in enumerate(trajectories.sites)
        }
    if of == "encoded":
        return {
            f"E({site})": partial(_encoded, koopman, trajectories, depth)
            for depth, site in enumerate(trajectories.sites)
        }
    if times is not None and not (0 < len(times) == len(set(times)) and all(map(math.isfinite, times))):
        raise InputError(f"Iterates need one finite time or more, each once; got {list(times)}.")
    start = koopman.config.times[0]
    wanted = [time - start for time in koopman.config.times] if times is None else list(times)
    with torch.no_grad():
        steps = [koopman.operator.propagator(time) for time in wanted]
    if of == "iterates":
        names = [f"K^{time:g}" for time in wanted]
        moved = [partial(_moved, koopman, trajectories, step, None) for step in steps]
    else:
        names = [f"D(K^{time:g})" for time in wanted]
        moved = [partial(_moved, koopman, trajectories, step, depth) for depth, step in enumerate(steps)]
    return dict(zip(names, moved, strict=True))


def _rows(state: Tensor, rows: Int[Tensor, " row"]) -> Float[Tensor, "row _"]:
    return state[rows.to(state.device)].cpu()


@torch.no_grad()
def _normalized(koopman: KoopmanAutoencoder, state: Tensor, depth: int, rows: Tensor) -> Tensor:
    return koopman.normalization.normalize(state[rows.to(state.device)], depth).cpu()


@torch.no_grad()
def _encoded(koopman: KoopmanAutoencoder, trajectories: Trajectories, depth: int, rows: Tensor) -> Tensor:
    return koopman.observables_of(trajectories, depth, rows).cpu()


@torch.no_grad()
def _moved(
    koopman: KoopmanAutoencoder, trajectories: Trajectories, step: Propagator, depth: int | None, rows: Tensor
) -> Tensor:
    z = step(koopman.observables_of(trajectories, 0, rows))
    return (z if depth is None else koopman.decode(z, depth)).cpu()
