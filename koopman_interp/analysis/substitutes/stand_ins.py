"""Stand-ins for a span of depths: the surrogate, and what it is judged beside.

    surrogate        D(K^n E(x))
    identity         x, where the widths agree
    mean             the mean at the target, as the surrogate's normalisation keeps it: nothing of the source is used
    endpoint linear  the least-squares affine map from source to target, one for each span
    affine chain     one such map for each pair of neighbouring depths, composed: the per-layer maps of the tuned lens's
                     kind (arXiv 2303.08112), here without its training

All of them see one sample at a time. The affine maps need the rows that the surrogate was fitted on; each is fitted
when it is first asked for, in one pass over the rows of two depths. Knows nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

from jaxtyping import Float
from torch import Tensor

from koopman_interp.analysis.substitutes.affine import AffineMap
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

SURROGATE, IDENTITY, MEAN, ENDPOINT, CHAIN = "surrogate", "identity", "mean", "endpoint linear", "affine chain"

StandIn = Callable[[Tensor], Tensor]
"""From rows at the source of a span to rows at its target."""


class StandIns:
    """What can stand in for any span of a surrogate's depths.

    Args:
        koopman: the surrogate.
        fitted: rows that it was fitted on; None leaves the affine maps out.
    """

    def __init__(self, koopman: KoopmanAutoencoder, fitted: Trajectories | None = None) -> None:
        self._koopman = koopman
        self._fitted = fitted
        self._maps: dict[tuple[int, int], AffineMap] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all stand-ins, the surrogate first."""
        free = (SURROGATE, IDENTITY, MEAN)
        return free if self._fitted is None else (*free, ENDPOINT, CHAIN)

    def of(self, source: int, target: int) -> dict[str, StandIn | None]:
        """Return the stand-ins of a span by name; None for the identity where a width on the way is another."""
        same_width = len(set(self._koopman.config.widths[source : target + 1])) == 1
        stand_ins: dict[str, StandIn | None] = {
            SURROGATE: partial(self._predicted, source=source, target=target),
            IDENTITY: (lambda rows: rows) if same_width else None,
            MEAN: mean_at(self._koopman, target),
        }
        if self._fitted is not None:
            stand_ins[ENDPOINT] = self._affine(self._fitted, source, target)
            steps = (self._affine(self._fitted, depth, depth + 1) for depth in range(source, target))
            stand_ins[CHAIN] = reduce(AffineMap.then, steps)
        return stand_ins

    def _predicted(self, rows: Float[Tensor, "row _"], source: int, target: int) -> Float[Tensor, "row _"]:
        mean, _, _ = self._koopman.normalization.maps(source)
        return self._koopman.predict(rows.to(mean.device), source, target).to(rows.device)

    def _affine(self, fitted: Trajectories, source: int, target: int) -> AffineMap:
        """Return the least-squares map of a span."""
        if (source, target) not in self._maps:
            self._maps[source, target] = AffineMap.fit(fitted.states[source], fitted.states[target])
        return self._maps[source, target]


def mean_at(koopman: KoopmanAutoencoder, target: int) -> StandIn:
    """Return the mean at a depth, over the rows that a surrogate was fitted on, in place of any row."""
    mean, _, _ = koopman.normalization.maps(target)
    return lambda rows: mean.to(rows).expand(len(rows), -1)
