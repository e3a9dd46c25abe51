"""Stores that are joined hold the rows of all, in order, each input with a number of its own."""

from __future__ import annotations

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.files import json_digest, read_json, write_json
from koopman_interp.sources.store import INDEX
from tests.sources.conftest import batched, mlp, rows, same


@pytest.fixture
def two(tmp_path, small_shards):
    """Of a hundred and of seventy points, and all of them in memory."""
    tap = ki.attach(mlp())
    parts = [batched(rows(100, 4)), [(x, y + 3) for x, y in batched(rows(70, 4, seed=1))]]
    for name, part in zip("ab", parts, strict=True):
        tap.observe(part, store=tmp_path / name, progress=False)
    return tmp_path / "a", tmp_path / "b", tap.observe(parts[0] + parts[1], progress=False)


def test_a_joined_store_holds_all(two, tmp_path):
    one, other, observed = two
    joined = ki.merge_stores([one, other], tmp_path / "joined")
    assert same(joined.trajectories(), observed)
    assert joined.trajectories().sequence.tolist() == list(range(170))
    assert (joined.classes, joined.index.inputs, joined.index.complete) == ((0, 1, 2, 3, 4, 5), 170, True)
    assert joined.verify() == []
    again = ki.merge_stores([tmp_path / "joined", one], tmp_path / "again")
    assert same(again.trajectories()[:170], observed)
    assert again.trajectories().sequence.tolist() == list(range(270))


def test_shards_are_linked_and_the_stores_stay(two, tmp_path, monkeypatch):
    one, other, observed = two
    before = {path: path.read_bytes() for store in (one, other) for path in store.iterdir()}
    joined = ki.merge_stores([one, other], tmp_path / "joined")
    names = [shard.name for shard in joined.index.shards]
    assert (tmp_path / "joined" / names[0]).samefile(one / ki.Store(one).index.shards[0].name)

    def refuses(*_):
        raise OSError

    monkeypatch.setattr("os.link", refuses)
    copied = ki.merge_stores([one, other], tmp_path / "copied")
    assert not (tmp_path / "copied" / names[0]).samefile(tmp_path / "joined" / names[0])
    assert same(copied.trajectories(), observed)
    assert {path: path.read_bytes() for path in before} == before


def refused(folders, target, match):
    with pytest.raises(InputError, match=match):
        ki.merge_stores(folders, target)
    assert not target.exists()


def test_stores_that_do_not_go_together_are_refused_and_nothing_is_written(two, tmp_path):
    one, _, _ = two
    target, x = tmp_path / "joined", batched(rows(30, 4))
    other = mlp()
    with torch.no_grad():
        next(other.parameters())[0] += 1
    ki.attach(other).observe(x, store=tmp_path / "other model", progress=False)
    refused([one, tmp_path / "other model"], target, "need the same facts")
    ki.attach(mlp(), ["blocks.0", "blocks.1"]).observe(x, store=tmp_path / "other sites", progress=False)
    refused([one, tmp_path / "other sites"], target, "need the same facts")
    ki.attach(mlp()).observe(rows(30, 4), store=tmp_path / "unlabelled", progress=False)
    refused([one, tmp_path / "unlabelled"], target, "need the same labelled")
    refused([], target, "no stores to join")
    with pytest.raises(FileNotFoundError, match="There is no store"):
        ki.merge_stores([one, tmp_path / "nowhere"], target)
    with pytest.raises(InputError, match="is not empty"):
        ki.merge_stores([one], one)


def test_one_that_did_not_come_to_its_end_is_refused(two, tmp_path):
    one, other, _ = two
    values = read_json(other / INDEX)
    del values["digest"]
    values["complete"] = False
    write_json(other / INDEX, values | {"digest": json_digest(values)})
    refused([one, other], tmp_path / "joined", "did not come to its end")
    with pytest.warns(UserWarning, match="did not come to its end: it has 70 inputs"):
        ki.Store(other)


def test_coordinates_go_along(tmp_path, small_shards):
    tap = ki.attach(mlp())
    maps = ki.fit(tap.observe(rows(600, 4)), method="least_squares").normalization
    for name, seed in (("a", 0), ("b", 1)):
        tap.observe(rows(50, 4, seed=seed), store=tmp_path / name, coordinates=maps, progress=False)
    tap.observe(rows(50, 4), store=tmp_path / "plain", progress=False)
    joined = ki.merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "joined")
    stores = [ki.Store(tmp_path / name).trajectories() for name in "ab"]
    assert torch.equal(joined.trajectories().states[2], torch.cat([each.states[2] for each in stores]))
    refused([tmp_path / "a", tmp_path / "plain"], tmp_path / "other", "keep the same coordinates")
