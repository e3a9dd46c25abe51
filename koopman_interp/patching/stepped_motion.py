"""SteppedMotion: the surrogate's motion over a span, one step of K after another, for what is being trained.

`Motion` multiplies K and the edits out once and for all. Here they act as they are at each call, so that gradients
reach whatever of them has parameters; while nothing has been trained, both give the same numbers. A call costs the
products of every step. Knows nothing of hosts, objectives or optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

from jaxtyping import Float, Int
from torch import Tensor, nn

from koopman_interp.patching.looking_back import LookingBack
from koopman_interp.patching.motion import Mode, in_full_precision, require_in_span
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.context import CausalEncoder
from koopman_interp.surrogates.operators import Operator

Change = Callable[[Tensor], Tensor]
"""Maps rows of observables to rows of observables: an edit, or a module that is trained to be one."""


class SteppedMotion(nn.Module):
    """A surrogate's motion from one depth to another, on rows in the model's own coordinates.

    The surrogate is copied, so that training leaves it as it is; edits and operator are taken as they are given.

    Args:
        koopman: the surrogate.
        first: depth of the source.
        last: depth of the target.
        edits: pairs of a depth between them, both ends included, and what changes rows there; those at one depth act
            in the given order. The parameters of modules among them are this module's own.
        mode: what a call returns: `replace`, rows at the target; `delta`, what the edits, and an operator of their own,
            change there against the surrogate's unedited motion.
        operator: the K by which edited rows move, in place of the surrogate's: a copy of it that is trained.

    Raises:
        InputError: an edit acts outside of the span.
    """

    mean: Float[Tensor, " source"]
    inward: Float[Tensor, "source dimension"]
    outward: Float[Tensor, "dimension target"]
    target_mean: Float[Tensor, " target"]

    def __init__(
        self,
        koopman: KoopmanAutoencoder,
        first: int,
        last: int,
        edits: Sequence[tuple[int, Change]] = (),
        mode: Mode = "delta",
        *,
        operator: Operator | None = None,
    ) -> None:
        super().__init__()
        for depth, _ in edits:
            require_in_span(koopman.sites, first, last, depth)
        self.mode = mode
        self.steps = [koopman.steps(depth - 1, depth) for depth in range(first + 1, last + 1)]
        self.changes = [[change for at, change in edits if at == depth] for depth in range(first, last + 1)]
        self.trained = nn.ModuleList(change for _, change in edits if isinstance(change, nn.Module))
        self.encoder = deepcopy(koopman.encoder).requires_grad_(False)
        self.decoder = deepcopy(koopman.decoder).requires_grad_(False)
        self.original = deepcopy(koopman.operator).requires_grad_(False)
        self.operator = self.original if operator is None else operator
        # Of the normalisation, the two ends alone.
        (mean, inward, _), (target_mean, _, outward) = (koopman.normalization.maps(depth) for depth in (first, last))
        ends = {"mean": mean, "inward": inward, "outward": outward, "target_mean": target_mean}
        for name, buffer in ends.items():
            self.register_buffer(name, buffer.clone())

    def forward(
        self,
        state: Float[Tensor, "row source"],
        back: LookingBack | None = None,
        chosen: Int[Tensor, " sample"] | None = None,
    ) -> Float[Tensor, "sample target"]:
        """Map rows at the source to rows at the target, or to their change; arguments as of a `Motion`."""
        with in_full_precision(state):
            plain = edited = self._lifted((state.to(self.mean.dtype) - self.mean) @ self.inward, back, chosen)
            for steps, changes in zip([0.0, *self.steps], self.changes, strict=True):
                plain, edited = self._advance(plain, edited, steps)
                for change in changes:
                    edited = change(edited)
            if self.mode == "replace":
                return self.target_mean + self.decoder(edited) @ self.outward
            return (self.decoder(edited) - self.decoder(plain)) @ self.outward

    def _lifted(self, x: Tensor, back: LookingBack | None, chosen: Tensor | None) -> Tensor:
        """Return the observables of the rows that are chosen."""
        if isinstance(self.encoder, CausalEncoder):
            assert back is not None, "an encoder that looks back needs to know on what"
            z, back.seen = self.encoder.look_back(x, back.sequences, back.past)
            return z if chosen is None else z[chosen]
        return self.encoder(x if chosen is None else x[chosen])

    def _advance(self, plain: Tensor, edited: Tensor, steps: float) -> tuple[Tensor, Tensor]:
        """Take unedited rows on by the surrogate's K, where they are needed, and edited ones by their own."""
        move = self.original.propagator(steps)
        own = move if self.operator is self.original else self.operator.propagator(steps)
        return plain if self.mode == "replace" else move(plain), own(edited)
