"""Stores on the command line: observed to, fitted from, looked at, checked, joined and sent to the Hub."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import koopman_interp as ki
from koopman_interp import hub
from koopman_interp.errors import InputError


@pytest.fixture
def states(run):
    assert run("observe", "own_host:model", "own_host:data", "--store", "states")[0] == 0
    return Path("states")


def test_a_store_is_fitted_as_the_file_of_the_same_rows(run, states):
    assert run("observe", "own_host:model", "own_host:data", "--out", "rows.safetensors")[0] == 0
    for rows, out in (("states", "of_store"), ("rows.safetensors", "of_file")):
        assert run("fit", rows, "--out", out, "--method", "least_squares")[0] == 0
    digests = {ki.KoopmanAutoencoder.from_pretrained(out).digest() for out in ("of_store", "of_file")}
    assert len(digests) == 1


def test_what_is_in_it_is_said(run, states):
    code, printed, _ = run("store", "info", "states")
    assert code == 0
    assert "Store(300 rows of 300 inputs, 4 depths" in printed
    assert "classes: 0, 1, 2" in printed
    told = json.loads(run("store", "info", "states", "--json")[1])
    assert (told["rows"], told["complete"], told["kept"], told["coordinates"]) == (300, True, 1.0, False)
    assert run("observe", "own_host:model", "own_host:data", "--store", "some", "--keep", "0.5")[0] == 0
    told = json.loads(run("store", "info", "some", "--json")[1])
    assert told["kept"] == 0.5
    assert 100 < told["rows"] < 200


def test_verify_lists_what_is_wrong_and_says_so_by_its_status(run, states):
    assert run("store", "verify", "states")[:2] == (0, "300 rows, all whole.\n")
    path = states / ki.Store(states).index.shards[0].name
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    (states / "notes.txt").write_text("")
    code, printed, _ = run("store", "verify", "states")
    assert code == 1
    assert printed.splitlines()[0].startswith(f"{path} does not hold what was written to it")
    assert printed.splitlines()[1:] == ["states/notes.txt is not of the store.", "300 rows read; 2 wrong."]


def test_stores_are_joined(run, states):
    assert run("observe", "own_host:model", "own_host:data", "--store", "more")[0] == 0
    code, printed, _ = run("store", "merge", "states", "more", "--out", "both")
    assert code == 0
    assert printed.startswith("Store(600 rows of 600 inputs")
    code, _, error = run("store", "merge", "states", "--out", "more")
    assert code == 1
    assert "more is not empty" in error


def test_a_store_goes_to_the_hub_and_comes_back(run, states, monkeypatch, tmp_path):
    there, asked = tmp_path / "hub", []

    def created(repo, **how):
        asked.append((repo, how))

    def uploaded(*, folder_path, repo_id, repo_type, allow_patterns, commit_message):
        there.mkdir()
        for name in allow_patterns:
            (there / name).write_bytes((Path(folder_path) / name).read_bytes())
        return f"{repo_type} {repo_id}: {commit_message}"

    def downloaded(repo, *, repo_type, allow_patterns, **how):
        assert (repo, repo_type) == ("me/states", "dataset")
        assert allow_patterns == ["*.safetensors", "*.json"]
        asked.append(how)
        return str(there)

    monkeypatch.setattr(hub, "create_repo", created)
    monkeypatch.setattr(hub, "upload_folder", uploaded)
    monkeypatch.setattr(hub, "snapshot_download", downloaded)
    (states / "notes.txt").write_text("my own")
    code, printed, _ = run("store", "push", "states", "me/states", "--private")
    assert (code, printed) == (0, "dataset me/states: Upload a store of koopman-interp\n")
    assert asked == [("me/states", {"repo_type": "dataset", "private": True, "exist_ok": True})]
    fetched = ki.Store.from_hub("me/states", revision="v1")
    assert asked[1:] == [{"revision": "v1"}]
    assert fetched.verify() == []  # and my notes did not go along
    assert fetched.index == ki.Store(states).index


def test_what_the_hub_does_not_have_is_said():
    with pytest.raises(FileNotFoundError, match=r"no data set under the name 'not a name'.*Expected owner/name"):
        ki.Store.from_hub("not a name")


def test_half_a_store_stays_at_home(run, states):
    from dataclasses import replace

    store = ki.Store(states)
    store.index = replace(store.index, complete=False)
    with pytest.raises(InputError, match="did not come to its end"):
        store.push_to_hub("me/states")


@pytest.mark.parametrize("how", [[], ["--out", "rows.safetensors", "--store", "states"], ["--keep", "0.5"]])
def test_one_place_to_write_to_is_asked_for(run, how):
    code, _, error = run("observe", "own_host:model", "own_host:data", *how)
    assert code == 2
    assert re.search(r"--store FOLDER (alone|with it)|Say where to write it", error.replace("\n", " "))


def test_what_is_neither_a_file_nor_a_store_is_said(run, tmp_path):
    code, _, error = run("fit", "nowhere", "--out", "koopman")
    assert (code, "There is no file of trajectories, and no folder of a store, nowhere." in error) == (1, True)
    (tmp_path / "empty").mkdir()
    code, _, error = run("fit", "empty", "--out", "koopman")
    assert (code, "There is no store in empty" in error) == (1, True)


@pytest.mark.tutorial
def test_two_processes_share_the_work_and_the_first_alone_speaks(run, states):
    def torchrun(*arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", f"--master-port={port}"]
        paths = os.pathsep.join([*sys.path, str(Path.cwd())])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [*started, "-m", "koopman_interp", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    done = torchrun("observe", "own_host:model", "own_host:data", "--store", "shared")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Store(300 rows of 300 inputs") == 1
    shared, alone = ki.Store("shared"), ki.Store(states)
    assert shared.verify() == []
    assert sorted(path.name for path in Path("shared").iterdir()) == [
        "000-000000.safetensors", "001-000000.safetensors", "index.json",
    ]  # fmt: skip
    assert sorted(shared.trajectories().digests.tolist()) == sorted(alone.trajectories().digests.tolist())
    done = torchrun("fit", "shared", "--out", "koopman", "--set", "steps=20", "--set", "observables=14")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("KoopmanAutoencoder(") == 1
    assert ki.KoopmanAutoencoder.from_pretrained("koopman").record.history[-1]["fvu"] < 1
