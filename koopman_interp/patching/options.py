"""How edits are patched: one frozen value, checked when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from koopman_interp.depths import span
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.hosts.tokens import Positions
from koopman_interp.patching.motion import Mode

Edits = OperatorEdit | Sequence[OperatorEdit] | None

At = Literal["target", "each site"]
"""Where edits are written: carried by K to the target of the span, or each in place at the site where it acts."""

CARRIED: At = "target"
IN_PLACE: At = "each site"


@dataclass(frozen=True)
class PatchOptions:
    """How edits are patched; `patched` says what each of these means.

    Raises:
        InputError: they do not go together.
    """

    mode: Mode = "delta"
    source: str | int | None = None
    target: str | int | None = None
    at: At = "target"
    positions: Positions = None
    check_weights: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("delta", "replace"):
            raise InputError(f"mode={self.mode!r} is neither 'delta' nor 'replace'.")
        if self.at not in ("target", "each site"):
            raise InputError(f"at={self.at!r} is neither 'target' nor 'each site'.")
        if self.at == "each site" and (self.mode == "replace" or (self.source, self.target) != (None, None)):
            raise InputError(
                "Edits at each site are written in place: mode='delta', without source and target. The edits "
                "themselves say at which sites."
            )

    def ends(self, sites: Sequence[str], edits: Sequence[OperatorEdit]) -> tuple[int, int]:
        """Return the depths of the span; in `delta` mode it begins where the first edit acts."""
        source = self.source
        if source is None and self.mode == "delta" and edits:
            # The span of an edit at the last depth begins one before it.
            source = min(len(sites) - 2, *(one.depth for one in edits))
        return span(sites, source, self.target)
