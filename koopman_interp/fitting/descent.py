"""The training loop: AdamW on an objective, judged on what is held out, with the best weights kept.

Each step's randomness comes from the seed and the step's number alone, so that a descent resumed from a checkpoint
takes the same steps, bit for bit, as one that was never interrupted. Gradients reach its own parameters and no others,
whatever else the loss is made of. Knows nothing of surrogates or hosts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from koopman_interp.errors import FitInterrupted, NonFiniteError
from koopman_interp.fitting.checkpoint import Checkpoint, Resume
from koopman_interp.fitting.config import DescentConfig
from koopman_interp.fitting.schedules import is_level, last_step, latest_decay, learning_rate
from koopman_interp.hashing import generator_of
from koopman_interp.surrogates.record import Look

Objective = Callable[[int, torch.Generator], Float[Tensor, ""]]
"""The loss of a step, from its number and a generator of its own."""

Judge = Callable[[torch.Generator], Look]
"""Figures on what is held out, by name; the generator is the same at each look."""


@dataclass
class Progress:
    """Where a descent stands.

    Attributes:
        step: steps taken.
        best: smallest figure so far.
        stale: looks since then.
        history: figures of all looks.
        decay_from: the step at which the learning rate began to fall, under a schedule that decides so on its way.
        seconds: that steps and looks have taken.
    """

    step: int = 0
    best: float = math.inf
    stale: int = 0
    history: list[Look] = field(default_factory=list)
    decay_from: int | None = None
    seconds: float = 0.0


class Descent:
    """Steps of AdamW on an objective.

    Args:
        groups: parameters, each group with its learning rate relative to the schedule's.
        objective: what to lower.
        judge: what to watch; called without gradients.
        config: how.
        checkpoint: where to keep its state.
        minimised: the figure of the judge whose smallest value tells which weights are kept.
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
    ) -> None:
        self.config = config
        self.progress = Progress()
        self._objective, self._judge, self._minimised = objective, judge, minimised
        self._checkpoint = checkpoint
        self._parameters = [parameter for parameters, _ in groups for parameter in parameters]
        self._optimizer = torch.optim.AdamW(
            [{"params": list(parameters), "rate": rate} for parameters, rate in groups],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._best = self._weights()
        self._averaged = self._weights() if config.averaging else None

    def run(self, *, resume: Resume, progress: bool | None) -> list[Look]:
        """Take the steps and leave the best weights in the parameters.

        Args:
            resume: go on from the checkpoint; `auto` where there is one.
            progress: show a bar; None shows it on a terminal only.

        Returns:
            The figures of each look, with its `step`.

        Raises:
            FitInterrupted: Ctrl-C; the message says what was kept.
            InputError: the checkpoint is another call's, or would be overwritten.
            NonFiniteError: the loss diverged.
        """
        if self._checkpoint.is_gone_on_from(resume):
            self._load()
        bar = tqdm(
            total=self.config.steps,
            initial=self.progress.step,
            desc=self._checkpoint.call,
            unit="step",
            disable=None if progress is None else not progress,
        )
        try:
            with bar:
                for _ in self._steps(bar):
                    pass
        except KeyboardInterrupt as interrupt:
            looks = self.progress.history
            last_look = int(looks[-1]["step"]) if looks else None
            raise FitInterrupted(
                self._checkpoint.how_to_go_on(self.progress.step, self.config.steps, last_look)
            ) from interrupt
        self._restore(self._best)
        return self.progress.history

    def _steps(self, bar: tqdm) -> Iterator[int]:
        state = self.progress
        if not state.history:
            self._look(bar)
        while not self._is_over() and not self._is_stale():
            started = time.perf_counter()
            self._descend(state.step)
            state.step += 1
            bar.update()
            state.seconds += time.perf_counter() - started
            self._let_fall()
            if state.step % self.config.evaluate_every == 0 or self._is_over():
                self._look(bar)
            yield state.step

    def _is_over(self) -> bool:
        """Whether steps or time have run out."""
        state, seconds = self.progress, self.config.seconds
        return state.step >= last_step(self.config, state.decay_from) or (
            seconds is not None and state.seconds >= seconds
        )

    def why_over(self) -> str:
        """Say what ended the descent."""
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
        patience = self.config.patience
        return self.config.schedule != "wsd" and patience is not None and self.progress.stale >= patience

    def _let_fall(self) -> None:
        """Begin the decay of wsd where otherwise it would not end with the steps, or within the time."""
        state, latest, seconds = self.progress, latest_decay(self.config), self.config.seconds
        if latest is None or state.decay_from is not None:
            return
        if state.step >= latest or (seconds is not None and state.seconds * (1 + self.config.decay) >= seconds):
            state.decay_from = state.step

    def _descend(self, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(self.config, step, self.progress.decay_from)
        self._optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self._objective(step, step_generator(self.config.seed, step))
        # Named, since whatever else the loss is made of would gather gradients too. Not autograd.grad(): its gradients
        # may lie otherwise in memory than their parameters, which the fused optimizer does not look at.
        loss.backward(inputs=self._parameters)
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip)
        self._optimizer.step()
        if self._averaged is not None:
            # Young averages follow faster, so that they forget where the descent began.
            decay = min(self.config.averaging, (1 + step) / (10 + step))
            latest = [weight.detach() for weight in self._parameters]
            get_ema_multi_avg_fn(decay)(self._averaged, latest, torch.tensor(step))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the running average of the weights in the place of the latest while the context lasts."""
        latest = self._weights()
        if self._averaged is not None:
            self._restore(self._averaged)
        try:
            yield
        finally:
            self._restore(latest)

    @torch.no_grad()
    def _look(self, bar: tqdm) -> None:
        """Judge on what is held out, keep the best weights, and write a checkpoint."""
        state, started = self.progress, time.perf_counter()
        with self.averaged_weights():
            figures = {**self._judge(step_generator(self.config.seed, 0)), "step": state.step}
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
                state.best, self._best = judged, self._weights()
        if self.config.schedule == "wsd" and state.decay_from is None:
            judged_so_far = [look[self._minimised] for look in state.history]
            state.decay_from = state.step if is_level(self.config, judged_so_far) else None
        state.seconds += time.perf_counter() - started
        bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items() if name != "step"})
        self._save()

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    def _restore(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, weights, strict=True):
                parameter.copy_(weight)

    def _save(self) -> None:
        kept = {"now": self._weights(), "best": self._best, "averaged": self._averaged or []}
        tensors = {f"{name}.{index}": weight for name, each in kept.items() for index, weight in enumerate(each)}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
        self._checkpoint.write(tensors, asdict(self.progress))

    def _load(self) -> None:
        tensors, progress = self._checkpoint.read()

        def kept(name: str) -> list[Tensor]:
            return [_laid_out(tensors[f"{name}.{index}"], own) for index, own in enumerate(self._parameters)]

        self._restore(kept("now"))
        self._best = kept("best")
        self._averaged = None if self._averaged is None else kept("averaged")
        adam: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                own = self._parameters[int(index)]
                adam.setdefault(int(index), {})[key] = value if key == "step" else _laid_out(value, own)
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": adam})
        self.progress = Progress(**progress)


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


def step_generator(seed: int, number: int) -> torch.Generator:
    """Return a generator of a step's or an epoch's own, so mixed that neighbouring seeds share no stream."""
    return generator_of(f"{seed}/{number}")


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """Lay a tensor out in memory as another, which the fused optimizer takes for granted; a file keeps no layout."""
    return torch.empty_like(like).copy_(value)
