"""Replacing a span of a TransformerLens model's blocks by one function, without their compute.

The blocks' instances get a stand-in for `forward`: the first advances its input, those between hand on what they
get, the last returns the advanced state. TransformerLens's own ways past blocks (`stop_at_layer`, `start_at_layer`)
are honoured at the span's ends and refused inside it, where they would silently give something else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from koopman_hosts.lens_calls import argument, each_call
from koopman_hosts.skipping import Unheard, overridden, refuse_cache
from koopman_hosts.states import NO_STATE, input_state, is_bare, is_handed_on, with_state
from koopman_interp.errors import InputError, UnskippableError
from koopman_interp.hosts.passes import Passes


@contextmanager
def skipped(
    model: Any, blocks: range, ends: tuple[nn.Module, nn.Module], advance: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Put `advance(state that enters the first block)` in place of what leaves the last.

    Args:
        model: a bridge or HookedTransformer.
        blocks: indices of the blocks to skip.
        ends: hook point at the input of the first, and at the output of the last.
        advance: from state to state, in the host's own shape.
    """
    span = _Span(model, blocks, ends, advance)
    with ExitStack() as stack:
        span.passes = stack.enter_context(each_call(model, ends))
        for method in ("forward", "run_with_cache"):
            stack.enter_context(overridden(model, method, span.guarded))
        for index in blocks:
            stack.enter_context(overridden(model.blocks[index], "forward", partial(span.forward, index)))
        yield


class _Span:
    def __init__(
        self, model: Any, blocks: range, ends: tuple[nn.Module, nn.Module], advance: Callable[[Tensor], Tensor]
    ) -> None:
        self._count = len(model.blocks)
        self._skipped = blocks
        self._first: Any = model.blocks[blocks.start]
        self._enter, self._leave = ends
        self._advance = advance
        self._frame: Any = None
        self.passes = Passes()
        within = [point for index in blocks for point in _hook_points(model.blocks[index], type(ends[0]))]
        inside = [point for point in within if point is not ends[0] and point is not ends[1]]
        self._unheard = Unheard((point._forward_hooks for point in inside), blocks)

    def guarded(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Refuse a pass that starts or stops inside the span; a stand-in for what starts one."""
        for name in ("start_at_layer", "stop_at_layer"):
            layer = argument(original, name, args, kwargs)
            if layer is not None and layer % self._count in self._skipped[1:]:
                raise InputError(
                    f"{name}={layer} lies inside the replaced span of blocks {self._skipped.start} to "
                    f"{self._skipped.stop - 1}, where there are no states. Start and stop at the span's ends or "
                    "outside of it, or patch with mode='delta', which runs every block."
                )
        return original(*args, **kwargs)

    def forward(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for one block."""
        running = self.passes.current
        if running is None:
            return original(*args, **kwargs)
        if index == self._skipped.start:
            if getattr(self._first, "_stop_at_layer_idx", None) == index:
                return original(*args, **kwargs)  # which stops before it computes
            refuse_cache(running.cache, self._skipped)
            if hasattr(self._first, "_maybe_inject_start_residual"):
                args, kwargs = self._first._maybe_inject_start_residual(args, kwargs)
            if self._frame is None:
                self._frame = self._learnt(original, args, kwargs)
            self._unheard.tell()
            running.kept[self] = self._advance(self._enter(input_state(args, kwargs)))
        elif self not in running.kept or not is_handed_on(input_state(args, kwargs), running.kept[self]):
            raise InputError(
                f"Block {index} of the replaced span was not called with what the block before it returned: the model "
                "changes the state between its blocks, or drops some. Patch with mode='delta'."
            )
        state: Tensor = running.kept[self].to(input_state(args, kwargs).device)
        return with_state(self._frame, self._leave(state) if index == self._skipped.stop - 1 else state)

    def _learnt(self, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Learn what blocks return by running one, with all hook points in it silent."""
        silent = OrderedDict[int, Any]()
        with ExitStack() as stack, torch.no_grad():
            for point in _hook_points(self._first, type(self._enter)):
                stack.callback(point.__dict__.__setitem__, "_forward_hooks", point._forward_hooks)
                point.__dict__["_forward_hooks"] = silent
            frame = with_state(block(*args, **kwargs), NO_STATE)
        if not is_bare(frame):
            raise UnskippableError(
                "The blocks of this model return more than their state, which only they can supply, so they cannot be "
                "skipped. Patch with mode='delta'."
            )
        return frame


def _hook_points(block: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in block.modules() if isinstance(module, kind)]
