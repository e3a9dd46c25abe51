"""Stand-ins for the `forward` of a run of blocks, whose last returns the advanced state of the source.

What each block returns is learnt by letting one pass compute the span for real. Later passes skip it, unless the model
does something of its own between the blocks, or a block returns anything beside its state: then only the blocks
themselves can supply what follows, and every pass computes them. A pass that skips is held to what was learnt: where
the model does in it what it did not do then, it is refused. All that belongs to one pass is kept with that pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from koopman_hosts.skipping import Unheard, refuse_cache
from koopman_hosts.states import NO_STATE, input_state, is_bare, is_handed_on, output_state, with_state
from koopman_interp.errors import InputError
from koopman_interp.hosts.passes import Pass, Passes, refuse_recomputation


@dataclass(eq=False)
class _OnePass:
    """What belongs to one pass over the span.

    Attributes:
        advanced: the state for the target.
        flowing: what was handed to the model last, and its version then.
        frames: what the blocks returned, without their states.
        chained: whether each block got what the block before it had returned.
        skips: whether the blocks' compute is skipped.
        reached: how many blocks were called.
    """

    advanced: Tensor
    flowing: Tensor
    version: int | None
    skips: bool
    frames: list[Any] = field(default_factory=list)
    chained: bool = True
    reached: int = 0

    def hand_on(self, state: Tensor) -> None:
        self.flowing, self.version = state, _version(state)

    def got(self, state: Tensor) -> bool:
        same = is_handed_on(state, self.flowing)
        return same and (state is not self.flowing or _version(state) == self.version)


class SkippedSpan:
    """The stand-ins of one span.

    Args:
        blocks: indices of the blocks in their run.
        ends: names of the sites where the span starts and ends.
        advance: from the state at the source to the one at the target.
        unheard: the hooks that a skipped span does not call.
    """

    def __init__(
        self, blocks: range, ends: tuple[str, str], advance: Callable[[Tensor], Tensor], unheard: Unheard
    ) -> None:
        self.passes = Passes()
        self._blocks = blocks
        self._ends = ends
        self.advance = advance
        self._unheard = unheard
        self._frames: list[Any] | None = None
        self._skippable = True

    def read(self, state: Tensor) -> None:
        """Take the state at the source; a hook there."""
        running = self.passes.current
        if running is None:
            return
        skips = self._frames is not None and self._skippable
        if self._skippable:
            refuse_cache(running.cache, self._blocks)
        if skips:
            self._unheard.tell()
        if self in running.kept:
            raise InputError(f"The pass reached {self._ends[0]!r} twice, so where the span starts is not one place.")
        running.kept[self] = _OnePass(self.advance(state), state, _version(state), skips)

    def end(self, running: Pass) -> None:
        """Take leave of a pass, and learn from it.

        Raises:
            InputError: it left the span before its end, so that nothing was put there.
        """
        own: _OnePass | None = running.kept.get(self)
        if own is None:
            return
        if own.reached < len(self._blocks):
            raise InputError(
                f"The pass went from {self._ends[0]!r} on but never reached {self._ends[1]!r}, so nothing was put "
                "there: the model left early or dropped blocks. Patch with mode='delta', or a span that every pass "
                "goes through."
            )
        if not own.skips:
            self._skippable &= own.chained and all(map(is_bare, own.frames))
            self._frames = own.frames

    def forward_of(self, index: int) -> Callable[..., Any]:
        """Return the stand-in for one block of the span."""
        return partial(self._forward, index)

    def _forward(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        running = self.passes.current
        refuse_recomputation(running)
        if running is None:
            return original(*args, **kwargs)
        own: _OnePass | None = running.kept.get(self)
        if own is None or own.reached != index:
            raise InputError(
                f"The pass reached block {self._blocks[index]} of the replaced span from {self._ends[0]!r} to "
                f"{self._ends[1]!r} without the one before it: the model drops or repeats blocks. Patch with "
                "mode='delta', or a span that every pass goes through."
            )
        own.reached += 1
        same = own.got(input_state(args, kwargs))
        if not own.skips:
            return self._computed(own, same, original, args, kwargs)
        if not same:
            raise InputError(
                f"The model changes the state between the replaced blocks {self._blocks.start} to "
                f"{self._blocks.stop - 1} in this pass, which it did not do in the first. Patch with mode='delta', or "
                "with positions=slice(0, None), which computes every block."
            )
        own.hand_on(own.advanced)
        assert self._frames is not None
        return with_state(self._frames[index], own.advanced)

    def _computed(
        self, own: _OnePass, same: bool, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Compute a block for real, and put the advanced state in the place of the last one's."""
        own.chained &= same
        output = original(*args, **kwargs)
        own.frames.append(with_state(output, NO_STATE))
        if own.reached == len(self._blocks):
            return with_state(output, own.advanced)
        own.hand_on(output_state(output))
        return output


def _version(state: Tensor) -> int | None:
    """Count of the writes into a tensor; inference tensors keep none."""
    return None if state.is_inference() else state._version
