"""A forward pass as a value: it begins where the outermost module that holds all sites is entered, and ends there.

Whoever enters it (the model, a wrapper, `generate`, the bare trunk), what belongs to one pass lives and dies with it:
each thread and each nested call has a pass of its own, and a pass that raises leaves nothing behind. An adapter says
when such modules, the containers, are entered and left; the rest stands here. Knows nothing of frameworks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from koopman_interp.errors import InputError
from koopman_interp.hosts.arguments import cache_of, cached_length, matrix_of_ids
from koopman_interp.hosts.tokens import Tokens

Arguments = Mapping[str, Any]
ArgumentReader = Callable[[Arguments], Tokens | None]
"""From the arguments of a container's call, by name, to its tokens; None where it has none."""


class Pass:
    """One forward pass, while it runs.

    Attributes:
        kept: what readers keep for the time of the pass, each under a key of its own.
        gradients: whether gradients were recorded where it began.
        cached: tokens in the cache that it goes on from, as it began; None where that does not tell its length.
        result: what the innermost container returned, once it has.
    """

    def __init__(self, read: ArgumentReader) -> None:
        self.kept: dict[Hashable, Any] = {}
        self.gradients = torch.is_grad_enabled()
        self.cached: int | None = 0
        self.result: object = None
        self._read = read
        self._levels: list[int] = []
        self._calls: list[Arguments] = []
        self._tokens: tuple[Tokens | None] | None = None

    @property
    def arguments(self) -> Arguments:
        """Arguments of the call that began it, by name."""
        return self._calls[0]

    @property
    def tokens(self) -> Tokens | None:
        """Its tokens, as the innermost container whose call tells them; None without any.

        Where one farther out was called with the same ids, their axes in the other order, they are as it has them.

        Raises:
            InputError: there are tokens, and no call tells which of them are padding.
        """
        if self._tokens is None:
            self._tokens = (self._told(),)
        return self._tokens[0]

    def _told(self) -> Tokens | None:
        unclear: InputError | None = None
        for arguments in reversed(self._calls):
            try:
                tokens = self._read(arguments)
            except InputError as error:  # a mask that a container has made for its layers; one farther out may tell
                unclear = unclear or error
                continue
            if tokens is not None:
                return self._as_outside(tokens)
        if unclear is not None:
            raise unclear
        return None

    def _as_outside(self, tokens: Tokens) -> Tokens:
        own = tokens.ids
        for arguments in self._calls[:-1]:
            ids = matrix_of_ids(arguments.get("input_ids", next(iter(arguments.values()), None)))
            if own is None or ids is None or (ids.shape == own.shape and torch.equal(ids, own)):
                continue
            if ids.shape == own.T.shape and torch.equal(ids, own.T):
                return self._read(arguments) or tokens
        return tokens

    @property
    def cache(self) -> Any:
        """The key-value cache that it is called with; None without one."""
        caches = (cache_of(arguments) for arguments in reversed(self._calls))
        return next((cache for cache in caches if cache is not None), None)

    def _enter(self, level: int, arguments: Arguments) -> None:
        self._levels.append(level)
        self._calls.append(arguments)
        self._tokens = None
        if (cache := cache_of(arguments)) is not None:
            self.cached = cached_length(cache)
            _ = self.tokens  # read now: the blocks make the cache longer, and the places would be counted from there


class Passes:
    """The passes of one model that are under way: a stack a thread.

    Args:
        ended: called with each pass that ends without an exception.
        read: reads the tokens of a call off its arguments.
    """

    def __init__(self, ended: Callable[[Pass], None] | None = None, read: ArgumentReader = Tokens.of_arguments) -> None:
        self._ended = ended
        self._read = read
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, by deepcopy or by pickle, has no passes under way.
        return {name: value for name, value in vars(self).items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _local=threading.local())

    @property
    def current(self) -> Pass | None:
        """The innermost pass of this thread; None outside of any."""
        stack = self._stack
        return stack[-1] if stack else None

    @contextmanager
    def within(self, level: int, arguments: Arguments) -> Iterator[Pass]:
        """Stand in a container for the time of one call of it.

        Args:
            level: of the container, the outermost 0; one that is entered from within itself, or from one farther in,
                begins a pass of its own.
            arguments: of the call, by name.

        Yields:
            The pass.
        """
        stack = self._stack
        begins = not stack or level <= stack[-1]._levels[-1]
        if begins:
            stack.append(Pass(self._read))
        running = stack[-1]
        running._enter(level, arguments)
        try:
            yield running
            if begins and self._ended is not None:
                self._ended(running)
        finally:
            running._levels.pop()
            if begins:
                stack.remove(running)

    @property
    def _stack(self) -> list[Pass]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[Pass] = self._local.stack
        return stack


def in_backward() -> bool:
    """Whether this thread is in a backward pass of torch's."""
    return torch._C._current_graph_task_id() != -1


def refuse_recomputation(running: Pass | None) -> None:
    """Refuse modules that are computed again in the backward pass, where what is written in a pass would be missing.

    Args:
        running: the pass that is under way; None for a module that is called by itself, or again.

    Raises:
        InputError: this is the second time, or it is known that there will be one.
    """
    if in_backward() if running is None else _is_checkpointed():
        raise InputError(
            "This model computes its blocks again in the backward pass (activation checkpointing), where a patch "
            "would be missing. Switch checkpointing off while the model is patched "
            "(model.gradient_checkpointing_disable() in Hugging Face)."
        )


def _is_checkpointed() -> bool:
    """Whether torch's checkpointing, the kind without reentry, is to compute what runs now once more."""
    if not torch.is_grad_enabled():
        return False
    saving = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return saving is not None and "checkpoint" in getattr(saving[0], "__qualname__", "")
