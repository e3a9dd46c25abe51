"""What one forward pass showed: the state at each site, its tokens, and which rows of it are samples.

The one record of a pass: trajectories are joined from records, a host's own pass is a record that can be gone on from,
and an audit reads its states off one. Costs one copy of each state. Knows nothing of how passes come about.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from koopman_interp.errors import InputError, NonFiniteError, UnknownSiteError, UnsupportedHostError
from koopman_interp.hosts.layouts import require_plain, to_rows
from koopman_interp.hosts.passes import Arguments, Pass, Passes
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokens
from koopman_interp.observing.samples import Samples
from koopman_interp.sequences import Sequences


@dataclass(frozen=True, eq=False)
class PassRecord:
    """One forward pass.

    Attributes:
        skip: leading places of each sequence that are no samples.
        tokens: what it was called with, or None.
        arguments: of the outermost call, by name.
        states: by site, in the order reached: the state in the host's own shape, or, where rows alone are kept, the
            samples' rows on the CPU.
        shapes: of the states in the host, by site.
    """

    skip: int
    tokens: Tokens | None
    arguments: Arguments
    states: dict[str, Float[Tensor, "..."]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _samples: dict[tuple[int, ...], Samples] = field(default_factory=dict, repr=False)
    _sums: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def samples(self, site: str) -> Samples:
        """Say which rows of the state at a site are samples."""
        return self.samples_of(self.shapes[site])

    def samples_of(self, shape: tuple[int, ...]) -> Samples:
        """Say which rows of a state of some shape are samples."""
        if shape not in self._samples:
            self._samples[shape] = Samples.of(shape, self.tokens, self.skip)
        return self._samples[shape]

    @property
    def of_states(self) -> Samples:
        """The samples; where sites differ in layout, by the one with most axes, which says most of where they are."""
        return self.samples_of(max(self.shapes.values(), key=len))

    @cached_property
    def sequences(self) -> Sequences:
        """How the samples follow each other, for a surrogate whose encoder looks back.

        Raises:
            InputError: some of a sequence are missing: the pass goes on from a cache, say.
        """
        samples = self.of_states
        return Sequences.whole(samples.entry, samples.place, self.skip)

    def rows(self, site: str) -> Float[Tensor, "sample width"]:
        """Return the samples' states at a site as rows, where the states themselves are kept."""
        return self.samples(site).take(to_rows(self.states[site]))

    def require(self, sites: Sequence[str]) -> None:
        """Check that the pass reached each site.

        Raises:
            UnknownSiteError: it did not.
        """
        if missing := [site for site in sites if site not in self.states]:
            raise UnknownSiteError(
                f"The forward pass never reached {', '.join(missing)}: the model did not call that module, or a patch "
                "skipped it. Choose other sites."
            )

    def require_finite(self, what: str) -> None:
        """Check that all rows that were kept are finite.

        Args:
            what: names the pass, for the message.

        Raises:
            NonFiniteError: naming the first site with NaN or infinity.
        """
        for site, rows in self.states.items():
            # A sum of finite numbers can overflow; only then is the exact look needed.
            if not self._sums[site].isfinite() and not torch.isfinite(rows).all():
                raise NonFiniteError(
                    f"Site {site!r} gave NaN or infinity in {what}. Check it, or run the model in a wider dtype."
                )

    def not_finite(self) -> Bool[Tensor, " sample"]:
        """Mark the samples that are NaN or infinite at any site; where rows alone are kept."""
        marked = torch.zeros(len(self.of_states), dtype=torch.bool)
        for site, rows in self.states.items():
            if not self._sums[site].isfinite():
                marked |= ~torch.isfinite(rows).all(1)
        return marked

    def keep(self, site: str, state: Tensor, *, rows_alone: bool) -> None:
        """Keep the state at a site.

        Raises:
            InputError: the site was reached before.
            UnsupportedHostError: what stands there is no state.
        """
        if site in self.states:
            raise InputError(
                f"Site {site!r} was reached twice in one forward pass, so its depth is not one place. Name one call "
                f"of it, {site + '#0'!r} or {site + '#1'!r}, or choose sites that are reached once."
            )
        require_plain(state)
        if not state.is_floating_point():
            raise UnsupportedHostError(
                f"Site {site!r} gave a tensor of {state.dtype}; a state is of floating-point numbers. "
                "Choose other sites with sites=."
            )
        if state.ndim == 4 and self.tokens is not None:
            raise UnsupportedHostError(
                f"Site {site!r} gave a state of shape {tuple(state.shape)} in a pass of {self.tokens.shape} tokens "
                "(batch, position), and it is not known which of its axes are these. Name them, as in attach(model, "
                "sites, layout='batch position head width')."
            )
        self.shapes[site] = tuple(state.shape)
        # The copy matters: an in-place operation further on would write into what was kept.
        if not rows_alone:
            self.states[site] = state.detach().clone()
            return
        every = to_rows(state.detach())
        rows = self.samples(site).take(every)
        # NaN and infinity survive any sum: a finite sum clears all rows, and is read only once the pass is over.
        self._sums[site] = rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))
        self.states[site] = rows.to("cpu", copy=rows is every)


@contextmanager
def recorded(
    host: Host,
    sites: Sequence[str],
    skip: int,
    ended: Callable[[PassRecord], None],
    *,
    rows_alone: bool = False,
) -> Iterator[None]:
    """Record the passes that are made while a context lasts.

    Args:
        host: the host.
        sites: what to keep.
        skip: leading places of each sequence that are no samples.
        ended: called with the record of each pass that ends without an exception.
        rows_alone: keep the samples' rows on the CPU in place of the states; their sums tell whether they are finite.
    """
    key = object()

    def record(passes: Passes, site: str, state: Tensor) -> None:
        running = passes.current
        if running is None:  # a block that is called by itself
            return
        if key not in running.kept:
            running.kept[key] = PassRecord(skip, running.tokens, running.arguments)
        running.kept[key].keep(site, state, rows_alone=rows_alone)

    def done(running: Pass) -> None:
        own = running.kept.get(key)
        ended(PassRecord(skip, running.tokens, running.arguments) if own is None else own)

    with ExitStack() as stack:
        stack.enter_context(host.eager())
        passes = stack.enter_context(host.passes(sites, done))
        stack.enter_context(host.hooked({site: partial(record, passes, site) for site in sites}))
        yield


def warn_of_train_mode(model: nn.Module, stacklevel: int = 3) -> None:
    """Warn that a model in train mode has states that are random.

    Args:
        model: the model.
        stacklevel: of the caller to be named, as `warnings.warn` counts.
    """
    if model.training:
        warnings.warn(
            "The model is in train mode: dropout and batch statistics make its states random. Call model.eval() first.",
            stacklevel=stacklevel,
        )
