"""Weights that a fit could keep, beside the held-out loss that they have."""

from __future__ import annotations

import torch
from torch import nn

from koopman_interp.fitting.descent import step_generator
from koopman_interp.fitting.least_squares import start_linear, start_operator
from koopman_interp.fitting.objective import Objective
from koopman_interp.fitting.rows import Rows
from koopman_interp.surrogates.record import Look


class Candidate:
    """Weights of encoder, K and decoder as they are, and the held-out figures with them.

    Args:
        objective: with the surrogate whose weights they are.
        seed: of the fit, so that all candidates are judged by the same draw.
    """

    @torch.no_grad()
    def __init__(self, objective: Objective, seed: int) -> None:
        surrogate = objective.surrogate
        self._parts = nn.ModuleList([surrogate.encoder, surrogate.operator, surrogate.decoder])
        self._weights = {name: value.clone() for name, value in self._parts.state_dict().items()}
        self.figures: Look = objective.judged(step_generator(seed, 0))

    @property
    def loss(self) -> float:
        """Held-out loss."""
        return self.figures["loss"]

    @property
    def fvu(self) -> float:
        """Held-out fraction of variance of the whole span that is left unexplained."""
        return self.figures["fvu"]

    def restore(self) -> None:
        """Put the weights back into the surrogate."""
        self._parts.load_state_dict(self._weights)


def linear_maps(objective: Objective, train: Rows, ridge: float, seed: int) -> Candidate | None:
    """Return encoder and decoder without their nonlinear parts and K solved for them; the surrogate stays as it was.

    None where the architecture has no linear part.
    """
    before = Candidate(objective, seed)
    if not start_linear(objective.surrogate, train, ridge):
        return None
    linear = Candidate(objective, seed)
    before.restore()
    return linear


def solve_operator_anew(objective: Objective, train: Rows, ridge: float, seed: int) -> str:
    """Solve for K on all rows, keep that where it lowers the held-out loss and the whole span suffers not, and say so.

    What is solved for is one step, so that the loss over all pairs of depths can fall while the whole span gets worse.
    """
    stepped = Candidate(objective, seed)
    start_operator(objective.surrogate, train, ridge)
    solved = Candidate(objective, seed)
    figures = f"held-out loss {solved.loss:.3g} for {stepped.loss:.3g}, FVU {solved.fvu:.3g} for {stepped.fvu:.3g}"
    if solved.loss < stepped.loss and solved.fvu <= stepped.fvu:
        return f"K: solved anew on all rows fitted, {figures}"
    stepped.restore()
    return f"K: left as stepped; solved anew it would have {figures}"
