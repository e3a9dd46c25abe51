"""What a distillation can be told: one frozen value, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from koopman_interp.fitting.config import DescentConfig


@dataclass(frozen=True, kw_only=True)
class DistilConfig(DescentConfig):
    """How a surrogate is distilled, or a lens tuned; how that descends stands in `DescentConfig`.

    A step takes one batch, so it is as long as a pass of the model over `batch_size` inputs, with the gradient through
    its head and all past the last site. `validation` is the share of the inputs that is held out, where none of them
    was held out by the fit.

    Attributes:
        batch_size: inputs a step.
        operator_rate: learning rate of K, relative to the rest; a lens has none.
        states: weight of the losses of the surrogate's fit, which weigh as they did there, beside the divergence at the
            output: the dial between a motion that is true to the states between, and one that is true to what the model
            says. A lens is trained on the divergence alone.
        depths: from how many depths, drawn at each step, the motion is started; None is all of them.
    """

    batch_size: int = 4
    learning_rate: float = 2e-3
    warm_up: float = 0.05
    averaging: float = 0.0
    patience: int | None = None
    operator_rate: float = 0.1
    states: float = 1.0
    depths: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_whole("batch_size", "depths")
        self._require_positive("operator_rate")
        self._require_not_negative("states")
