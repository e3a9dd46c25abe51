"""A run's folder is whole or not there, whatever kills its writer; one process writes it at a time."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

import koopman_interp as ki
from koopman_interp.errors import InputError, LockedError, StorageError
from koopman_interp.files import read_json
from koopman_interp.report import swapping
from koopman_interp.report.folder import is_part
from koopman_interp.report.swapping import recover, swapped


def write(folder, text, *names):
    with swapped(folder, ours=lambda name: name.startswith("part")) as new:
        for name in names or ("part-a", "part-b"):
            (new / name).write_text(text)


def held(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture(params=["one step", "two renames"])
def ways(request, monkeypatch):
    """Both ways of swapping: in one step, and where the system has no such thing."""
    if request.param == "two renames":
        monkeypatch.setattr(swapping, "_exchanged", lambda one, other: False)


def test_the_new_folder_takes_the_place_of_the_old_and_leaves_nothing_beside(ways, tmp_path):
    folder = tmp_path / "deep" / "run"
    write(folder, "old", "part-a", "part-gone")
    write(folder, "new")
    assert held(folder) == {"part-a": "new", "part-b": "new"}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]


def test_what_no_run_wrote_stays(ways, tmp_path):
    folder = tmp_path / "run"
    write(folder, "old")
    (folder / "notes.txt").write_text("mine")
    (folder / "more").mkdir()
    (folder / "more" / "link").symlink_to("nowhere")
    with (folder / "log.txt").open("w") as log:
        write(folder, "new")
        log.write("still open")
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "log.txt").read_text() == "still open"
    assert (folder / "more" / "link").is_symlink()


def test_an_error_leaves_the_old_folder(ways, tmp_path):
    folder = tmp_path / "run"
    write(folder, "old")
    with pytest.raises(ZeroDivisionError), swapped(folder, ours=is_part) as new:
        (new / "part-a").write_text("half")
        raise ZeroDivisionError
    assert held(folder) == {"part-a": "old", "part-b": "old"}
    assert not (tmp_path / ".run.new").exists()


def killed_at(folder, moment):
    """Write a folder in a process that is killed before its n-th rename or exchange, or while it writes."""
    steps = iter(range(moment))

    def step(own):
        def counted(*arguments):
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return own(*arguments)

        return counted

    Path.rename = step(Path.rename)
    swapping._exchanged = step(swapping._exchanged)
    swapping._clear = step(swapping._clear)
    swapping._keep_others = step(swapping._keep_others)
    write(folder, "new")


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_leaves_the_old_folder_or_the_new_one_and_the_next_write_clears_up(ways, tmp_path, moment):
    folder = tmp_path / "run"
    write(folder, "old")
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(folder, moment))
    process.start()
    process.join(20)
    assert process.exitcode in (-signal.SIGKILL, 0)
    recover(folder)
    assert set(held(folder).values()) in ({"old"}, {"new"})
    write(folder, "newest")
    assert set(held(folder).values()) == {"newest"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_one_writer_at_a_time(tmp_path):
    folder, inside, go = tmp_path / "run", threading.Event(), threading.Event()

    def slowly():
        with swapped(folder, ours=is_part) as new:
            (new / "part-a").write_text("slow")
            inside.set()
            go.wait(20)

    writer = threading.Thread(target=slowly)
    writer.start()
    inside.wait(20)
    with pytest.raises(LockedError, match="is being written to by"):
        write(folder, "fast")
    go.set()
    writer.join(20)
    assert held(folder) == {"part-a": "slow"}
    write(folder, "fast")
    assert held(folder)["part-a"] == "fast"


def test_the_folder_that_one_works_in_is_refused(tmp_path, monkeypatch):
    (tmp_path / "within").mkdir()
    monkeypatch.chdir(tmp_path / "within")
    for folder in (".", tmp_path):
        with pytest.raises(InputError, match="the folder that you work in"):
            ki.write_run(folder)
    (tmp_path / "within" / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        ki.write_run("file")


def test_a_run_keeps_weights_and_configuration_of_one_fit_together(tmp_path, surrogate, trained, monkeypatch):
    folder = tmp_path / "run"
    ki.write_run(folder, surrogate)
    (folder / "notes.txt").write_text("mine")
    own, before = ki.KoopmanAutoencoder._save_pretrained, (folder / "koopman" / "config.json").read_bytes()

    def half(self, directory, *rest):
        own(self, directory, *rest)
        (directory / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(ki.KoopmanAutoencoder, "_save_pretrained", half)
    with pytest.raises(KeyboardInterrupt):
        ki.write_run(folder, trained[1])
    assert (folder / "koopman" / "config.json").read_bytes() == before
    monkeypatch.undo()
    ki.write_run(folder, trained[1])
    config = read_json(folder / "koopman" / "config.json")
    assert config["observables"] == ki.KoopmanAutoencoder.from_pretrained(folder / "koopman").config.observables
    assert (folder / "notes.txt").read_text() == "mine"
