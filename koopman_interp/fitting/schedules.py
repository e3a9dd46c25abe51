"""Learning rates by step, and when a descent that has no length in advance comes to its end.

Pure functions of a configuration, a step's number and where the decay began.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from koopman_interp.fitting.config import DescentConfig

_WARM_UP_STEPS = 50


def learning_rate(config: DescentConfig, step: int, decay_from: int | None = None) -> float:
    """Learning rate of a step.

    Args:
        config: of the descent.
        step: its number.
        decay_from: the step at which the decay of wsd began.
    """
    peak = config.learning_rate
    match config.schedule:
        case "constant":
            return peak
        case "cyclic":
            place = step % config.cycle / config.cycle
            return peak * (0.1 + 0.9 * (1 - abs(2 * place - 1)))
    warm_up = max(1, round(config.warm_up * config.steps))
    if config.schedule == "wsd":
        rising = min(1.0, (step + 1) / min(warm_up, _WARM_UP_STEPS))
        if decay_from is None:
            return peak * rising
        # Falls as 1 − √t, the best of the shapes that Hägele et al. compare.
        passed = (step - decay_from) / max(1, last_step(config, decay_from) - decay_from)
        return peak * rising * (1 - math.sqrt(max(0.0, passed)))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, config.steps - warm_up)))


def last_step(config: DescentConfig, decay_from: int | None) -> int:
    """How many steps a descent takes at most, as far as is known."""
    if decay_from is None:
        return config.steps
    return min(config.steps, decay_from + max(1, round(config.decay * decay_from)))


def latest_decay(config: DescentConfig) -> int | None:
    """The step at which the decay of wsd has to begin for it to end with the last step; None for other schedules."""
    return math.ceil(config.steps / (1 + config.decay)) if config.schedule == "wsd" else None


def is_level(config: DescentConfig, figures: Sequence[float]) -> bool:
    """Whether the last `patience` of the figures of all looks brought less than `least_gain` of the one before them.

    The first figure, of where a descent starts, does not count: from a start by least squares the first steps lead up.
    """
    patience, figures = config.patience, figures[1:]
    if patience is None or len(figures) <= patience:
        return False
    return min(figures[-patience:]) > (1 - config.least_gain) * figures[-patience - 1]
