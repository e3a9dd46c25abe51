"""Tails: what a host says if its states at a site were others, and all after them its own.

Costs one pass to learn the host's own states and output, and for each set of states put in their place what lies after
the site; blocks before it are skipped where the host allows. Holds the states of one batch. Knows nothing of what is
put there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.errors import InputError, UnknownSiteError, UnskippableError
from koopman_interp.hosts.layouts import from_rows, to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.outputs import Output
from koopman_interp.observing.samples import Samples

Said = Callable[[Tensor], Output]
"""From rows of the samples at a site to the host's output."""


@dataclass(frozen=True, eq=False)
class OwnPass:
    """A host's own pass over one batch.

    Attributes:
        host: the host.
        batch: what it was called with.
        sites: the sites, in order of depth.
        states: at each site, in the host's own shapes.
        output: what the host said.
        skip: leading places of each sequence that are no samples.
        training: how the output was asked for; see `Output.of`.
    """

    host: Host
    batch: Any
    sites: tuple[str, ...]
    states: tuple[Float[Tensor, "..."], ...]
    output: Output
    skip: int = 0
    training: bool = False
    _samples: dict[tuple[int, ...], Samples] = field(default_factory=dict, repr=False)

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
        found: dict[str, Tensor] = {}

        def keep(site: str, state: Tensor) -> None:
            # A copy, since an in-place activation further on would write into what is kept.
            found[site] = state.detach().clone()

        with torch.no_grad(), host.hooked({site: partial(keep, site) for site in sites}):
            output = Output.of(host, batch, skip, training=training)
        if missing := [site for site in sites if site not in found]:
            raise UnknownSiteError(f"The forward pass never reached {', '.join(missing)}. Choose other sites.")
        if tuple(found) != sites:
            raise InputError(
                f"The forward pass reached the sites in the order {', '.join(found)}; got {', '.join(sites)}. "
                "Name them in order of depth."
            )
        return cls(host, batch, sites, tuple(found[site] for site in sites), output, skip, training)

    def samples(self, depth: int) -> Samples:
        """Say which rows of the state at a depth are samples."""
        shape = tuple(self.states[depth].shape)
        if shape not in self._samples:
            self._samples[shape] = Samples.of(shape, self.output.tokens, self.skip)
        return self._samples[shape]

    @property
    def of_states(self) -> Samples:
        """The samples; where sites differ in layout, by the one with most axes, which says most of where they are."""
        return self.samples(max(range(len(self.states)), key=lambda depth: self.states[depth].ndim))

    def rows(self, depth: int) -> Float[Tensor, "sample width"]:
        """Return the samples' states at a depth as rows, on the host's device."""
        return self.samples(depth).take(to_rows(self.states[depth]))

    @contextmanager
    def after(self, depth: int) -> Iterator[Said]:
        """Put other states at a depth past the first, as often as wanted while the context lasts.

        Samples get the rows that are given; all other places keep the host's own states. Gradients flow from the
        output to the rows.

        Yields:
            A function from rows at the depth to the host's output.
        """
        if not 0 < depth < len(self.sites):
            raise InputError(f"States are put at a depth from 1 to {len(self.sites) - 1}; got {depth}.")
        given: list[Tensor] = []
        source, target = self.sites[0], self.sites[depth]

        def say(rows: Tensor) -> Output:
            given[:] = [self._with(rows, depth)]
            try:
                return Output.of(self.host, self.batch, self.skip, training=self.training)
            except UnskippableError:
                # What such blocks return can be written over.
                replacing.close()
                replacing.enter_context(self.host.hooked({target: lambda _: given[0]}, first=True))
                return Output.of(self.host, self.batch, self.skip, training=self.training)

        with ExitStack() as replacing:
            replacing.enter_context(self.host.replaced(source, target, lambda _: given[0]))
            yield say

    def _with(self, rows: Tensor, depth: int) -> Tensor:
        state, samples = self.states[depth], self.samples(depth)
        own = to_rows(state)
        kept = samples.kept.nonzero().squeeze(1).to(own.device)
        return from_rows(own.index_copy(0, kept, rows.to(own)), tuple(state.shape))
