"""The objective of a fit whose aim is the spectrum: K solved in closed form on each batch.

With K out of the way (variable projection; Golub & Pereyra 2003), gradients go to the observables alone, and one more
loss asks them to span a space that K keeps: the mean squared one-step residual of white observables,
`tr(G^−½ (L − Aᵀ G⁻¹ A) G^−½) / n` with `G = ZᵀZ`, `A = ZᵀZ⁺` and `L = Z⁺ᵀZ⁺`, which residual dynamic mode decomposition
(Colbrook & Townsend, arXiv 2111.14889) takes of each mode. Costs a few products and a factorisation in float64 a step.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.least_squares import start_operator, start_rows
from koopman_interp.fitting.objective import FitObjective, Part, drawn_pair, drawn_rows
from koopman_interp.surrogates.operators import Propagator

_BATCH_RIDGE = 1e-5
"""Ridge on a batch, which has fewer rows than the fit: relative to each observable's own mean square."""


class SpectrumObjective(FitObjective):
    """The losses of `FitObjective` under the K that suits each batch best, and the residual of white observables.

    Args:
        *arguments, **named: those of `FitObjective`.

    Raises:
        InputError: the depths are not equally far apart, so that one step does not lead from each to the next.
    """

    _needs_all = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        between = len(self.surrogate.config.times) - len(self._times)
        if between:
            raise InputError(
                f"aim='spectrum' solves K from one depth to the next, and pairs='endpoints' leaves out the {between} "
                "between. Leave pairs='sampled', or observe two sites alone."
            )
        gaps = {later - earlier for earlier, later in itertools.pairwise(self._times)}
        if len(gaps) > 1:
            raise InputError(
                f"aim='spectrum' needs depths equally far apart; they are {sorted(gaps)} steps apart. Observe evenly "
                "spaced sites, or fit with aim='prediction'."
            )
        self._gap = gaps.pop()
        self._start = start_rows(self._train, self.surrogate.config.observables)

    def __call__(self, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Weigh the losses on the batch of a step."""
        (batch, sequences), times = self._batches(step), self._times
        z = self.surrogate.lift(batch, sequences)
        K, residual = solved(z)
        parts = [Part(z, batch, times)]
        if self._sampled:
            (i, j), last = drawn_pair(range(len(batch)), generator), len(batch) - 1
            some = drawn_rows(batch)
            ends = Part(z[::last], batch[::last], times[::last])
            drawn_z, drawn = (torch.stack([each[i, some], each[j, some]]) for each in (z, batch))
            parts = [ends, Part(drawn_z, drawn, (times[i], times[j]), self._config.drawn)]
        return self._config.residual * residual + self._weighed(parts, generator, partial(self._propagator, K))

    def judged(self, generator: torch.Generator) -> dict[str, float]:
        """Judge under the K that suits the rows that are fitted on, with the residual on the rows held out."""
        start_operator(self.surrogate, self._start, self._config.ridge)
        figures = super().judged(generator)
        residual = float(solved(self.surrogate.lift(self._held_out, self._held_out_order))[1])
        return figures | {"loss": figures["loss"] + self._config.residual * residual}

    def _propagator(self, K: Float[Tensor, "observable observable"], steps: float) -> Propagator:
        def advance(z: Tensor) -> Tensor:
            for _ in range(round(steps / self._gap)):
                z = z @ K.T
            return z

        return advance


def solved(
    z: Float[Tensor, "depth sample observable"],
) -> tuple[Float[Tensor, "observable observable"], Float[Tensor, ""]]:
    """Return the K that leads from each depth to the next best, and the mean squared residual of white observables.

    Both can be differentiated.
    """
    before, after = z[:-1].flatten(0, 1).double(), z[1:].flatten(0, 1).double()
    gram = before.T @ before / len(before)
    # In units of each observable, as in `ridge`: none is lost beside a larger one.
    own = gram.diagonal()
    scale = torch.where(own > 0, own, 1).rsqrt()
    factor = torch.linalg.cholesky(scale[:, None] * gram * scale + _BATCH_RIDGE * torch.eye(len(own)).to(gram))
    moved = scale[:, None] * torch.cholesky_solve(scale[:, None] * (before.T @ after) / len(before), factor)
    left = after - before @ moved
    white = torch.linalg.solve_triangular(factor, scale[:, None] * left.T, upper=False)
    return moved.T.to(z.dtype), white.square().mean().to(z.dtype)
