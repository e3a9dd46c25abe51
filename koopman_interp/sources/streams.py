"""A stream that is called anew for each pass, as a source of rows: nothing is kept, the model runs each time.

Cheaper than a store where disk is dear and the model fast; what it gives must be the same each time, which is checked
by the digests of the inputs of each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import xxhash

from koopman_interp.errors import InputError
from koopman_interp.sources.protocol import Part, Source, at_depths, taken
from koopman_interp.trajectories import Trajectories


class Stream(Source):
    """Rows of a stream, such as `lambda: tap.stream(texts)`.

    Args:
        call: begins the stream, and gives the same rows each time.
        limit: rows after which a pass ends; None is all.
    """

    def __init__(self, call: Callable[[], Iterable[Trajectories]], limit: int | None = None) -> None:
        self._call, self._limit = call, limit
        self._seen: list[int] = []
        """Digests of the inputs of each batch, as far as a pass has come."""

    @cached_property
    def empty(self) -> Trajectories:  # type: ignore[override]  # known once the stream has begun
        """Trajectories without rows, as the first batch has them."""
        return next(self.batches())[:0]

    def batches(
        self,
        *,
        depths: Sequence[int] | None = None,
        part: Part | None = None,
        shuffle: int | None = None,  # noqa: ARG002 (a stream has one order)
        epoch: int = 0,  # noqa: ARG002
        start: int = 0,
    ) -> Iterator[Trajectories]:
        """Begin the stream and go through it, in its own order; see `Source.batches`."""
        rows, number = 0, -1
        for number, batch in enumerate(self._begun()):
            self._require_same(batch, number)
            rows += len(batch)
            if number >= start and len(wanted := taken(at_depths(batch, depths), part)):
                yield wanted
            if self._limit is not None and rows >= self._limit:
                return
        if number < 0:
            raise InputError(
                "The stream has no rows, or came to its end and cannot be begun anew. Give a function that begins it: "
                "fit(lambda: tap.stream(texts))."
            )
        if number + 1 < len(self._seen):
            raise self._others()

    def thinned(self, rows: int) -> Stream:
        """Return the first batches that have as many rows."""
        thinned = Stream(self._call, rows if self._limit is None else min(rows, self._limit))
        thinned._seen = self._seen
        return thinned

    def _begun(self) -> Iterator[Trajectories]:
        begun = self._call()
        if isinstance(begun, Trajectories):
            return iter([begun])
        if not isinstance(begun, Iterable):
            raise InputError(
                f"A stream gives trajectories; got {type(begun).__name__}. Write fit(lambda: tap.stream(texts))."
            )
        return iter(begun)

    def _require_same(self, batch: Trajectories, number: int) -> None:
        """Refuse a stream that cannot be begun anew, or gives other rows then."""
        if not isinstance(batch, Trajectories):
            raise InputError(f"A stream gives trajectories; got {type(batch).__name__}. Write lambda: tap.stream(…).")
        digest = xxhash.xxh3_64_intdigest(batch.digests.contiguous().numpy().data)
        if number == len(self._seen):
            self._seen.append(digest)
        elif self._seen[number] != digest:
            raise self._others()

    @staticmethod
    def _others() -> InputError:
        return InputError(
            "The stream gave other inputs than when it was begun before, so that what is held out could not be kept "
            "apart. Give the same inputs in the same order each time, or store them: observe(…, store=…)."
        )
