"""Rows drawn of a source are the same whatever the order in which they come, and as many as were asked for."""

from __future__ import annotations

import random

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.hashing import MOST_COUNTED, Draw, in_share, row_digests
from koopman_interp.processes import Processes
from koopman_interp.sources import opening
from koopman_interp.sources.memory import Memory
from koopman_interp.sources.opening import as_source, in_memory, parts_of, shared, some_rows
from koopman_interp.sources.store import INDEX
from koopman_interp.sources.streams import Stream
from tests.sources.conftest import of_inputs, rows, same


def keys(trajectories):
    return sorted(zip(trajectories.sequence.tolist(), trajectories.position.tolist(), strict=True))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("most", [1, 7, 40, 163, 1000])
def test_the_same_rows_are_drawn_whatever_the_order(whole, most):
    draw, counts = random.Random(0), [3, 1, 30, 9, 2, 60, 4, 4, 50]
    observed = of_inputs(*counts)
    found = []
    for size in (1, 8, 70, 200):
        blocks = list(Memory(observed, size).batches())
        draw.shuffle(blocks)
        found.append(some_rows(Stream(lambda blocks=blocks: blocks), most, whole=whole))
    assert len({tuple(keys(each)) for each in found}) == 1
    drawn = len(found[0])
    if not whole:
        assert drawn == min(most, len(observed))
        return
    assert drawn >= min(most, len(observed))
    of_input = torch.bincount(found[0].sequence, minlength=len(counts)).tolist()
    assert all(taken in (0, count) for taken, count in zip(of_input, counts, strict=True))
    assert drawn - max(taken for taken in of_input) < most


def test_one_input_alone_is_not_lost_where_it_is_long():
    observed = of_inputs(500)
    assert len(some_rows(Memory(observed), 20, whole=True)) == 500
    assert len(some_rows(Memory(observed), 20)) == 20


def test_equal_inputs_are_thinned_too():
    observed = of_inputs(*[1] * 300)
    observed.digests[:] = 5
    assert len(some_rows(Memory(observed, 10), 20)) == 20


def test_rows_are_drawn_of_a_part(store):
    draw = Draw.of(torch.unique(store.trajectories().digests), 0.3, 0)
    drawn = some_rows(store, 50, draw)
    assert len(drawn) == 50
    assert bool(draw(drawn.digests).all())
    with pytest.raises(InputError, match="no such rows"):
        some_rows(store, 50, lambda digests: torch.zeros(len(digests), dtype=torch.bool))


def test_a_draw_is_exact_until_inputs_are_too_many_to_count(monkeypatch):
    inputs = torch.unique(row_digests(rows(2000, 2)))
    exact = Draw.of(inputs, 0.3, 5)
    assert int(exact(inputs).sum()) == 600
    assert torch.equal(exact(inputs), ~exact.rest(inputs))
    assert int(Draw.of(inputs, 1.0, 5)(inputs).sum()) == 2000
    monkeypatch.setattr("koopman_interp.hashing.MOST_COUNTED", 1999)
    singly = Draw.of(inputs, 0.3, 5)
    assert singly.bound == int(0.3 * 2**64)
    assert int(singly(inputs).sum()) == pytest.approx(600, abs=82)  # four standard deviations
    # Each for itself: what else there is makes no difference.
    assert Draw.of(torch.cat([inputs, inputs + 1]), 0.3, 5) == singly
    assert MOST_COUNTED == 100_000


def test_a_share_holds_each_smaller_one():
    digests, position = row_digests(rows(5000, 2)), torch.arange(5000) % 7
    marked = [in_share(digests, position, share) for share in (0.1, 0.4, 1.0)]
    assert [int(each.sum()) for each in marked] == pytest.approx([500, 2000, 5000], abs=140)
    assert not bool((marked[0] & ~marked[1]).any())


def test_shares_for_other_uses_are_drawn_apart():
    """Of rows that a store kept a tenth of, a fit's basis takes its own share, not all or none."""
    digests, position = row_digests(rows(20_000, 2)), torch.arange(20_000) % 7
    kept, taken = in_share(digests, position, 0.1), in_share(digests, position, 0.3, use="basis")
    assert float(taken[kept].double().mean()) == pytest.approx(0.3, abs=0.05)  # five standard deviations


def test_what_stands_for_a_source(store, tmp_path):
    observed = store.trajectories()
    observed.save(tmp_path / "observed.safetensors")
    ways = [
        observed,
        store,
        store.folder,
        str(store.folder),
        store.folder / INDEX,
        tmp_path / "observed.safetensors",
        lambda: store.batches(),
        lambda: observed,
    ]
    for way in ways:
        assert same(ki.Trajectories.concatenate(as_source(way).batches(), same_inputs=True), observed)
        assert same(in_memory(way), observed)
    assert sum(map(len, parts_of(store))) == 300
    assert parts_of([observed, observed]) == [observed, observed]


def test_what_does_not_is_refused(tmp_path, store, unchecked):
    with pytest.raises(InputError, match="cannot be gone through again: give lambda"):
        as_source(store.batches())
    with pytest.raises(InputError, match="got int"):
        as_source(3)
    with pytest.raises(FileNotFoundError, match="There is no store"):
        as_source(tmp_path / "nowhere")


def test_what_is_too_large_for_memory_is_thinned(store, monkeypatch):
    monkeypatch.setattr(opening, "IN_MEMORY_BYTES", 30 * store.row_bytes)
    assert len(in_memory(store)) == 30
    assert len(in_memory(store, 50)) == 50
    assert len(in_memory(lambda: store.batches(), 50)) == 50


def test_processes_share_blocks_and_no_stream(store):
    first = shared(store, Processes(0, 2))
    assert len(first) + len(shared(store, Processes(1, 2))) == 300
    with pytest.raises(InputError, match="Observe to one first"):
        shared(as_source(lambda: store.batches()), Processes(0, 2))
