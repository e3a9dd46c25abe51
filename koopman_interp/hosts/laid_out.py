"""A host whose states have their axes in another order than the package's, brought over at the hooks and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor

from koopman_interp.hosts.layouts import Layout
from koopman_interp.hosts.protocol import Hook, Host


def in_layout(hook: Hook, layout: Layout) -> Hook:
    """Let a hook see states, and return them, in the standard order of axes."""
    return partial(_in_standard, hook, layout)


def _in_standard(hook: Hook, layout: Layout, state: Tensor) -> Tensor | None:
    new = hook(layout.standard(state))
    return None if new is None else layout.back(new, state)


def advanced_in(layout: Layout, advance: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """Let a function of states in the standard order of axes take and return one in a layout."""
    return layout.back(advance(layout.standard(state)), state)


def orders_axes(host: Host, sites: Sequence[str]) -> bool:
    """Whether a host brings the axes of states at some of the sites to the standard order of its own accord."""
    return hasattr(host, "orders_axes") and bool(host.orders_axes(sites))


class LaidOut:
    """A host with the layout that its user names.

    Everything that does not concern states is the host's own.

    Args:
        host: the host.
        pattern: names of the axes of its states; see `Layout`.
    """

    def __init__(self, host: Host, pattern: str) -> None:
        self.host: Host = host.as_ordered() if hasattr(host, "as_ordered") else host
        self.layout = Layout(pattern)

    def __getattr__(self, name: str) -> Any:
        if name == "host":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.host, name)

    def copy(self) -> LaidOut:
        """Return a host of a deep copy of the model, with the same layout."""
        return LaidOut(self.host.copy(), self.layout.pattern)

    def hooked(self, hooks: Mapping[str, Hook], *, first: bool = False) -> AbstractContextManager[None]:
        """Call each hook with states in the standard order of axes; see `Host.hooked`."""
        return self.host.hooked({site: in_layout(hook, self.layout) for site, hook in hooks.items()}, first=first)

    def replaced(self, source: str, target: str, advance: Callable[[Tensor], Tensor]) -> AbstractContextManager[bool]:
        """Put `advance(state at source)` at target, both in the standard order of axes; see `Host.replaced`."""
        return self.host.replaced(source, target, partial(advanced_in, self.layout, advance))

    def fwd_hooks(self, hooks: Mapping[str, Hook]) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """Put hooks that see states in the standard order of axes in the framework's own idiom."""
        return self.host.fwd_hooks({site: in_layout(hook, self.layout) for site, hook in hooks.items()})
