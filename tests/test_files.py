"""Files are written whole or not at all, and read back only if they are ours."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from koopman_interp import files
from koopman_interp.errors import FileFormatError, KoopmanInterpError, StorageError
from koopman_interp.files import read_json, read_tensors, replacing, write_json, write_tensors, write_text


class Halfway(Exception):  # noqa: N818 (no error, an event)
    pass


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(300.0)}, kind="edit", header={"note": "é", "n": [1, 2]})
    return path


def test_tensors_and_header_come_back_as_they_were(tmp_path):
    tensors = {
        "a": torch.randn(3, 4, dtype=torch.float64),
        "b": torch.randn(5).to(torch.bfloat16),
        "c": torch.arange(3),
        "d": torch.tensor(2.5),
        "e": torch.zeros(0, 4),
        "turned": torch.randn(4, 3).T,
    }
    path = tmp_path / "made" / "on the way" / "x.safetensors"
    write_tensors(path, tensors, kind="edit", header={"name": "é", "sites": ("a", "b")})
    found, header = read_tensors(path, kind="edit")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert header["name"] == "é"
    assert header["sites"] == ["a", "b"]


def test_two_names_for_one_storage_are_both_kept(tmp_path):
    base = torch.arange(6.0)
    write_tensors(tmp_path / "x.safetensors", {"whole": base, "part": base[:2]}, kind="k", header={})
    found, _ = read_tensors(tmp_path / "x.safetensors", kind="k")
    assert torch.equal(found["whole"], base)
    assert torch.equal(found["part"], base[:2])


@pytest.mark.parametrize("error", [Halfway, KeyboardInterrupt])
def test_a_write_that_fails_midway_leaves_the_old_file_and_no_temporary(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["x.txt"]


def test_a_first_write_that_fails_midway_leaves_nothing(tmp_path):
    with pytest.raises(Halfway), replacing(tmp_path / "x.txt") as temporary:
        temporary.write_text("half")
        raise Halfway
    assert names_in(tmp_path) == []


def test_tensors_that_fail_midway_leave_the_old_file(written, monkeypatch):
    before = written.read_bytes()

    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "save_file", fails)
    with pytest.raises(StorageError, match="disk is full"):
        write_tensors(written, {"x": torch.zeros(1)}, kind="edit", header={})
    assert written.read_bytes() == before
    assert names_in(written.parent) == [written.name]


def test_a_header_that_is_not_json_leaves_the_old_file(written):
    before = written.read_bytes()
    with pytest.raises(TypeError):
        write_tensors(written, {"x": torch.zeros(1)}, kind="edit", header={"bad": object()})
    assert written.read_bytes() == before


def test_a_written_file_has_the_permissions_of_any_other_new_file(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("kept", [0, 3, 8, 40, 0.5, -1])
def test_a_truncated_file_is_refused(written, kept):
    whole = written.read_bytes()
    written.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(FileFormatError, match="not a whole safetensors file") as caught:
        read_tensors(written, kind="edit")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, KoopmanInterpError)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    for metadata in (None, {"format": "pt"}):
        save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", metadata=metadata)
        with pytest.raises(FileFormatError, match="not written by koopman-interp"):
            read_tensors(tmp_path / "x.safetensors", kind="edit")


@pytest.mark.parametrize("described", ["not json", "[1, 2]", '"edit"'])
def test_a_garbled_header_is_refused_with_the_name_of_the_file(tmp_path, described):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={files.HEADER_KEY: described})
    with pytest.raises(FileFormatError, match=r"x\.safetensors"):
        read_tensors(tmp_path / "x.safetensors", kind="edit")


def test_another_kind_is_refused_by_both_names(written):
    with pytest.raises(FileFormatError, match="holds 'edit', not the 'surrogate'"):
        read_tensors(written, kind="surrogate")


def test_another_format_version_is_refused(written, monkeypatch):
    monkeypatch.setattr(files, "FORMAT_VERSION", files.FORMAT_VERSION + 1)
    with pytest.raises(FileFormatError, match="format version"):
        read_tensors(written, kind="edit")


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_tensors(tmp_path / "nothing.safetensors", kind="edit")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_json(tmp_path / "nothing.json")


def test_json_comes_back_as_it_was(tmp_path):
    value = {"a": [1, 2.5, None, True], "é": {"b": "ü"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path, number):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": number})
    assert read_json(tmp_path / "x.json") == 1
    assert names_in(tmp_path) == ["x.json"]


def test_truncated_or_binary_json_is_refused(tmp_path):
    path = tmp_path / "x.json"
    whole = json.dumps({"a": "é" * 9}, ensure_ascii=False).encode()
    for content in (whole[:-3], whole[:8], b"", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="not whole JSON"):
            read_json(path)


# --- what is wrong with a disk, and what is wrong on it -----------------------------------------------------


def test_every_flipped_bit_is_noticed(written):
    whole = written.read_bytes()
    for at in range(0, 8 * len(whole), 7):
        changed = bytearray(whole)
        changed[at // 8] ^= 1 << at % 8
        written.write_bytes(changed)
        with pytest.raises(FileFormatError):
            read_tensors(written, kind="edit")
    written.write_bytes(whole)
    read_tensors(written, kind="edit")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, '{"a": ' * 100_000])
def test_json_that_is_too_deep_or_too_long_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FileFormatError, match="not whole JSON"):
        read_json(tmp_path / "x.json")
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={files.HEADER_KEY: text})
    with pytest.raises(FileFormatError, match="not written by koopman-interp"):
        read_tensors(tmp_path / "x.safetensors", kind="edit")


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from koopman_interp.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    temporary.with_name('.tmpOwn').touch()\n"  # as safetensors does, which then renames it
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "x.txt"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    (tmp_path / ".x-other.txt").touch()  # somebody's own
    assert len(names_in(tmp_path)) == 2  # the second killed writer cleared away what the first had left
    with replacing(path) as alive:
        write_text(path, "whole")
        assert alive.exists(), "a writer that still runs keeps its file"
        alive.write_text("last")
    assert names_in(tmp_path) == [".x-other.txt", "x.txt"]


def test_a_full_disk_is_said_before_and_while_it_is_written(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.zeros(3)}, kind="edit", header={})
    before = path.read_bytes()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"x\.safetensors needs 4\.0 MB, and 0\.0 MB are free") as caught:
        write_tensors(path, {"x": torch.zeros(10**6)}, kind="edit", header={})
    assert isinstance(caught.value, OSError)
    assert path.read_bytes() == before
    with (
        pytest.raises(StorageError, match=r"x\.json could not be written: the disk is full"),
        replacing(tmp_path / "x.json"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names_in(tmp_path) == ["x.safetensors"]


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(StorageError, match="a part of its path is a file"):
        write_text(tmp_path / "a" / "b" / "x.txt", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="not to be written to"):
        write_text(tmp_path / "x.txt", "x")
