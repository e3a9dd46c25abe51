"""patched(): run a host with the dynamics of a surrogate, edited or not, in its forward pass.

`delta` adds `D(P-edited motion) − D(unedited motion)` to the host's own state at the target, so that what the
surrogate cannot explain passes through, and without an edit no bit changes. `replace` puts the surrogate's motion
in place of the span and skips the blocks' compute where the host allows. Nothing is left behind on any exit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Literal

from torch import Tensor, nn

from koopman_interp.autoencoder import KoopmanAutoencoder
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.hosts import Host, HostFingerprint, host_for, span
from koopman_interp.layouts import to_rows
from koopman_interp.operators import Propagator

Mode = Literal["delta", "replace"]
Edits = OperatorEdit | Sequence[OperatorEdit] | None


@contextmanager
def patched(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    edit: Edits = None,
    *,
    mode: Mode = "delta",
    source: str | int | None = None,
    target: str | int | None = None,
    check_weights: bool = True,
) -> Iterator[None]:
    """Patch the surrogate's motion into a host's forward passes while the context lasts.

    Args:
        model: the host that the surrogate was fitted on.
        koopman: the surrogate.
        edit: an edit, several that act in the given order, or None.
        mode: `delta` adds what the edit changes to the host's own state; `replace` overwrites it.
        source: site or depth where the span starts; None is the first.
        target: site or depth where it ends; None is the last.
        check_weights: refuse a host whose weights are not the ones fitted on. Off, a fine-tuned or relearning
            host is let through.

    Yields:
        Nothing; the model itself is what to call.

    Raises:
        HostMismatchError: the surrogate or an edit belongs to another host.
        InputError: the span is not one, or an edit acts outside of it.

    Examples:
        >>> import torch, koopman_interp as ki
        >>> from koopman_interp.testing import ResidualMLP
        >>> model = ResidualMLP(inputs=4, width=8, blocks=3, outputs=2).eval()
        >>> x = torch.randn(64, 4)
        >>> koopman = ki.fit(ki.attach(model).observe(x), method="least_squares")
        >>> with torch.no_grad(), ki.patched(model, koopman):
        ...     patched = model(x)
        >>> torch.equal(patched, model(x))
        True
    """
    if mode not in ("delta", "replace"):
        raise InputError(f"mode={mode!r} is neither 'delta' nor 'replace'.")
    host = host_for(model)
    first, last = span(koopman.sites, source, target)
    edits = (edit,) if isinstance(edit, OperatorEdit) else tuple(edit or ())
    _require_own(host, koopman, edits, check_weights)
    motion = Motion(_on_device(koopman, host.model), first, last, edits)
    sites = koopman.sites[first], koopman.sites[last]
    with ExitStack() as stack:
        if mode == "replace":
            stack.enter_context(host.replaced(*sites, motion.replacement))
        elif edits:
            carried: list[Tensor] = []

            def read(state: Tensor) -> None:
                carried[:] = [state]

            def write(state: Tensor) -> Tensor:
                return motion.added(state, carried.pop())

            stack.enter_context(host.hooked({sites[0]: read}))
            stack.enter_context(host.hooked({sites[1]: write}, first=True))
        yield


class Motion:
    """The surrogate's motion over a span, with and without edits, on states in the host's own shape.

    Args:
        koopman: the surrogate, on the host's device.
        first: depth of the source.
        last: depth of the target.
        edits: in the order in which they act at their depths.
    """

    def __init__(self, koopman: KoopmanAutoencoder, first: int, last: int, edits: Sequence[OperatorEdit]) -> None:
        for edit in edits:
            if not first <= edit.depth <= last:
                raise InputError(
                    f"The edit {edit.description!r} acts at {edit.site!r}, outside the patched span from "
                    f"{koopman.sites[first]!r} to {koopman.sites[last]!r}. Widen the span, or erase at a site in it."
                )
        self.koopman = koopman
        self.first, self.last = first, last
        self.edits = tuple(edits)
        self._legs = self._planned()

    def advanced(self, z: Tensor, *, edited: bool) -> Tensor:
        """Move observables from source to target, through the edits on the way."""
        # Both motions take the same legs, so that an edit of strength nothing rounds to nothing.
        for propagate, edit in self._legs:
            z = propagate(z)
            if edited and edit is not None:
                z = edit(z)
        return z

    def replacement(self, state: Tensor) -> Tensor:
        """Return the state at the target from the state at the source, as the edited surrogate has it."""
        z = self.advanced(self.koopman.encode(to_rows(state), self.first), edited=True)
        return self.koopman.state_from_rows(self.koopman.decode(z, self.last), state, self.last)

    def added(self, state: Tensor, source: Tensor) -> Tensor:
        """Return the host's state at the target with the edit's change added to it."""
        z = self.koopman.encode(to_rows(source), self.first)
        change = self.koopman.decoder(self.advanced(z, edited=True)) - self.koopman.decoder(
            self.advanced(z, edited=False)
        )
        rows = self.koopman.normalization.denormalize_difference(change, self.last)
        return state + self.koopman.state_from_rows(rows, state, self.last)

    def _planned(self) -> list[tuple[Propagator, OperatorEdit | None]]:
        """Cut the span at the depths where edits act: the power of K to take, then the edit to apply."""
        legs: list[tuple[Propagator, OperatorEdit | None]] = []
        here = self.first
        for edit in sorted(self.edits, key=lambda edit: edit.depth):
            legs.append((self._power(here, edit.depth), edit))
            here = edit.depth
        return [*legs, (self._power(here, self.last), None)]

    def _power(self, source: int, target: int) -> Propagator:
        return self.koopman.operator.propagator(self.koopman.steps(source, target))


def _require_own(host: Host, koopman: KoopmanAutoencoder, edits: Sequence[OperatorEdit], check_weights: bool) -> None:
    ignoring = () if check_weights else ("weights",)
    found = HostFingerprint.of(host)
    koopman.config.host.require(found, "surrogate", ignoring=ignoring)
    digest = koopman.digest() if edits else ""
    for edit in edits:
        edit.host.require(found, "edit", ignoring=ignoring)
        if edit.operator != digest:
            raise HostMismatchError(
                f"The edit {edit.description!r} was made for another surrogate of this host. "
                "Make it anew from this one: the moments are kept with it."
            )


def _on_device(koopman: KoopmanAutoencoder, model: nn.Module) -> KoopmanAutoencoder:
    """Return the surrogate where the model is; the caller's own stays where it was."""
    parameter = next(model.parameters(), None)
    own = next(koopman.parameters()).device
    if parameter is None or parameter.device == own:
        return koopman
    return deepcopy(koopman).to(parameter.device)
