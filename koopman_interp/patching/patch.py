"""patched(): run a model with the dynamics of a surrogate, edited or not, in its forward pass.

`delta` adds what the edits change to the model's own state at the target, so that what the surrogate cannot explain
passes through, and without an edit no bit changes. `replace` puts the surrogate's motion in place of the span and
skips the blocks' compute where the model allows. Edits are *carried* by K to the target, where those of several depths
meet as one change, or *in place*: each written at its own site, from where the model itself, attention and all, carries
on. Nothing is left behind on any exit.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import copy, deepcopy
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError, UnsupportedHostError
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import weight_versions
from koopman_interp.hosts.layouts import shaped_like
from koopman_interp.hosts.passes import Pass, Passes, refuse_recomputation
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions
from koopman_interp.own_kinds import own_kinds
from koopman_interp.patching.arrivals import warn_of_nothing
from koopman_interp.patching.belonging import require_host, require_own
from koopman_interp.patching.looking_back import CALLED_ALONE, LookingBack, keep, new_owner, require_seen
from koopman_interp.patching.motion import Mode, Motion
from koopman_interp.patching.options import CARRIED, IN_PLACE, At, Edits, PatchOptions
from koopman_interp.patching.places import Alive, chosen_rows
from koopman_interp.patching.spans import MovedRows, PatchedSpan
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder


@own_kinds
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
    """Patch the surrogate's motion into a model's forward passes.

    As a context it lasts as long as the context; without one, `handle = patched(…).install()` lasts until
    `handle.remove()`. Gradients flow through it to the model; the surrogate is a constant.

    Args:
        model: the model that the surrogate was fitted on.
        koopman: the surrogate.
        edit: an edit, several that act in the given order, or None.
        mode: `delta` adds what the edit changes to the model's own state; `replace` overwrites it.
        source: site or depth where the span starts. None is the first in `replace` mode; in `delta` mode it is where
            the first edit acts, since the model's own state there is better than any prediction of it.
        target: site or depth where it ends; None is the last.
        at: `target` carries what the edits change through K to the end of the span. It is right where a row becomes
            the next one by itself, as in an MLP or a residual network. `each site` writes each edit in place where it
            acts, `x + D(P E(x)) − D(E(x))`, and the model carries on from there: K is not in it. It is right where
            other rows bring in again what is edited, as attention does: carried, an edit then leaves most of it. It is
            a `delta`, without a span. `ki.reach(patch, …)` measures what arrives.
        positions: for tokens, places to patch, counted from each sequence's first real token on and through a
            key-value cache: a slice, whole numbers, or a function from places `[batch, position]` to a mask. None
            patches the places that the surrogate was fitted on, `slice(0, None)` all. With some positions only,
            `replace` computes the span and overwrites it there.
        check_weights: refuse a model whose weights are not the ones fitted on. Off, a fine-tuned or relearning
            host is let through.

    Returns:
        The patch, not yet installed: a context manager, and what `audit` judges.

    Raises:
        HostMismatchError: the surrogate or an edit belongs to another host.
        InputError: the span is not one, an edit acts outside of it, a span is given for edits at each site, or the
            surrogate moves along an orbit of inputs and not through depth.

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
    return Patch(
        host_for(model, koopman.config.layout),
        koopman,
        edits,
        PatchOptions(mode, source, target, at, positions, check_weights),
    )


class Patch:
    """Edited dynamics of a surrogate in a model, made by `patched`: what is audited is what is deployed.

    A context manager (`with patch:`), a handle (`install`, `remove`), hooks of the framework's own idiom (`fwd_hooks`)
    and a copy of the model that carries it (`bake`), all of them the same patch.

    Attributes:
        host: what is patched.
        koopman: the surrogate.
        edits: what is edited, in the given order.
        options: how they are patched.
        positions: places that are patched, those that the surrogate was fitted on unless told otherwise.
        motion: the surrogate's motion over the span, on the model's device.
        source: site where the span starts.
        target: site where it ends.
        without: sites inside a replaced span, where the patched host has no states.
    """

    def __init__(
        self, host: Host, koopman: KoopmanAutoencoder, edits: Sequence[OperatorEdit], options: PatchOptions
    ) -> None:
        mode, at = options.mode, options.at
        require_own(host, koopman, edits, options.check_weights)
        self._versions = weight_versions(host.model)
        # Gone are edits of strength nothing: they would cost what an edit costs.
        acting = [one for one in edits if one.directions.any()]
        self._idle = mode == "delta" and not acting
        if at == IN_PLACE and not self._idle:
            depths = sorted({one.depth for one in acting})
            groups = [(depth, depth, [one for one in acting if one.depth == depth]) for depth in depths]
        else:
            # In `delta` mode the motion of no edit is still checked for its span.
            groups = [(*options.ends(koopman.sites, edits), [*edits] if self._idle else acting)]
        device = device_of(host.model)
        motions = [Motion(koopman, first, last, some, mode).to(device) for first, last, some in groups]
        self.host = host
        self.koopman = koopman
        self.edits = tuple(edits)
        self.options = options
        self.mode = mode
        self.source, self.target = koopman.sites[groups[0][0]], koopman.sites[groups[-1][1]]
        self.without = koopman.sites[groups[0][0] + 1 : groups[0][1]] if mode == "replace" else ()
        if not self._idle and at == CARRIED:
            warn_of_nothing(koopman, acting, groups[0][1])
        self.positions = options.positions
        if self.positions is None and koopman.config.skip:
            self.positions = slice(koopman.config.skip, None)
        self.motion: nn.Module = motions[0] if len(motions) == 1 else nn.ModuleList(motions)
        self._spans = [
            PatchedSpan(first, last, koopman.sites[first], koopman.sites[last], koopman.config.shapes[last], motion)
            for (first, last, _), motion in zip(groups, motions, strict=True)
        ]
        self._passes = Passes()
        self._told = False
        self._installed: ExitStack | None = None

    def __repr__(self) -> str:
        edits = ", then ".join(dict.fromkeys(edit.description for edit in self.edits)) or "no edit"
        state = "installed" if self._installed else "not installed"
        return f"Patch({type(self.host.model).__name__}, {edits}: {self.way}, {self.mode}, {state})"

    @property
    def way(self) -> str:
        """How its edits are written, in words."""
        if self.options.at == IN_PLACE:
            return f"written in place at {', '.join(dict.fromkeys(repr(edit.site) for edit in self.edits))}"
        return f"carried by K from {self.source!r} to {self.target!r}"

    def install(self) -> Patch:
        """Patch the model until `remove` is called.

        Raises:
            InputError: it is installed already.
            HostMismatchError: the model's weights have changed since the patch was made.
        """
        if self._installed is not None:
            raise InputError("This patch is installed already. Remove it first, or make another with patched(…).")
        self._require_unchanged()
        with ExitStack() as stack:
            if not self._idle:
                stack.enter_context(self.host.eager())
                self._enter(stack)
            self._installed = stack.pop_all()
        return self

    def _require_unchanged(self) -> None:
        """Check the model again where its weights were written into since."""
        if (versions := weight_versions(self.host.model)) != self._versions:
            require_host(self.host, self.koopman, self.options.check_weights)
            self._versions = versions

    def _enter(self, stack: ExitStack) -> None:
        """Place all hooks, to be taken off as the stack is closed."""
        whole = self._spans[0]
        if self.mode == "replace" and self.positions is None:
            if self.koopman.looks_back:
                self._passes = stack.enter_context(self.host.passes(self._sites, self._end))
            # Bound to the patch and not to its span, so that what is installed keeps the patch alive.
            stack.enter_context(self.host.replaced(whole.source, whole.target, partial(self._advance, whole)))
            return
        self._passes = stack.enter_context(self.host.passes(self._sites, self._end))
        for own in self._spans:
            hooks = self._hooks_of(own)
            if own.source != own.target:
                stack.enter_context(self.host.hooked({own.source: hooks[own.source]}))
            stack.enter_context(self.host.hooked({own.target: hooks[own.target]}, first=True))

    def on(self, model: nn.Module | Host, *, check_weights: bool = False) -> Patch:
        """Return the same patch of another model of the same sites: a copy that is fine-tuned, say.

        Args:
            model: the other model.
            check_weights: refuse it where its weights are not the ones fitted on.

        Raises:
            HostMismatchError: it differs in more than its weights.
        """
        return Patch(
            host_for(model, self.koopman.config.layout),
            self.koopman,
            self.edits,
            replace(self.options, check_weights=check_weights),
        )

    def fwd_hooks(self) -> list[tuple[str, Callable[..., Any]]]:
        """Return the patch as hooks for TransformerLens's `run_with_hooks(fwd_hooks=…)` and `hooks(fwd_hooks=…)`.

        The numbers are those of `with patch`; `replace` skips no compute as hooks. As long as the list lives, the
        model's passes are followed, which tells the hooks where each token stands.

        Raises:
            UnsupportedHostError: the model's framework has no such idiom.
            HostMismatchError: the model's weights have changed since the patch was made.
        """
        self._require_unchanged()
        # Each list follows passes of its own: another list, or the installed patch, may outlive it.
        held, alive, own = ExitStack(), Alive(), copy(self)
        own._spans = [replace(one, owner=new_owner()) for one in self._spans]
        hooks = {site: partial(alive.call, hook) for one in own._spans for site, hook in own._hooks_of(one).items()}
        pairs = self.host.fwd_hooks({} if self._idle else hooks)
        if pairs:
            own._passes = held.enter_context(self.host.passes(self._sites, own._end))
            weakref.finalize(alive, held.close)
        return pairs

    def bake(self) -> nn.Module:
        """Return a copy of the model that carries the patch as a module of its own.

        The copy is called as the model is, is patched wherever it goes, and can be deep-copied. The patch is its
        submodule `koopman_patch`, so its state dict holds the patch too; another copy baked with an edit of the same
        rank and span loads it. The model itself is left as it was.

        Returns:
            The copy, in the mode (train or eval) of the model.
        """
        host = self.host.copy()
        baked = self.on(host, check_weights=self.options.check_weights)
        with ExitStack() as stack:
            if not self._idle:
                baked._enter(stack)  # and no compiled code is set aside: a copy is not compiled, or compiled with it
            baked._installed = stack.pop_all()
        host.model.add_module("koopman_patch", baked.motion)
        if hasattr(host.model, "save_pretrained"):
            host.model.__dict__["save_pretrained"] = _refuse_to_save_plain
        return host.model

    def remove(self) -> None:
        """Leave the model as it was before `install`; does nothing a second time."""
        installed, self._installed = self._installed, None
        if installed is not None:
            installed.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Patch:
        """Copy along with a model that carries this patch; the copy's hooks are the copied model's own."""
        copied = Patch.__new__(Patch)
        memo[id(self)] = copied
        for name, value in vars(self).items():
            setattr(copied, name, None if name == "_installed" else deepcopy(value, memo))
        return copied

    def __getstate__(self) -> dict[str, object]:
        # As for a copy: the pickled model's hooks are its own.
        return vars(self) | {"_installed": None}

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

    @property
    def _sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site for own in self._spans for site in (own.source, own.target)))

    def _hooks_of(self, span: PatchedSpan) -> dict[str, Callable[[Tensor], Tensor | None]]:
        if span.source == span.target:
            return {span.target: partial(self._write_in_place, span)}
        return {span.source: partial(self._read, span), span.target: partial(self._write, span)}

    def _advance(self, span: PatchedSpan, state: Tensor) -> Tensor:
        back = self._looking_back(self._running(), span, state) if self.koopman.looks_back else None
        return shaped_like(MovedRows.of(span, state, None, back).rows, state, span.shape)

    def _read(self, span: PatchedSpan, state: Tensor) -> None:
        """Move the state at a source on at once, since the model may write into it later."""
        running = self._running()
        if running is not None:
            chosen = self._chosen(running, state, span.source)
            back = self._looking_back(running, span, state) if self.koopman.looks_back else None
            require_seen(chosen, back, self.koopman.config.skip)
            running.kept[span] = MovedRows.of(span, state, chosen, back)

    def _looking_back(self, running: Pass | None, span: PatchedSpan, state: Tensor) -> LookingBack:
        """Say what the encoder looks back on, and keep that for the end of the pass."""
        if running is None:
            raise InputError(CALLED_ALONE.format(site=span.source))
        back = LookingBack.of(running, state, span.source, self.koopman.config.skip, span.owner)
        return running.kept.setdefault((LookingBack, span.owner), back)

    def _write(self, span: PatchedSpan, state: Tensor) -> Tensor | None:
        running = self._running()
        if running is None:
            return None
        moved: MovedRows | None = running.kept.pop(span, None)
        if moved is None:
            raise InputError(
                f"The pass reached {span.target!r} before {span.source!r}, so there is nothing to move on from."
            )
        return moved.put(state, span, replacing=self.mode == "replace")

    def _write_in_place(self, span: PatchedSpan, state: Tensor) -> Tensor | None:
        self._read(span, state)
        return self._write(span, state)

    def _running(self) -> Pass | None:
        """Return the pass that is under way; None for a module that is called by itself."""
        running = self._passes.current
        refuse_recomputation(running)
        return running

    def _end(self, running: Pass) -> None:
        """Keep what was looked back on with the model's cache; say once that a pass left before it was written to."""
        for own in self._spans:
            if (back := running.kept.pop((LookingBack, own.owner), None)) is not None:
                keep(running, own.owner, back)
        left = next((own for own in self._spans if own in running.kept), None)
        if left is not None and not self._told:
            self._told = True
            warnings.warn(
                f"A pass went through {left.source!r} but never reached {left.target!r}, so nothing was patched in it: "
                "the model left early or dropped blocks. Patch with a target that every pass reaches.",
                stacklevel=2,
            )

    def _chosen(self, running: Pass, state: Tensor, site: str) -> Int[Tensor, " row"] | None:
        """Number the rows of a state `[batch, position, width]` that are to be patched; None is all."""
        return chosen_rows(running, state, site, self.positions)


def _refuse_to_save_plain(*_: Any, **__: Any) -> None:
    """Stand in for the `save_pretrained` of a baked copy."""
    raise UnsupportedHostError(
        "save_pretrained writes weights alone, and what from_pretrained makes of them would run unpatched. Save the "
        "base model, the surrogate (koopman.save_pretrained) and the edit (edit.save), and bake anew after loading; or "
        "keep the copy whole with torch.save(copy, path)."
    )
