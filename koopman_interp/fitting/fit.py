"""fit(): from trajectories to a surrogate.

Holds out inputs, normalises, starts K by least squares, descends (or stops there), and keeps the moments that the
closed-form edits need, and the record of all that. Memory: one float32 copy of the normalised trajectories.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor

from koopman_interp.errors import InputError
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
from koopman_interp.hashing import tensor_digest
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder, SurrogateConfig
from koopman_interp.surrogates.normalization import Normalization, fit_normalization
from koopman_interp.surrogates.record import FitRecord, Look
from koopman_interp.trajectories import Trajectories

Method = Literal["gradient", "least_squares"]

_CHUNK = 8192


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
    started = time.perf_counter()
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
        history = _solve(surrogate, config, states, judged)
    else:
        history = _descend(surrogate, config, states, judged, checkpoint, resume=resume, progress=progress)
    surrogate.record = FitRecord(
        history=tuple(history),
        held_out=torch.unique(held_out.digests),
        method=method,
        seed=config.seed,
        validation=config.validation,
        settings=config.as_dict(),
        versions={"koopman-interp": version("koopman-interp"), "torch": torch.__version__},
        seconds=time.perf_counter() - started,
    )
    surrogate.gather_moments(trajectories)
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
    surrogate: KoopmanAutoencoder,
    config: FitConfig,
    train: Tensor,
    held_out: Tensor,
    checkpoint: str | os.PathLike[str] | None,
    *,
    resume: bool,
    progress: bool | None,
) -> list[Look]:
    """Fit by gradient steps from a start by least squares; return the held-out figures of each look."""
    enough = start_rows(train, surrogate.config.observables)
    start_encoder(surrogate, enough)
    if config.warm_start:
        start_operator(surrogate, enough, config.ridge)
    objective = FitObjective(surrogate, config, train, held_out)
    descent = Descent(
        [
            (list(surrogate.encoder.parameters()), 1.0),
            (list(surrogate.operator.parameters()), config.operator_rate),
            (list(surrogate.decoder.parameters()), 1.0),
        ],
        objective,
        objective.judged,
        config,
        Checkpoint(checkpoint, _identity(surrogate, config), "fit"),
    )
    return descent.run(resume=resume, progress=progress)


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
