"""fit(): from trajectories to a surrogate.

Holds out rows, normalises, starts K by least squares, descends (or stops there), and keeps the moments that the
closed-form edits need. Memory: one float32 copy of the normalised trajectories.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.descent import Trainer, held_out_figures
from koopman_interp.fitting.least_squares import (
    random_features,
    refit_decoder,
    start_encoder,
    start_operator,
    start_rows,
)
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder, SurrogateConfig
from koopman_interp.surrogates.moments import Moments
from koopman_interp.surrogates.normalization import Normalization, fit_normalization
from koopman_interp.trajectories import Trajectories

Method = Literal["gradient", "least_squares"]

_CHUNK = 8192


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
        config: how to fit; the defaults suit a residual stream.
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
    config = config or FitConfig()
    if method not in ("gradient", "least_squares"):
        raise InputError(f"method={method!r} is neither 'gradient' nor 'least_squares'.")
    if method == "least_squares" and (checkpoint is not None or resume):
        raise InputError("A least-squares fit is one solve; it takes neither checkpoint nor resume.")
    trajectories.require_finite()
    train, held_out = trajectories.split(config.validation, seed=config.seed)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    normalization = fit_normalization(_chunks(train), config.normalization)
    _require_samples(len(train), len(held_out), normalization.dimension)

    # Initial weights come from the seed alone, and the caller's random state is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        surrogate = KoopmanAutoencoder(_surrogate_config(trajectories, config, normalization.dimension))
    surrogate.normalization = normalization
    surrogate.to(device)
    states, judged = _normalized(train, normalization, device), _normalized(held_out, normalization, device)
    if method == "least_squares":
        random_features(surrogate, torch.Generator().manual_seed(config.seed))
    enough = states if method == "least_squares" else start_rows(states, surrogate.config.observables)
    start_encoder(surrogate, enough)
    if method == "least_squares" or config.warm_start:
        start_operator(surrogate, enough, config.ridge)
    if method == "least_squares":
        refit_decoder(surrogate, states, config.ridge)
        with torch.no_grad():
            history = [held_out_figures(surrogate, judged, surrogate.config.times)]
    else:
        history = Trainer(surrogate, config, states, judged, checkpoint).run(resume=resume, progress=progress)
    surrogate.config = replace(surrogate.config, history=tuple(history))
    _gather(surrogate.moments, surrogate, states, train.labels)
    _gather(surrogate.heldout_moments, surrogate, judged, held_out.labels)
    return surrogate.cpu().eval().requires_grad_(False)


def _surrogate_config(trajectories: Trajectories, config: FitConfig, dimension: int) -> SurrogateConfig:
    return SurrogateConfig(
        sites=trajectories.sites,
        times=trajectories.times,
        widths=trajectories.widths,
        shapes=trajectories.shapes,
        dimension=dimension,
        observables=config.observables or max(2, dimension * 3 // 2),
        architecture=config.architecture,
        hidden=(2 * dimension,) if config.hidden is None else config.hidden,
        operator=config.operator,
        rank=config.rank,
        classes=trajectories.classes,
        host=trajectories.host,
        skip=trajectories.skip,
        layout=trajectories.layout,
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
    """Bring all depths to the common space: `[depth, sample, width]`."""
    whole = torch.empty(trajectories.depths, len(trajectories), normalization.dimension, device=device)
    for depth, state in enumerate(trajectories.states):
        for start in range(0, len(state), _CHUNK):
            rows = state[start : start + _CHUNK].to(device)
            whole[depth, start : start + _CHUNK] = normalization.normalize(rows, depth)
    return whole


@torch.no_grad()
def _gather(moments: Moments, surrogate: KoopmanAutoencoder, states: Tensor, labels: Tensor | None) -> None:
    for start in range(0, states.shape[1], _CHUNK):
        rows = slice(start, start + _CHUNK)
        moments.update(surrogate.encoder(states[:, rows]), None if labels is None else labels[rows])
