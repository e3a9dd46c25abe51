"""The training loop: AdamW on an objective, judged on what is held out, with the best weights kept.

Each step's randomness comes from the seed and the step's number alone, so that a descent resumed from a checkpoint
takes the same steps, bit for bit, as one that was never interrupted. One that is prolonged goes on from where its rate
began to fall, as if it had never been meant to end. Gradients reach its own parameters and no others, whatever else the
loss is made of. Knows nothing of surrogates or hosts.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from koopman_interp.errors import FitInterrupted, InputError, NonFiniteError, TooLargeError
from koopman_interp.fitting.callbacks import Callback, require_callbacks
from koopman_interp.fitting.checkpoint import Checkpoint, Kept, Resume
from koopman_interp.fitting.config import DescentConfig
from koopman_interp.fitting.moved_weights import MovedWeights
from koopman_interp.fitting.progress import Progress
from koopman_interp.fitting.schedules import is_level, last_step, latest_decay, learning_rate
from koopman_interp.hashing import generator_of
from koopman_interp.memory import is_out_of_memory
from koopman_interp.processes import Processes
from koopman_interp.surrogates.record import Look

Objective = Callable[[int, torch.Generator], Float[Tensor, ""]]
"""The loss of a step, from its number and a generator of its own."""

Judge = Callable[[torch.Generator], Look]
"""Figures on what is held out, by name; the generator is the same at each look."""

_LOG = logging.getLogger(__name__)
_LEVEL = "level."
"""Before the names of tensors from where the rate began to fall, beside those of where a descent stands."""


class Descent:
    """Steps of AdamW on an objective.

    Args:
        groups: parameters, each group with its learning rate relative to the schedule's.
        objective: what to lower. Where it has `halve_batch()`, a step that memory does not hold is taken with half of
            the batch from then on, once.
        judge: what to watch; called without gradients.
        config: how.
        checkpoint: where to keep its state.
        minimised: the figure of the judge whose smallest value tells which weights are kept.
        callbacks: whom to tell of each look.
        processes: that descend together, each on rows of its own: gradients are averaged, the first process judges,
            writes and tells.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Sequence[Tensor], float]],
        objective: Objective,
        judge: Judge,
        config: DescentConfig,
        checkpoint: Checkpoint,
        *,
        minimised: str = "loss",
        callbacks: Sequence[Callback] = (),
        processes: Processes | None = None,
    ) -> None:
        require_callbacks(callbacks)
        self._processes = processes or Processes()
        self.config = config
        self.progress = Progress()
        self._objective, self._judge, self._minimised = objective, judge, minimised
        self._checkpoint = checkpoint
        self._callbacks = callbacks if self._processes.is_first else ()
        self._moved = MovedWeights(groups, config)
        self._optimizer = self._moved.optimizer
        self._level: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        self._kept_step: int | None = None

    def run(self, *, resume: Resume, progress: bool | None) -> list[Look]:
        """Take the steps and leave the best weights in the parameters.

        Args:
            resume: go on from the checkpoint; `auto` where there is one.
            progress: show a bar; None shows it on a terminal only.

        Returns:
            The figures of each look, with its `step`.

        Raises:
            FitInterrupted: Ctrl-C; the message says what was kept.
            InputError: the checkpoint is another call's, would be overwritten, or is further than the steps allowed.
            NonFiniteError: the loss diverged.
            TooLargeError: memory does not hold a step, with half of the batch neither.
        """
        if self._checkpoint.is_gone_on_from(resume):
            self._go_on_from(self._checkpoint.read())
        self._processes.wait()  # so that none writes before all have looked
        self._processes.copy_from_first(weight.data for weight in self._moved.parameters)
        for callback in self._callbacks:
            callback.on_start(tuple(self.progress.history))
        try:
            self._descend_to_the_end(progress)
            why = self.why_over()
        except BaseException as error:
            why = type(error).__name__
            raise
        finally:
            for callback in self._callbacks:
                callback.on_end(why)
        self._moved.restore_best()
        return self.progress.history

    def _descend_to_the_end(self, progress: bool | None) -> None:
        bar = tqdm(
            total=self.config.steps,
            initial=self.progress.step,
            desc=self._checkpoint.call,
            unit="step",
            disable=True if not self._processes.is_first else None if progress is None else not progress,
        )
        try:
            with bar:
                for _ in self._steps(bar):
                    pass
        except KeyboardInterrupt as interrupt:
            raise FitInterrupted(
                self._checkpoint.how_to_go_on(self.progress.step, self.config.steps, self._kept_step)
            ) from interrupt

    def _steps(self, bar: tqdm) -> Iterator[int]:
        state = self.progress
        self._let_fall()
        # The first look, or that of a step from which a descent is prolonged that was not looked at as it came by.
        if not state.history or (self._is_due() and state.history[-1]["step"] != state.step):
            self._look(bar)
        self._fall_where_level()
        while not self._is_over() and not self._is_stale():
            started = time.perf_counter()
            self._descend(state.step)
            state.step += 1
            bar.update()
            state.seconds += time.perf_counter() - started
            if self.config.seconds is not None:  # by which all end at one step
                state.seconds = self._processes.given(state.seconds)
            self._let_fall()
            if self._is_due():
                self._look(bar)
            yield state.step

    def _is_due(self) -> bool:
        """Whether to look at what is held out."""
        return self.progress.step % self.config.evaluate_every == 0 or self._is_over()

    def _is_over(self) -> bool:
        """Whether steps or time have run out."""
        state, seconds = self.progress, self.config.seconds
        return state.step >= last_step(self.config, state.decay_from) or (
            seconds is not None and state.seconds >= seconds
        )

    def why_over(self) -> str:
        """Say what ended the descent, and what happened on its way."""
        return "; ".join([self._end(), *self.progress.notes])

    def _end(self) -> str:
        state, config = self.progress, self.config
        if config.seconds is not None and state.seconds * (1 + config.decay) >= config.seconds:
            return "as many as the time allowed"
        if state.step >= config.steps:
            return "as many as were allowed"
        looks = f"{config.patience} looks, {config.evaluate_every} steps apart"
        if self.config.schedule != "wsd":
            return f"{looks}, brought nothing"
        return (
            f"{looks}, brought less than {config.least_gain:.0%} by step {state.decay_from:,}, and the rate fell to 0"
        )

    def _is_stale(self) -> bool:
        return self.config.schedule != "wsd" and self.progress.stale >= (self.config.patience or math.inf)

    def _let_fall(self) -> None:
        """Begin the decay of wsd where otherwise it would not end with the steps, or within the time."""
        state, latest, seconds = self.progress, latest_decay(self.config), self.config.seconds
        if latest is None or state.decay_from is not None:
            return
        if state.step >= latest or (seconds is not None and state.seconds * (1 + self.config.decay) >= seconds):
            self._begin_to_fall()

    def _fall_where_level(self) -> None:
        """Begin the decay of wsd at a look by which the figure is level."""
        state = self.progress
        if self.config.schedule == "wsd" and state.decay_from is None and state.history[-1]["step"] == state.step:
            judged_so_far = [look[self._minimised] for look in state.history]
            if is_level(self.config, judged_so_far):
                self._begin_to_fall()

    def _begin_to_fall(self) -> None:
        """Let the rate fall from here, and keep the state to go on from where the descent is prolonged."""
        if self._checkpoint.path is not None:
            tensors = {name: tensor.clone() for name, tensor in self._moved.tensors().items()}
            self._level = (asdict(self.progress), tensors)
        self.progress.decay_from = self.progress.step

    def _descend(self, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(self.config, step, self.progress.decay_from)
        if not self._found_gradients(step):
            self._halve_batch(step)
            if not self._found_gradients(step):
                raise self._too_large(step)
        self._average_gradients()
        self._moved.step(step)

    def _average_gradients(self) -> None:
        """Take the mean of all processes' gradients, in one exchange."""
        if not self._processes.are_several:
            return
        gradients = [parameter.grad for parameter in self._moved.parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / self._processes.ranks
        self._processes.add_up([flat])
        for gradient, mean in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _found_gradients(self, step: int) -> bool:
        """Put the gradients of a step into the parameters; say whether memory held them."""
        try:
            self._optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad(), self._in_precision():
                loss = self._objective(step, step_generator(self.config.seed, step))
            # Named, since whatever else the loss is made of would gather gradients too. Not autograd.grad(): its
            # gradients may lie otherwise in memory than their parameters, which the fused optimizer does not look at.
            loss.backward(inputs=self._moved.parameters)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _in_precision(self) -> torch.autocast:
        """Return what computes products in the precision asked for; weights stay what they are."""
        device = self._moved.parameters[0].device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _halve_batch(self, step: int) -> None:
        """Take half of the batch from now on, and say so.

        Raises:
            TooLargeError: it was halved before, or is one input that cannot be.
        """
        halve: Callable[[], int | None] | None = getattr(self._objective, "halve_batch", None)
        left = None if halve is None or self.progress.halvings else halve()
        if left is None:
            raise self._too_large(step)
        self.progress.halvings += 1
        self.progress.notes.append(f"batch: halved to {left} at step {step:,}, for which memory ran out")
        _LOG.warning("%s: memory ran out at step %d; the batch is %d from now on", self._checkpoint.call, step, left)

    def _too_large(self, step: int) -> TooLargeError:
        halved = ", with half of the batch neither" if self.progress.halvings else ""
        return TooLargeError(
            f"Memory does not hold step {step} of {self._checkpoint.call}{halved}. Lower batch_size or, of a "
            "surrogate, observables and hidden; or run it where there is more memory."
        )

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the running average of the weights in the place of the latest while the context lasts."""
        with self._moved.averaged_in_place():
            yield

    @torch.no_grad()
    def _look(self, bar: tqdm) -> None:
        """Judge on what is held out, keep the best weights, and write a checkpoint."""
        state, started = self.progress, time.perf_counter()
        with self.averaged_weights():
            figures = self._processes.given({**self._judge(step_generator(self.config.seed, 0)), "step": state.step})
            judged = figures[self._minimised]
            if not math.isfinite(judged):
                raise NonFiniteError(
                    f"The loss diverged by step {state.step} (held-out {self._minimised}: {judged}). "
                    f"Lower learning_rate ({self.config.learning_rate})."
                )
            state.history.append(figures)
            improved = judged < state.best
            state.stale = 0 if improved else state.stale + 1
            if improved:
                state.best = judged
                self._moved.keep_as_best()
        state.seconds += time.perf_counter() - started
        self._fall_where_level()
        shown = {name: f"{value:.3g}" for name, value in figures.items() if name != "step"}
        bar.set_postfix(shown)
        self._save()
        _LOG.info("%s: step %d, %s", self._checkpoint.call, state.step, shown)
        for callback in self._callbacks:
            callback.on_look(state.step, figures)

    def _save(self) -> None:
        tensors, level = self._moved.tensors(), None
        if self._level is not None:
            level, of_level = self._level
            tensors |= {f"{_LEVEL}{name}": tensor for name, tensor in of_level.items()}
        if self._processes.is_first:
            self._checkpoint.write(tensors, asdict(self.progress) | {"level": level})
        self._kept_step = self.progress.step

    def _go_on_from(self, kept: Kept) -> None:
        """Take up what a checkpoint holds: where it stood or, with more steps, where its rate began to fall.

        Raises:
            FileFormatError: the file holds something else.
            InputError: it is further than the steps that are allowed.
        """
        try:
            progress = dict(kept.progress)
            level = progress.pop("level", None)
            of_level = {name.removeprefix(_LEVEL): x for name, x in kept.tensors.items() if name.startswith(_LEVEL)}
            if kept.before and level is not None:
                self._take_up(of_level, level)
            else:
                self._take_up(kept.tensors, progress)
                self._level = None if level is None else (level, of_level)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise self._checkpoint.misshapen() from error
        self._kept_step = int(progress["step"])
        if kept.before:
            self._prolong(kept.before)

    def _take_up(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        self._moved.take_up(tensors)
        self.progress = Progress.of(progress)
        for _ in range(self.progress.halvings):
            self._objective.halve_batch()  # type: ignore[attr-defined]  # it had it then

    def _prolong(self, before: Mapping[str, Any]) -> None:
        """Go on with other steps, time or patience than the checkpoint was written with, and say from where.

        Raises:
            InputError: there are fewer steps than were taken.
        """
        state, config = self.progress, self.config
        if state.step > config.steps:
            raise InputError(
                f"The checkpoint {self._checkpoint.path} has taken {state.step} steps, and steps={config.steps} would "
                "have ended before. Give as many at least, or start anew elsewhere."
            )
        asked = ", ".join(f"{name}={getattr(config, name)} for {then}" for name, then in before.items())
        note = f"went on from step {state.step:,} with {asked}"
        if config.schedule == "cosine" and "steps" in before:
            note += ", which bends the cosine there: not the same as one descent of as many steps"
        if state.decay_from is not None:  # of a checkpoint that kept no state from before
            state.decay_from = None
            note += ", after its rate had fallen: not the same as one descent of as many steps"
        state.notes.append(note)
        _LOG.info("%s: %s", self._checkpoint.call, note)


class Epochs:
    """Which of several items each step takes: all of them once, in an order of the epoch's own, before any again.

    Args:
        items: how many there are.
        size: how many a step takes; those of an epoch that fill no step are left out of it.
        seed: of the orders.
        device: where the indices are wanted.
    """

    def __init__(self, items: int, size: int, seed: int, device: torch.device | str = "cpu") -> None:
        self._items, self._size, self._seed, self._device = items, min(size, items), seed, device
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Int[Tensor, " item"]:
        """Return the indices that a step takes, a function of its number alone."""
        epoch, place = divmod(step, self._items // self._size)
        if epoch != self._epoch:
            self._epoch = epoch
            order = torch.randperm(self._items, generator=step_generator(self._seed, -1 - epoch))
            self._order = order.to(self._device)
        return self._order[place * self._size : (place + 1) * self._size]

    def halve(self) -> int | None:
        """Take half as many a step from now on, and return how many; None where it is one, which stays."""
        if self._size == 1:
            return None
        self._size //= 2
        return self._size


def step_generator(seed: int, number: int) -> torch.Generator:
    """Return a generator of a step's or an epoch's own, so mixed that neighbouring seeds share no stream."""
    return generator_of(f"{seed}/{number}")
