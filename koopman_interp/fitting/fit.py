"""fit(): from rows to a surrogate, true to the states and, where the model is given, to what it says.

Holds out inputs, normalises, starts K by least squares, descends (or stops there), and keeps the moments that the
closed-form edits need, and the record of all that. Memory: one float32 copy of normalised trajectories, or a window
of a source that does not fit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import nn

from koopman_interp import __version__
from koopman_interp.errors import InputError
from koopman_interp.fitting.callbacks import Callback, tell_all
from koopman_interp.fitting.candidate import linear_maps, solve_operator_anew
from koopman_interp.fitting.checkpoint import Checkpoint, Resume, with_checkpoint
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.data import FitData, fit_data
from koopman_interp.fitting.descent import Descent
from koopman_interp.fitting.least_squares import solve, start_encoder, start_operator, start_rows
from koopman_interp.fitting.objective import FitObjective, Objective, held_out_figures
from koopman_interp.fitting.output import AtOutput, StatesAndOutput
from koopman_interp.fitting.rows import HeldRows, Rows
from koopman_interp.fitting.sizes import Method, Sizes, sizes
from koopman_interp.fitting.variable_projection import SpectrumObjective
from koopman_interp.hashing import tensor_digest
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.protocol import Host
from koopman_interp.own_kinds import own_kinds
from koopman_interp.processes import Processes
from koopman_interp.sources.opening import Rows as AnyRows
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder, SurrogateConfig
from koopman_interp.surrogates.coordinates import NormalizationConfig
from koopman_interp.surrogates.normalization import Normalization, fit_normalization
from koopman_interp.surrogates.record import FitRecord, Look

_ALL_BUT_EXACT = 1e-7
"""Held-out loss, in units of the variance, below which there is nothing left to lower in float32."""
_RANK_TOLERANCE = 1e-4
"""Share of the largest singular value that one has to have to count."""


@own_kinds
@with_checkpoint
@torch.inference_mode(False)  # in whatever context it is called; gradients are switched on where they are taken
def fit(
    trajectories: AnyRows,
    config: FitConfig | None = None,
    *,
    model: nn.Module | Host | None = None,
    batches: object = None,
    method: Method = "gradient",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: Resume = False,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> KoopmanAutoencoder:
    """Fit a Koopman autoencoder to trajectories, and with the model to what it says too.

    A fit minimises errors of states, and the model's head hears some directions of the state far better than others.
    Given the model, the divergence at its output, `mean KL(model ‖ D(K^n E(x)) in place of the span)`, is among the
    losses: a step takes a batch of rows of the trajectories, and one of inputs. Inputs that are held out are not
    trained on at the output either, in whatever batch they come.

    Args:
        trajectories: what was observed, in memory, as a store (`Store`, or its folder) or as a function that begins a
            stream, such as `lambda: tap.stream(texts)`; a share of the inputs is held out for early stopping and
            certificates. What does not fit into memory is read as it is needed; a stream runs the model each time.
        config: how to build and fit it; the defaults suit a residual stream.
        model: the model that was observed, to fit what it says as well; its weights are not changed.
        batches: the inputs that were observed, as in `Tap.observe`, to call it with; they are kept in memory, and so
            are passes over them, up to half a GB.
        method: `gradient` (ridge start, then AdamW) or `least_squares` (random features and ridge regression, no
            gradient steps at all).
        checkpoint: file that holds the fit's state at each look at the held-out rows; it is left in place.
        resume: go on from the checkpoint, `auto` where there is one; the result equals, bit for bit, that of an
            uninterrupted fit. Other `steps`, `seconds` or `patience` prolong it, from before its rate began to fall.
        progress: show a bar with the held-out figures; None shows it on a terminal only.
        callbacks: whom to tell of each look, such as `ki.JSONLines("metrics.jsonl")`.

    Returns:
        The fitted surrogate, in eval mode, on the CPU.

    Raises:
        InputError: too few samples, settings that do not fit the trajectories, the model without inputs, or inputs that
            were not observed.
        UnsupportedHostError: the model returns no logits.
        HostMismatchError: the trajectories are of another model.
        FitInterrupted: Ctrl-C; the message says what was kept and how to go on.
        LockedError: another process fits into the checkpoint.
        TooLargeError: memory does not hold a step, with half of the batch neither.
        NonFiniteError: states that are not finite, or losses that diverged.
    """
    # Whatever the caller has switched off: a fit needs gradients, and tensors that may be saved for them.
    with torch.inference_mode(False), torch.enable_grad():
        config, started = config or FitConfig(), time.perf_counter()
        given = model is not None or batches is not None
        _require_settings(config, method, checkpoint=checkpoint is not None or bool(resume), model=given)
        data = fit_data(trajectories, config)
        at_output = AtOutput.of(data, config, model, batches) if given else None
        return _fitted(data, config, method, at_output, started, checkpoint, resume, progress, callbacks)


def _fitted(
    data: FitData,
    config: FitConfig,
    method: Method,
    at_output: AtOutput | None,
    started: float,
    checkpoint: str | os.PathLike[str] | None,
    resume: Resume,
    progress: bool | None,
    callbacks: Sequence[Callback],
) -> KoopmanAutoencoder:
    facts, device = data.facts, _device(config, at_output)
    settings = config.normalization if facts.clock is None else _of_one_site(config.normalization)
    normalization = fit_normalization(
        data.chunks(), settings, times=facts.times, stride=data.stride, processes=data.processes
    )
    if facts.clock is not None:
        reason = "all ticks are of one site, and what turns there is to be seen turning"
        normalization.coordinates = replace(normalization.coordinates, reason=reason)
    _require_samples(data.fitted, data.held_out, normalization.dimension)

    chosen = sizes(config, normalization.dimension, data.fitted, facts.depths, method, at_output=at_output is not None)
    surrogate = _untrained(data, config, normalization, chosen).to(device)
    train, judged = data.rows(normalization, device)
    outcome, inputs = list[str](), () if at_output is None else at_output.choices
    if method == "least_squares":
        history, outcome = _solve(surrogate, config, train, judged)
        tell_all(callbacks, history, outcome[0])
    else:
        kind = SpectrumObjective if config.aim == "spectrum" else FitObjective
        of_states = kind(surrogate, config, train, judged, chosen.batch_size)
        objective: Objective = of_states
        identity = _identity(surrogate, config)
        if at_output is not None:
            objective = StatesAndOutput(of_states, at_output.objective(surrogate, config), 1.0, config.divergence)
            identity["inputs"] = at_output.inputs.digest
        spent = time.perf_counter() - started
        keep = Checkpoint(checkpoint, identity, "fit")
        descent = config if at_output is None else replace(config, least_gain=config.least_gain_at_output)
        history, outcome = _descend(
            objective,
            descent,
            train,
            keep,
            spent,
            data.processes,
            resume=resume,
            progress=progress,
            callbacks=callbacks,
        )
    surrogate.record = FitRecord(
        history=tuple(history),
        held_out=data.inputs,
        bound=data.bound,
        fitted=data.trained,
        method=method,
        seed=config.seed,
        validation=config.validation,
        settings=config.as_dict(),
        choices=(*data.notes, *_normalization_choices(normalization), *chosen.reasons, *inputs, *outcome),
        versions={"koopman-interp": __version__, "torch": torch.__version__},
        seconds=time.perf_counter() - started,
    )
    data.gather_moments(surrogate)
    surrogate.record = replace(surrogate.record, choices=(*surrogate.record.choices, _rank(surrogate)))
    return surrogate.cpu().eval().requires_grad_(False)


def _require_settings(config: FitConfig, method: Method, *, checkpoint: bool, model: bool) -> None:
    """Refuse settings that do not go together, before the long work."""
    if method not in ("gradient", "least_squares"):
        raise InputError(f"method={method!r} is neither 'gradient' nor 'least_squares'.")
    if model and (method != "gradient" or config.aim != "prediction"):
        raise InputError(
            "What the model says is fitted by gradient steps on K too. Give method='gradient' and aim='prediction', or "
            "fit without the model and go on with distil()."
        )
    if method == "gradient":
        return
    if checkpoint:
        raise InputError("A least-squares fit is one solve; it takes neither checkpoint nor resume.")
    if config.context is not None:
        raise InputError(
            "context='causal' is trained by gradient steps, and method='least_squares' takes none. Fit with "
            "method='gradient', or with context=None."
        )


def _device(config: FitConfig, at_output: AtOutput | None) -> torch.device:
    if config.device is None and at_output is not None:
        return device_of(at_output.host.model)
    return torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))


@torch.no_grad()
def _solve(
    surrogate: KoopmanAutoencoder, config: FitConfig, train: Rows, judged: HeldRows
) -> tuple[list[Look], list[str]]:
    """Fit by least squares on random features; return the held-out figures, and what to say of how it went."""
    held_out = judged.states
    times, generator = surrogate.config.times, torch.Generator().manual_seed(config.seed)
    kept = solve(surrogate, train, config.ridge, generator, lambda one: held_out_figures(one, held_out, times)["fvu"])
    return [held_out_figures(surrogate, held_out, times)], [kept]


def _descend(
    objective: Objective,
    config: FitConfig,
    train: Rows,
    checkpoint: Checkpoint,
    spent: float,
    processes: Processes,
    *,
    resume: Resume,
    progress: bool | None,
    callbacks: Sequence[Callback],
) -> tuple[list[Look], list[str]]:
    """Fit by gradient steps from a start by least squares.

    Args:
        objective: what to lower.
        config: how.
        train: rows to fit on.
        checkpoint: where to keep the state.
        spent: seconds that are gone of the time that the fit may take.
        processes: that descend together.
        resume: go on from the checkpoint.
        progress: show a bar.
        callbacks: whom to tell of each look.

    Returns:
        The held-out figures of each look, and what to say of how it went.
    """
    surrogate = objective.surrogate
    enough = start_rows(train, surrogate.config.observables)
    start_encoder(surrogate, enough)
    # A K that is solved for may have no logarithm, and no real power for depths that lie parts of a step apart.
    solvable = config.operator != "generator" and all(moment == int(moment) for moment in surrogate.config.times)
    linear = linear_maps(objective, train, config.ridge, config.seed) if config.warm_start and solvable else None
    if linear is not None and linear.loss < _ALL_BUT_EXACT:
        linear.restore()
        looks: list[Look] = [{**linear.figures, "step": 0}]
        why = f"the motion is linear in the states, held-out loss {linear.loss:.1e}"
        tell_all(callbacks, looks, why)
        return looks, [f"steps 0: {why}"]
    if config.warm_start:
        start_operator(surrogate, enough, config.ridge, calm=True)
    groups = [(list(part.parameters()), 1.0) for part in (surrogate.encoder, surrogate.decoder)]
    if config.aim == "prediction":
        groups.insert(1, (list(surrogate.operator.parameters()), config.operator_rate))
    left = config if config.seconds is None else replace(config, seconds=max(config.seconds - spent, 1e-3))
    descent = Descent(groups, objective, objective.judged, left, checkpoint, callbacks=callbacks, processes=processes)
    history = descent.run(resume=resume, progress=progress)
    outcome = [f"steps {descent.progress.step:,}: {descent.why_over()}"]
    if config.aim == "spectrum":
        start_operator(surrogate, train, config.ridge)
        outcome.append("K: solved in closed form on all rows fitted")
    elif solvable and config.pairs != "endpoints":
        outcome.append(solve_operator_anew(objective, train, config.ridge, config.seed))
    return history, outcome


def _of_one_site(config: NormalizationConfig) -> NormalizationConfig:
    """Give all ticks of an orbit one centre, one scale and one basis.

    Raises:
        InputError: something else was asked for, which would bend or hide the motion.
    """
    alike = {"basis": (None, "shared"), "centre": ("auto", "common"), "scale": ("auto", "common"), "align": (False,)}
    for name, allowed in alike.items():
        if getattr(config, name) not in allowed:
            raise InputError(
                f"{name}={getattr(config, name)!r} would hide how an orbit turns: all its ticks are of one site, so "
                f"they have one basis, one centre and one scale. Leave {name} out of NormalizationConfig(…)."
            )
    return replace(config, basis="shared", centre="common", scale="common")


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


def _untrained(data: FitData, config: FitConfig, normalization: Normalization, chosen: Sizes) -> KoopmanAutoencoder:
    facts = data.facts
    shape = SurrogateConfig(
        sites=facts.sites,
        times=facts.times,
        widths=facts.widths,
        shapes=facts.shapes,
        dimension=normalization.dimension,
        observables=chosen.observables,
        architecture=config.architecture,
        hidden=chosen.hidden,
        activation=config.activation,
        operator=config.operator,
        rank=config.rank,
        classes=data.classes,
        host=facts.host,
        skip=facts.skip,
        layout=facts.layout,
        coordinates=normalization.coordinates,
        clock=facts.clock,
        context=config.context_shape(normalization.dimension),
    )
    # Initial weights come from the seed alone, and the caller's random state is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        surrogate = KoopmanAutoencoder(shape)
    surrogate.normalization = normalization
    return surrogate


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
