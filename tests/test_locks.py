"""A lock has one holder, says who, leaves nothing, and is free again when its holder is killed."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from koopman_interp.errors import KoopmanInterpError, LockedError, StorageError
from koopman_interp.locks import locked

HOLDER = """
import sys, time
from koopman_interp.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    path = tmp_path / "kept.safetensors"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        yield path, holder
        holder.kill()


def test_the_second_is_told_who_holds_it_and_since_when(held):
    path, holder = held
    for _ in range(2):  # an attempt takes nothing from what the next is told
        said = rf"{path} is being written to by process {holder.pid} on .* since 20\d\d"
        with pytest.raises(LockedError, match=said), locked(path):
            pytest.fail("two hold one lock")
    assert issubclass(LockedError, KoopmanInterpError)
    assert issubclass(LockedError, BlockingIOError)


def test_a_killed_holders_lock_is_free_and_its_file_goes_with_the_next(held):
    path, holder = held
    holder.kill()
    holder.wait()
    with locked(path):
        pass
    assert list(path.parent.iterdir()) == []


def test_two_threads_of_one_process_do_not_share_it(tmp_path):
    with locked(tmp_path / "x"), pytest.raises(LockedError, match=f"process {os.getpid()}"), locked(tmp_path / "x"):
        pytest.fail("two hold one lock")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_a_lock_leaves_nothing(tmp_path, error):
    path = tmp_path / "made on the way" / "x"
    try:
        with locked(path):
            if error is not None:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        assert error is not None
    assert list(path.parent.iterdir()) == []


def test_names_of_one_file_have_one_lock(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for other in ("x", "link/x"):
        with locked(tmp_path / "x"), pytest.raises(LockedError), locked(other):
            pytest.fail("two hold one lock")


def test_many_that_come_and_go_never_hold_it_together(tmp_path):
    inside, most, rounds = 0, 0, 0

    def come_and_go():
        nonlocal inside, most, rounds
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            try:
                with locked(tmp_path / "x"):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(1e-4)
                    inside -= 1
                    rounds += 1
            except LockedError:
                time.sleep(1e-5)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert rounds > 10
    assert list(tmp_path.iterdir()) == []


def test_a_lock_below_a_file_is_refused_with_the_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a part of its path is a file"), locked(tmp_path / "file" / "x"):
        pytest.fail("there is no such folder")


def test_what_killed_writers_left_goes_with_the_next_lock(tmp_path):
    """Of this file, and of processes that are no more: who was killed after its last write has no next one."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".{name}-{socket.gethostname()}-{pid}-x.json" for name in ("index", "other") for pid in (dead.pid, 1)]
    for name in names:
        (tmp_path / name).mkdir()
    with locked(tmp_path / "index.json"):
        left = {path.name for path in tmp_path.iterdir()} - {".index.json.lock"}
    assert left == set(names[1:])
