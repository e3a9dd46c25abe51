"""Rows in sequences: laid out and brought back, and none missing without a word."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.sequences import whole_pieces


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 3), st.randoms(use_true_random=False))
def test_rows_come_back_as_they_were_laid_out(lengths, skip, random):
    sequence = torch.cat([torch.full((length,), 3 * number) for number, length in enumerate(lengths)])
    place = torch.cat([torch.arange(skip, skip + length) for length in lengths])
    order = list(range(len(sequence)))
    random.shuffle(order)
    sequences = ki.Sequences.whole(sequence[order], place[order], skip)
    assert sequences.real.sum(1).tolist() == lengths
    rows = torch.randn(len(order), 2)
    laid = sequences.take(rows)
    assert torch.equal(sequences.give(laid, len(order)), rows)
    for number, length in enumerate(lengths):
        own = [order.index(row) for row in range(sum(lengths[:number]), sum(lengths[:number]) + length)]
        assert torch.equal(laid[number, :length], rows[own])
        assert not laid[number, length:].any()


@pytest.mark.parametrize(
    "place", [[1, 2, 3], [0, 2, 3], [0, 1, 1]], ids=["begins later", "has a gap", "has a place twice"]
)
def test_sequences_that_are_not_whole_are_refused(place):
    with pytest.raises(InputError, match=r"some are not here: where place . was expected there is place"):
        ki.Sequences.whole(torch.zeros(3, dtype=torch.long), torch.tensor(place), 0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 12))
def test_pieces_are_of_whole_sequences(lengths, rows):
    sequence = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
    sequence = sequence[torch.randperm(len(sequence), generator=torch.Generator().manual_seed(0))]
    pieces = list(whole_pieces(sequence, rows))
    assert torch.equal(torch.cat(pieces).sort().values, torch.arange(len(sequence)))
    seen = [set(sequence[piece].tolist()) for piece in pieces]
    assert sum(map(len, seen)) == len(lengths)
    assert all(len(piece) <= rows or len(kinds) == 1 for piece, kinds in zip(pieces, seen, strict=True))
