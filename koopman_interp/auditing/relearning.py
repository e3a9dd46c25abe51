"""How soon a forgotten class comes back: the edit left in place, the host or K fine-tuned on a few of its rows.

Costs as many training steps as asked for and one pass over the held-out rows for each point of the curve. The host is
copied first: its own weights, gradients and hooks are not touched, whatever happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from koopman_interp.auditing.baselines import Way
from koopman_interp.auditing.passes import Batches, Seen
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.protocol import Host
from koopman_interp.patching.patch import Patch
from koopman_interp.patching.stepped_motion import SteppedMotion
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

HOST, OPERATOR = "all parameters", "K alone"


@dataclass(frozen=True)
class Relearning:
    """How relearning is tried.

    The rows are drawn from training rows, so that held-out ones stay held out. With forgotten rows alone, naming
    everything the class would be a solution; rows of the other classes beside them rule that out, and the accuracy on
    the others says how far they do.

    Attributes:
        rows: forgotten rows to fine-tune on.
        beside: rows of the other classes among them.
        at: steps after which the host is judged, in rising order from 0; the last is how many are taken.
        rate: learning rate of Adam for all parameters of the host.
        operator_rate: the same for K.
    """

    rows: int = 10
    beside: int = 30
    at: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    rate: float = 3e-4
    operator_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.rows < 1 or self.beside < 0:
            raise InputError(
                f"Relearning takes one forgotten row or more, and none or more beside; got {self.rows} and "
                f"{self.beside}."
            )
        if not self.at or self.at[0] != 0 or list(self.at) != sorted(set(self.at)):
            raise InputError(f"`at` are steps in rising order, the first of them 0; got {self.at}.")
        if not (self.rate > 0 and self.operator_rate > 0):
            raise InputError(f"Learning rates are positive; got {self.rate} and {self.operator_rate}.")

    def __str__(self) -> str:
        return (
            f"Adam on {self.rows} forgotten training rows and {self.beside} others, the way of forgetting left in "
            f"place, at rate {self.rate:g} for all parameters and {self.operator_rate:g} for K alone"
        )


@dataclass(frozen=True)
class RelearningCurve:
    """How a class comes back.

    Attributes:
        moved: what was fine-tuned: all parameters of the host, or K alone.
        steps: after which the host was judged.
        forgotten: share of the class's held-out rows that are predicted as it, after each.
        retained: accuracy on the other held-out rows, after each.
    """

    moved: str
    steps: tuple[int, ...]
    forgotten: tuple[float, ...]
    retained: tuple[float, ...]

    def steps_to(self, share: float) -> int | None:
        """Return after how many steps the class is recognised on that share of its rows; None if never."""
        return next((step for step, found in zip(self.steps, self.forgotten, strict=True) if found >= share), None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RelearningCurve:
        """Rebuild from the plain values of JSON."""
        return cls(values["moved"], *(tuple(values[name]) for name in ("steps", "forgotten", "retained")))


@dataclass(frozen=True, eq=False)
class Lesson:
    """What relearning is tried on.

    Attributes:
        rows: to fine-tune on.
        judged: held-out rows.
        label: the forgotten class.
        site: one that every pass reaches.
        skip: leading positions to leave out.
    """

    rows: Batches
    judged: Batches
    label: int
    site: str
    skip: int


def relearn_host(way: Way, lesson: Lesson, settings: Relearning) -> RelearningCurve:
    """Fine-tune all parameters of a copy of the host, in eval mode, with the way of forgetting left in place."""
    copy = type(way.host)(deepcopy(way.host.model))
    for parameter in copy.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    parameters = [parameter for parameter in copy.model.parameters() if parameter.requires_grad]
    with way.running(copy):
        return _curve(HOST, copy, parameters, settings.rate, lesson, settings)


def relearn_operator(
    way: Way, koopman: KoopmanAutoencoder, edits: Sequence[OperatorEdit], lesson: Lesson, settings: Relearning
) -> RelearningCurve:
    """Fine-tune K alone, in its own parametrisation, through the patch; host, encoder, decoder and edits stay."""
    # Of a copy, so that the gradients of the host's own parameters stay as they were.
    copy = type(way.host)(deepcopy(way.host.model))
    copy.model.requires_grad_(False)
    patch = way.running(copy)
    assert isinstance(patch, Patch)
    device, mode = device_of(copy.model), patch.mode
    operator = deepcopy(koopman.operator).requires_grad_(True).to(device)
    acting = [(edit.depth, edit) for edit in edits if edit.directions.any()]

    def learning(first: int, last: int) -> SteppedMotion:
        return SteppedMotion(koopman, first, last, acting, mode, operator=operator).to(device)

    patch.moved_by(learning)  # another way to compute the same
    with patch:
        return _curve(OPERATOR, copy, list(operator.parameters()), settings.operator_rate, lesson, settings)


def _curve(
    moved: str,
    host: Host,
    parameters: Sequence[Tensor],
    rate: float,
    lesson: Lesson,
    settings: Relearning,
) -> RelearningCurve:
    """Take the steps, and judge after those asked for."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    points: list[tuple[int, float, float]] = []
    for step in range(settings.at[-1] + 1):
        if step in settings.at:
            with torch.no_grad():
                seen = Seen.of(host, lesson.judged, [lesson.site], skip=lesson.skip)
            points.append((step, *shares(seen, lesson.label)))
        if step < settings.at[-1]:
            with torch.enable_grad():
                seen = Seen.of(host, lesson.rows, [lesson.site], skip=lesson.skip)
                optimizer.zero_grad()
                nll_loss(seen.logp, seen.labels).backward()
            optimizer.step()
    steps, forgotten, retained = zip(*points, strict=True)
    return RelearningCurve(moved, steps, forgotten, retained)


def shares(seen: Seen, label: int) -> tuple[float, float]:
    """Return the share of the class's rows that are predicted as it, and the accuracy on the others."""
    guess, gone = seen.logp.argmax(1), seen.labels == label
    return (
        float((guess[gone] == label).double().mean()),
        float((guess[~gone] == seen.labels[~gone]).double().mean()),
    )
