"""The weights that a descent moves: the latest, their running average, the best, and the optimizer's state.

All of it goes to tensors by name and comes back bit for bit. Knows nothing of losses, schedules or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from koopman_interp.fitting.config import DescentConfig

_ADAM = {"step", "exp_avg", "exp_avg_sq"}
"""Names of what AdamW keeps of a parameter."""


class MovedWeights:
    """Parameters under AdamW.

    Args:
        groups: parameters, each group with its learning rate relative to the schedule's.
        config: how they move.

    Attributes:
        parameters: of all groups.
        optimizer: of each group `rate` is the relative learning rate.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Tensor], float]], config: DescentConfig) -> None:
        self._config = config
        self.parameters = [parameter for parameters, _ in groups for parameter in parameters]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(parameters), "rate": rate} for parameters, rate in groups],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._best = self._latest()
        self._averaged = self._latest() if config.averaging else None

    def step(self, number: int) -> None:
        """Take a step along the gradients that are there, and let the average follow."""
        if self._config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self._config.clip)
        self.optimizer.step()
        if self._averaged is not None:
            # Young averages follow faster, so that they forget where the descent began.
            decay = min(self._config.averaging, (1 + number) / (10 + number))
            latest = [weight.detach() for weight in self.parameters]
            get_ema_multi_avg_fn(decay)(self._averaged, latest, torch.tensor(number))

    @contextmanager
    def averaged_in_place(self) -> Iterator[None]:
        """Put the running average, where there is one, in the place of the latest while the context lasts."""
        latest = self._latest()
        if self._averaged is not None:
            self._restore(self._averaged)
        try:
            yield
        finally:
            self._restore(latest)

    def keep_as_best(self) -> None:
        """Keep what is in place now as the best."""
        self._best = self._latest()

    def restore_best(self) -> None:
        """Put the best into place."""
        self._restore(self._best)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it by name; what goes on moving has to be cloned by who keeps it."""
        kept = {"now": self._latest(), "best": self._best, "averaged": self._averaged or []}
        tensors = {f"{name}.{index}": weight for name, each in kept.items() for index, weight in enumerate(each)}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
        return tensors

    def take_up(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave.

        Raises:
            KeyError: one is missing.
            ValueError: one is of another shape or name.
        """

        def kept(name: str) -> list[Tensor]:
            return [_laid_out(tensors[f"{name}.{index}"], own) for index, own in enumerate(self.parameters)]

        self._restore(kept("now"))
        self._best = kept("best")
        self._averaged = None if self._averaged is None else kept("averaged")
        adam: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                own = self.parameters[int(index)]
                adam.setdefault(int(index), {})[key] = value if key == "step" else _laid_out(value, own)
        if any(state.keys() != _ADAM for state in adam.values()):
            raise KeyError(f"Of each parameter AdamW keeps {', '.join(sorted(_ADAM))}.")
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": adam})

    def _latest(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _restore(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """Lay a tensor out in memory as another, which the fused optimizer takes for granted; a file keeps no layout."""
    if value.shape != like.shape:
        raise ValueError(f"A tensor of shape {tuple(like.shape)} is kept as {tuple(value.shape)}.")
    return torch.empty_like(like).copy_(value)
