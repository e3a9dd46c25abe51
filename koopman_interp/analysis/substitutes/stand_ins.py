"""Stand-ins for a span of depths: the surrogate, and what it is judged beside.

    surrogate        D(K^n E(x))
    identity         x, where the widths agree
    mean             the mean at the target: nothing of the source is used
    endpoint linear  the least-squares affine map from source to target, one for each span
    affine chain     one such map for each pair of neighbouring depths, composed: the per-layer maps of the tuned lens's
                     kind (arXiv 2303.08112), here without its training

All of them see one sample at a time. Each map is fitted when it is first asked for: one pass over the rows of two
depths. Knows nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from torch import Tensor

from koopman_interp.analysis.substitutes.affine import AffineMap
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

SURROGATE, IDENTITY, MEAN, ENDPOINT, CHAIN = "surrogate", "identity", "mean", "endpoint linear", "affine chain"
NAMES = (SURROGATE, IDENTITY, MEAN, ENDPOINT, CHAIN)

StandIn = Callable[[Tensor], Tensor]
"""From rows at the source of a span to rows at its target."""


class StandIns:
    """What can stand in for any span of a surrogate's depths.

    Args:
        koopman: the surrogate.
        trajectories: rows to fit the mean and the affine maps on.
    """

    def __init__(self, koopman: KoopmanAutoencoder, trajectories: Trajectories) -> None:
        self._koopman = koopman
        self._trajectories = trajectories
        self._maps: dict[tuple[int, int], AffineMap] = {}

    def affine(self, source: int, target: int) -> AffineMap:
        """Return the least-squares map of a span."""
        if (source, target) not in self._maps:
            states = self._trajectories.states
            self._maps[source, target] = AffineMap.fit(states[source], states[target])
        return self._maps[source, target]

    def chain(self, source: int, target: int) -> AffineMap:
        """Return the maps of all steps of a span, as one map."""
        return reduce(AffineMap.then, (self.affine(depth, depth + 1) for depth in range(source, target)))

    def of(self, source: int, target: int) -> dict[str, StandIn | None]:
        """Return the stand-ins of a span by name; None for the identity where a width on the way is another."""
        own_width = len(set(self._trajectories.widths[source : target + 1])) == 1
        mean = self.affine(target - 1, target).bias
        return {
            SURROGATE: lambda rows: self._koopman.predict(rows, source, target),
            IDENTITY: (lambda rows: rows) if own_width else None,
            MEAN: lambda rows: mean.to(rows).expand(len(rows), -1),
            ENDPOINT: self.affine(source, target),
            CHAIN: self.chain(source, target),
        }
