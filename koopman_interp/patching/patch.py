"""patched(): run a host with the dynamics of a surrogate, edited or not, in its forward pass.

`delta` adds what the edits change to the host's own state at the target, so that what the surrogate cannot explain
passes through, and without an edit no bit changes. `replace` puts the surrogate's motion in place of the span and
skips the blocks' compute where the host allows. Edits at several depths meet at the target as one change, or each is
written in place at its own site, from where the host itself, attention and all, carries on. Nothing is left behind on
any exit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn

from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.layouts import shaped_like, to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions, Tokens
from koopman_interp.patching.motion import Mode, Motion
from koopman_interp.sites import span
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

Edits = OperatorEdit | Sequence[OperatorEdit] | None

At = Literal["target", "each site"]
"""Where edits are written: carried by K to the target of the span, or each in place at the site where it acts."""


def patched(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    edit: Edits = None,
    *,
    mode: Mode = "delta",
    source: str | int | None = None,
    target: str | int | None = None,
    at: At = "target",
    positions: Positions = None,
    check_weights: bool = True,
) -> Patch:
    """Patch the surrogate's motion into a host's forward passes.

    As a context it lasts as long as the context; without one, `handle = patched(…).install()` lasts until
    `handle.remove()`. Gradients flow through it to the host; the surrogate is a constant.

    Args:
        model: the host that the surrogate was fitted on.
        koopman: the surrogate.
        edit: an edit, several that act in the given order, or None.
        mode: `delta` adds what the edit changes to the host's own state; `replace` overwrites it.
        source: site or depth where the span starts. None is the first in `replace` mode; in `delta` mode it is where
            the first edit acts, since the host's own state there is better than any prediction of it.
        target: site or depth where it ends; None is the last.
        at: `target` carries what the edits change through K to the end of the span. `each site` writes each edit in
            place where it acts, `x + D(P E(x)) − D(E(x))`, and the host carries on from there: what attention
            brings to later sites is edited too. It is a `delta`, without a span of its own.
        positions: for tokens, places to patch, counted from each sequence's first real token on and through a
            key-value cache: a slice, whole numbers, or a function from places `[batch, position]` to a mask. None
            patches the places that the surrogate was fitted on, `slice(0, None)` all. With some positions only,
            `replace` computes the span and overwrites it there.
        check_weights: refuse a host whose weights are not the ones fitted on. Off, a fine-tuned or relearning
            host is let through.

    Returns:
        The patch, not yet installed: a context manager, and what `audit` judges.

    Raises:
        HostMismatchError: the surrogate or an edit belongs to another host.
        InputError: the span is not one, an edit acts outside of it, or a span is given for edits at each site.

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
    edits = (edit,) if isinstance(edit, OperatorEdit) else tuple(edit or ())
    return Patch(host_for(model), koopman, edits, PatchOptions(mode, source, target, at, positions, check_weights))


@dataclass(frozen=True)
class PatchOptions:
    """How edits are patched; `patched` says what each of these means.

    Raises:
        InputError: they do not go together.
    """

    mode: Mode = "delta"
    source: str | int | None = None
    target: str | int | None = None
    at: At = "target"
    positions: Positions = None
    check_weights: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("delta", "replace"):
            raise InputError(f"mode={self.mode!r} is neither 'delta' nor 'replace'.")
        if self.at not in ("target", "each site"):
            raise InputError(f"at={self.at!r} is neither 'target' nor 'each site'.")
        if self.at == "each site" and (self.mode == "replace" or (self.source, self.target) != (None, None)):
            raise InputError(
                "Edits at each site are written in place: mode='delta', without source and target. The edits "
                "themselves say at which sites."
            )


class Patch:
    """Edited dynamics of a surrogate in a host, made by `patched`: what is audited is what is deployed.

    A context manager (`with patch:`), a handle (`install`, `remove`), hooks of the framework's own idiom (`fwd_hooks`)
    and a copy of the model that carries it (`bake`), all of them the same patch.

    Attributes:
        host: what is patched.
        koopman: the surrogate.
        edits: what is edited, in the given order.
        options: how they are patched.
        positions: places that are patched, those that the surrogate was fitted on unless told otherwise.
        motion: the surrogate's motion over the span, on the host's device.
        source: site where the span starts.
        target: site where it ends.
        without: sites inside a replaced span, where the patched host has no states.
    """

    def __init__(
        self, host: Host, koopman: KoopmanAutoencoder, edits: Sequence[OperatorEdit], options: PatchOptions
    ) -> None:
        mode, at = options.mode, options.at
        _require_own(host, koopman, edits, options.check_weights)
        # Gone are edits of strength nothing: they would cost what an edit costs.
        acting = [one for one in edits if one.directions.any()]
        self._idle = mode == "delta" and not acting
        if at == "each site" and not self._idle:
            depths = sorted({one.depth for one in acting})
            groups = [(depth, depth, [one for one in acting if one.depth == depth]) for depth in depths]
        else:
            # In `delta` mode the motion of no edit is still checked for its span.
            groups = [(*_ends(koopman, edits, options), [*edits] if self._idle else acting)]
        device = device_of(host.model)
        motions = [Motion(koopman, first, last, some, mode).to(device) for first, last, some in groups]
        self.host = host
        self.koopman = koopman
        self.edits = tuple(edits)
        self.options = options
        self.mode = mode
        self.source, self.target = koopman.sites[groups[0][0]], koopman.sites[groups[-1][1]]
        self.without = koopman.sites[groups[0][0] + 1 : groups[0][1]] if mode == "replace" else ()
        self.positions = options.positions
        if self.positions is None and koopman.config.skip:
            self.positions = slice(koopman.config.skip, None)
        self.motion: nn.Module = motions[0] if len(motions) == 1 else nn.ModuleList(motions)
        self._spans = [
            _Span(first, last, koopman.sites[first], koopman.sites[last], koopman.config.shapes[last], motion)
            for (first, last, _), motion in zip(groups, motions, strict=True)
        ]
        self._tokens: Tokens | None = None
        self._installed: ExitStack | None = None

    def __repr__(self) -> str:
        where = f"{type(self.host.model).__name__}, {', '.join(map(str, self._spans))}"
        return f"Patch({where}, {self.mode}, {'installed' if self._installed else 'not installed'})"

    def install(self) -> Patch:
        """Patch the host until `remove` is called.

        Raises:
            InputError: it is installed already.
        """
        if self._installed is not None:
            raise InputError("This patch is installed already. Remove it first, or make another with patched(…).")
        with ExitStack() as stack:
            if self.positions is not None:
                stack.enter_context(self.host.passes(self._begin))
            whole = self._spans[0]
            # Bound to the patch and not to its span, so that what is installed keeps the patch alive.
            advance = partial(self._advance, whole)
            if self.mode == "replace" and self.positions is None:
                stack.enter_context(self.host.replaced(whole.source, whole.target, advance))
            elif not self._idle:
                for one in self._spans:
                    hooks = self._hooks_of(one)
                    if one.source != one.target:
                        stack.enter_context(self.host.hooked({one.source: hooks[one.source]}))
                    stack.enter_context(self.host.hooked({one.target: hooks[one.target]}, first=True))
            self._installed = stack.pop_all()
        return self

    def on(self, model: nn.Module | Host, *, check_weights: bool = False) -> Patch:
        """Return the same patch of another model of the same sites: a copy that is fine-tuned, say.

        Args:
            model: the other model.
            check_weights: refuse it where its weights are not the ones fitted on.

        Raises:
            HostMismatchError: it differs in more than its weights.
        """
        return Patch(host_for(model), self.koopman, self.edits, replace(self.options, check_weights=check_weights))

    def fwd_hooks(self) -> list[tuple[str, Callable[..., Any]]]:
        """Return the patch as hooks for TransformerLens's `run_with_hooks(fwd_hooks=…)` and `hooks(fwd_hooks=…)`.

        The numbers are those of `with patch`; `replace` skips no compute as hooks.

        Raises:
            UnsupportedHostError: the host's framework has no such idiom.
        """
        return self.host.fwd_hooks(self.hooks())

    def bake(self) -> nn.Module:
        """Return a copy of the model that carries the patch as a module of its own.

        The copy is called as the model is, is patched wherever it goes, and can be deep-copied. The patch is its
        submodule `koopman_patch`, so its state dict holds the patch too; another copy baked with an edit of the same
        rank and span loads it. The model itself is left as it was.

        Returns:
            The copy, in the mode (train or eval) of the model.
        """
        copy = deepcopy(self.host.model)
        baked = self.on(copy, check_weights=self.options.check_weights).install()
        copy.add_module("koopman_patch", baked.motion)
        return copy

    def remove(self) -> None:
        """Leave the host as it was before `install`; does nothing a second time."""
        installed, self._installed = self._installed, None
        self._tokens = None
        for one in self._spans:
            one.state = None
        if installed is not None:
            installed.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Patch:
        """Copy along with a model that carries this patch; the copy's hooks are the copied model's own."""
        copied = Patch.__new__(Patch)
        memo[id(self)] = copied
        for name, value in vars(self).items():
            setattr(copied, name, None if name == "_installed" else deepcopy(value, memo))
        return copied

    def __enter__(self) -> Patch:
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def moved_by(self, motion: Callable[[int, int], nn.Module]) -> None:
        """Put other motions in place of the prepared ones: for edits that are being trained.

        Args:
            motion: takes the depths of a span, and returns a module that maps rows at its source as a `Motion` does.
        """
        motions = [motion(one.first, one.last) for one in self._spans]
        for one, own in zip(self._spans, motions, strict=True):
            one.motion = own
        self.motion = motions[0] if len(motions) == 1 else nn.ModuleList(motions)
        self._idle = False

    def hooks(self) -> dict[str, Callable[[Tensor], Tensor | None]]:
        """Return the hooks that read at sources and write at targets."""
        return {site: hook for one in self._spans for site, hook in self._hooks_of(one).items()}

    def _hooks_of(self, span: _Span) -> dict[str, Callable[[Tensor], Tensor | None]]:
        if span.source == span.target:
            return {span.target: partial(self._write_in_place, span)}
        return {span.source: span.read, span.target: partial(self._write, span)}

    def _begin(self, tokens: Tokens | None) -> None:
        self._tokens = tokens

    def _write_in_place(self, span: _Span, state: Tensor) -> Tensor:
        span.read(state)
        return self._write(span, state)

    def _write(self, span: _Span, state: Tensor) -> Tensor:
        source, span.state = span.state, None
        if source is None:
            raise InputError(
                f"The pass reached {span.target!r} before {span.source!r}, so there is nothing to move on from."
            )
        rows = to_rows(source)
        where = None if self.positions is None else self._chosen(state, span.target).flatten().nonzero().squeeze(1)
        moved = span.motion(rows if where is None else rows[where.to(rows.device)])
        if where is None:
            return self._put(state, shaped_like(moved, state, span.shape))
        chosen = self._put(to_rows(state)[where], moved.to(state))
        return to_rows(state).index_copy(0, where, chosen).view_as(state)

    def _advance(self, span: _Span, state: Tensor) -> Tensor:
        return shaped_like(span.motion(to_rows(state)), state, span.shape)

    def _put(self, state: Tensor, moved: Tensor) -> Tensor:
        return state + moved if self.mode == "delta" else moved

    def _chosen(self, state: Tensor, site: str) -> Tensor:
        """Mark the rows of a state `[batch, position, width]` that are to be patched."""
        if state.ndim != 3:
            raise InputError(
                f"Positions choose among tokens, but the state at {site!r} has the shape {tuple(state.shape)}; "
                "expected [batch, position, width]. Patch without positions."
            )
        shape = (state.shape[0], state.shape[1])
        tokens = self._tokens if self._tokens is not None else Tokens.of_mask(None, shape, 0, state)
        if tokens.shape != shape:
            raise InputError(
                f"The pass was called with {tokens.shape} tokens (batch, position), but the state at {site!r} "
                f"has {shape}, so their places are not known. Patch without positions."
            )
        return tokens.at(self.positions).to(state.device)


@dataclass(eq=False)
class _Span:
    """One motion in the host: where it reads, where it writes, and what was read in the pass that is running."""

    first: int
    last: int
    source: str
    target: str
    shape: tuple[int, ...]
    motion: nn.Module
    state: Tensor | None = None

    def __str__(self) -> str:
        return repr(self.source) if self.source == self.target else f"{self.source!r} to {self.target!r}"

    def read(self, state: Tensor) -> None:
        self.state = state


def _ends(koopman: KoopmanAutoencoder, edits: Sequence[OperatorEdit], options: PatchOptions) -> tuple[int, int]:
    """Resolve the span; in `delta` mode it begins where the first edit acts."""
    source, target = options.source, options.target
    if source is None and options.mode == "delta" and edits:
        # The span of an edit at the last depth begins one before it.
        source = min(len(koopman.sites) - 2, *(one.depth for one in edits))
    return span(koopman.sites, source, target)


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
