"""A zoo of hosts, drawn at random: small models as people write them, and the passes that are made through them.

A `Plan` says which model, which hooks of its user and which passes; `zoo_models` makes them. Blocks write in place or
not, return their state in one container or another, are shared, dropped in some passes, left early; the model may do
something of its own between them. Knows nothing of observing or patching.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from importlib.util import find_spec
from typing import Any, Literal

from hypothesis import strategies as st

Layout = Literal["rows", "positions", "tokens", "images"]
SHAPES: dict[Layout, tuple[int, ...]] = {"rows": (4,), "positions": (4,), "tokens": (4,), "images": (2, 2, 2)}
"""Shape of one sample's state: of a row, of a token, or of an image."""

Kind = Literal["new", "in place", "as it came"]
Output = Literal["tensor", "tuple", "list", "named tuple", "dict", "model output", "extra first", "dataclass"]
Between = Literal["nothing", "new", "in place", "relu in place"]
Call = Literal["position", "hidden_states=", "x="]
Does = Literal["reads", "writes in place", "returns another", "calls the model", "raises"]


OUTPUTS: tuple[Output, ...] = ("tensor", "tuple", "list", "named tuple", "dict", "extra first", "dataclass")
if find_spec("transformers"):
    OUTPUTS = (*OUTPUTS, "model output")


class _Readable:
    """Prints what differs from the defaults only, so that a shrunk example says what it is about."""

    def __repr__(self) -> str:
        told = []
        for attribute in fields(self):  # type: ignore[arg-type]  # those who inherit are dataclasses
            value = getattr(self, attribute.name)
            default = attribute.default_factory() if attribute.default_factory is not MISSING else attribute.default
            if value != default:
                told.append(f"{attribute.name}={value!r}")
        return f"{type(self).__name__}({', '.join(told)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the same in the examples of hypothesis."""
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class Pass(_Readable):
    """One call of the model.

    Attributes:
        batch: inputs in it.
        seed: of the inputs.
        drop: which of the calls of blocks are left out.
        stop: after how many calls of blocks the trunk returns; None is after all.
        entry: what is called: the whole (the wrapper, where there is one), the model in it, or the model's trunk.
        keywords: whether it is called by keyword.
    """

    batch: int = 2
    seed: int = 0
    drop: tuple[int, ...] = ()
    stop: int | None = None
    entry: Literal["whole", "model", "trunk"] = "whole"
    keywords: bool = False

    def runs(self, call: int) -> bool:
        """Whether a call of a block is made."""
        return call not in self.drop and (self.stop is None or call < self.stop)


@dataclass(frozen=True, repr=False)
class UserHook(_Readable):
    """A hook of the user's, on the block of one call.

    Attributes:
        call: index of the call of a block; the hook is on the block, so at all of its calls.
        at_input: before the block, not behind it.
        does: `calls the model` and `raises` happen in the first pass only, once.
        late: placed after the tap or patch, not before.
    """

    call: int = 0
    at_input: bool = False
    does: Does = "reads"
    late: bool = False


@dataclass(frozen=True, repr=False)
class Plan(_Readable):
    """A model, hooks of its user, and passes.

    Attributes:
        layout: of the states.
        blocks: what each block does with its state: returns a new one, writes into it, or returns it as it came.
        calls: which block is called at each depth; a block may be called several times.
        output: in what blocks return their state.
        extra: what they return beside it, for the model to use: nothing, a tensor, or an object that holds one.
        between: what the model does with the state after each block.
        called: how blocks get their state.
        wrapped: whether the model is inside another module.
        hooks: of the user.
        passes: made in this order.
        threads: whether the first two passes run at the same time.
        gradients: whether gradients are taken.
        checkpointed: whether blocks run again in the backward pass, and of which of torch's two kinds.
    """

    layout: Layout = "rows"
    blocks: tuple[Kind, ...] = ("new", "new", "new")
    calls: tuple[int, ...] = (0, 1, 2)
    output: Output = "tensor"
    extra: Literal["nothing", "tensor", "object"] = "nothing"
    between: Between = "nothing"
    called: Call = "position"
    wrapped: bool = False
    hooks: tuple[UserHook, ...] = ()
    passes: tuple[Pass, ...] = field(default_factory=lambda: (Pass(),))
    threads: bool = False
    gradients: bool = False
    checkpointed: Literal["no", "without reentry", "reentrant"] = "no"

    def site(self, depth: int) -> str:
        """Name the site at a depth: the input of the first block, then the output of each call."""
        call = max(depth - 1, 0)
        block = self.calls[call]
        name = f"{'model.' if self.wrapped else ''}trunk.blocks.{block}{':input' if depth == 0 else ''}"
        return name if self.calls.count(block) == 1 else f"{name}#{self.calls[:call].count(block)}"

    @property
    def nests(self) -> bool:
        """Whether a hook calls the model from within a pass."""
        return any(hook.does == "calls the model" for hook in self.hooks)

    @property
    def raises(self) -> bool:
        """Whether a hook raises in the first pass."""
        return any(hook.does == "raises" for hook in self.hooks)

    @property
    def unclear(self) -> bool:
        """Whether nothing in a block's signature or output says which tensor is the state."""
        return self.output in ("extra first", "dataclass") or self.called == "x="


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Draw the usual in two cases of three, so that a draw has few oddities and each is seen alone."""
    return st.one_of(st.just(usual), st.just(usual), st.sampled_from(others))


@st.composite
def passes(draw: st.DrawFn, calls: int) -> Pass:
    """Draw a pass through so many calls of blocks."""
    return Pass(
        batch=draw(st.sampled_from([2, 1, 3])),
        seed=draw(st.integers(0, 3)),
        drop=draw(mostly((), *((call,) for call in range(calls)))),
        stop=draw(mostly(None, *range(1, calls))),
        entry=draw(mostly("whole", "model", "trunk")),
        keywords=draw(st.booleans()),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a plan."""
    count = draw(st.sampled_from([3, 2, 4]))
    blocks = tuple(draw(mostly("new", "in place", "as it came")) for _ in range(count))
    calls = draw(mostly(tuple(range(count)), (0, *range(count)), (*range(count), 0), (0, 1, 1, 0)))
    between = draw(mostly("nothing", "new", "in place", "relu in place"))
    drawn_hook = st.builds(
        UserHook,
        call=st.integers(0, len(calls) - 1),
        at_input=st.booleans(),
        does=st.sampled_from(["reads", "writes in place", "returns another", "calls the model", "raises"]),
        late=st.booleans(),
    )
    hooks = tuple(draw(st.one_of(st.just([]), st.just([]), st.lists(drawn_hook, min_size=1, max_size=2))))
    written = [*blocks, between, *(hook.does for hook in hooks)]
    gradients = not any("place" in what for what in written) and draw(mostly(False, True))
    called, output = draw(mostly("position", "hidden_states=", "x=")), draw(mostly(*OUTPUTS))
    kinds = ["no"]
    # A hook that acts once makes the pass that is run again another one, patched or not.
    if gradients and called == "position" and not {"calls the model", "raises"} & {hook.does for hook in hooks}:
        # Reentrant checkpoints lose the gradient of tensors in containers.
        kinds += ["without reentry", *(["reentrant"] if output == "tensor" else [])]
    made = tuple(draw(st.lists(passes(len(calls)), min_size=1, max_size=3)))
    return Plan(
        layout=draw(st.sampled_from(["rows", "positions", "tokens", "images"])),
        blocks=blocks,
        calls=calls,
        output=output,
        extra=draw(mostly("nothing", "tensor", "object")),
        between=between,
        called=called,
        wrapped=draw(mostly(False, True)),
        hooks=hooks,
        passes=made,
        threads=len(made) > 1 and draw(mostly(False, True)),
        gradients=gradients,
        checkpointed=draw(st.sampled_from(kinds)),
    )
