"""Which rows are samples follows from the tokens alone, and labels find their way to them in any form."""

import pytest
import torch

from koopman_interp.errors import InputError
from koopman_interp.hosts.tokens import Tokens
from koopman_interp.observing.samples import Samples, labels_of_samples

# Two sequences, padded on the left and on the right; and their places by hand.
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
PLACES = [0, 1, 2, 0, 1, 2, 3]
IDS = torch.tensor([[9, 9, 5, 6, 7], [1, 2, 3, 4, 9]])


@pytest.fixture
def tokens():
    return Tokens.of_mask(MASK, (2, 5), 0, IDS, IDS)


@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("shape", [(2, 5, 8), (10, 8)])
def test_states_with_a_row_a_token_keep_the_real_ones(tokens, shape, skip):
    found = Samples.of(shape, tokens, skip)
    kept = [row for row, place in enumerate(PLACES) if place >= skip]
    assert found.place.tolist() == [PLACES[row] for row in kept]
    assert found.entry.tolist() == [[0, 0, 0, 1, 1, 1, 1][row] for row in kept]
    assert found.ids.tolist() == [[5, 6, 7, 1, 2, 3, 4][row] for row in kept]
    assert found.inputs == 2
    rows = torch.arange(10).repeat_interleave(8).reshape(10, 8)
    assert found.take(rows)[:, 0].tolist() == [[2, 3, 4, 5, 6, 7, 8][row] for row in kept]


@pytest.mark.parametrize(("shape", "inputs", "rows"), [((2, 6, 8), 2, 12), ((2, 8), 2, 2), ((3, 2, 4, 4), 3, 3)])
def test_states_of_something_else_than_the_tokens_keep_all_rows(tokens, shape, inputs, rows):
    found = Samples.of(shape, tokens)
    assert (len(found), found.inputs, found.ids) == (rows, inputs, None)
    whole = torch.randn(rows, 3)
    assert found.take(whole) is whole


def test_positions_without_tokens_are_skipped_by_their_number():
    found = Samples.of((2, 3, 8), None, skip=1)
    assert found.place.tolist() == [1, 2, 1, 2]
    assert found.entry.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 2, 2)])
def test_positions_cannot_be_skipped_where_there_are_none(shape):
    with pytest.raises(InputError, match=r"skip=2 .* has none"):
        Samples.of(shape, None, skip=2)


def test_labels_of_several_passes_in_every_form(tokens):
    passes = [Samples.of((2, 5, 8), tokens, skip=1), Samples.of((3, 2, 8), None, skip=1)]
    expected = {
        "a sample": list(range(8)),
        "an input": [10, 10, 11, 11, 11, 12, 13, 14],
        "a token": [1, 2, 4, 5, 6, 8, 10, 12],
        "a position": [3, 4, 6, 7, 8, 11, 13, 15],
    }
    given = {
        "a sample": list(range(8)),
        "an input": torch.arange(10, 15),
        "a token": [list(range(7)), torch.arange(7, 13)],
        "a position": [torch.arange(10).reshape(2, 5), torch.arange(10, 16)],
    }
    for form, labels in given.items():
        assert labels_of_samples(labels, passes).tolist() == expected[form], form


@pytest.mark.parametrize("labels", [["a", "b"], [0.5, 1.5], torch.zeros(7), [None] * 7])
def test_labels_that_are_no_whole_numbers_are_refused(tokens, labels):
    with pytest.raises(InputError, match="Labels are whole numbers"):
        labels_of_samples(labels, [Samples.of((2, 5, 8), tokens)])
