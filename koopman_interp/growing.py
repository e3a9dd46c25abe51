"""Rows that come part by part, laid one after the other in memory that is taken once.

Parts that are kept and joined at the end are held twice; here they are held once, and at most one tensor twice while it
grows.
"""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor

_GROWTH = 1.5


class GrowingRows:
    """One tensor of all rows so far.

    Args:
        parts: how many will come, where that is known: room is taken for as many as large as the first.
    """

    def __init__(self, parts: int | None = None) -> None:
        self._parts = parts
        self._first: Tensor | None = None
        self._room: Tensor | None = None
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, rows: Shaped[Tensor, " row *axes"]) -> None:
        """Add a part."""
        if self._room is None and not self._rows:
            self._first = rows  # alone it is not copied
        else:
            self._lay(rows)
        self._rows += len(rows)

    def joined(self) -> Shaped[Tensor, " row *axes"]:
        """Return all rows; what room is left is given back where it is more than a tenth."""
        if self._room is None:
            assert self._first is not None, "no part was added"
            return self._first
        whole = self._room[: self._rows]
        return whole.clone() if len(self._room) > 1.1 * self._rows else whole

    def taken(self) -> Shaped[Tensor, " row *axes"]:
        """Return all rows, and use their room for those that come next."""
        rows = self._first if self._room is None else self._room[: self._rows]
        assert rows is not None, "no part was added"
        self._first, self._rows = None, 0
        return rows

    def _lay(self, rows: Tensor) -> None:
        first, self._first = self._first, None
        if first is not None:
            expected = (self._parts or 2) * len(first)
            self._room = first.new_empty(max(expected, len(first) + len(rows)), *first.shape[1:])
            self._room[: len(first)] = first
        assert self._room is not None, "room before rows"
        needed = self._rows + len(rows)
        kind = torch.promote_types(self._room.dtype, rows.dtype)
        if needed > len(self._room) or kind != self._room.dtype:
            size = max(needed, int(_GROWTH * len(self._room)))
            larger = torch.empty(size, *self._room.shape[1:], dtype=kind, device=self._room.device)
            larger[: self._rows] = self._room[: self._rows]
            self._room = larger
        self._room[self._rows : needed] = rows
