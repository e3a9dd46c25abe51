"""A stream is begun anew for each pass, and has to give the same inputs each time."""

from __future__ import annotations

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.sources.streams import Stream
from tests.sources.conftest import mlp, rows, same


@pytest.fixture
def tap():
    return ki.attach(mlp())


def test_a_pass_is_what_observe_gives(tap):
    x = rows(150, 4)
    stream, observed = Stream(lambda: tap.stream(x, batch_size=20)), tap.observe(x, batch_size=20)
    for _ in range(2):
        assert same(ki.Trajectories.concatenate(stream.batches(), same_inputs=True), observed)
    some = ki.Trajectories.concatenate(stream.batches(depths=[0, 3], start=2), same_inputs=True)
    assert torch.equal(some.states[1], observed.states[3][40:])
    assert same(stream.empty, observed[:0])
    assert sum(map(len, stream.thinned(30).batches())) == 40
    assert sum(map(len, stream.thinned(30).thinned(100).batches())) == 40
    kept = list(stream.batches(part=lambda digests: digests == observed.digests[70]))
    assert [batch.sequence.tolist() for batch in kept] == [[70]]


def test_a_stream_that_gives_other_inputs_the_second_time_is_refused(tap):
    x, calls = rows(100, 4), []

    def other():
        calls.append(None)
        order = torch.randperm(100, generator=torch.Generator().manual_seed(len(calls)))
        return tap.stream(x[order], batch_size=20)

    with pytest.raises(InputError, match="gave other inputs than when it was begun before"):
        ki.fit(other, ki.FitConfig(steps=5), progress=False)


@pytest.mark.parametrize("changed", [50, 99])
def test_so_it_is_where_a_later_batch_differs(tap, changed):
    x = rows(100, 4)
    stream = Stream(lambda: tap.stream(x, batch_size=20))
    assert sum(map(len, stream.batches())) == 100
    x = x.clone()
    x[changed] += 1
    with pytest.raises(InputError, match="gave other inputs"):
        list(stream.batches())
    assert sum(map(len, stream.thinned(20).batches())) == 20  # of which all are as they were


def test_so_it_is_where_there_are_fewer(tap):
    x = rows(100, 4)
    stream = Stream(lambda: tap.stream(x, batch_size=20))
    assert sum(map(len, stream.batches())) == 100
    x = x[:60]
    with pytest.raises(InputError, match="gave other inputs"):
        list(stream.batches())


@pytest.mark.parametrize("size", [20, 100])
def test_a_generator_that_has_come_to_its_end_is_refused(tap, size):
    begun = tap.stream(rows(100, 4), batch_size=size)
    with pytest.raises(InputError, match=r"cannot be begun anew|gave other inputs"):
        ki.fit(lambda: begun, ki.FitConfig(steps=5), progress=False)


def test_what_is_no_stream_is_refused(tap, unchecked):
    with pytest.raises(InputError, match="got int"):
        list(Stream(lambda: 3).batches())
    with pytest.raises(InputError, match="got Tensor"):
        list(Stream(lambda: [rows(3, 4)]).batches())
    with pytest.raises(InputError, match="has no rows"):
        list(Stream(lambda: []).batches())
