"""Hooks that change the states at some sites, each in place by a map of its rows: a handle, and a list of hooks.

What `Patch` is for edits of the operator, for changes of the state itself. Costs the maps alone. Nothing is left behind
on any exit. Knows nothing of what the maps are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hosts.layouts import to_rows
from koopman_interp.hosts.passes import Passes, refuse_recomputation
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions
from koopman_interp.patching.motion import in_full_precision
from koopman_interp.patching.places import Alive, chosen_rows

RowMap = Callable[[Float[Tensor, "row width"]], Float[Tensor, "row width"]]
"""From rows of a state to the rows that take their place."""


class SiteHooks:
    """Changes of the states at some sites, not yet in force.

    A context manager (`with hooks: model.generate(…)`) and a handle (`install`, `remove`) for any model; for one of
    TransformerLens also the list of hooks that its methods take: `run_with_hooks(…, fwd_hooks=hooks)`, and
    `fwd_hooks=[*hooks, *others]`.

    Args:
        host: what is hooked.
        maps: of the rows at each site; without any, nothing is hooked.
        positions: places to change, counted from each sequence's first real token on and through a key-value cache;
            None is all.
        what: the change, in words.
    """

    def __init__(self, host: Host, maps: Mapping[str, RowMap], positions: Positions, what: str) -> None:
        self.host = host
        self.positions = positions
        self.what = what
        self._maps = dict(maps)
        self._installed: ExitStack | None = None

    def __repr__(self) -> str:
        where = ", ".join(self._maps) or "no site"
        return f"SiteHooks({self.what}, at {where}, {'installed' if self._installed else 'not installed'})"

    def install(self) -> SiteHooks:
        """Change the model's states until `remove` is called.

        Raises:
            InputError: they are installed already.
        """
        if self._installed is not None:
            raise InputError("These hooks are installed already. Remove them first, or make others.")
        with ExitStack() as stack:
            if self._maps:
                stack.enter_context(self.host.eager())
                passes = stack.enter_context(self.host.passes(tuple(self._maps)))
                # First of all hooks, so that every other reader of a site sees what is written there.
                stack.enter_context(self.host.hooked(self._hooks(passes), first=True))
            self._installed = stack.pop_all()
        return self

    def remove(self) -> None:
        """Leave the model as it was before `install`; does nothing a second time."""
        installed, self._installed = self._installed, None
        if installed is not None:
            installed.close()

    def fwd_hooks(self) -> list[tuple[str, Callable[..., Any]]]:
        """Return them for TransformerLens's `run_with_hooks(fwd_hooks=…)` and `hooks(fwd_hooks=…)`.

        As long as the list lives, the model's passes are followed, which tells the hooks where each token stands.

        Raises:
            UnsupportedHostError: the model's framework has no such idiom.
        """
        held, alive = ExitStack(), Alive()
        with held:
            passes = held.enter_context(self.host.passes(tuple(self._maps)))
            hooks = {site: partial(alive.call, hook) for site, hook in self._hooks(passes).items()}
            pairs = self.host.fwd_hooks(hooks)
            if pairs:
                weakref.finalize(alive, held.pop_all().close)
        return pairs

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        return iter(self.fwd_hooks())

    def __len__(self) -> int:
        return len(self._maps)

    def __enter__(self) -> SiteHooks:
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _hooks(self, passes: Passes) -> dict[str, Callable[[Tensor], Tensor | None]]:
        return {site: partial(self._changed, passes, site) for site in self._maps}

    def _changed(self, passes: Passes, site: str, state: Tensor) -> Tensor | None:
        running = passes.current
        refuse_recomputation(running)
        if running is None:  # a module that is called by itself
            return None
        rows = to_rows(state)
        chosen = chosen_rows(running, state, site, self.positions)
        with in_full_precision(state):
            own = rows if chosen is None else rows[chosen]
            moved = self._maps[site](own.to(torch.promote_types(own.dtype, torch.float32))).to(own)
        return (moved if chosen is None else rows.index_copy(0, chosen, moved)).view_as(state)
