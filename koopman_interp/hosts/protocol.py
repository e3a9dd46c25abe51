"""What the package needs of a host framework: the protocol that adapters keep.

A host is a model together with an adapter that can read and write its states at named sites. Adapters live
outside this package and register under the entry-point group `koopman_interp.hosts`; nothing here imports one
by name. Reading and writing go through the same `hooked`, so patching is observation run backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from koopman_interp.hosts.listing import SiteListing
from koopman_interp.hosts.passes import Pass, Passes
from koopman_interp.hosts.tokens import Tokenizer

Hook = Callable[[Tensor], Tensor | None]
"""Called with the state at a site, in the host's own shape; a returned tensor takes its place."""

SiteSelection = str | Sequence[str] | Callable[[str], bool] | None
"""Sites as a name or glob, several of them, a predicate on names, or None for the residual stream."""


@runtime_checkable
class Host(Protocol):
    """A model whose states can be read and written at named sites.

    Reading never changes a value, and no context leaves a trace on any exit. `koopman_interp.testing.HostContract`
    holds these laws as tests. An adapter whose framework has lenses of its own can bring them to the package's form
    with one more method, `adapted_lens(lens, sites, skip)`, which returns None for what it does not know. One that
    brings axes to the standard order of its own accord has two more: `orders_axes(sites)` says whether it does so at
    some of the sites, and `as_ordered()` returns a host that does so nowhere, for a user who names the axes. One whose
    residual stream is guessed from the order of modules has `in_a_row(sites)`: the sites of input and output of each
    block that is taken to follow the one before.
    """

    adapter: ClassVar[str]
    """Name of the adapter, as `koopman-interp hosts` lists it."""
    priority: ClassVar[int]
    """Adapters are asked in descending order; the general torch adapter has 0."""

    model: nn.Module

    @property
    def basis(self) -> str:
        """Which residual basis the states are in now; two hosts with different bases do not share surrogates."""
        ...

    @classmethod
    def accepts(cls, model: object) -> bool:
        """Whether this adapter is made for the model; must be cheap and import no framework."""
        ...

    def __init__(self, model: nn.Module) -> None: ...

    def sites(self, selection: SiteSelection = None) -> tuple[str, ...]:
        """Resolve a selection to site names in order of depth; None means the residual stream.

        Raises:
            UnknownSiteError: nothing has such a name.
            UnsupportedHostError: there is no residual stream to default to.
        """
        ...

    def listed(self) -> tuple[SiteListing, ...]:
        """List the sites that can be chosen, with their types and widths."""
        ...

    def call(self, batch: Any) -> Any:
        """Call the model on a batch, moved to its device: a tensor, or a mapping of what the framework calls with.

        Token batches are mappings in the conventions of Hugging Face: `input_ids`, `attention_mask`, …
        """
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer, of Hugging Face's kind; None where it has none."""
        ...

    @property
    def context_length(self) -> int | None:
        """Most tokens of one sequence that the model takes; None where it has no such limit, or it is not known."""
        ...

    def copy(self) -> Host:
        """Return a host of a deep copy of the model."""
        ...

    def weights_elsewhere(self) -> Mapping[int, Tensor]:
        """Return the weights that are kept elsewhere, on the CPU or on disk, by the id of their stand-in on `meta`."""
        ...

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Turn texts into one padded batch for `call`, with its `attention_mask`.

        Raises:
            InputError: the host has no tokenizer.
        """
        ...

    def passes(
        self, sites: Sequence[str] = (), ended: Callable[[Pass], None] | None = None
    ) -> AbstractContextManager[Passes]:
        """Follow the forward passes that reach some sites, whoever starts them.

        A pass begins where the outermost module that contains all the sites is entered, and ends where it is left, on
        any exit; each thread and each nested call has a pass of its own.

        Args:
            sites: the sites; without any, a pass is one call of the model itself.
            ended: called with each pass that ends without an exception.

        Returns:
            A context, whose value tells the pass that is under way; it leaves no trace.
        """
        ...

    def eager(self) -> AbstractContextManager[None]:
        """Set compiled code aside for the time of a context, since it was traced without the hooks of the moment."""
        ...

    def hooked(self, hooks: Mapping[str, Hook], *, first: bool = False) -> AbstractContextManager[None]:
        """Call each hook whenever its site is reached, in a pass or not; all are removed on any exit.

        Args:
            hooks: by site.
            first: before the hooks that are there already, so that every other reader of the site sees what these
                write. Otherwise after them.
        """
        ...

    def replaced(self, source: str, target: str, advance: Callable[[Tensor], Tensor]) -> AbstractContextManager[bool]:
        """Put `advance(state at source)` at target, skipping the compute between where that is possible.

        Hooks of others at both ends still fire, those at the target with the new state. The context's value says
        whether the compute is skipped.

        Raises:
            InputError: during a pass that cannot do without the skipped blocks, such as one that reads a cache which
                only they would have filled.
            UnskippableError: during a pass, blocks return what only they can compute.
        """
        ...

    def fwd_hooks(self, hooks: Mapping[str, Hook]) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """Put the same hooks in the framework's own idiom: pairs of site and function, for its `run_with_hooks`.

        Raises:
            UnsupportedHostError: the framework has no such idiom.
        """
        ...
