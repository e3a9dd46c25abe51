"""An observation to a store that was stopped, however, goes on, and then is what an uninterrupted one would be."""

from __future__ import annotations

import os
import random
import shutil
import time
from contextlib import suppress

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import (
    HostMismatchError,
    InputError,
    LockedError,
    NonFiniteError,
    ObservationInterrupted,
    StorageError,
)
from koopman_interp.files import read_json
from koopman_interp.locks import locked
from koopman_interp.sources import shards, writing
from koopman_interp.sources.store import INDEX
from tests.several_processes import FORKED
from tests.sources.conftest import mlp, rows, same

INPUTS = rows(300, 4)
LABELS = torch.arange(300) % 3


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_ROWS", 16)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 1)
    monkeypatch.setattr(writing, "SHARD_ROWS", 64)


def observed(folder, x=INPUTS, y=LABELS, *, model=None, **how):
    batches = x if y is None else (x, y)
    return ki.attach(model or mlp()).observe(batches, store=folder, progress=False, **{"batch_size": 5} | how)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path):
    """Every file of an observation that nothing stopped."""
    return contents(observed(tmp_path / "whole").folder)


class Stopping(torch.nn.Module):
    """A host that raises before a call of it, of all there are."""

    def __init__(self, error, calls):
        super().__init__()
        self.inner, self.error, self.left = mlp(), error, calls
        self.eval()

    def forward(self, x):
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.inner(x)


# --- going on ----------------------------------------------------------------------------------------------------


def observing(folder, begun):
    torch.set_num_threads(1)
    shards.BLOCK_ROWS, shards.BLOCK_BYTES, writing.SHARD_ROWS, writing._INDEX_SECONDS = 16, 1, 64, 0.002
    model = mlp()
    begun.send(True)
    observed(folder, model=model)


def begun_in_a_process(folder):
    here, there = FORKED.Pipe()
    process = FORKED.Process(target=observing, args=(folder, there))
    process.start()
    assert here.recv()
    return process


def test_a_killed_observation_goes_on_to_the_same(tmp_path, whole):
    draw, folder, seen = random.Random(0), tmp_path / "states", set()
    process = begun_in_a_process(tmp_path / "in another process")
    started = time.perf_counter()
    process.join()
    seconds = time.perf_counter() - started
    assert process.exitcode == 0
    assert contents(tmp_path / "in another process") == whole
    for attempt in range(6):
        process = begun_in_a_process(folder)
        time.sleep(seconds * (attempt + draw.random()) / 6)
        process.kill()
        process.join()
        seen.add(read_json(folder / INDEX)["inputs"] if (folder / INDEX).is_file() else 0)
        if attempt % 3 == 2:  # else the next goes on from what this one left
            assert contents(observed(folder).folder) == whole
            shutil.rmtree(folder)
    assert len(seen) > 1, "killed at one place alone"


@pytest.mark.parametrize("calls", [0, 1, 13, 40, 59])
@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_what_a_model_stops_goes_on(tmp_path, error, calls):
    model = Stopping(error, calls)
    expected = observed(tmp_path / "whole", model=Stopping(error, 10_000))
    raised = RuntimeError if isinstance(error, RuntimeError) else ObservationInterrupted
    with pytest.raises(raised) as stopped:
        observed(tmp_path / "states", model=model)
    kept = 5 * 13 * (calls // 13)  # a shard holds the rows of thirteen batches
    if raised is ObservationInterrupted:
        assert f"{kept} inputs are in {tmp_path / 'states'}. Observe the same" in str(stopped.value)
    if kept:
        with pytest.warns(UserWarning, match=f"has {kept} inputs so far"):
            assert same(ki.Store(tmp_path / "states").trajectories(), expected.trajectories()[:kept])
    model.left = 60
    assert contents(observed(tmp_path / "states", model=model).folder) == contents(expected.folder)
    assert model.left == 60 - (60 - kept // 5)


@pytest.mark.parametrize("good", [0, 2])
def test_what_a_full_disk_stops_goes_on(tmp_path, monkeypatch, whole, good):
    left, write = [good], writing.write_shard

    def full(*given):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_shard", full)
        with pytest.raises(OSError, match="No space left"):
            observed(tmp_path / "states")
    assert contents(observed(tmp_path / "states").folder) == whole


def test_a_disk_that_tells_late_that_it_is_full_leaves_nothing(tmp_path, monkeypatch, whole):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="the disk is full"):
            observed(tmp_path / "states")
    assert contents(tmp_path / "states") == {}
    assert contents(observed(tmp_path / "states").folder) == whole


def test_what_the_disk_has_no_room_for_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 45_000))
        with pytest.raises(StorageError, match=r"A store of 60 batches like the first needs about .* GB, and .* free"):
            observed(tmp_path / "states")
        assert contents(tmp_path / "states") == {}
        assert len(observed(tmp_path / "thin", keep=0.3)) > 50


def test_a_complete_one_is_read_and_the_model_left_alone(tmp_path, whole):
    model = Stopping(RuntimeError("called"), 60)
    observed(tmp_path / "states", model=model)
    assert model.left == 0
    assert len(observed(tmp_path / "states", model=model)) == 300


def test_a_store_has_one_writer(tmp_path):
    with locked(tmp_path / "states" / INDEX), pytest.raises(LockedError, match=f"process {os.getpid()}"):
        observed(tmp_path / "states")
    observed(tmp_path / "states")
    assert not list((tmp_path / "states").glob(".*"))


# --- what does not go on -----------------------------------------------------------------------------------------


@pytest.fixture(params=["complete", "stopped"])
def begun(request, tmp_path):
    """A store, and how many batches are in it: all, or three shards of thirteen."""
    model = Stopping(RuntimeError(), 45 if request.param == "stopped" else 200)
    with suppress(RuntimeError):
        observed(tmp_path / "states", model=model)
    model.left = 200
    return tmp_path / "states", model


def changed(x, at):
    return torch.cat([x[:at], x[at : at + 1] + 1, x[at + 1 :]])


@pytest.mark.parametrize(
    ("x", "y"),
    [(changed(INPUTS, 0), LABELS), (changed(INPUTS, 194), LABELS), (INPUTS.flip(0), LABELS), (INPUTS, LABELS.flip(0))],
    ids=["the first input", "the last that was kept", "the order", "the labels"],
)
def test_other_inputs_or_labels_are_refused(begun, x, y):
    folder, model = begun
    before = contents(folder)
    with pytest.raises(InputError, match="other inputs or labels than these in its first"):
        observed(folder, x, y, model=model)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"batch_size": 6}, "batch size=5, and this observation has 6"),
        ({"keep": 0.5}, r"share=None, and this observation has 0\.5"),
    ],
)
def test_other_settings_are_refused(begun, how, match):
    folder, model = begun
    with pytest.raises(InputError, match=match):
        observed(folder, model=model, **how)


def test_another_model_or_other_places_in_it_are_refused(begun):
    folder, model = begun
    for how, match in [
        ({"sites": ["inner.blocks.0", "inner.blocks.1"]}, "sites="),
        ({"times": [0, 1, 2, 7]}, "times="),
        ({"layout": "batch width"}, "layout="),
    ]:
        tap = ki.attach(model, **how)
        with pytest.raises(InputError, match=match):
            tap.observe((INPUTS, LABELS), batch_size=5, store=folder, progress=False)
    with torch.no_grad():
        next(model.parameters())[0] += 1
    with pytest.raises(HostMismatchError, match="belongs to another host: weights"):
        observed(folder, model=model)


def test_fewer_batches_are_refused_and_so_are_more_after_the_end(begun):
    folder, model = begun
    with pytest.raises(InputError, match="these are the first 20 of them"):
        observed(folder, INPUTS[:100], LABELS[:100], model=model)
    observed(folder, model=model)
    x, y = torch.cat([INPUTS, INPUTS]), torch.cat([LABELS, LABELS])
    with pytest.raises(InputError, match="came to its end after 60 batches, and there are more"):
        observed(folder, x, y, model=model)


def test_another_number_of_processes_is_refused(tmp_path):
    (tmp_path / "index-0-of-2.json").write_text("{}")
    with pytest.raises(InputError, match="a part of what 2 processes observe, and here there are 1"):
        observed(tmp_path)


def test_what_makes_no_store_is_said(tmp_path):
    with pytest.raises(InputError, match="no batches to observe"):
        observed(tmp_path / "states", [], None)
    with pytest.raises(InputError, match="labels batch by batch"):
        ki.attach(mlp()).observe(INPUTS, LABELS, store=tmp_path / "states")
    with pytest.raises(InputError, match="Give store='folder' with them"):
        ki.attach(mlp()).observe(INPUTS, keep=0.5)
    with pytest.raises(InputError, match="labels"):
        observed(tmp_path / "mixed", [(INPUTS[:5], LABELS[:5]), INPUTS[5:10]], None)


# --- what is not finite ------------------------------------------------------------------------------------------

BAD = INPUTS[:60].clone()
BAD[[3, 17, 18]] = float("nan")
BAD[40] = float("inf")
GOOD = torch.tensor([number for number in range(60) if number not in (3, 17, 18, 40)])


@pytest.mark.parametrize("way", ["observe", "stream", "store"])
def test_inputs_that_are_not_finite_are_left_out_and_said_once(tmp_path, way):
    tap, batches = ki.attach(mlp()), (BAD, LABELS[:60])

    def seen(**how):
        if way == "stream":
            return ki.Trajectories.concatenate(tap.stream(batches, batch_size=5, **how), same_inputs=True)
        if way == "store":
            return observed(tmp_path / "states", *batches, **how).trajectories()
        return tap.observe(batches, batch_size=5, **how)

    with pytest.raises(NonFiniteError, match="batch 0"):
        seen()
    with pytest.warns(UserWarning, match=r"^4 of 60 inputs gave NaN or infinity") as warned:
        found = seen(on_nonfinite="skip")
    assert len(warned) == 1
    assert found.sequence.tolist() == GOOD.tolist()
    expected = tap.observe((INPUTS[:60], LABELS[:60]), batch_size=5)[GOOD]
    assert torch.equal(found.digests, expected.digests)
    assert torch.equal(found.labels, expected.labels)
    for one, other in zip(found.states, expected.states, strict=True):
        torch.testing.assert_close(one, other)


def test_all_rows_of_such_an_input_are_left_out(tmp_path):
    from tests.hosts.lens_models import llama_bridge

    model = llama_bridge()
    ids = torch.arange(2, 2 + 28).reshape(4, 7)
    expected = ki.attach(model).observe(ids)
    with torch.no_grad():
        model.embed.weight[int(ids[2, 6])] = float("nan")  # at the last place alone
    with pytest.warns(UserWarning, match=r"^1 of 4 inputs"):
        found = ki.attach(model).observe(ids, on_nonfinite="skip")
    assert found.sequence.tolist() == [0] * 7 + [1] * 7 + [3] * 7
    assert torch.equal(found.tokens, expected.tokens[expected.sequence != 2])


def test_finite_inputs_are_observed_without_a_word(recwarn):
    observed_so = ki.attach(mlp()).observe(INPUTS, on_nonfinite="skip")
    assert same(observed_so, ki.attach(mlp()).observe(INPUTS))
    assert not recwarn


def test_where_none_is_finite_that_is_said(unchecked):
    with pytest.raises(NonFiniteError, match="All 5 inputs"):
        ki.attach(mlp()).observe(INPUTS[:5] * float("nan"), on_nonfinite="skip")
    with pytest.raises(InputError, match="'raise' or 'skip'; got 'drop'"):
        ki.attach(mlp()).observe(INPUTS, on_nonfinite="drop")
