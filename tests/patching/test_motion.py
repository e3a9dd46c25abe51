"""The motion multiplied out equals the motion taken step by step, in float64, for every shape of surrogate."""

import pytest
import torch

import koopman_interp as ki
from koopman_interp.patching.motion import Motion
from koopman_interp.surrogates.operators import OPERATORS
from tests.naming import named


def step_by_step(koopman, rows, edits, first, last):
    """Encode, take K one step after another with each edit where its depth is passed, decode."""
    z = koopman.encode(rows, first)
    for depth in range(first, last + 1):
        if depth > first:
            z = koopman.operator.advance(z, koopman.steps(depth - 1, depth))
        for edit in edits:
            z = edit(z) if edit.depth == depth else z
    return koopman.decode(z, last)


SHAPES = [
    {},
    {"observables": 30},
    {"observables": 4},
    {"hidden": ()},
    {"hidden": (7, 9)},
    {"hidden": (40,), "observables": 5},
    {"architecture": "mlp"},
    {"architecture": "mlp", "hidden": ()},
    {"architecture": "mlp", "hidden": (6, 8), "observables": 40},
    {"normalization": ki.NormalizationConfig(dimension=6, whiten=0.5)},
    *({"operator": kind, "rank": 5} for kind in OPERATORS),
]


@pytest.mark.parametrize("settings", SHAPES, ids=named)
@pytest.mark.parametrize(("first", "last"), [(0, 4), (1, 3), (2, 3)])
def test_motion_multiplied_out_is_motion_step_by_step(seen, settings, first, last):
    config = ki.FitConfig(**({"observables": 14, "hidden": (16,)} | settings), steps=5, evaluate_every=5)
    koopman = ki.fit(seen, config, progress=False).double()
    depths = [last, first, first + 1, first]
    edits = [ki.erase_class(koopman, label=n % 3, site=depth, strength=1.5) for n, depth in enumerate(depths)]
    rows = seen.states[first][:50]
    with torch.no_grad():
        for acting in ([], edits[:1], edits[1:2], edits):
            replacement = Motion(koopman, first, last, acting, "replace")(rows)
            expected = step_by_step(koopman, rows, acting, first, last)
            torch.testing.assert_close(replacement, expected, rtol=1e-9, atol=1e-9)
            change = Motion(koopman, first, last, acting, "delta")(rows)
            unedited = step_by_step(koopman, rows, [], first, last)
            torch.testing.assert_close(change, expected - unedited, rtol=1e-8, atol=1e-9)


def test_the_change_of_no_edit_is_nothing_to_the_last_bit(seen):
    koopman = ki.fit(seen, ki.FitConfig(observables=14), method="least_squares")
    none = ki.erase_class(koopman, label=1).scaled(0.0)
    for edits in ([], [none], [none, none]):
        assert not Motion(koopman, 0, 4, edits)(seen.states[0].float()).any()


def test_a_motion_saves_and_loads_as_a_module(seen):
    koopman = ki.fit(seen, ki.FitConfig(observables=14), method="least_squares")
    motions = [Motion(koopman, 0, 4, [ki.erase_class(koopman, label=label)]) for label in (0, 1)]
    rows = seen.states[0]
    assert not torch.allclose(motions[0](rows), motions[1](rows))
    motions[1].load_state_dict(motions[0].state_dict())
    assert torch.equal(motions[0](rows), motions[1](rows))
    assert not list(motions[0].parameters())
