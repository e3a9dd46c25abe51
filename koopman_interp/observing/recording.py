"""Recording: the states at some sites of a host, pass by pass, joined to trajectories on the CPU.

Costs one copy of each state and one sum over it. Knows nothing of how the passes come about.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from koopman_interp.errors import InputError, UnsupportedHostError
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.laid_out import LaidOut, orders_axes
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokens
from koopman_interp.observing.digests import input_digests
from koopman_interp.observing.pass_record import PassRecord, recorded
from koopman_interp.observing.samples import Samples, none_left
from koopman_interp.trajectories import Trajectories

OnNonfinite = Literal["raise", "skip"]
"""What to do with an input that has a NaN or infinity at any site."""

_ADDING = threading.Lock()
"""Held while a pass is added, since threads may end theirs at the same time. Not a recording's own: a lock cannot be
copied along with the hooks of a model."""


class Recording:
    """Rows of the sites of a host, of all passes that go through them; one that raises leaves no row.

    Args:
        host: the host.
        sites: its sites, in order of depth.
        skip: leading places of each sequence to leave out.
        layout: what the axes of the states were said to be, for the record.
        on_nonfinite: what to do with an input that has a NaN or infinity at any site: `raise`, or `skip` its rows.

    Attributes:
        left_out: inputs that were skipped so far.

    Raises:
        InputError: `on_nonfinite` is neither.
    """

    def __init__(
        self,
        host: Host,
        sites: tuple[str, ...],
        skip: int = 0,
        layout: str | None = None,
        on_nonfinite: OnNonfinite = "raise",
    ) -> None:
        if on_nonfinite not in ("raise", "skip"):
            raise InputError(f"on_nonfinite is 'raise' or 'skip'; got {on_nonfinite!r}.")
        self.host = host
        self.sites = sites
        self.skip = skip
        self.layout = layout
        self.fingerprint = HostFingerprint.of(host)
        self.running = False
        self.left_out = 0
        self._on_nonfinite = on_nonfinite
        self._batch: object = None
        self.passes: list[Samples] = []
        self._rows: list[list[Tensor]] = [[] for _ in sites]
        self._sequences: list[Tensor] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._digests: list[Int[Tensor, " sample"] | None] = []
        self._of_inputs: Int[Tensor, " input"] | None = None
        self._recorded = 0
        self._inputs = 0
        self._next_place: Tensor | None = None

    @contextmanager
    def listening(self, batch: object = None) -> Iterator[None]:
        """Record the passes that are made while the context lasts.

        Args:
            batch: what the host is called with, by which inputs are known again; None takes the arguments of the pass.
        """
        self.running, self._batch = True, batch
        try:
            with recorded(self.host, self.sites, self.skip, self._add, rows_alone=True):
                yield
        finally:
            self.running = False

    def take(self, states: Mapping[str, Tensor], batch: object) -> None:
        """Record a pass that was made elsewhere.

        Args:
            states: by site, in the model's own shapes.
            batch: what it was called with; None where that is not known.
        """
        if self.layout is None and orders_axes(self.host, self.sites):
            raise InputError(
                "torch's own layers among the sites take positions first, and these states can have either order. Say "
                "which: attach(model, layout='position batch width'), or layout='batch position width'."
            )
        arguments = batch if isinstance(batch, Mapping) else {} if batch is None else {"input_ids": batch}
        record = PassRecord(self.skip, Tokens.of_arguments(arguments), arguments)
        standard = self.host.layout.standard if isinstance(self.host, LaidOut) else None
        for site in self.sites:
            if site in states:
                record.keep(site, states[site] if standard is None else standard(states[site]), rows_alone=True)
        self._batch = batch
        self._add(record)

    def _add(self, record: PassRecord) -> None:
        record.require(self.sites)
        counts = {site: len(record.states[site]) for site in self.sites}
        if len(set(counts.values())) != 1:
            raise InputError(f"The sites differ in their number of samples ({counts}). Choose sites that agree.")
        if (reached := tuple(record.states)) != self.sites:
            raise InputError(
                f"The model computes the sites in another order than that of depth: {', '.join(reached)}. Give them "
                f"so: attach(model, {list(reached)})."
            )
        samples = record.of_states
        if self._on_nonfinite == "raise":
            record.require_finite(f"batch {self._recorded} (counted from 0)")
        elif bool((bad := record.not_finite()).any()):
            record, samples = self._without(record, samples, torch.unique(samples.entry[bad]))
        with _ADDING:
            self._append(record, samples)

    def _without(
        self, record: PassRecord, samples: Samples, inputs: Int[Tensor, " input"]
    ) -> tuple[PassRecord, Samples]:
        """Leave out some inputs of a pass, with all their rows."""
        self.left_out += len(inputs)
        kept = ~torch.isin(samples.entry, inputs)
        states = {site: rows[kept] for site, rows in record.states.items()}
        return replace(record, states=states), samples.some(kept)

    def warn_of_left_out(self) -> None:
        """Say how many inputs were skipped, where any were."""
        if self.left_out:
            warnings.warn(
                f"{self.left_out:,} of {self._inputs:,} inputs gave NaN or infinity at a site and were left out, with "
                "all their rows. Check them, or run the model in a wider dtype.",
                stacklevel=4,
            )

    @property
    def inputs(self) -> int:
        """How many inputs were recorded so far; the next is the sequence of this number."""
        return self._inputs

    def _append(self, record: PassRecord, samples: Samples) -> None:
        for rows, site in zip(self._rows, self.sites, strict=True):
            rows.append(record.states[site])
        self._shapes = {site: shape[1:] if len(shape) == 4 else shape[-1:] for site, shape in record.shapes.items()}
        inputs_before = self._inputs
        self._sequences.append(samples.entry + self._first_input(samples, record.tokens))
        if self._inputs > inputs_before:  # else the pass goes on in the inputs of the one before
            self._of_inputs = self._digested(record, samples)
        self._digests.append(None if self._of_inputs is None else self._of_inputs[samples.entry])
        self.passes.append(samples)
        self._recorded += 1

    def _digested(self, record: PassRecord, samples: Samples) -> Int[Tensor, " input"] | None:
        """Digest the inputs of a pass; None where it is not known which entry is which input."""
        batch = self._batch
        if batch is None:
            tensors = {name: value for name, value in record.arguments.items() if isinstance(value, Tensor)}
            batch = tensors if len(tensors) > 1 else next(iter(tensors.values()), None)
        try:
            digests = input_digests(batch)
        except InputError:
            return None
        if len(digests) == samples.inputs:
            return digests
        self._require_batch_first(len(digests), record)
        return None

    def _require_batch_first(self, entries: int, record: PassRecord) -> None:
        """Refuse states whose second axis has the length of the batch where nobody has said which axis is which."""
        shape = max(record.shapes.values(), key=len)
        told = self.layout is not None or orders_axes(self.host, self.sites)
        if not told and len(shape) == 3 and shape[1] == entries != shape[0]:
            raise UnsupportedHostError(
                f"The model was called with {entries} inputs and its states have the shape {shape}, so that positions "
                "seem to come first in them. Say so, as in attach(model, layout='position batch width'); or, where the "
                "batch does come first, layout='batch position width'."
            )

    def _first_input(self, samples: Samples, tokens: Tokens | None) -> int:
        """Return the number of the pass's first sequence: a new one, unless the pass goes on from a cache."""
        goes_on = False
        if tokens is not None:
            tokens.require_placed()
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
        self._rows, self._sequences, self.passes, self._digests = [[] for _ in self.sites], [], [], []
        return found, samples

    def _joined(self, times: tuple[float, ...]) -> Trajectories:
        for parts in self._rows:
            if len(parts) > 1:
                parts[:] = [torch.cat(parts)]
        ids = [one.ids for one in self.passes if one.ids is not None]
        digests = [each for each in self._digests if each is not None]
        known: dict[str, Any] = {"digests": torch.cat(digests)} if len(digests) == len(self.passes) else {}
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
            layout=self.layout,
            **known,
        )
