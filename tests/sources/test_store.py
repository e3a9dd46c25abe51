"""A store gives back what was observed, to the bit, in whole inputs, and notices whatever is not as it was written."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import json_digest, read_json, write_json
from koopman_interp.hashing import Draw, in_share
from koopman_interp.sources import shards, writing
from koopman_interp.sources.memory import Memory
from koopman_interp.sources.protocol import thinning
from koopman_interp.sources.shards import read_block, write_shard
from koopman_interp.sources.store import INDEX
from tests.sources.conftest import OBSERVED, batched, mlp, of_inputs, rows, same


@pytest.mark.parametrize("name", OBSERVED)
def test_what_is_read_is_what_was_observed(tmp_path, small_shards, name):
    tap, batches = OBSERVED[name]()
    observed = tap.observe(batches, batch_size=10, progress=False)
    store = tap.observe(batches, batch_size=10, store=tmp_path / "states", progress=False)
    assert len(store.index.shards) > 1
    assert same(store.trajectories(), observed)
    assert same(store.empty, observed[:0])
    assert (len(store), store.classes, store.widths) == (len(observed), observed.classes, observed.widths)
    assert store.verify() == []
    assert same(ki.Store(tmp_path / "states").trajectories(), observed)


def test_some_depths_are_those_of_all(store):
    for block in range(len(store.counts)):
        whole, some = store.read(block), store.read(block, [0, 2])
        assert some.sites == (whole.sites[0], whole.sites[2])
        assert some.times == (0.0, 2.0)
        assert torch.equal(some.states[1], whole.states[2])


@pytest.mark.parametrize("counts", [(16,), (40, 3), (3,) * 30, (1, 50, 2, 2, 17, 9, 1), (100, 1)])
def test_blocks_end_where_inputs_do(tmp_path, monkeypatch, counts):
    monkeypatch.setattr(shards, "BLOCK_ROWS", 16)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 1)
    observed = of_inputs(*counts)
    tensors = {"state.0": observed.states[0], "sequence": observed.sequence}
    shard = write_shard(tmp_path, tmp_path / "through", "000000.safetensors", tensors, 0)
    ends = {0, *itertools.accumulate(counts)}
    assert set(shard.blocks) <= ends
    assert shard.rows == sum(counts)
    sizes = [after - before for before, after in itertools.pairwise(shard.blocks)]
    assert all(size >= min(8, sum(counts)) for size in sizes)
    read = [read_block(tmp_path, shard, block, ["state.0"])["state.0"] for block in range(len(sizes))]
    assert torch.equal(torch.cat(read), observed.states[0])


def test_an_epoch_has_an_order_of_its_own(store):
    blocks = list(range(len(store.counts)))
    orders = {(seed, epoch): store.order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert all(sorted(order) == blocks for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    again = ki.Store(store.folder)
    assert all(again.order(*key) == order for key, order in orders.items())
    assert store.order(None, 3) == blocks
    found = ki.Trajectories.concatenate(store.batches(shuffle=1, epoch=2), same_inputs=True)
    assert found.sequence.tolist() != store.trajectories().sequence.tolist()
    assert same(found[found.sequence.argsort(stable=True)], store.trajectories())


def test_shares_part_the_blocks(store):
    for ranks in (1, 2, 3):
        parts = [store.share(rank, ranks) for rank in range(ranks)]
        found = torch.cat([batch.sequence for part in parts for batch in part.batches()])
        assert sorted(found.tolist()) == list(range(300))
        assert sum(map(len, parts)) == 300
    with pytest.raises(InputError, match="too few for each process"):
        store.share(len(store.counts), len(store.counts) + 1)


@pytest.mark.parametrize("wanted", [1, 20, 77, 150, 299, 300, 1000])
def test_spaced_blocks_have_as_many_rows_or_a_few_more(store, wanted):
    spaced = store.spaced(wanted)
    assert min(wanted, 300) <= len(spaced)
    assert len(spaced) <= 2 * wanted + 2 * max(store.counts)
    assert len(store.trajectories(wanted)) == min(wanted, 300)
    batches = [batch.sequence for batch in spaced.batches()]
    assert [len(batch) for batch in batches] == list(spaced.counts)


def test_blocks_of_unlike_sizes_are_spaced_to_no_fewer():
    source = Memory(of_inputs(3, 200, 3, 200, 3, 200), rows=50)
    assert all(len(source.spaced(wanted)) >= wanted for wanted in (100, 150, 300, 500))


@pytest.mark.parametrize("wanted", [40, 77, 150, 299, 300, 1000])
def test_thinned_has_inputs_drawn_and_as_many_rows(store, wanted):
    thinned = store.thinned(wanted)
    assert sum(map(len, thinned.batches())) == len(thinned) == min(wanted, 300)  # each input has one row
    found = torch.cat([batch.digests for batch in thinned.batches()])
    in_memory = Memory(store.trajectories()[torch.arange(299, -1, -1)], 7).thinned(wanted)
    assert set(torch.cat(list(in_memory.digests())).tolist()) == set(found.tolist())
    shares = [batch.digests for rank in range(3) for batch in thinned.share(rank, 3).batches()]
    assert torch.equal(torch.cat(shares).sort().values, found.sort().values)


def test_thinned_has_whole_inputs_and_about_as_many_rows():
    counts = torch.randint(1, 9, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    source = Memory(of_inputs(*counts), rows=30)
    for wanted in (20, 200, 900):
        found = torch.cat([batch.sequence for batch in source.thinned(wanted).batches()])
        taken = torch.bincount(found, minlength=400).tolist()
        assert all(each in (0, count) for each, count in zip(taken, counts, strict=True))
        assert len(found) == pytest.approx(wanted, rel=0.25)
        assert sum(map(bool, taken)) == -(-400 * wanted // sum(counts))


def test_what_is_thinned_is_drawn_apart_from_what_is_held_out_and_kept(store):
    """Of inputs that a draw by seed or by share has taken already, thinning takes its own share."""
    digests = torch.randint(-(2**62), 2**62, (20_000,), generator=torch.Generator().manual_seed(0))
    drawn = thinning(digests, 0.25)(digests)
    others = [Draw.of(digests, 0.1, seed)(digests) for seed in (-1, 0, 1)]
    others += [in_share(digests, torch.zeros_like(digests), 0.1)]
    for other in others:
        assert float(drawn[other].double().mean()) == pytest.approx(0.25, abs=0.05)  # five standard deviations


@pytest.mark.parametrize("wanted", [1, 20, 60, 200])
def test_few_rows_cost_no_reading_of_all(tmp_path, small_shards, monkeypatch, wanted):
    store = ki.attach(mlp()).observe(batched(rows(2000, 4)), store=tmp_path / "states", progress=False)
    read, blocks = type(store).read, list[int]()
    monkeypatch.setattr(type(store), "read", lambda self, block, depths=None: blocks.append(block) or read(self, block))
    assert sum(map(len, store.thinned(wanted).batches())) >= wanted
    assert len(blocks) <= max(1, 8 * len(store.counts) * wanted / 2000)


# --- what is not as it was written -----------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_shard_is_noticed_or_makes_no_difference(store):
    draw, shard = random.Random(0), store.index.shards[0]
    path, whole = store.folder / shard.name, (store.folder / shard.name).read_bytes()
    header, observed, noticed = 8 + int.from_bytes(whole[:8], "little"), store.trajectories(), 0
    for first, last in [(0, 8), (8, header), (header, len(whole))]:
        for _ in range(12):
            at = draw.randrange(8 * first, 8 * last)
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            path.write_bytes(damaged)
            if not (said := store.verify()):  # of what other readers are told
                assert at // 8 < header, f"bit {at}"
                assert same(store.trajectories(), observed)
                continue
            noticed += 1
            assert all(shard.name in each for each in said)
            with pytest.raises(FileFormatError, match=shard.name):
                store.trajectories()
    assert noticed > 24
    path.write_bytes(whole)
    assert store.verify() == []


def test_every_flipped_bit_of_an_index_is_noticed(store):
    draw, path = random.Random(1), store.folder / INDEX
    whole, same_index = path.read_bytes(), store.index
    for _ in range(40):
        at = draw.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            assert ki.Store(store.folder).index == same_index  # of white space
        except FileFormatError as error:
            assert INDEX in str(error)


def test_a_shard_that_is_gone_or_another_is_noticed(store):
    first, second = (store.folder / shard.name for shard in store.index.shards[:2])
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert ["its header differs" in each for each in store.verify()] == [True]
    first.unlink()
    assert store.verify() == [f"There is no file {first}, which the store's index names. Copy the store again, whole."]
    with pytest.raises(FileNotFoundError, match=first.name):
        store.trajectories()
    first.write_bytes(whole)
    (store.folder / "notes.txt").write_text("")
    assert store.verify() == [f"{store.folder / 'notes.txt'} is not of the store."]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../000000.safetensors"},
        {"name": "/000000.safetensors"},
        {"blocks": [0]},
        {"blocks": [0, 16, 16]},
        {"blocks": [5, 16]},
        {"blocks": "x"},
        {"first": None},
    ],
)
def test_an_index_that_names_what_cannot_be_is_refused(store, change):
    values = read_json(store.folder / INDEX)
    del values["digest"]
    values["shards"][0] |= change
    write_json(store.folder / INDEX, values | {"digest": json_digest(values)})
    with pytest.raises(FileFormatError, match="lacks parts of an index of a store"):
        ki.Store(store.folder)


@pytest.mark.parametrize("name", ["README.md", "1.safetensors", "model.safetensors", "config.json", "2024-run.json"])
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"no store, but holds {name}"):
        ki.attach(mlp()).observe(rows(40, 4), store=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="Observe to one"):
        ki.Store(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(FileFormatError, match="no index of a store"):
        ki.Store(tmp_path)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_share_of_rows_is_kept_whatever_the_batches(tmp_path, small_shards):
    tap, x = ki.attach(mlp()), rows(4000, 4)
    whole = tap.observe(x, progress=False)
    stores = [
        tap.observe(x, batch_size=size, store=tmp_path / str(size), keep=0.25, progress=False) for size in (64, 500)
    ]
    kept = [set(store.trajectories().sequence.tolist()) for store in stores]
    assert kept[0] == kept[1]
    assert len(kept[0]) == pytest.approx(1000, abs=110)  # four standard deviations
    assert same(stores[0].trajectories(), whole[torch.tensor(sorted(kept[0]))])
    assert stores[0].index.inputs == 4000
    with pytest.raises(InputError, match=r"above 0 and up to 1; got 1\.5"):
        tap.observe(x, store=tmp_path / "other", keep=1.5, progress=False)
    with pytest.raises(InputError, match="No row was kept"):
        tap.observe(x[:3], store=tmp_path / "none", keep=1e-9, progress=False)


def test_coordinates_are_read_back_within_what_they_leave_out(tmp_path, small_shards):
    tap, x = ki.attach(mlp()), rows(600, 4)
    observed = tap.observe(x, progress=False)
    config = ki.FitConfig(normalization=ki.NormalizationConfig(dimension=5))
    maps = ki.fit(observed, config, method="least_squares").normalization
    store = tap.observe(x, store=tmp_path / "states", coordinates=maps, progress=False)
    read = store.trajectories()
    for depth in range(read.depths):
        mean, forward, inverse = maps.maps(depth)
        expected = mean + (observed.states[depth] - mean) @ forward @ inverse
        assert torch.allclose(read.states[depth], expected.float(), atol=1e-4)
        assert torch.allclose(
            maps.normalize(read.states[depth], depth), maps.normalize(observed.states[depth], depth), atol=1e-4
        )
    assert torch.equal(read.digests, observed.digests)
    assert store.verify() == []
    assert 5 * 4 * 600 * read.depths < store.bytes < 8 * 4 * 600 * read.depths + 60_000
    with pytest.raises(InputError, match="observed with coordinates="):
        tap.observe(x, store=tmp_path / "states", progress=False)
    (tmp_path / "states" / "coordinates.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="coordinates"):
        ki.Store(tmp_path / "states")


def test_rows_go_to_a_data_set(store):
    pytest.importorskip("datasets")
    samples = list(store.as_dataset())
    observed = store.trajectories()
    assert [sample["label"] for sample in samples] == observed.labels.tolist()
    assert torch.equal(torch.tensor([list(sample[store.sites[1]]) for sample in samples]), observed.states[1])
    epochs = [[sample["sequence"] for sample in store.as_dataset(shuffle=0, epoch=epoch)] for epoch in (0, 1)]
    assert all(sorted(epoch) == list(range(300)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_shards_are_cut_by_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_SHARD_BYTES", 4 * 8 * 4 * 100)  # 100 rows of four depths
    store = ki.attach(mlp()).observe(rows(500, 4), batch_size=50, store=tmp_path / "states", progress=False)
    assert [shard.rows for shard in store.index.shards] == [100] * 5
