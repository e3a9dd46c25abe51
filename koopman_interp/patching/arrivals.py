"""Whether what edits change arrives at the target that K is to carry it to: known from moments, before any pass."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from koopman_interp.edits.certifying import carried_share
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import in_percent

NOTHING = 1e-3
"""Share of a change, carried to the target, below which it counts as nothing."""


def warn_of_nothing(koopman: KoopmanAutoencoder, edits: Sequence[OperatorEdit], last: int) -> None:
    """Warn where K takes what the edits change to nothing before the target."""
    shares = [carried_share(edit, koopman, last) for edit in edits if edit.depth <= last]
    known = [share for share in shares if share is not None]
    if known and max(known) < NOTHING:
        warnings.warn(
            f"Of what {edits[0].description!r} changes at {edits[0].site!r}, K carries {in_percent(max(known))} to "
            f"{koopman.sites[last]!r}, so this patch does nothing. Write it in place, patched(…, at='each site'), or "
            "edit nearer to the target.",
            stacklevel=4,
        )
