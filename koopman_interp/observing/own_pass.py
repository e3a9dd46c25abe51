"""A host's own pass, and what it would say if its states at a site were others and all after them its own.

Costs one pass to learn the host's own states and output, and for each set of states put in their place what lies after
the site; blocks before it are skipped where the host allows. Holds the states of one batch. Knows nothing of what is
put there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from koopman_interp.errors import InputError, UnknownSiteError, UnskippableError
from koopman_interp.hosts.layouts import from_rows, to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions
from koopman_interp.observing.outputs import Output, logits_of
from koopman_interp.observing.pass_record import PassRecord, recorded
from koopman_interp.observing.samples import Samples
from koopman_interp.sequences import Sequences

Said = TypeVar("Said")

Continuation = Callable[[Tensor], Output]
"""From rows of the samples at a site to the host's output, the rest of the pass being its own."""


@dataclass(frozen=True, eq=False)
class OwnPass:
    """A host's own pass over one batch.

    Attributes:
        host: the host.
        batch: what it was called with.
        sites: the sites, in order of depth.
        record: the states at each site, in the host's own shapes.
        output: what the host said.
        skip: leading places of each sequence that are no samples.
        training: how the output was asked for; see `Output.of`.
    """

    host: Host
    batch: Any
    sites: tuple[str, ...]
    record: PassRecord
    output: Output
    skip: int = 0
    training: bool = False

    @classmethod
    def of(cls, host: Host, batch: Any, sites: tuple[str, ...], skip: int = 0, *, training: bool = False) -> OwnPass:
        """Call a host without gradients, and keep its states.

        Args:
            host: the host.
            batch: for `Host.call`.
            sites: to keep the states of, in order of depth.
            skip: leading places of each sequence to leave out.
            training: for `Output.of`, of this pass and of those with other states.

        Returns:
            The pass.

        Raises:
            UnknownSiteError: the pass never reached one of the sites.
            InputError: it reached them in another order.
            UnsupportedHostError: the host returned no logits.
        """
        records: list[PassRecord] = []
        with torch.no_grad(), recorded(host, sites, skip, records.append):
            output = Output.of(host, batch, skip, training=training)
        if not records:
            raise UnknownSiteError(f"The forward pass never reached {', '.join(sites)}. Choose other sites.")
        record = records[-1]
        record.require(sites)
        if tuple(record.states) != sites:
            raise InputError(
                f"The forward pass reached the sites in the order {', '.join(record.states)}; got {', '.join(sites)}. "
                "Name them in order of depth."
            )
        return cls(host, batch, sites, record, output, skip, training)

    def samples(self, depth: int) -> Samples:
        """Say which rows of the state at a depth are samples."""
        return self.record.samples(self.sites[depth])

    @property
    def of_states(self) -> Samples:
        """The samples; where sites differ in layout, by the one with most axes, which says most of where they are."""
        return self.record.of_states

    @property
    def sequences(self) -> Sequences:
        """How the samples follow each other, for a surrogate whose encoder looks back."""
        return self.record.sequences

    def state(self, depth: int) -> Float[Tensor, "..."]:
        """Return the state at a depth, in the host's own shape."""
        return self.record.states[self.sites[depth]]

    def rows(self, depth: int) -> Float[Tensor, "sample width"]:
        """Return the samples' states at a depth as rows, on the host's device."""
        return self.record.rows(self.sites[depth])

    def at(self, positions: Positions) -> Bool[Tensor, " sample"]:
        """Mark the samples of the output that stand at chosen places of their sequences.

        Args:
            positions: places, counted from each sequence's first real token. Since whole sequences are known here,
                negative ones count from its last real token, −1, as in a list. None is all.

        Raises:
            InputError: the output has no row for each token, or a function of the places gives no mask.
        """
        samples, tokens = self.output.samples, self.record.tokens
        if positions is None:
            return torch.ones(len(samples), dtype=torch.bool)
        if tokens is None or len(samples.kept) != tokens.real.numel():
            raise InputError(
                "Positions choose among tokens, and this model's output has no row for each token. Leave positions out."
            )
        if callable(positions):
            return samples.of_row(tokens.at(positions).flatten().cpu())
        tokens.require_placed()
        return samples.at(positions)

    @property
    def is_aligned(self) -> bool:
        """Whether the output has a row for each sample of the states."""
        own, said = self.of_states.kept, self.output.samples.kept
        return len(own) == len(said) and torch.equal(own, said)

    @contextmanager
    def after(self, depth: int) -> Iterator[Continuation]:
        """Put other states at a depth past the first, as often as wanted while the context lasts.

        Samples get the rows that are given; all other places keep the host's own states. Gradients flow from the
        output to the rows.

        Yields:
            A function from rows at the depth to the host's output.
        """
        with self._asked(depth, lambda: Output.of(self.host, self.batch, self.skip, training=self.training)) as say:
            yield say

    @contextmanager
    def logits_after(self, depth: int) -> Iterator[Callable[[Tensor], Float[Tensor, "sample class"]]]:
        """Do as `after`, for the logits themselves, on the host's device; one row a sample of `output`.

        Yields:
            A function from rows at the depth to the logits.
        """

        def logits() -> Tensor:
            with self.host.eager():
                return self.output.samples.take(logits_of(self.host.call(self.batch)).flatten(0, -2))

        with self._asked(depth, logits) as say:
            yield say

    @contextmanager
    def _asked(self, depth: int, ask: Callable[[], Said]) -> Iterator[Callable[[Tensor], Said]]:
        """Ask the host for something with other states at a depth."""
        if not 0 < depth < len(self.sites):
            raise InputError(f"States are put at a depth from 1 to {len(self.sites) - 1}; got {depth}.")
        given: list[Tensor] = []
        source, target = self.sites[0], self.sites[depth]

        def say(rows: Tensor) -> Said:
            given[:] = [self._with(rows, depth)]
            try:
                return ask()
            except UnskippableError:
                # What such blocks return can be written over.
                replacing.close()
                replacing.enter_context(self.host.hooked({target: lambda _: given[0]}, first=True))
                return ask()

        with ExitStack() as replacing:
            replacing.enter_context(self.host.replaced(source, target, lambda _: given[0]))
            yield say

    def _with(self, rows: Tensor, depth: int) -> Tensor:
        state, samples = self.state(depth), self.samples(depth)
        own = to_rows(state)
        kept = samples.kept.nonzero().squeeze(1).to(own.device)
        return from_rows(own.index_copy(0, kept, rows.to(own)), tuple(state.shape))
