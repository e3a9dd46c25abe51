"""A fit on a stopwatch.

A watched fit is `ki.fit` itself with its descent replaced by one that keeps a clock, so what is timed is what users
run; looks at held-out rows and at the test set are left off it. Seconds are the processor's, of this process: on one
thread they are what the clock on the wall shows where nothing else runs, and other work hardly changes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from common import Data, predictions, share
from torch import nn

import koopman_interp as ki
import koopman_interp.fitting.fit as fitting
from koopman_interp.fitting.descent import Descent
from koopman_interp.fitting.objective import FitObjective

CALIBRATION_ROWS = 4096
CALIBRATION_STEPS = 8

Accuracy = Callable[[ki.KoopmanAutoencoder], float]


def in_place_accuracy(model: nn.Module, data: Data) -> Accuracy:
    """Return the function from a surrogate to test accuracy with it in place of the whole span."""

    def judge(koopman: ki.KoopmanAutoencoder) -> float:
        with torch.no_grad(), ki.patched(model, koopman, mode="replace"):
            return share(predictions(model, data.x_test) == data.y_test)

    return judge


@dataclass(frozen=True)
class Look:
    """What was seen at one look: step, seconds on the clock, in-place accuracy where it was asked for."""

    step: int
    seconds: float
    accuracy: float | None


@dataclass
class FitClock:
    """Clock of one fit.

    Attributes:
        setup: seconds from the call to the first step: split, normalisation, warm start.
        step_seconds: seconds of each step.
        evaluation: seconds spent looking, which count for nothing.
        seconds: of the whole fit without looking.
        looks: what was seen on the way.
    """

    setup: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    evaluation: float = 0.0
    seconds: float = 0.0
    looks: list[Look] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.step_seconds)

    @property
    def mean_step(self) -> float:
        """Mean seconds of a step."""
        return sum(self.step_seconds) / max(1, self.steps)

    @property
    def clock(self) -> float:
        """Seconds so far: setup and steps."""
        return self.setup + sum(self.step_seconds)


class WatchedDescent(Descent):
    """A Descent that writes a FitClock and can stop by the clock or at a goal.

    Args:
        groups, objective, *built, **named: what Descent takes.
        record: where to write.
        started: `time.process_time()` when the fit was called.
        accuracy: judged at each look, or None.
        look_every: steps between looks at it; None is where the fit looks itself.
        goal: accuracy at which to stop, or None.
        most_seconds: of the clock, at which to stop, or None.
    """

    def __init__(
        self,
        groups: Any,
        objective: FitObjective,
        *built: Any,
        record: FitClock,
        started: float,
        accuracy: Accuracy | None,
        look_every: int | None,
        goal: float | None,
        most_seconds: float | None,
        **named: Any,
    ) -> None:
        super().__init__(groups, objective, *built, **named)
        self.surrogate = objective.surrogate
        self.record, self.accuracy, self.goal, self.most_seconds = record, accuracy, goal, most_seconds
        self.look_every = look_every or self.config.evaluate_every
        record.setup = time.process_time() - started

    def _descend(self, step: int) -> None:
        started = time.process_time()
        super()._descend(step)
        self.record.step_seconds.append(time.process_time() - started)

    def _look(self, bar: Any) -> None:
        started = time.process_time()
        super()._look(bar)
        self.record.evaluation += time.process_time() - started

    def _judge_accuracy(self) -> None:
        """Look at the accuracy, off the clock."""
        started = time.process_time()
        with self.averaged_weights():
            seen = None if self.accuracy is None else self.accuracy(self.surrogate)
        self.record.looks.append(Look(self.progress.step, self.record.clock, seen))
        self.record.evaluation += time.process_time() - started

    def _steps(self, bar: Any) -> Iterator[int]:
        self._judge_accuracy()
        for step in super()._steps(bar):
            yield step
            out_of_time = self.most_seconds is not None and self.record.clock > self.most_seconds
            if step % self.look_every == 0 or out_of_time or self._is_over():
                self._judge_accuracy()
            if out_of_time and self.progress.history[-1]["step"] != step:
                self._look(bar)
            at_goal = self.goal is not None and (self.record.looks[-1].accuracy or 0.0) >= self.goal
            if at_goal or out_of_time:
                return


def watched_fit(
    trajectories: ki.Trajectories,
    config: ki.FitConfig,
    *,
    accuracy: Accuracy | None = None,
    look_every: int | None = None,
    goal: float | None = None,
    most_seconds: float | None = None,
) -> tuple[ki.KoopmanAutoencoder, FitClock]:
    """Run `ki.fit` on a stopwatch.

    Args:
        trajectories: what to fit.
        config: how.
        accuracy: judged at each look, off the clock.
        look_every: steps between looks at it; None is where the fit looks itself.
        goal: accuracy at which to stop.
        most_seconds: on the clock, after which to stop.

    Returns:
        The surrogate and the record.
    """
    record, started = FitClock(), time.process_time()
    watching = {"accuracy": accuracy, "look_every": look_every, "goal": goal, "most_seconds": most_seconds}
    descent = partial(WatchedDescent, record=record, started=started, **watching)
    with mock.patch.object(fitting, "Descent", descent):
        koopman = ki.fit(trajectories, config)
    record.seconds = time.process_time() - started - record.evaluation
    return koopman, record


def seconds_per_step(trajectories: ki.Trajectories, config: ki.FitConfig) -> float:
    """Time a few steps on a few rows: the median of the later ones, with K already off the identity."""
    few = trajectories[: max(CALIBRATION_ROWS, 4 * (config.batch_size or 0))]
    short = replace(
        config,
        steps=CALIBRATION_STEPS,
        evaluate_every=CALIBRATION_STEPS,
        schedule="constant",
        warm_start=False,
        patience=None,
    )
    _, record = watched_fit(few, short)
    return median(record.step_seconds[CALIBRATION_STEPS // 2 :])
