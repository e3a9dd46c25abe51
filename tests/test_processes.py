"""What processes say to each other, and what is left where they are killed; one alone asks nothing of anybody."""

from __future__ import annotations

import re
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import koopman_interp as ki
from koopman_interp.errors import InputError, ProcessError
from koopman_interp.observing import storing
from koopman_interp.processes import Processes
from koopman_interp.sources import merging, shards, writing
from tests.several_processes import SAID, die, run_by
from tests.sources.conftest import mlp, rows


def test_one_process_alone_keeps_what_it_has():
    here, tensor = Processes.here(), torch.arange(3.0)
    here.add_up([tensor])
    here.copy_from_first([tensor])
    here.wait()
    assert here.is_first and not here.are_several
    assert (here.given("it"), here.all_of("it")) == ("it", ["it"])
    assert torch.equal(tensor, torch.arange(3.0))


def test_a_lost_process_is_told_in_a_sentence(monkeypatch):
    def lost(*_, **__):
        raise RuntimeError("[/somewhere/pair.cc:553] Connection closed by peer [127.0.0.1]:1. Good luck")

    monkeypatch.setattr(dist, "all_reduce", lost)
    with pytest.raises(ProcessError, match=r"Process 1 of 2 has lost the others \(Connection closed by peer") as found:
        Processes(1, 2).add_up([torch.zeros(2)])
    assert "pair.cc" not in str(found.value)
    assert "resume='auto'" in str(found.value)


def test_a_process_that_finds_no_other_is_told_in_a_sentence(monkeypatch):
    def alone(*_, **__):
        raise dist.DistNetworkError("Gloo connectFullMesh failed with [/somewhere/pair.h:311] Connect timeout")

    monkeypatch.setattr(dist, "init_process_group", alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ProcessError, match="Process 1 of 2 did not find the others") as found:
        Processes.here()
    assert "pair.h" not in str(found.value)


# --- killed, and started again ------------------------------------------------------------------------------------

INPUTS, LABELS = rows(120, 4), torch.arange(120) % 3
FITTED = ki.FitConfig(observables=12, hidden=(8,), steps=8, evaluate_every=2, batch_size=16, patience=None)


def observe(_, folder):
    small = mock.patch.multiple(shards, BLOCK_ROWS=8, BLOCK_BYTES=1)
    with small, mock.patch.multiple(writing, SHARD_ROWS=16, _INDEX_SECONDS=0.0):
        ki.attach(mlp()).observe((INPUTS, LABELS), batch_size=4, store=folder, progress=False)


def dying(module, name, call=1, ranks=(0, 1)):
    """Make processes of these ranks die at a call of a function, and observe."""

    def work(rank, folder):
        called, left = getattr(module, name), iter([False] * (call - 1) + [True])

        def dies(*arguments):
            if next(left, False):
                die()
            return called(*arguments)

        with mock.patch.object(module, name, dies) if rank in ranks else nullcontext():
            observe(rank, folder)

    return work


def first_dies_at_a_shard(rank, folder):
    dying(writing, "write_shard", call=3, ranks=(0,))(rank, folder)


def second_dies_at_its_first_shard(rank, folder):
    dying(writing, "write_shard", ranks=(1,))(rank, folder)


def both_die_at_shards(rank, folder):
    dying(writing, "write_shard", call=2 + rank)(rank, folder)


def first_dies_before_it_joins(rank, folder):
    dying(storing, "join_ranks", ranks=(0,))(rank, folder)


def first_dies_when_it_has_joined(rank, folder):
    dying(merging, "clear_leftovers", ranks=(0,))(rank, folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every file of an observation by two processes that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "states"
    assert run_by(2, observe, folder) == [0, 0]
    return contents(folder)


@pytest.mark.parametrize(
    ("work", "ended"),
    [
        (first_dies_at_a_shard, [-9, SAID]),
        (second_dies_at_its_first_shard, [SAID, -9]),
        (both_die_at_shards, [-9, -9]),
        (first_dies_before_it_joins, [-9, SAID]),
        (first_dies_when_it_has_joined, [-9, SAID]),
        (observe, [0, 0]),
    ],
)
def test_an_observation_that_is_started_again_is_what_it_would_have_been(tmp_path, whole, work, ended):
    folder = tmp_path / "states"
    assert run_by(2, work, folder) == ended
    for said in tmp_path.glob("said-*"):
        assert re.search(r"Process \d of 2 has lost the others .*an observation where it was", said.read_text())
    assert run_by(2, observe, folder) == [0, 0]
    assert contents(folder) == whole
    assert sorted(ki.Store(folder).trajectories().digests.tolist()) == sorted(
        ki.attach(mlp()).observe(INPUTS, progress=False).digests.tolist()
    )


class DiesAt(ki.Callback):
    """The first process dies at a look."""

    def __init__(self, step):
        self.step = step

    def on_look(self, step, _):
        if step == self.step:
            die()


def fit(_, folder, callbacks=()):
    koopman = ki.fit(
        folder,
        FITTED,
        checkpoint=folder.parent / "kept.safetensors",
        resume="auto",
        progress=False,
        callbacks=callbacks,
    )
    (folder.parent / f"koopman-{dist.get_rank()}").write_text(koopman.digest())


def fit_and_die(rank, folder):
    fit(rank, folder, [DiesAt(4)])


def test_a_fit_that_is_started_again_is_what_it_would_have_been(tmp_path):
    digests = []
    for name, works in (("whole", [fit]), ("killed", [fit_and_die, fit])):
        folder = tmp_path / name / "states"
        assert run_by(2, observe, folder) == [0, 0]
        ended = [run_by(2, work, folder) for work in works]
        assert ended == [[-9, SAID], [0, 0]][-len(works) :]
        assert sorted(path.name for path in folder.parent.glob("*kept*")) == ["kept.safetensors"]
        digests += [(folder.parent / f"koopman-{rank}").read_text() for rank in range(2)]
    assert len(set(digests)) == 1
    assert "resume='auto'" in (tmp_path / "killed" / "said-1").read_text()


def test_others_are_not_taken_for_those_who_observed(tmp_path, whole):
    folder = tmp_path / "states"
    folder.mkdir()
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match="ranks=2, and this observation has 1"):
        observe(0, folder)
    assert run_by(3, refused, folder) == [0, 0, 0]
    assert contents(folder) == whole


def test_a_joined_store_is_not_what_two_processes_observed(tmp_path, whole):
    """Though each of those joined was: what a process finds there is not its own part."""
    parts = [tmp_path / name for name in ("first", "second")]
    for folder in parts:
        folder.mkdir()
        for name, content in whole.items():
            (folder / name).write_bytes(content)
    joined = ki.merge_stores(parts, tmp_path / "joined" / "states").folder
    before = contents(joined)
    assert run_by(2, refused_as_a_store, joined) == [0, 0]
    assert contents(joined) == before


def refused_as_a_store(_, folder):
    with pytest.raises(InputError, match="holds a store already"):
        observe(0, folder)


def refused(_, folder):
    with pytest.raises(InputError, match=r"an observation by 2 processes, and here there are 3"):
        observe(0, folder)
