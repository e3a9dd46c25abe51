"""Sizes of a fit: what was asked for, and the rest from what is seen, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from koopman_interp.fitting.config import Aim, FitConfig

_FEWEST_OBSERVABLES, _MOST_OBSERVABLES = 64, 256
_FEWEST_HIDDEN: dict[Aim, int] = {"prediction": 128, "spectrum": 256}
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


def sizes(config: FitConfig, dimension: int, samples: int, depths: int) -> Sizes:
    """Settle the sizes of a fit.

    Args:
        config: what was asked for.
        dimension: width of the normalised states.
        samples: to fit on.
        depths: of each.
    """
    reasons = []
    observables = config.observables
    if observables is None:
        observables, why = _observables(dimension, samples * (depths - 1))
        reasons.append(f"observables {observables}: {why}")
    hidden = config.hidden
    if hidden is None:
        hidden = (max(_FEWEST_HIDDEN[config.aim], observables),)
        reasons.append(f"hidden {hidden[0]}: no fewer than the observables, so that none lacks rank")
    batch_size = config.batch_size
    if batch_size is None:
        batch_size = min(samples, _BATCH if config.context is None else _CONTEXT_BATCH)
        why = "more steps are worth more than larger ones" if config.context is None else "in whole sequences"
        reasons.append(f"batch size {batch_size}: {why}")
    return Sizes(observables, hidden, batch_size, tuple(reasons))


def _observables(dimension: int, steps: int) -> tuple[int, str]:
    """Return how many observables to take, and why."""
    wanted, why = dimension, f"as many as the {dimension} components"
    if wanted < _FEWEST_OBSERVABLES:
        wanted, why = _FEWEST_OBSERVABLES, f"the fewest that are taken where states are as narrow as {dimension}"
    elif wanted > _MOST_OBSERVABLES:
        wanted, why = _MOST_OBSERVABLES, f"the most that are taken unasked, of {dimension} components"
    most = max(2, min(dimension, wanted), steps // _ROWS_AN_OBSERVABLE)
    if wanted > most:
        return most, f"{steps:,} steps of samples from depth to depth serve no more"
    return wanted, why
