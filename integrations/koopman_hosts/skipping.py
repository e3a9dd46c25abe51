"""What adapters share in putting a state in place of a span: methods set on instances, and hooks where that fails.

A method set in an instance's `__dict__` is what the framework calls in place of the class's; taken off again, it
leaves no trace. Knows nothing of how a framework's blocks call each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from koopman_interp.errors import InputError
from koopman_interp.hosts import Host


@contextmanager
def overridden(module: nn.Module, method: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Let an instance answer to a method with a stand-in; what the instance had of its own comes back on any exit."""
    # Through __dict__, since frameworks give their modules a __setattr__ that registers what is set.
    own = module.__dict__
    before = {method: own[method]} if method in own else {}
    own[method] = stand_in
    try:
        yield
    finally:
        own.pop(method, None)
        own.update(before)


@contextmanager
def overwritten(host: Host, source: str, target: str, advance: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Write `advance(state at source)` over the state at target by hooks, which skips no compute."""
    carried: list[Tensor] = []

    def read(state: Tensor) -> None:
        carried[:] = [state]

    with host.hooked({source: read}), host.hooked({target: lambda _: advance(carried.pop())}, first=True):
        yield


def refuse_cache(cache: Any) -> None:
    """Refuse a pass with a key-value cache, for a span that starts at the first block.

    Raises:
        InputError: there is a cache.
    """
    if cache is not None:
        raise InputError(
            "A span that starts at the first block cannot be replaced while a key-value cache is in use: the cache's "
            "length is read from that block, which would be skipped. Patch with source=1 (or a later depth), or call "
            "with use_cache=False."
        )
