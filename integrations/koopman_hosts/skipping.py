"""What adapters share in putting a state in place of a span: methods set on instances, and hooks where that fails.

A method set in an instance's `__dict__` is what the framework calls in place of the class's; taken off again, it
leaves no trace. Knows nothing of how a framework's blocks call each other.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from koopman_interp.errors import InputError
from koopman_interp.hosts.passes import refuse_recomputation
from koopman_interp.hosts.protocol import Host


class _Chain:
    """Stand-ins for one method of one instance, the newest outermost; each may leave at any time."""

    def __init__(self, below: Callable[..., Any], before: dict[str, Any]) -> None:
        functools.update_wrapper(self, below)
        self._below = below
        self.before = before
        self.layers: list[Callable[..., Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._below
        for layer in self.layers:
            # Each link shows the method's own signature, by which frameworks and stand-ins read its arguments.
            call = functools.update_wrapper(functools.partial(layer, call), self._below)
        return call(*args, **kwargs)


@contextmanager
def overridden(module: nn.Module, method: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Let an instance answer to a method with a stand-in; what the instance had of its own comes back on any exit.

    Contexts may end in any order.

    Args:
        module: the instance.
        method: name of the method.
        stand_in: called with the method that it stands in for, then with the arguments.
    """
    # Through __dict__, since frameworks give their modules a __setattr__ that registers what is set.
    own = module.__dict__
    found = own.get(method)
    if isinstance(found, _Chain):
        chain = found
    else:
        chain = _Chain(getattr(module, method), {method: found} if method in own else {})
        own[method] = chain
    chain.layers.append(stand_in)
    try:
        yield
    finally:
        chain.layers[:] = [layer for layer in chain.layers if layer is not stand_in]
        # A method that another has set on top meanwhile is not ours to take off.
        if not chain.layers and own.get(method) is chain:
            del own[method]
            own.update(chain.before)


@contextmanager
def overwritten(host: Host, source: str, target: str, advance: Callable[[Tensor], Tensor]) -> Iterator[bool]:
    """Write `advance(state at source)` over the state at target by hooks; its value says that no compute is skipped."""
    key = object()

    def read(state: Tensor) -> None:
        running = passes.current
        refuse_recomputation(running)
        if running is not None:
            running.kept[key] = advance(state)

    def write(_: Tensor) -> Tensor | None:
        running = passes.current
        refuse_recomputation(running)
        if running is None:
            return None
        if key not in running.kept:
            raise InputError(f"The pass reached {target!r} before {source!r}, so there is nothing to put there.")
        advanced: Tensor = running.kept.pop(key)
        return advanced

    with (
        host.passes((source, target)) as passes,
        host.hooked({source: read}),
        host.hooked({target: write}, first=True),
    ):
        yield False


class Unheard:
    """Hooks inside a span that is skipped; one warning tells of them."""

    def __init__(self, hooks: Iterable[Mapping[int, Any]], blocks: range) -> None:
        """Remember where modules keep the hooks that would go unheard, and the indices of the blocks."""
        self._hooks = list(hooks)
        self._blocks = blocks

    def tell(self) -> None:
        """Warn if there is a hook; to be called when the span is skipped."""
        if any(self._hooks):
            self._hooks = []
            warnings.warn(
                f"There are hooks inside the replaced blocks {self._blocks.start} to {self._blocks.stop - 1}, which "
                "are skipped: these hooks do not fire, or see the state that is put at the span's end. Hooks at the "
                "span's two ends see the states there.",
                stacklevel=2,
            )


def refuse_cache(cache: Any, skipped: Container[int]) -> None:
    """Refuse a pass with a key-value cache whose length is read from a block that is skipped.

    Frameworks read it from the first block, and those that mix full and sliding attention from the first of each.

    Args:
        cache: what the model is called with, or None.
        skipped: indices of the blocks that are skipped.

    Raises:
        InputError: the pass cannot do without one of them.
    """
    if cache is None:
        return
    sliding = list(getattr(cache, "is_sliding", None) or [False])
    asked = next((index for index in sorted({sliding.index(kind) for kind in sliding} | {0}) if index in skipped), None)
    if asked is not None:
        raise InputError(
            f"A span over block {asked} cannot be replaced while a key-value cache is in use: the cache's length is "
            f"read from that block, which would be skipped. Patch with source={asked + 1} (or a later depth), or call "
            "without a cache (use_cache=False; use_past_kv_cache=False in TransformerLens)."
        )
