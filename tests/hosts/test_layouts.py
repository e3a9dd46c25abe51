"""States go to rows and back without loss, and each row knows where it came from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from koopman_interp.errors import UnsupportedHostError
from koopman_interp.hosts.layouts import from_rows, row_origins, to_rows

shapes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


def numbered(shape):
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


@given(shapes)
def test_from_rows_undoes_to_rows(shape):
    x = numbered(shape)
    assert torch.equal(from_rows(to_rows(x), tuple(x.shape)), x)


@given(shapes)
def test_a_state_that_is_not_contiguous_goes_there_and_back_too(shape):
    x = numbered(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    assert torch.equal(from_rows(to_rows(x), tuple(x.shape)), x)


@given(shapes)
def test_each_row_is_the_state_at_its_origin(shape):
    x = numbered(shape)
    rows = to_rows(x)
    entry, position = row_origins(shape)
    assert len(entry) == len(position) == len(rows)
    for row, e, p in zip(rows, entry.tolist(), position.tolist(), strict=True):
        expected = x[e, p] if len(shape) == 3 else x[e].flatten()
        assert torch.equal(row, expected)


@given(shapes, st.integers(1, 4))
def test_the_batch_size_is_taken_from_the_rows(shape, batch):
    other = numbered((batch, *shape[1:]))
    assert torch.equal(from_rows(to_rows(other), shape), other)


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4, 5)])
def test_other_numbers_of_axes_are_refused_with_the_shape(shape):
    for call in (lambda: to_rows(torch.zeros(shape)), lambda: from_rows(torch.zeros(2, 3), shape)):
        with pytest.raises(UnsupportedHostError, match=r"\[batch, position, width\]") as caught:
            call()
        assert str(tuple(shape)) in str(caught.value)
        assert isinstance(caught.value, TypeError)
