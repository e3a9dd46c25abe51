"""A descent takes AdamW's steps at its schedule's rates, on its own parameters alone, and keeps the best weights."""

import math

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FitInterrupted, InputError, NonFiniteError
from koopman_interp.fitting.checkpoint import Checkpoint
from koopman_interp.fitting.config import DescentConfig
from koopman_interp.fitting.descent import Descent, Epochs, step_generator
from koopman_interp.fitting.schedules import is_level, last_step, learning_rate

NOWHERE = Checkpoint(None, {}, "fit")


def constant(_):
    return {"loss": 0.0}


def descended(groups, objective, judge=constant, checkpoint=NOWHERE, *, resume=False, **settings):
    config = DescentConfig(**({"patience": None, "averaging": 0.0} | settings))
    return Descent(groups, objective, judge, config, checkpoint).run(resume=resume, progress=False)


# --- steps ---------------------------------------------------------------------------------------------------------


def test_a_step_is_adamws_at_a_rate_that_rises_and_falls_as_a_cosine():
    fast, slow = (torch.ones((), requires_grad=True) for _ in range(2))
    factors = 10.0 ** (torch.arange(40) % 5)
    falling = iter(range(100, 0, -1))
    descended(
        [([fast], 1.0), ([slow], 0.1)],
        lambda step, _: factors[step] * (fast + 2 * slow),
        lambda _: {"loss": next(falling)},
        steps=40,
        learning_rate=0.02,
        weight_decay=0.3,
        warm_up=0.05,
    )
    # Clipped, each gradient is the same at all steps; AdamW then moves a parameter by its rate, whatever its gradient.
    expected = [1.0, 1.0]
    for step in range(40):
        rate = (step + 1) / 2 if step < 2 else (1 + np.cos(np.pi * (step - 2) / 38)) / 2
        for index, peak in enumerate((0.02, 0.002)):
            expected[index] -= peak * rate * (1 + 0.3 * expected[index])
    assert [float(fast.detach()), float(slow.detach())] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("clip", [0.5, None])
def test_steps_are_those_of_adamw_written_out(clip):
    generator = torch.Generator().manual_seed(0)
    target, weight = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    ours = weight.clone().requires_grad_(True)
    falling = iter(range(100, 0, -1))
    descended(
        [([ours], 1.0)],
        lambda step, _: ((ours - target) * (step + 1)).square().sum(),
        lambda _: {"loss": next(falling)},
        steps=7,
        schedule="constant",
        learning_rate=0.05,
        weight_decay=0.01,
        clip=clip,
    )
    w, m, v = weight.double(), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    for step in range(7):
        gradient = 2 * (w - target) * (step + 1) ** 2
        if clip is not None:
            gradient = gradient * min(1.0, clip / float(gradient.norm()))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w * (1 - 0.05 * 0.01)
        w = w - 0.05 * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    torch.testing.assert_close(ours.detach().double(), w, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_lies_otherwise_in_memory_is_not_mixed_up():
    # The gradient of a transposed product is transposed; the fused optimizer reads memory, not axes.
    weights = [torch.zeros(3, 2, requires_grad=True) for _ in range(2)]
    slopes = torch.arange(1.0, 7).reshape(2, 3) * 1e-8  # small, so that the size of a step tells the slope
    for weight, loss in zip(
        weights,
        (lambda w: (torch.eye(2) @ w.T * slopes).sum(), lambda w: (w * slopes.T.contiguous()).sum()),
        strict=True,
    ):
        falling = iter((2.0, 1.0))
        descended(
            [([weight], 1.0)],
            lambda _, __, weight=weight, loss=loss: loss(weight),
            lambda _, falling=falling: {"loss": next(falling)},
            steps=1,
            clip=None,
        )
    assert len(torch.unique(weights[1].detach())) == 6
    torch.testing.assert_close(weights[0], weights[1])


def test_what_else_the_loss_is_made_of_gets_no_gradient():
    own, host = torch.ones(2, requires_grad=True), torch.nn.Linear(2, 2)
    aside = torch.ones(1, requires_grad=True)  # which the loss never uses
    with torch.no_grad():  # of the caller's, which a descent does not care for
        descended([([own, aside], 1.0)], lambda *_: host(own).square().sum(), steps=3, weight_decay=0.5)
    assert all(parameter.grad is None for parameter in host.parameters())
    assert aside.tolist() == [1.0]


def test_a_step_draws_by_seed_and_number_alone():
    def draws(seed):
        seen, own = [], torch.ones(1, requires_grad=True)
        descended([([own], 1.0)], lambda _, g: seen.append(float(torch.rand(1, generator=g))) or own.sum(), seed=seed)
        return seen

    assert draws(3) == draws(3)
    assert len({*draws(3), *draws(4)}) == 1000
    assert torch.rand(1, generator=step_generator(3, 7)) == draws(3)[7]


# --- rates and batches ---------------------------------------------------------------------------------------------


def test_learning_rates_follow_their_schedules():
    cosine = DescentConfig(steps=100, learning_rate=1.0)
    rates = [learning_rate(cosine, step) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
    cyclic = ki.FitConfig(steps=100, learning_rate=1.0, schedule="cyclic", cycle=20)
    assert [learning_rate(cyclic, step) for step in (0, 10, 20, 30)] == pytest.approx([0.1, 1, 0.1, 1])
    assert learning_rate(ki.FitConfig(learning_rate=0.5, schedule="constant"), 77) == 0.5
    later = DescentConfig(steps=100, learning_rate=1.0, warm_up=0.5)
    assert [learning_rate(later, step) for step in (0, 24, 49, 50, 75)] == pytest.approx([0.02, 0.5, 1, 1, 0.5])


def test_wsd_is_level_until_it_falls_to_zero():
    config = DescentConfig(steps=1000, learning_rate=1.0, schedule="wsd")
    rates = [learning_rate(config, step) for step in range(300)]
    assert rates[:50] == sorted(rates[:50])
    assert set(rates[50:]) == {1.0}
    falling = [learning_rate(config, step, decay_from=200) for step in range(200, last_step(config, 200))]
    assert len(falling) == 40
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 1.0
    assert falling[-1] < 0.02
    assert last_step(config, None) == last_step(config, 999) == 1000


def test_a_descent_falls_when_its_figure_is_level_and_then_ends():
    own, looks = torch.zeros(1, requires_grad=True), iter([9.0, 100.0, 50.0, 25.0, *[24.5] * 99])
    history = descended(
        [([own], 1.0)],
        lambda *_: own.sum(),
        lambda _: {"loss": next(looks)},
        schedule="wsd",
        steps=10**6,
        evaluate_every=10,
        patience=2,
    )
    # Level at the look of step 50, which is the second after that of 25; a fifth as many steps follow.
    assert [look["step"] for look in history] == [0, 10, 20, 30, 40, 50, 60]


def test_a_figure_that_starts_low_and_leads_up_is_not_level():
    config = DescentConfig(patience=2, least_gain=0.1)
    assert not is_level(config, [1.0, 9.0, 7.0, 5.0])
    assert is_level(config, [1.0, 9.0, 8.9, 8.8])
    assert not is_level(config, [9.0, 8.9, 8.8])


def test_a_decay_ends_with_the_steps_that_are_allowed():
    own, rates = torch.zeros(1, requires_grad=True), []
    descent = Descent(
        [([own], 1.0)],
        lambda *_: own.sum(),
        constant,
        DescentConfig(steps=60, schedule="wsd", patience=None, learning_rate=1.0),
        NOWHERE,
    )
    descend = descent._descend

    def watched(step):
        descend(step)
        rates.append(descent._optimizer.param_groups[0]["lr"])

    descent._descend = watched
    descent.run(resume=False, progress=False)
    assert len(rates) == 60
    assert descent.progress.decay_from == 50
    assert rates[49] == rates[50] == 1.0
    assert rates[-1] < 0.1


@pytest.mark.parametrize(("items", "size"), [(9, 1), (10, 3), (5, 5), (4, 7)])
def test_each_epoch_takes_all_items_once_in_an_order_of_its_own(items, size):
    epochs = Epochs(items, size, seed=0)
    steps = items // min(size, items)
    taken = [[epochs(epoch * steps + step).tolist() for step in range(steps)] for epoch in range(6)]
    for batches in taken:
        indices = [index for batch in batches for index in batch]
        assert len(indices) == len(set(indices)) == steps * min(size, items)
        assert set(indices) <= set(range(items))
    assert len({str(batches) for batches in taken}) > 1
    # Asked in any order, as after a checkpoint, a step takes the same.
    assert [Epochs(items, size, seed=0)(step).tolist() for step in (5, 2)] == [
        taken[step // steps][step % steps] for step in (5, 2)
    ]


# --- what is kept --------------------------------------------------------------------------------------------------


def test_the_weights_of_the_best_look_are_kept():
    own, seen = torch.zeros(1, requires_grad=True), []
    losses = iter([5.0, 4.0, 1.0, 3.0, 1.0, 2.0])

    def judge(_):
        seen.append(float(own))
        return {"error": next(losses), "other": 0.0}

    config = DescentConfig(steps=25, evaluate_every=5, averaging=0.0, patience=None, schedule="constant")
    descent = Descent([([own], 1.0)], lambda *_: -own.sum(), judge, config, NOWHERE, minimised="error")
    history = descent.run(resume=False, progress=False)
    assert [look["step"] for look in history] == [0, 5, 10, 15, 20, 25]
    assert [look["error"] for look in history] == [5.0, 4.0, 1.0, 3.0, 1.0, 2.0]
    assert float(own.detach()) == seen[2]  # the first of two that are as good
    assert len(set(seen)) == 6


def test_patience_counts_looks_without_improvement():
    own, losses = torch.zeros(1, requires_grad=True), iter([5.0, 4.0, 4.0, 4.5, 1.0, 0.0])
    history = descended(
        [([own], 1.0)], lambda *_: own.sum(), lambda _: {"loss": next(losses)}, steps=99, evaluate_every=2, patience=2
    )
    assert [look["loss"] for look in history] == [5.0, 4.0, 4.0, 4.5]


def test_the_average_is_what_is_judged_and_kept():
    own, latest, averaged = torch.zeros(1, requires_grad=True), [], []

    def objective(*_):
        latest.append(float(own.detach()))
        return -own.sum()

    def judge(_):
        averaged.append(float(own))
        return {"loss": -float(own)}

    descended([([own], 1.0)], objective, judge, steps=8, evaluate_every=4, averaging=0.5, schedule="constant")
    average, expected = 0.0, [0.0]
    # The weights after each step are those before the next; the last is as far again.
    weights = [*latest[1:], 2 * latest[-1] - latest[-2]]
    for step, weight in enumerate(weights):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
        if step in (3, 7):
            expected.append(average)
    assert averaged == pytest.approx(expected, rel=1e-3)
    assert float(own.detach()) == averaged[-1]


def test_a_loss_that_is_no_number_is_told_with_its_step():
    own, losses = torch.zeros(1, requires_grad=True), iter([1.0, math.nan])
    with pytest.raises(NonFiniteError, match=r"diverged by step 10 .*Lower learning_rate \(0.003\)"):
        descended([([own], 1.0)], lambda *_: own.sum(), lambda _: {"loss": next(losses)}, steps=20, evaluate_every=10)


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("averaging", [0.0, 0.9])
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 11])
def test_a_resumed_descent_is_bit_identical_to_one_never_interrupted(tmp_path, stop, averaging):
    def run(stop_at=None, checkpoint=NOWHERE, resume=False):
        own = torch.ones(2, 3).T.requires_grad_(True)  # which a file would lay out otherwise

        def objective(step, generator):
            if step == stop_at:
                raise KeyboardInterrupt
            return (own * torch.randn(3, 2, generator=generator)).square().sum()

        def judge(generator):
            return {"loss": float((own * torch.randn(3, 2, generator=generator)).square().sum())}

        settings = {"steps": 12, "evaluate_every": 5, "averaging": averaging}
        history = descended([([own], 1.0)], objective, judge, checkpoint, resume=resume, **settings)
        return own.detach(), history

    whole, history = run()
    kept = Checkpoint(tmp_path / "kept.safetensors", {"settings": (1, 2)}, "distil")
    with pytest.raises(FitInterrupted, match=rf"step {stop} of 12; .*holds step {stop // 5 * 5}.*resume=True"):
        run(stop, kept)
    resumed, again = run(checkpoint=kept, resume=True)
    assert torch.equal(resumed, whole)
    assert again == history


def test_a_checkpoint_goes_on_only_for_the_call_that_wrote_it(tmp_path):
    own = torch.ones(1, requires_grad=True)
    path = tmp_path / "kept.safetensors"
    descended([([own], 1.0)], lambda *_: own.sum(), checkpoint=Checkpoint(path, {"a": 1, "b": (2, 3)}, "fit"), steps=1)
    with pytest.raises(
        InputError, match=r"another call of distil: b \(\[2, 3\] there, \[2, 4\] here\), c, d, a differ"
    ):
        Checkpoint(path, {"b": [2, 4], "c": None, "d": None} | {"c": 0}, "distil").read()
    with pytest.raises(InputError, match="resume=True, or delete it"):
        descended([([own], 1.0)], lambda *_: own.sum(), checkpoint=Checkpoint(path, {}, "fit"))
    with pytest.raises(InputError, match=r"distil\(…, checkpoint=path, resume=True\)"):
        Checkpoint(None, {}, "distil").read()
    assert Checkpoint(path, {"a": 1, "b": (2, 3)}, "fit").read().progress["step"] == 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("evaluate_every", 0),
        ("cycle", 0),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("clip", -1.0),
        ("weight_decay", -0.1),
        ("warm_up", float("inf")),
        ("averaging", 1.0),
        ("validation", 0.0),
        ("schedule", "linear"),
    ],
)
@pytest.mark.parametrize("kind", [DescentConfig, ki.FitConfig, ki.DistilConfig])
def test_settings_that_make_no_sense_are_named(kind, name, value):
    with pytest.raises(InputError, match=name):
        kind(**{name: value})
