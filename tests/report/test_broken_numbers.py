"""A run whose numbers or files are missing, foreign or broken is refused with a sentence that names what."""

import json

import pytest

from koopman_interp.errors import FileFormatError
from koopman_interp.files import read_json, write_json
from koopman_interp.report.page import build_page


@pytest.fixture
def copy(run, tmp_path):
    """A folder with the numbers alone, to be spoilt; it names no figures."""
    write_json(tmp_path / "metrics.json", read_json(run[0] / "metrics.json"))
    return tmp_path


def test_numbers_that_are_missing_foreign_or_broken_are_refused(copy, tmp_path):
    with pytest.raises(FileNotFoundError):
        build_page(tmp_path / "nowhere")
    values = read_json(copy / "metrics.json")
    for other in ([1, 2], {"kind": "something else"}, {}):
        write_json(copy / "metrics.json", other)
        with pytest.raises(FileFormatError, match="does not hold the numbers"):
            build_page(copy)
    (copy / "metrics.json").write_text(json.dumps(values)[:-9])
    with pytest.raises(FileFormatError, match="not whole JSON"):
        build_page(copy)


def test_a_missing_figure_is_named(copy):
    with pytest.raises(FileNotFoundError, match=r"spectrum\.svg"):
        build_page(copy)


@pytest.mark.parametrize("name", ["spectrum", "topology-0", "edit"])
def test_a_missing_value_is_named(run, name):
    folder, _ = run
    path = folder / f"{name}.safetensors"
    whole = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(FileNotFoundError, match=name):
            build_page(folder)
        path.write_bytes(whole[:99])
        with pytest.raises(FileFormatError, match=f"{name}.safetensors is not a whole"):
            build_page(folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("key", ["title", "audits", "fidelity", "spectrum", "edits", "seconds", "figures", "facts"])
def test_numbers_without_a_part_are_refused_with_its_name(run, key):
    folder, _ = run
    whole = (folder / "metrics.json").read_bytes()
    page = (folder / "report.html").read_bytes()
    values = json.loads(whole)
    del values[key]
    try:
        write_json(folder / "metrics.json", values)
        with pytest.raises(FileFormatError, match=f"incomplete: KeyError '{key}'"):
            build_page(folder)
    finally:
        (folder / "metrics.json").write_bytes(whole)
    assert (folder / "report.html").read_bytes() == page
