"""How soon forgotten classes come back: the method left in place, the model or K fine-tuned on a few of their rows.

Costs as many training steps as asked for and one pass over the held-out rows for each point of the curve. The model is
copied first: its own weights, gradients and hooks are not touched, whatever happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from koopman_interp.auditing.baselines import Method
from koopman_interp.auditing.comparison import AuditedRows
from koopman_interp.auditing.labelled import Batch
from koopman_interp.auditing.passes import LabelledPass
from koopman_interp.auditing.row_scores import RowScores
from koopman_interp.errors import InputError
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.protocol import Host
from koopman_interp.patching.patch import Patch
from koopman_interp.patching.stepped_motion import SteppedMotion

ALL_PARAMETERS, OPERATOR = "all parameters", "K alone"


@dataclass(frozen=True)
class Relearning:
    """How relearning is tried.

    The rows are drawn from training rows, so that held-out ones stay held out. With forget rows alone, naming
    everything one class would be a solution; retain rows beside them rule that out, and the retain accuracy says how
    far they do.

    Attributes:
        rows: inputs of the classes to forget to fine-tune on.
        beside: inputs of the other classes among them.
        steps: steps after which the model is judged, in rising order from 0; the last is how many are taken.
        rate: learning rate of Adam for all parameters of the model.
        operator_rate: the same for K.
    """

    rows: int = 10
    beside: int = 30
    steps: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    rate: float = 3e-4
    operator_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.rows < 1 or self.beside < 0:
            raise InputError(
                f"Relearning takes one forget row or more, and none or more beside; got {self.rows} and {self.beside}."
            )
        if not self.steps or self.steps[0] != 0 or list(self.steps) != sorted(set(self.steps)):
            raise InputError(f"`steps` are in rising order, the first of them 0; got {self.steps}.")
        if not (self.rate > 0 and self.operator_rate > 0):
            raise InputError(f"Learning rates are positive; got {self.rate} and {self.operator_rate}.")

    def __str__(self) -> str:
        return (
            f"Adam on {self.rows} training inputs of the classes to forget and {self.beside} others, the method left "
            f"in place, at rate {self.rate:g} for all parameters and {self.operator_rate:g} for K alone"
        )


@dataclass(frozen=True)
class RelearningCurve:
    """How classes come back.

    Attributes:
        moved: what was fine-tuned: all parameters of the model, or K alone.
        steps: after which the model was judged.
        forget_accuracy: share of the held-out forget rows that are predicted as their own class, after each.
        retain_accuracy: accuracy on the held-out retain rows, after each.
    """

    moved: str
    steps: tuple[int, ...]
    forget_accuracy: tuple[float, ...]
    retain_accuracy: tuple[float, ...]

    def steps_to(self, share: float) -> int | None:
        """Return after how many steps the forget accuracy is at least so high; None if never."""
        points = zip(self.steps, self.forget_accuracy, strict=True)
        return next((step for step, accuracy in points if accuracy >= share), None)


@dataclass(frozen=True, eq=False)
class RelearningTask:
    """What relearning is tried on.

    Attributes:
        few: batches to fine-tune on.
        rows: of which the held-out ones are judged on.
        settings: how it is tried.
    """

    few: Sequence[Batch]
    rows: AuditedRows
    settings: Relearning

    def passed(self, host: Host, batch: Batch) -> LabelledPass:
        """Call a model on a batch."""
        return LabelledPass.of(host, batch, self.rows.sites[-1:], self.rows.skip).without_states()


def relearn_model(method: Method, task: RelearningTask) -> RelearningCurve:
    """Fine-tune all parameters of a copy of the model, in eval mode, with the method left in place."""
    host = method.host.copy()
    for parameter in host.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    parameters = [parameter for parameter in host.model.parameters() if parameter.requires_grad]
    with method.running(host):
        return _curve(ALL_PARAMETERS, host, parameters, task.settings.rate, task)


def relearn_operator(patch: Patch, task: RelearningTask) -> RelearningCurve:
    """Fine-tune K alone, in its own parametrisation, through the patch; model, encoder, decoder and edits stay."""
    # Of a copy, so that the gradients of the model's own parameters stay as they were.
    host = patch.host.copy()
    host.model.requires_grad_(False)
    device, own = device_of(host.model), patch.on(host)
    operator = deepcopy(own.koopman.operator).requires_grad_(True).to(device)
    acting = [(edit.depth, edit) for edit in own.edits if edit.directions.any()]

    def learning(first: int, last: int) -> SteppedMotion:
        return SteppedMotion(own.koopman, first, last, acting, own.mode, operator=operator).to(device)

    own.moved_by(learning)  # another way to compute the same
    with own:
        return _curve(OPERATOR, host, list(operator.parameters()), task.settings.operator_rate, task)


def learns_by_operator(patch: Patch) -> bool:
    """Whether K carries what the edits change, so that it can learn: edits at each site are carried by the model."""
    return patch.options.at == "target" and any(bool(edit.directions.any()) for edit in patch.edits)


def _curve(moved: str, host: Host, parameters: Sequence[Tensor], rate: float, task: RelearningTask) -> RelearningCurve:
    """Take the steps, and judge after those asked for."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    points: list[tuple[int, float, float]] = []
    for step in range(task.settings.steps[-1] + 1):
        if step in task.settings.steps:
            scores = _judged(host, task)
            points.append((step, scores.forget_accuracy, scores.retain_accuracy))
        if step < task.settings.steps[-1]:
            with torch.enable_grad():
                passes = [task.passed(host, batch) for batch in task.few]
                optimizer.zero_grad()
                logp, labels = (torch.cat([getattr(one, name) for one in passes]) for name in ("logp", "labels"))
                nll_loss(logp, labels).backward()
            optimizer.step()
    steps, forget, retain = zip(*points, strict=True)
    return RelearningCurve(moved, steps, forget, retain)


@torch.no_grad()
def _judged(host: Host, task: RelearningTask) -> RowScores:
    passes = (task.passed(host, batch) for batch in task.rows.held_out)
    return RowScores.joined([RowScores.of(one, task.rows.labels) for one in passes])
