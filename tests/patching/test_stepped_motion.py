"""A motion taken step by step is the motion multiplied out, and gradients reach what is trained and nothing else."""

import copy

import pytest
import torch

import koopman_interp as ki
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.errors import InputError
from koopman_interp.forgetting.gradient import TrainableMap
from koopman_interp.patching.motion import Motion
from koopman_interp.patching.stepped_motion import SteppedMotion
from koopman_interp.surrogates.operators import OPERATORS
from tests.naming import named


def fitted(seen, **settings):
    config = ki.FitConfig(**({"observables": 14, "hidden": (16,)} | settings), steps=5, evaluate_every=5)
    return ki.fit(seen, config, progress=False).double()


def edits_at(koopman, depths):
    return [ki.erase_class(koopman, label=n % 3, site=depth, strength=1.5) for n, depth in enumerate(depths)]


def by_depth(edits):
    return [(edit.depth, edit) for edit in edits]


SHAPES = [
    {},
    {"hidden": ()},
    {"hidden": (7, 9), "observables": 30},
    {"architecture": "mlp"},
    {"normalization": ki.NormalizationConfig(dimension=6, whiten=0.5)},
    *({"operator": kind, "rank": 5} for kind in OPERATORS),
]


@pytest.mark.parametrize("settings", SHAPES, ids=named)
@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_untrained_it_is_the_motion_multiplied_out(seen, settings, mode):
    koopman = fitted(seen, **settings)
    for first, last in ((0, 4), (1, 3), (2, 2)):
        depths = [last, first, min(first + 1, last), first]
        for edits in ([], edits_at(koopman, depths[:1]), edits_at(koopman, depths)):
            rows = seen.states[first][:50]
            stepped = SteppedMotion(koopman, first, last, by_depth(edits), mode)(rows)
            expected = Motion(koopman, first, last, edits, mode)(rows)
            size = float(rows.norm(dim=1).max())
            torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_a_copied_operator_moves_alike_and_a_changed_one_is_told_from_the_own(seen, mode):
    """`delta` is what edits and operator change: against the surrogate's own motion, unedited."""
    koopman, rows = fitted(seen), seen.states[1][:50]
    edits = by_depth(edits_at(koopman, [1, 3]))
    operator = copy.deepcopy(koopman.operator)
    moving = SteppedMotion(koopman, 1, 4, edits, mode, operator=operator)
    assert torch.equal(moving(rows), SteppedMotion(koopman, 1, 4, edits, mode)(rows))
    with torch.no_grad():
        operator.K.add_(0.1 * torch.eye(14))
    changed = copy.deepcopy(koopman)
    changed.operator.load_state_dict(operator.state_dict())
    expected = SteppedMotion(changed, 1, 4, edits, "replace")(rows)
    expected = expected - (koopman.predict(rows, 1, 4) if mode == "delta" else 0)
    torch.testing.assert_close(moving(rows), expected, rtol=0, atol=1e-10)
    assert float((moving(rows) - SteppedMotion(koopman, 1, 4, edits, mode)(rows)).abs().max()) > 1e-2


def test_gradients_reach_what_is_trained_and_nothing_else(seen):
    koopman = fitted(seen).requires_grad_(True)
    koopman.zero_grad()  # of what the fit has left
    rows = seen.states[1][:50].clone().requires_grad_(True)
    fixed, start = edits_at(koopman, [1, 3])
    change, operator = TrainableMap(start.map), copy.deepcopy(koopman.operator)
    motion = SteppedMotion(koopman, 1, 4, [(1, fixed), (3, change)], operator=operator)
    before = koopman.digest()
    motion(rows).square().mean().backward()
    learning = {name for name, parameter in motion.named_parameters() if parameter.requires_grad}
    assert learning == {"operator.K", "trained.0.directions", "trained.0.readers", "trained.0.offset"}
    assert all(parameter.grad.any() for parameter in (*operator.parameters(), *change.parameters()))
    assert rows.grad.any()
    assert all(parameter.grad is None for parameter in koopman.parameters())
    with torch.no_grad():
        for parameter in motion.parameters():
            parameter.add_(1.0)
    assert koopman.digest() == before


@pytest.mark.parametrize("make", [Motion, SteppedMotion])
@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_autocast_costs_no_digit(seen, make, mode):
    koopman = fitted(seen).float()
    edits = edits_at(koopman, [1, 3])
    motion = make(koopman, 1, 4, edits if make is Motion else by_depth(edits), mode)
    rows = seen.states[1][:50].float()
    plain = motion(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (koopman.encoder(rows)).dtype == torch.bfloat16
        assert torch.equal(motion(rows), plain)


@pytest.mark.parametrize("depth", [0, 4])
def test_an_edit_outside_of_the_span_is_refused(seen, depth):
    koopman = fitted(seen)
    edits = edits_at(koopman, [depth])
    for make, given in ((Motion, edits), (SteppedMotion, by_depth(edits))):
        with pytest.raises(InputError, match=r"outside the patched span from 'blocks\.0' to 'blocks\.2'"):
            make(koopman, 1, 3, given)


def test_a_trainable_map_is_the_map_that_it_starts_from():
    generator = torch.Generator().manual_seed(0)
    start = LowRankMap(*(torch.randn(shape, generator=generator) for shape in ((5, 2), (5, 2), (2,))))
    trainable, z = TrainableMap(start), torch.randn(7, 5, generator=generator)
    assert torch.equal(trainable(z), start(z))
    trainable.directions.data.zero_()
    assert torch.equal(trainable(z), z)
    assert start.directions.any()
