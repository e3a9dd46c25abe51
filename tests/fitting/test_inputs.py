"""Inputs are parted by what they are, in whatever batches they come, and nothing of them is lost."""

import itertools

import pytest
import torch

from koopman_interp.errors import InputError
from koopman_interp.fitting.inputs import PartedInputs
from koopman_interp.hosts.tokens import right_padded
from koopman_interp.observing.digests import input_digests

ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
SEQUENCES = [[*range(3, 4 + index % 5), 50 + index] for index in range(40)]


def as_pairs(start, stop):
    return ROWS[start:stop], ROWS[start:stop].flip(1)


KINDS = {
    "rows": lambda start, stop: ROWS[start:stop],
    "ids": lambda start, stop: right_padded(SEQUENCES[start:stop], 0),
    "mapping": lambda start, stop: {"x": ROWS[start:stop], "use_cache": False},
    "pairs": as_pairs,
}


def all_digests(batches):
    return torch.cat([input_digests(batch) for batch in batches])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[0, 40], [0, 13, 14, 40], list(range(41))])
@pytest.mark.parametrize("given", [True, False])
def test_each_input_is_on_one_side(kind, cuts, given):
    batches = [KINDS[kind](start, stop) for start, stop in itertools.pairwise(cuts)]
    every = all_digests(batches)
    held_out = every[[3, 4, 20]] if given else None
    parted = PartedInputs.of(batches, 0.1, 0, held_out)
    train, judged = all_digests(parted.train), all_digests(parted.held_out)
    assert torch.equal(torch.cat([train, judged]).sort().values, every.sort().values)
    assert len(judged) == (3 if given else 4)
    if held_out is not None:
        assert torch.equal(judged, held_out)
    assert all(type(batch) is type(batches[0]) for batch in (*parted.train, *parted.held_out))


def test_what_is_held_out_does_not_depend_on_the_batches():
    parts = [PartedInputs.of(ROWS.split(size), 0.2, 3) for size in (1, 7, 40)]
    judged = [torch.cat(part.held_out) for part in parts]
    assert all(torch.equal(each, judged[0]) for each in judged)
    other = torch.cat(PartedInputs.of(ROWS.split(7), 0.2, 4).held_out)
    assert not torch.equal(other, judged[0])
    assert len({part.digest for part in parts}) == 1
    assert PartedInputs.of(ROWS.split(7), 0.2, 4).digest != parts[0].digest


def test_few_inputs_of_many_batches_are_judged_together():
    parted = PartedInputs.of(ROWS.split(5), 0.1, 0, input_digests(ROWS[::5]))
    assert [len(batch) for batch in parted.held_out] == [5, 3]
    assert torch.equal(torch.cat(parted.held_out), ROWS[::5])
    by_name = PartedInputs.of([{"x": part} for part in ROWS.split(5)], 0.1, 0, input_digests_of_x(ROWS[::5]))
    assert [len(batch["x"]) for batch in by_name.held_out] == [5, 3]
    # Sequences of other lengths cannot be.
    ids = [right_padded(SEQUENCES[start : start + 2], 0) for start in range(0, 40, 2)]
    assert len(PartedInputs.of(ids, 0.5, 0).held_out) > 2


def input_digests_of_x(rows):
    return input_digests({"x": rows})


def test_a_batch_of_nothing_but_held_out_inputs_is_not_trained_on():
    parted = PartedInputs.of(ROWS.split(5), 0.1, 0, input_digests(ROWS[5:10]))
    assert [len(batch) for batch in parted.train] == [5] * 7
    assert torch.equal(torch.cat(parted.train), torch.cat([ROWS[:5], ROWS[10:]]))


def test_equal_inputs_are_held_out_together():
    twice = torch.cat([ROWS, ROWS])[torch.randperm(80, generator=torch.Generator().manual_seed(1))]
    parted = PartedInputs.of(twice.split(7), 0.25, 0)
    assert len(torch.cat(parted.held_out)) == 20
    assert not torch.isin(all_digests(parted.train), all_digests(parted.held_out)).any()


def test_too_few_inputs_are_refused():
    with pytest.raises(InputError, match="got 1 in all"):
        PartedInputs.of([ROWS[:1], ROWS[:1]], 0.1, 0)
    with pytest.raises(InputError, match="got 0 in all"):
        PartedInputs.of([], 0.1, 0)
    with pytest.raises(InputError, match="all 5 inputs"):
        PartedInputs.of([ROWS[:5]], 0.1, 0, input_digests(ROWS[:9]))
    # However small the share, one is held out, and however large, one is trained on.
    for share in (0.01, 0.99):
        parted = PartedInputs.of([ROWS[:2]], share, 0)
        assert [len(parted.train[0]), len(parted.held_out[0])] == [1, 1]
