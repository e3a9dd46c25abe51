"""What must come of a plan: its passes made with plain forward hooks, each of which copies what it reads at once.

Also the hooks of the plan's user, and its passes as they are put to the test: nested, in threads, interrupted. Knows
nothing of the package.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.hosts.zoo import Pass, Plan, UserHook
from tests.hosts.zoo_models import build, call, inputs_of, repacked, unpacked

NESTED = Pass(batch=1, seed=9)
"""The pass that a hook of the user makes from within another."""


@dataclass(frozen=True)
class Written:
    """What is written at one depth: a function of the rows read at another, and of the state there.

    Attributes:
        source: depth at which is read.
        target: depth at which is written.
        state: from the copy read and the state at the target, `[*layout]` both, to what takes its place.
    """

    source: int
    target: int
    state: Callable[[Pass, Tensor, Tensor], Tensor]


@dataclass
class Outcome:
    """What came of one pass.

    Attributes:
        output: logits, or the last state of a bare trunk; None where the pass was interrupted.
        refusal: the exception that ended it.
        states: copies of the states that went by, by depth.
        unread: whether it reached the depth to write at before the one to read at, or without it.
        nested: what came of passes made from within it.
        gradient: of half the squared output with respect to the embedding.
    """

    output: Tensor | None = None
    refusal: Exception | None = None
    states: dict[int, Tensor] = field(default_factory=dict)
    unread: bool = False
    nested: list[Outcome] = field(default_factory=list)
    gradient: Tensor | None = None


class InterruptionError(Exception):
    """Raised by a hook of the user."""


class Run:
    """A model of a plan, hooks, and the passes through it, one after the other.

    Args:
        plan: of the model.
        whole: the model.
        refusals: exceptions that are kept as a pass's outcome.
    """

    def __init__(self, plan: Plan, whole: nn.Module, refusals: tuple[type[Exception], ...] = ()) -> None:
        self.plan, self.whole, self.refusals = plan, whole, refusals
        self._local = threading.local()
        self._barrier = threading.Barrier(2)

    @contextmanager
    def hooked(self, *, late: bool, disturbing: bool = True) -> Iterator[None]:
        """Place the user's hooks.

        Args:
            late: those that are placed late, or those placed early.
            disturbing: also those that change no state, but call the model again, raise, or wait for another thread.
        """
        removals = [
            self._place(hook)
            for hook in self.plan.hooks
            if hook.late == late and (disturbing or hook.does in ("writes in place", "returns another"))
        ]
        if disturbing and not late and self.plan.threads:
            removals += [block.register_forward_hook(self._wait).remove for block in blocks_of(self.whole)]
        try:
            yield
        finally:
            for remove in removals:
                remove()

    def passes(self) -> list[Outcome]:
        """Make the passes; the first two at the same time where the plan says so."""
        wanted = list(enumerate(self.plan.passes))
        outcomes = [Outcome() for _ in wanted]

        def make(index: int, forward: Pass) -> None:
            self._local.outcome, self._local.undisturbed = outcomes[index], index > 0
            self.make(forward, outcomes[index])

        if self.plan.threads:
            with ThreadPoolExecutor(2) as pool:
                # Taken out, so that an error of a thread is raised here.
                list(pool.map(make, *zip(*wanted[:2], strict=True)))
            wanted = wanted[2:]
        for index, forward in wanted:
            make(index, forward)
        return outcomes

    def make(self, forward: Pass, outcome: Outcome) -> None:
        """Make one pass, and keep what comes of it."""
        try:
            with nullcontext() if self.plan.gradients else torch.no_grad():
                output = call(self.plan, self.whole, forward)
            if self.plan.gradients and not self.plan.threads:
                self.whole.zero_grad()
                (output.square().sum() / 2).backward()
                embedding = next(weight for name, weight in self.whole.named_parameters() if "embed" in name)
                assert embedding.grad is not None
                outcome.gradient = embedding.grad.clone()
        except InterruptionError:
            return
        except self.refusals as refusal:
            outcome.refusal = refusal
            return
        outcome.output = output.detach().clone()

    def _place(self, hook: UserHook) -> Callable[[], None]:
        block = blocks_of(self.whole)[self.plan.calls[hook.call]]
        if hook.at_input:
            return at_input(block, lambda state: self._do(hook, state))
        return at_output(block, lambda state: self._do(hook, state))

    def _do(self, hook: UserHook, state: Tensor) -> Tensor | None:
        match hook.does:
            case "writes in place":
                state.mul_(1.1)
            case "returns another":
                return state * 1.1
            case "calls the model" | "raises" if not self._local.undisturbed:
                self._local.undisturbed = True
                if hook.does == "raises":
                    raise InterruptionError
                outcome = Outcome()
                self._local.outcome.nested.append(outcome)
                self.make(NESTED, outcome)
        return None

    def _wait(self, *_: Any) -> None:
        # Long enough for the other thread to come, where it does; a broken barrier holds nobody any more.
        with suppress(threading.BrokenBarrierError):
            self._barrier.wait(0.05)


def by_hand(plan: Plan, written: Written | None = None) -> tuple[list[Outcome], Outcome]:
    """Make the passes of a plan in a model of its own with hooks by hand, one after the other and undisturbed.

    Returns:
        What came of each pass, with the states at all depths; and of the nested one.
    """
    plan = replace(plan, threads=False, checkpointed="no")
    whole, outcomes = build(plan), []
    run = Run(plan, whole)
    for forward in (*plan.passes, NESTED):
        outcome = Outcome()
        with (
            run.hooked(late=False, disturbing=False),
            _copied(plan, whole, forward, outcome, written),
            run.hooked(late=True, disturbing=False),
        ):
            run.make(forward, outcome)
        outcomes.append(outcome)
    return outcomes[:-1], outcomes[-1]


@contextmanager
def _copied(plan: Plan, whole: nn.Module, forward: Pass, outcome: Outcome, written: Written | None) -> Iterator[None]:
    """In one pass, copy the state at each depth, and write at one of them."""

    def copy(depth: int, state: Tensor) -> None:
        outcome.states[depth] = state.clone()

    def write(state: Tensor) -> Tensor | None:
        assert written is not None
        if written.source == written.target:
            return written.state(forward, state.clone(), state.clone())
        read = outcome.states.get(written.source)
        outcome.unread = read is None
        return None if read is None else written.state(forward, read, state.clone())

    removals = [_at_depth(plan, whole, depth, partial(copy, depth)) for depth in range(len(plan.calls) + 1)]
    if written is not None:
        removals.append(_at_depth(plan, whole, written.target, write, first=True))
    try:
        yield
    finally:
        for remove in removals:
            remove()


def _at_depth(
    plan: Plan, whole: nn.Module, depth: int, hook: Callable[[Tensor], Tensor | None], *, first: bool = False
) -> Callable[[], None]:
    """Place a hook at a depth: at that call of the block, counted from its first in the pass."""
    call = max(depth - 1, 0)
    block = blocks_of(whole)[plan.calls[call]]
    left = plan.calls[:call].count(plan.calls[call])

    def counted(state: Tensor) -> Tensor | None:
        nonlocal left
        left -= 1
        return hook(state) if left == -1 else None

    return (at_output if depth else at_input)(block, counted, first=first)


def real_rows(plan: Plan, forward: Pass, state: Tensor) -> Tensor:
    """Flatten a state to one row a sample, without padding."""
    if plan.layout == "tokens":
        return state[inputs_of(plan, forward)["attention_mask"].bool()]
    return state.flatten(1) if plan.layout == "images" else state.reshape(-1, state.shape[-1])


def blocks_of(whole: nn.Module) -> list[nn.Module]:
    """List the blocks of a model."""
    trunk = next(module for name, module in whole.named_modules() if name.rpartition(".")[2] == "trunk")
    return list(trunk.get_submodule("blocks").children())


def at_output(block: nn.Module, hook: Callable[[Tensor], Tensor | None], *, first: bool = False) -> Callable[[], None]:
    """Place a hook on the state that a block returns."""

    def called(_block: nn.Module, _args: Any, output: Any) -> Any:
        new = hook(unpacked(output)[0])
        return None if new is None else repacked(output, new)

    return block.register_forward_hook(called, prepend=first).remove


def at_input(block: nn.Module, hook: Callable[[Tensor], Tensor | None], *, first: bool = False) -> Callable[[], None]:
    """Place a hook on the state that a block is called with."""

    def called(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = next((name for name in ("hidden_states", "x") if name in kwargs), None)
        new = hook(args[0] if name is None else kwargs[name])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if name is None else (args, kwargs | {name: new})

    return block.register_forward_pre_hook(called, with_kwargs=True, prepend=first).remove
