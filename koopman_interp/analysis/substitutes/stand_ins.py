"""Stand-ins for a span of depths: the surrogate, and what it is judged beside.

    surrogate        D(K^n E(x))
    identity         x, where the widths agree
    mean             the mean at the target, as the surrogate's normalisation keeps it: nothing of the source is used
    endpoint linear  the least-squares affine map from source to target, one for each span
    affine chain     one such map for each pair of neighbouring depths, composed: the per-layer maps of the tuned lens's
                     kind (arXiv 2303.08112), here without its training
    K per depth      the surrogate's encoder and decoder, with an affine map of the observables of its own for each
                     step: what sharing one K costs
    kernel ridge     kernel ridge regression from source to target, on 2,000 rows at most

All of them see one sample at a time, but for the surrogate and one K per depth where the surrogate's encoder looks back
on the earlier rows of a sequence: these are `Contextual`. The last four need the rows that the surrogate was fitted on;
each is fitted when it is first asked for: an affine map in one pass over the rows of two depths, of observables after
encoding them, and the kernel's with the cube of its rows, once a source. Knows nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.analysis.substitutes.affine import AffineMap
from koopman_interp.analysis.substitutes.kernel_ridge import KernelMap, fit_kernel_maps
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.sequences import Sequences
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

SURROGATE, IDENTITY, MEAN, ENDPOINT, CHAIN = "surrogate", "identity", "mean", "endpoint linear", "affine chain"
PER_DEPTH, KERNEL = "K per depth", "kernel ridge"

_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Contextual:
    """A stand-in that sees a row among the earlier ones of its sequence.

    Attributes:
        map: from rows at the source of a span, and how they follow each other, to rows at its target.
    """

    map: Callable[[Tensor, Sequences], Tensor]


StandIn = Callable[[Tensor], Tensor] | Contextual
"""From rows at the source of a span to rows at its target."""


def substituted(stand_in: StandIn, rows: Float[Tensor, "row _"], own: OwnPass) -> Float[Tensor, "row _"]:
    """Return what a stand-in makes of the samples of a pass at the source of its span."""
    return stand_in.map(rows, own.sequences) if isinstance(stand_in, Contextual) else stand_in(rows)


def in_context(koopman: KoopmanAutoencoder, map_: Callable[[Tensor, Sequences | None], Tensor]) -> StandIn:
    """Make a stand-in of what a surrogate does: contextual where its encoder looks back."""
    return Contextual(map_) if koopman.looks_back else lambda rows: map_(rows, None)


class StandIns:
    """What can stand in for any span of a surrogate's depths.

    Args:
        koopman: the surrogate.
        fitted: rows that it was fitted on; None leaves out what is fitted to them.
    """

    def __init__(self, koopman: KoopmanAutoencoder, fitted: Trajectories | None = None) -> None:
        self._koopman = koopman
        self._fitted = fitted
        self._maps: dict[tuple[int, int], AffineMap] = {}
        self._steps: dict[int, AffineMap] = {}
        self._kernels: dict[int, list[KernelMap]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all stand-ins, the surrogate first."""
        free = (SURROGATE, IDENTITY, MEAN)
        return free if self._fitted is None else (*free, ENDPOINT, CHAIN, PER_DEPTH, KERNEL)

    def of(self, source: int, target: int) -> dict[str, StandIn | None]:
        """Return the stand-ins of a span by name; None for the identity where a width on the way is another."""
        same_width = len(set(self._koopman.config.widths[source : target + 1])) == 1
        stand_ins: dict[str, StandIn | None] = {
            SURROGATE: in_context(self._koopman, partial(self._predicted, source=source, target=target)),
            IDENTITY: (lambda rows: rows) if same_width else None,
            MEAN: mean_at(self._koopman, target),
        }
        if self._fitted is not None:
            stand_ins[ENDPOINT] = self._affine(self._fitted, source, target)
            steps = (self._affine(self._fitted, depth, depth + 1) for depth in range(source, target))
            stand_ins[CHAIN] = reduce(AffineMap.then, steps)
            own = reduce(AffineMap.then, (self._step(self._fitted, depth) for depth in range(source, target)))
            stepped = partial(self._stepped, step=own, source=source, target=target)
            stand_ins[PER_DEPTH] = in_context(self._koopman, stepped)
            stand_ins[KERNEL] = self._kernel(self._fitted, source)[target - source - 1]
        return stand_ins

    def kernel_rows(self) -> int:
        """Rows that the kernel regressions were fitted on; 0 where there are none."""
        return max((kernel.rows for kernels in self._kernels.values() for kernel in kernels), default=0)

    def _predicted(
        self, rows: Float[Tensor, "row _"], sequences: Sequences | None, source: int, target: int
    ) -> Float[Tensor, "row _"]:
        mean, _, _ = self._koopman.normalization.maps(source)
        return self._koopman.predict(rows.to(mean.device), source, target, sequences=sequences).to(rows.device)

    def _stepped(
        self, rows: Float[Tensor, "row _"], sequences: Sequences | None, step: AffineMap, source: int, target: int
    ) -> Float[Tensor, "row _"]:
        """Return what one K per depth, composed, makes of rows at the source."""
        mean, _, _ = self._koopman.normalization.maps(source)
        z = self._koopman.encode(rows.to(mean.device), source, sequences)
        return self._koopman.decode(step(z), target).to(rows.device)

    def _step(self, fitted: Trajectories, depth: int) -> AffineMap:
        """Return the least-squares map of observables from a depth to the next."""
        if depth not in self._steps:
            pieces = (self._encoded(piece, depth) for piece in fitted.pieces(_CHUNK, whole=self._koopman.looks_back))
            before, after = (torch.cat(parts) for parts in zip(*pieces, strict=True))
            self._steps[depth] = AffineMap.fit(before, after)
        return self._steps[depth]

    def _encoded(self, piece: Trajectories, depth: int) -> tuple[Tensor, Tensor]:
        """Return observables of rows at a depth and at the next."""
        koopman = self._koopman
        device = koopman.normalization.maps(depth)[0].device
        sequences = piece.in_sequence() if koopman.looks_back else None
        before, after = (koopman.encode(piece.states[at].to(device), at, sequences) for at in (depth, depth + 1))
        return before, after

    def _kernel(self, fitted: Trajectories, source: int) -> list[KernelMap]:
        """Return the kernel regressions from a depth to all later ones, which share a solve."""
        if source not in self._kernels:
            self._kernels[source] = fit_kernel_maps(fitted.states[source], fitted.states[source + 1 :])
        return self._kernels[source]

    def _affine(self, fitted: Trajectories, source: int, target: int) -> AffineMap:
        """Return the least-squares map of a span."""
        if (source, target) not in self._maps:
            self._maps[source, target] = AffineMap.fit(fitted.states[source], fitted.states[target])
        return self._maps[source, target]


def mean_at(koopman: KoopmanAutoencoder, target: int) -> StandIn:
    """Return the mean at a depth, over the rows that a surrogate was fitted on, in place of any row."""
    mean, _, _ = koopman.normalization.maps(target)
    return lambda rows: mean.to(rows).expand(len(rows), -1)
