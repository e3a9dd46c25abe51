"""fit(): from trajectories to a surrogate.

Holds out inputs, normalises, starts K by least squares, descends (or stops there), and keeps the moments that the
closed-form edits need, and the record of all that. Memory: one float32 copy of the normalised trajectories.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.candidate import linear_maps, solve_operator_anew
from koopman_interp.fitting.checkpoint import Checkpoint
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.descent import Descent
from koopman_interp.fitting.least_squares import (
    random_features,
    refit_decoder,
    start_encoder,
    start_operator,
    start_rows,
)
from koopman_interp.fitting.objective import FitObjective, held_out_figures
from koopman_interp.fitting.row_order import RowOrder
from koopman_interp.fitting.sizes import Sizes, sizes
from koopman_interp.fitting.variable_projection import SpectrumObjective
from koopman_interp.hashing import tensor_digest
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder, SurrogateConfig
from koopman_interp.surrogates.normalization import Normalization, fit_normalization
from koopman_interp.surrogates.record import FitRecord, Look
from koopman_interp.surrogates.state_moments import PRECISE_WIDTH
from koopman_interp.trajectories import Trajectories

Method = Literal["gradient", "least_squares"]

_CHUNK = 8192
_BASIS_ROWS = 16
"""Rows for each coordinate of the states that a basis is fitted on, at least."""
_ALL_BUT_EXACT = 1e-7
"""Held-out loss, in units of the variance, below which there is nothing left to lower in float32."""
_RANK_TOLERANCE = 1e-4
"""Share of the largest singular value that one has to have to count."""


@torch.inference_mode(False)  # in whatever context it is called; gradients are switched on where they are taken
def fit(
    trajectories: Trajectories,
    config: FitConfig | None = None,
    *,
    method: Method = "gradient",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> KoopmanAutoencoder:
    """Fit a Koopman autoencoder to trajectories.

    Args:
        trajectories: what was observed; a share of the inputs is held out for early stopping and certificates.
        config: how to build and fit it; the defaults suit a residual stream.
        method: `gradient` (ridge start, then AdamW) or `least_squares` (random features and ridge regression, no
            gradient steps at all).
        checkpoint: file that holds the fit's state at each look at the held-out rows; it is left in place.
        resume: go on from the checkpoint; the result equals, bit for bit, that of an uninterrupted fit.
        progress: show a bar with the held-out figures; None shows it on a terminal only.

    Returns:
        The fitted surrogate, in eval mode, on the CPU.

    Raises:
        InputError: too few samples, or settings that do not fit the trajectories.
        FitInterrupted: Ctrl-C; the message says what was kept and how to go on.
        NonFiniteError: states that are not finite, or losses that diverged.
    """
    # Whatever the caller has switched off: a fit needs gradients, and tensors that may be saved for them.
    with torch.inference_mode(False), torch.enable_grad():
        return _fitted(
            trajectories, config or FitConfig(), method, checkpoint=checkpoint, resume=resume, progress=progress
        )


def _fitted(
    trajectories: Trajectories,
    config: FitConfig,
    method: Method,
    *,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
    progress: bool | None,
) -> KoopmanAutoencoder:
    started = time.perf_counter()
    if method not in ("gradient", "least_squares"):
        raise InputError(f"method={method!r} is neither 'gradient' nor 'least_squares'.")
    if method == "least_squares" and (checkpoint is not None or resume):
        raise InputError("A least-squares fit is one solve; it takes neither checkpoint nor resume.")
    if method == "least_squares" and config.context is not None:
        raise InputError(
            "context='causal' is trained by gradient steps, and method='least_squares' takes none. Fit with "
            "method='gradient', or with context=None."
        )
    trajectories.require_finite()
    train, held_out = trajectories.split(config.validation, seed=config.seed)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    normalization = fit_normalization(_chunks(train), config.normalization, times=train.times, stride=_stride(train))
    _require_samples(len(train), len(held_out), normalization.dimension)

    chosen = sizes(config, normalization.dimension, len(train), train.depths)
    # Initial weights come from the seed alone, and the caller's random state is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        surrogate = KoopmanAutoencoder(_surrogate_config(trajectories, config, normalization, chosen))
    surrogate.normalization = normalization
    surrogate.to(device)
    states, judged = _normalized(train, normalization, device), _normalized(held_out, normalization, device)
    outcome: list[str] = []
    if method == "least_squares":
        history = _solve(surrogate, config, states, judged)
    else:
        kind = SpectrumObjective if config.aim == "spectrum" else FitObjective
        orders = None if config.context is None else (RowOrder.of(train, device), RowOrder.of(held_out, device))
        objective = kind(surrogate, config, states, judged, chosen.batch_size, orders)
        spent = time.perf_counter() - started
        keep = Checkpoint(checkpoint, _identity(surrogate, config), "fit")
        order = None if orders is None else orders[0]
        history, outcome = _descend(objective, config, states, order, keep, spent, resume=resume, progress=progress)
    surrogate.record = FitRecord(
        history=tuple(history),
        held_out=torch.unique(held_out.digests),
        method=method,
        seed=config.seed,
        validation=config.validation,
        settings=config.as_dict(),
        choices=(*_normalization_choices(normalization), *chosen.reasons, *outcome),
        versions={"koopman-interp": version("koopman-interp"), "torch": torch.__version__},
        seconds=time.perf_counter() - started,
    )
    surrogate.gather_moments(trajectories)
    surrogate.record = replace(surrogate.record, choices=(*surrogate.record.choices, _rank(surrogate)))
    return surrogate.cpu().eval().requires_grad_(False)


@torch.no_grad()
def _solve(surrogate: KoopmanAutoencoder, config: FitConfig, train: Tensor, held_out: Tensor) -> list[Look]:
    """Fit by least squares on random features; return the held-out figures."""
    random_features(surrogate, torch.Generator().manual_seed(config.seed))
    start_encoder(surrogate, train)
    start_operator(surrogate, train, config.ridge)
    refit_decoder(surrogate, train, config.ridge)
    return [held_out_figures(surrogate, held_out, surrogate.config.times)]


def _descend(
    objective: FitObjective,
    config: FitConfig,
    train: Tensor,
    order: RowOrder | None,
    checkpoint: Checkpoint,
    spent: float,
    *,
    resume: bool,
    progress: bool | None,
) -> tuple[list[Look], list[str]]:
    """Fit by gradient steps from a start by least squares.

    Args:
        objective: what to lower.
        config: how.
        train: normalised states to fit on.
        order: how they follow each other, for an encoder that looks back.
        checkpoint: where to keep the state.
        spent: seconds that are gone of the time that the fit may take.
        resume: go on from the checkpoint.
        progress: show a bar.

    Returns:
        The held-out figures of each look, and what to say of how it went.
    """
    surrogate = objective.surrogate
    enough, order_of_enough = start_rows(train, surrogate.config.observables, order)
    start_encoder(surrogate, enough)
    # A K that is solved for may have no logarithm, and no real power for depths that lie parts of a step apart.
    solvable = config.operator != "generator" and all(moment == int(moment) for moment in surrogate.config.times)
    linear = linear_maps(objective, train, config.ridge, config.seed, order) if config.warm_start and solvable else None
    if linear is not None and linear.loss < _ALL_BUT_EXACT:
        linear.restore()
        return [{**linear.figures, "step": 0}], [
            f"steps 0: the motion is linear in the states, held-out loss {linear.loss:.1e}"
        ]
    if config.warm_start:
        start_operator(surrogate, enough, config.ridge, calm=True, order=order_of_enough)
    groups = [(list(part.parameters()), 1.0) for part in (surrogate.encoder, surrogate.decoder)]
    if config.aim == "prediction":
        groups.insert(1, (list(surrogate.operator.parameters()), config.operator_rate))
    left = config if config.seconds is None else replace(config, seconds=max(config.seconds - spent, 1e-3))
    descent = Descent(groups, objective, objective.judged, left, checkpoint)
    history = descent.run(resume=resume, progress=progress)
    outcome = [f"steps {descent.progress.step:,}: {descent.why_over()}"]
    if config.aim == "spectrum":
        start_operator(surrogate, train, config.ridge, order=order)
        outcome.append("K: solved in closed form on all rows fitted")
    elif solvable and config.pairs != "endpoints":
        outcome.append(solve_operator_anew(objective, train, config.ridge, config.seed, order))
    return history, outcome


def _stride(train: Trajectories) -> int:
    """How far apart rows may lie that a basis is fitted on."""
    return max(1, len(train) // max(_CHUNK, _BASIS_ROWS * max(train.widths)))


def _normalization_choices(normalization: Normalization) -> list[str]:
    coordinates = normalization.coordinates
    kept = f"components {normalization.dimension} of {min(normalization.widths)}"
    return [f"coordinates: {coordinates}; {coordinates.reason}", kept]


def _rank(surrogate: KoopmanAutoencoder) -> str:
    """Say how many of the observables are there, by their covariance within the depths."""
    values = torch.linalg.eigvalsh(surrogate.moments.covariance.mean(0))
    rank = int((values > _RANK_TOLERANCE**2 * values[-1]).sum())
    return f"numerical rank {rank} of {len(values)} observables"


def _identity(surrogate: KoopmanAutoencoder, config: FitConfig) -> dict[str, object]:
    """What must agree for a checkpoint to be this fit's: settings, sites, host, and the data's normalisation."""
    c = surrogate.config
    return {
        "settings": {name: value for name, value in config.as_dict().items() if name != "device"},
        "sites": c.sites,
        "times": c.times,
        "host": asdict(c.host),
        "data": tensor_digest(surrogate.normalization.named_buffers()),
    }


def _surrogate_config(
    trajectories: Trajectories, config: FitConfig, normalization: Normalization, chosen: Sizes
) -> SurrogateConfig:
    return SurrogateConfig(
        sites=trajectories.sites,
        times=trajectories.times,
        widths=trajectories.widths,
        shapes=trajectories.shapes,
        dimension=normalization.dimension,
        observables=chosen.observables,
        architecture=config.architecture,
        hidden=chosen.hidden,
        activation=config.activation,
        operator=config.operator,
        rank=config.rank,
        classes=trajectories.classes,
        host=trajectories.host,
        skip=trajectories.skip,
        layout=trajectories.layout,
        coordinates=normalization.coordinates,
        context=config.context_shape(normalization.dimension),
    )


def _require_samples(samples: int, held_out: int, dimension: int) -> None:
    if held_out < 2:
        raise InputError(
            f"A fit is judged on 2 held-out samples or more; got {held_out}. Observe more, or hold out more."
        )
    if samples <= dimension:
        raise InputError(
            f"A fit of width {dimension} needs more than {dimension} samples to fit on; there are {samples} after "
            "holding some out. Observe more, or fit fewer components with "
            "FitConfig(normalization=NormalizationConfig(dimension=…))."
        )


def _chunks(trajectories: Trajectories) -> Iterator[list[Tensor]]:
    for start in range(0, len(trajectories), _CHUNK):
        yield [state[start : start + _CHUNK] for state in trajectories.states]


def _normalized(trajectories: Trajectories, normalization: Normalization, device: torch.device) -> Tensor:
    """Bring all depths to the common space: `[depth, sample, width]`.

    Narrow states go there in float64: where coordinates are of very different sizes, the smallest components are small
    differences of large numbers.
    """
    whole = torch.empty(trajectories.depths, len(trajectories), normalization.dimension, device=device)
    precise = max(trajectories.widths) <= PRECISE_WIDTH
    maps = copy.deepcopy(normalization).cpu().double() if precise else normalization
    for depth, state in enumerate(trajectories.states):
        for start in range(0, len(state), _CHUNK):
            rows = state[start : start + _CHUNK].to("cpu" if precise else device)
            whole[depth, start : start + _CHUNK] = maps.normalize(rows, depth)
    return whole
