"""The spans of a patch: where each reads and writes, and the rows that a pass carries from the one to the other.

Knows nothing of how passes come about.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor, nn

from koopman_interp.errors import InputError
from koopman_interp.hosts.layouts import shaped_like, to_rows
from koopman_interp.patching.looking_back import LookingBack, new_owner


@dataclass(eq=False)
class PatchedSpan:
    """One motion in the model: where it reads and where it writes, and the name by which a cache knows it."""

    first: int
    last: int
    source: str
    target: str
    shape: tuple[int, ...]
    motion: nn.Module
    owner: str = field(default_factory=new_owner)

    def __str__(self) -> str:
        return repr(self.source) if self.source == self.target else f"{self.source!r} to {self.target!r}"


@dataclass(frozen=True, eq=False)
class MovedRows:
    """What is to be written at the target of a span, in the pass that it was read in.

    Attributes:
        rows: rows at the target, or their change.
        chosen: numbers of the rows of the state that they are for; None is all of them.
        count: rows of the state at the source.
    """

    rows: Float[Tensor, "row width"]
    chosen: Int[Tensor, " row"] | None
    count: int

    @classmethod
    def of(
        cls, span: PatchedSpan, state: Tensor, chosen: Int[Tensor, " row"] | None, back: LookingBack | None = None
    ) -> MovedRows:
        """Move rows of the state at the source on: those that are chosen, or all; the others are looked back on."""
        # A model may lie on several devices, and the motion on one of them.
        device = next(iter(span.motion.buffers()), state).device
        rows, chosen = to_rows(state).to(device), None if chosen is None else chosen.to(device)
        if back is not None:
            return cls(span.motion(rows, back, chosen), chosen, len(rows))
        return cls(span.motion(rows if chosen is None else rows[chosen]), chosen, len(rows))

    def put(self, state: Tensor, span: PatchedSpan, *, replacing: bool) -> Tensor:
        """Return the state at the target with these rows added, or in the place of its own."""
        own = to_rows(state)
        if len(own) != self.count:
            raise InputError(
                f"The state at {span.target!r} has {len(own)} rows and the one at {span.source!r} had {self.count}, so "
                "they are not of the same tokens. Patch between sites with the same tokens."
            )
        if self.chosen is None:
            moved = shaped_like(self.rows.to(state.device), state, span.shape)
            return moved if replacing else state + moved
        chosen, moved = self.chosen.to(state.device), self.rows.to(state)
        return own.index_copy(0, chosen, moved if replacing else own[chosen] + moved).view_as(state)
