"""Recording: the states at some sites of a host, pass by pass, as rows on the CPU.

Costs one copy of each state and one sum over it. Knows nothing of how the passes come about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from koopman_interp.errors import InputError, NonFiniteError, UnknownSiteError, UnsupportedHostError
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.layouts import to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokens
from koopman_interp.observing.samples import Samples, none_left
from koopman_interp.trajectories import Trajectories


class Recording:
    """Rows of the sites of a host. A pass is one call of the model itself; one that raises leaves no row.

    Args:
        host: the host.
        sites: its sites, in order of depth.
        skip: leading places of each sequence to leave out.
    """

    def __init__(self, host: Host, sites: tuple[str, ...], skip: int = 0) -> None:
        self.host = host
        self.sites = sites
        self.skip = skip
        self.fingerprint = HostFingerprint.of(host)
        self.running = False
        self.passes: list[Samples] = []
        self._tokens: Tokens | None = None
        # Of the pass that is under way, by site and by shape.
        self._pending: dict[str, Tensor] = {}
        self._pending_shapes: dict[str, tuple[int, ...]] = {}
        self._sums: dict[str, Tensor] = {}
        self._samples: dict[tuple[int, ...], Samples] = {}
        self._rows: list[list[Tensor]] = [[] for _ in sites]
        self._sequences: list[Tensor] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._recorded = 0
        self._inputs = 0
        self._next_place: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record the passes that are made while the context lasts."""
        self.running = True
        try:
            with (
                self.host.passes(self._begin, self._end),
                self.host.hooked({site: partial(self._record, site) for site in self.sites}),
            ):
                yield
        finally:
            self.running = False
            self._clear()

    def _begin(self, tokens: Tokens | None) -> None:
        self._clear()
        self._tokens = tokens

    def _record(self, site: str, state: Tensor) -> None:
        if site in self._pending:
            raise InputError(
                f"Site {site!r} was reached twice in one forward pass, so its depth is not one place. Name one call "
                f"of it, {site + '#0'!r} or {site + '#1'!r}, or choose sites that are reached once."
            )
        if not state.is_floating_point():
            raise UnsupportedHostError(
                f"Site {site!r} gave a tensor of {state.dtype}; a state is of floating-point numbers. "
                "Choose other sites with sites=."
            )
        shape = tuple(state.shape)
        if shape not in self._samples:
            self._samples[shape] = Samples.of(shape, self._tokens, self.skip)
        every = to_rows(state.detach())
        rows = self._samples[shape].take(every)
        # NaN and infinity survive any sum: a finite sum clears all rows, and is read only once the pass is over.
        self._sums[site] = rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))
        # The copy matters: an in-place activation further on would write into what was kept.
        self._pending[site] = rows.to("cpu", copy=rows is every)
        self._pending_shapes[site] = shape

    def _end(self) -> None:
        missing = [site for site in self.sites if site not in self._pending]
        if missing:
            raise UnknownSiteError(
                f"The forward pass never reached {', '.join(missing)}: the model did not call that module, or a patch "
                "skipped it. Choose other sites."
            )
        counts = {site: len(rows) for site, rows in self._pending.items()}
        if len(set(counts.values())) != 1:
            raise InputError(f"The sites differ in their number of samples ({counts}). Choose sites that agree.")
        self._require_finite()
        # Where sites differ in layout, the one with most axes says most of where the rows came from.
        samples = self._samples[max(self._samples, key=len)]
        for rows, site in zip(self._rows, self.sites, strict=True):
            rows.append(self._pending[site])
        self._shapes = {
            site: shape[1:] if len(shape) == 4 else shape[-1:] for site, shape in self._pending_shapes.items()
        }
        self._sequences.append(samples.entry + self._first_input(samples))
        self.passes.append(samples)
        self._recorded += 1
        self._clear()

    def _clear(self) -> None:
        self._pending, self._pending_shapes, self._sums, self._samples = {}, {}, {}, {}

    def _require_finite(self) -> None:
        for site, rows in self._pending.items():
            # A sum of finite numbers can overflow; only then is the exact look needed.
            if not self._sums[site].isfinite() and not torch.isfinite(rows).all():
                raise NonFiniteError(
                    f"Site {site!r} gave NaN or infinity in batch {self._recorded} (counted from 0). "
                    "Check that batch, or run the model in a wider dtype."
                )

    def _first_input(self, samples: Samples) -> int:
        """Return the number of the pass's first sequence: a new one, unless the pass goes on from a cache."""
        tokens = self._tokens
        goes_on = False
        if tokens is None or tokens.shape[0] != samples.inputs:
            self._next_place = None
        else:
            real, place = tokens.real.cpu(), tokens.place.cpu()
            first = torch.where(real, place, torch.iinfo(place.dtype).max).amin(1)
            begun = real.any(1)
            before = self._next_place
            if before is not None and len(before) == len(real) and bool((first[begun] > 0).any()):
                goes_on = torch.equal(first[begun], before[begun])
            after = torch.where(real, place + 1, 0).amax(1)
            self._next_place = torch.maximum(before, after) if goes_on and before is not None else after
        if not goes_on:
            self._inputs += samples.inputs
        return self._inputs - samples.inputs

    def trajectories(self, times: tuple[float, ...]) -> Trajectories:
        """Return what was recorded; the parts are joined in place of themselves, one depth after the other.

        Raises:
            InputError: nothing was, or no row of it is a sample.
        """
        if not self.passes:
            raise InputError("No forward pass was recorded: the model was not called.")
        found = self._joined(times)
        if not len(found):
            raise InputError(none_left(self.passes, self.skip))
        return found

    def drained(self, times: tuple[float, ...]) -> tuple[Trajectories, list[Samples]]:
        """Return what was recorded since the last call, and its samples, and keep none of it; it may have no rows."""
        if not self.passes:
            raise InputError("No forward pass was recorded: the model was not called on the batch.")
        found, samples = self._joined(times), self.passes
        self._rows, self._sequences, self.passes = [[] for _ in self.sites], [], []
        return found, samples

    def _joined(self, times: tuple[float, ...]) -> Trajectories:
        for parts in self._rows:
            if len(parts) > 1:
                parts[:] = [torch.cat(parts)]
        ids = [one.ids for one in self.passes if one.ids is not None]
        return Trajectories(
            states=tuple(parts[0] for parts in self._rows),
            sites=self.sites,
            times=times,
            host=self.fingerprint,
            sequence=torch.cat(self._sequences),
            position=torch.cat([one.place for one in self.passes]),
            tokens=torch.cat(ids) if len(ids) == len(self.passes) else None,
            shapes=tuple(self._shapes[site] for site in self.sites),
            skip=self.skip,
        )
