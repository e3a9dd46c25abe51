"""On every host that can be drawn, what is observed and patched is what hooks by hand give, or it is refused.

The surrogate is an identity and its edit one formula, so that what a patch must write is known. A sentence instead of
a number is accepted only where `Plan.unclear` and the pass give a reason. 25 draws a law; 200 with
`--hypothesis-profile=ci`, 5,000 with `--hypothesis-profile=zoo`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Literal

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo import eval_frame

import koopman_interp as ki
from koopman_interp.errors import KoopmanInterpError
from koopman_interp.testing.identities import change, identity, mover
from koopman_interp.testing.traces import differences, traces
from tests.hosts.zoo import SHAPES, Layout, Pass, Plan, mostly, plans
from tests.hosts.zoo_by_hand import NESTED, Outcome, Run, Written, by_hand, real_rows
from tests.hosts.zoo_models import POSITIONS, build, inputs_of

Mode = Literal["delta", "replace", "each site"]


@dataclass(frozen=True)
class Cut:
    """How a host is patched.

    Attributes:
        mode: of the patch, or `each site`: written in place at the source.
        source: depth.
        target: depth.
        places: of tokens, which are patched.
    """

    mode: Mode
    source: int
    target: int
    places: slice | tuple[int, ...] | None = None


@st.composite
def patched_plans(draw: st.DrawFn) -> tuple[Plan, Cut]:
    """Draw a plan, and a span of it."""
    plan = draw(plans())
    source = draw(st.integers(0, len(plan.calls) - 1))
    target = draw(st.integers(source + 1, len(plan.calls)))
    places = mostly(None, slice(1, None), (0,), slice(0, None)) if plan.layout in ("tokens", "positions") else st.none()
    return plan, Cut(draw(st.sampled_from(["delta", "replace", "each site"])), source, target, draw(places))


def by_formula(plan: Plan, cut: Cut) -> Written:
    """Say what the patch writes: the moved state of the source in place of the target's, or its change added there."""

    def written(forward: Pass, read: Tensor, state: Tensor) -> Tensor:
        moved = change(read.flatten(1) if plan.layout == "images" else read).view_as(read)
        new = (read if cut.mode == "replace" else state) + moved
        return new if cut.places is None else torch.where(_chosen(plan, cut, forward, read)[..., None], new, state)

    return Written(cut.source, cut.source if cut.mode == "each site" else cut.target, written)


def _chosen(plan: Plan, cut: Cut, forward: Pass, state: Tensor) -> Tensor:
    real = torch.ones(state.shape[:2], dtype=torch.bool)
    if plan.layout == "tokens":
        real = inputs_of(plan, forward)["attention_mask"].bool()
    place = real.long().cumsum(1) - 1
    wanted = torch.arange(state.shape[1])[cut.places if isinstance(cut.places, slice) else list(cut.places or ())]
    return real & torch.isin(place, wanted)


def patch_of(whole: nn.Module, plan: Plan, cut: Cut) -> ki.Patch:
    """Make the patch, with an identity for a surrogate."""
    koopman = identity(whole, (plan.site(cut.source), plan.site(cut.target)), SHAPES[plan.layout])
    how: dict[str, Any] = {"at": "each site"} if cut.mode == "each site" else {"mode": cut.mode}
    return ki.patched(whole, koopman, mover(koopman), positions=cut.places, **how)


@pytest.mark.parametrize("mode", ["delta", "replace", "each site"])
@pytest.mark.parametrize("layout", SHAPES)
def test_the_patch_of_the_zoo_changes_what_a_host_says(layout: Layout, mode: Mode) -> None:
    """Else right numbers would prove nothing."""
    plan = Plan(layout=layout)
    (plain,), _ = by_hand(plan)
    (patched,), _ = by_hand(plan, by_formula(plan, Cut(mode, 1, 2)))
    assert plain.output is not None and patched.output is not None
    assert (plain.output - patched.output).abs().max() > 0.1


@contextmanager
def hushed() -> Iterator[None]:
    """Without the warnings of what goes unheard or unpatched, and those of a compiler that cannot see into hooks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There are hooks inside the replaced blocks")
        warnings.filterwarnings("ignore", message="A pass went through .* so nothing was patched in it")
        warnings.filterwarnings("ignore", message="Dynamo does not know how to trace")
        yield


@given(plans())
def test_what_is_observed_is_what_hooks_by_hand_see(plan: Plan) -> None:
    expected, nested = by_hand(plan)
    whole = build(plan)
    run = Run(plan, whole, (KoopmanInterpError,))
    tap = ki.attach(whole, [plan.site(depth) for depth in range(len(plan.calls) + 1)])
    with hushed(), run.hooked(late=False):
        before = traces(whole)
        with tap, run.hooked(late=True):
            outcomes = run.passes()
        assert differences(traces(whole), before) == []
    recorded = []
    for forward, outcome, right in zip(plan.passes, outcomes, expected, strict=True):
        made = [(NESTED, inner, nested) for inner in outcome.nested] + [(forward, outcome, right)]
        for own, came, hand in made:
            if came.refusal is not None:
                assert plan.unclear or len(hand.states) <= len(plan.calls), came.refusal
                assert str(came.refusal)
            elif came.output is not None:
                assert len(hand.states) == len(plan.calls) + 1, "a pass that left out a site was not refused"
                assert close(came.output, hand.output)
                recorded.append((own, hand))
            else:
                assert plan.raises
    if recorded:
        orders = permutations(recorded) if plan.threads or plan.nests else [recorded]
        observed = _as_columns(tap.trajectories)
        assert any(same(observed, _columns(plan, order)) for order in orders), [own for own, _ in recorded]


def _as_columns(trajectories: ki.Trajectories) -> list[Tensor]:
    ids = [] if trajectories.tokens is None else [trajectories.tokens]
    return [*trajectories.states, trajectories.sequence, trajectories.position, *ids]


def _columns(plan: Plan, recorded: Sequence[tuple[Pass, Outcome]]) -> list[Tensor]:
    """Return the states at all depths, and of each row which input it is of, at which place, and which token."""
    columns = [torch.cat(parts) for parts in zip(*(_states(plan, *both) for both in recorded), strict=True)]
    sequences, places, ids, before = [], [], [], 0
    for forward, _ in recorded:
        positions = POSITIONS if plan.layout in ("tokens", "positions") else 1
        real = torch.ones(forward.batch, positions, dtype=torch.bool)
        if plan.layout == "tokens":
            real = inputs_of(plan, forward)["attention_mask"].bool()
            ids.append(inputs_of(plan, forward)["input_ids"][real])
        sequences.append((before + torch.arange(forward.batch)[:, None].expand_as(real))[real])
        places.append((real.long().cumsum(1) - 1)[real])
        before += forward.batch
    return [*columns, torch.cat(sequences), torch.cat(places), *([torch.cat(ids)] if ids else [])]


def _states(plan: Plan, forward: Pass, outcome: Outcome) -> list[Tensor]:
    return [real_rows(plan, forward, outcome.states[depth].detach()) for depth in range(len(plan.calls) + 1)]


@given(patched_plans())
def test_a_patched_pass_gives_what_hooks_by_hand_give(drawn: tuple[Plan, Cut]) -> None:
    plan, cut = drawn
    expected, nested = by_hand(plan, by_formula(plan, cut))
    whole = build(plan)
    run = Run(plan, whole, (KoopmanInterpError,))
    patch = patch_of(whole, plan, cut)
    with hushed(), run.hooked(late=False):
        before = traces(whole)
        with patch, run.hooked(late=True):
            outcomes = run.passes()
        assert differences(traces(whole), before) == []
    for forward, outcome, right in zip(plan.passes, outcomes, expected, strict=True):
        for inner in outcome.nested:
            require(plan, cut, NESTED, inner, nested)
        require(plan, cut, forward, outcome, right)


# Compiling takes a fifth of a second, so that shrinking would take minutes.
@settings(max_examples=max(settings.default.max_examples // 10, 3), phases=[Phase.generate])
@given(patched_plans(), st.booleans())
def test_a_compiled_host_is_patched_as_it_is(drawn: tuple[Plan, Cut], elsewhere: bool) -> None:
    """Compiled before it is patched; what is patched is the compiled module, or the one that it was made from."""
    plan, cut = drawn
    # Compiled, a model whose control flow depends on its arguments is wrong at times by itself (torch 2.13).
    passes = tuple(replace(forward, entry="whole", drop=(), stop=None) for forward in plan.passes)
    plan = replace(plan, passes=passes, hooks=(), threads=False, gradients=False, checkpointed="no")
    expected, _ = by_hand(plan, by_formula(plan, cut))
    whole = build(plan)
    torch.compiler.reset()
    compiled = torch.compile(whole, backend="eager")
    run = Run(plan, compiled, (KoopmanInterpError,))
    plain = run.passes()
    stance = eval_frame._stance.stance
    try:
        with hushed(), patch_of(whole if elsewhere else compiled, plan, cut):
            outcomes = run.passes()
    except KoopmanInterpError as refusal:
        assert elsewhere and str(refusal)
        return
    for forward, outcome, right in zip(plan.passes, outcomes, expected, strict=True):
        if outcome.refusal is None or not elsewhere:
            require(plan, cut, forward, outcome, right)
    assert eval_frame._stance.stance == stance
    after = [outcome.output for outcome in run.passes()]
    assert same(after, [outcome.output for outcome in plain])


def require(plan: Plan, cut: Cut, forward: Pass, outcome: Outcome, right: Outcome) -> None:
    """Require that a patched pass gave the right numbers, or was refused for a reason."""
    patched = cut.source in right.states and cut.target in right.states and not right.unread
    if outcome.refusal is not None:
        cut_short = cut.mode == "replace" and not all(map(forward.runs, range(len(plan.calls))))
        assert plan.unclear or plan.checkpointed != "no" or cut_short or not patched, outcome.refusal
        assert str(outcome.refusal)
        return
    if outcome.output is None:
        assert plan.raises
        return
    assert not right.unread, "a pass that reached the target without the source was not refused"
    assert right.output is not None
    assert close(real_rows(plan, forward, outcome.output), real_rows(plan, forward, right.output))
    if outcome.gradient is not None and right.gradient is not None:
        assert close(outcome.gradient, right.gradient)


def close(got: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same within the rounding of float32."""
    return got.shape == right.shape and torch.allclose(
        got, right, rtol=1e-4, atol=1e-4 * (1 + float(right.abs().max()))
    )


def same(got: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether columns are the same."""
    return len(got) == len(right) and all(map(close, got, right))
