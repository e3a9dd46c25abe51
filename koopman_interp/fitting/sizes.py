"""Sizes of a fit: what was asked for, and the rest from what is seen, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from koopman_interp.fitting.config import Aim, FitConfig

Method = Literal["gradient", "least_squares"]

_FEWEST_OBSERVABLES, _MOST_OBSERVABLES = 64, 256
_SOLVED, _FEWEST_FEATURES, _MOST_SOLVED = 512, 256, 1024
"""Observables of a fit by least squares, random features among them, and the most. Features that nobody trains have to
be many, and cost one solve: held-out error falls with each doubling up to 1,024 and beyond on all hosts tried, while an
eigenproblem, and a product of all rows with themselves, is to stay within seconds."""
_FEWEST_HIDDEN: dict[Aim, int] = {"prediction": 128, "spectrum": 256}
_AT_OUTPUT = 2
"""Times the observables, and the hidden units for each of them, that are taken where the model is given. On a language
model of width 64, KL at equal time: 1.88 … 0.45 nats with 64 and 128, 1.86 … 0.38 with 128 and 256."""
_ROWS_AN_OBSERVABLE = 10
"""Steps of a sample from one depth to the next that are wanted for each observable."""
_BATCH, _CONTEXT_BATCH = 256, 1024


@dataclass(frozen=True)
class Sizes:
    """Sizes of a surrogate and of the batches it is fitted on.

    Attributes:
        observables: width of the observable space.
        hidden: widths of the encoder's hidden layers.
        batch_size: samples a step.
        reasons: why each of those that were not asked for is what it is.
    """

    observables: int
    hidden: tuple[int, ...]
    batch_size: int
    reasons: tuple[str, ...]


def sizes(
    config: FitConfig,
    dimension: int,
    samples: int,
    depths: int,
    method: Method = "gradient",
    *,
    at_output: bool = False,
) -> Sizes:
    """Settle the sizes of a fit.

    Args:
        config: what was asked for.
        dimension: width of the normalised states.
        samples: to fit on.
        depths: of each.
        method: by which it is fitted.
        at_output: whether what the model says is fitted too.
    """
    times = _AT_OUTPUT if at_output else 1
    reasons = []
    observables = config.observables
    if observables is None:
        steps = samples * (depths - 1)
        if method == "gradient":
            observables, why = _observables(dimension, steps, times)
        else:
            observables, why = _solved_observables(dimension, steps, config.hidden)
        reasons.append(f"observables {observables}: {why}")
    hidden = config.hidden
    if hidden is None:
        hidden = (max(_FEWEST_HIDDEN[config.aim], times * observables),)
        why = "twice the observables, since what the model says is less smooth than its states"
        reasons.append(
            f"hidden {hidden[0]}: {why if at_output else 'no fewer than the observables, so that none lacks rank'}"
        )
    batch_size = config.batch_size
    if batch_size is None:
        batch_size = min(samples, _BATCH if config.context is None else _CONTEXT_BATCH)
        if method == "gradient":
            why = "more steps are worth more than larger ones" if config.context is None else "in whole sequences"
            reasons.append(f"batch size {batch_size}: {why}")
    return Sizes(observables, hidden, batch_size, tuple(reasons))


def _solved_observables(dimension: int, steps: int, hidden: tuple[int, ...] | None) -> tuple[int, str]:
    """Return how many observables a fit by least squares takes, and why."""
    if hidden == ():
        return dimension, "the components themselves, since without a hidden layer there are no features"
    features = max(_SOLVED - dimension, _FEWEST_FEATURES)
    wanted = max(min(dimension + features, _MOST_SOLVED), min(dimension, _MOST_OBSERVABLES))
    most = max(2, dimension, steps // _ROWS_AN_OBSERVABLE)
    if wanted > most:
        return most, f"{steps:,} steps of samples from depth to depth serve no more"
    return wanted, f"{dimension} components and random features, which untrained have to be many"


def _observables(dimension: int, steps: int, times: int) -> tuple[int, str]:
    """Return how many observables to take, and why."""
    wanted, why = dimension, f"as many as the {dimension} components"
    if times > 1:
        wanted, why = times * dimension, f"twice the {dimension} components, for what the model says"
    if wanted < _FEWEST_OBSERVABLES:
        wanted, why = _FEWEST_OBSERVABLES, f"the fewest that are taken where states are as narrow as {dimension}"
    elif wanted > _MOST_OBSERVABLES:
        wanted, why = _MOST_OBSERVABLES, f"the most that are taken unasked, of {dimension} components"
    most = max(2, min(dimension, wanted), steps // _ROWS_AN_OBSERVABLE)
    if wanted > most:
        return most, f"{steps:,} steps of samples from depth to depth serve no more"
    return wanted, why
