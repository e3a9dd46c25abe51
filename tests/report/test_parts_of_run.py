"""A run that is made part by part is the run that is written at once."""

from dataclasses import replace

import pytest

import koopman_interp as ki
from koopman_interp.cli import paths
from koopman_interp.errors import HostMismatchError
from koopman_interp.files import read_json
from koopman_interp.report import folder as places
from koopman_interp.report.parts_of_run import add_to_run
from tests.report.conftest import SPOKEN, texts_alone


def test_the_command_line_knows_where_parts_lie():
    names = ("METRICS", "TRAJECTORIES", "KOOPMAN", "EDIT", "LENS")
    assert [getattr(paths, name) for name in names] == [getattr(places, name) for name in names]


def test_parts_join_to_the_whole(trained, yin_yang_data, tmp_path):
    model, koopman, data = trained
    edit = ki.erase_class(koopman, label=1)
    patches = [ki.patched(model, koopman, edit, mode=mode) for mode in ("delta", "replace")]
    audits = [ki.audit(patch, held_out=yin_yang_data) for patch in patches]
    shapes = {"model": ki.topology(data, points=20), "surrogate": ki.topology(data, koopman, points=20)}
    parts = {"trajectories": data, "spectrum": ki.spectrum(koopman, data), "edit": edit}
    parts["modes"] = ki.describe_modes(koopman, parts["spectrum"], data, modes=2)
    rows = {name: texts_alone(row) for name, row in SPOKEN.rows.items()}
    language = [SPOKEN, replace(SPOKEN, rows=rows), replace(SPOKEN, edit="another")]
    ki.write_run(tmp_path / "whole", koopman, **parts, topologies=shapes, audits=audits, language=language)
    for name, value in parts.items():
        add_to_run(tmp_path / "parts", koopman, **{name: value})
    for name, value in shapes.items():
        add_to_run(tmp_path / "parts", koopman, topologies={name: value})
    for audit in (audits[0], *audits):  # one twice
        page = add_to_run(tmp_path / "parts", koopman, audits=[audit])
    older = replace(SPOKEN, rows={name: replace(row, perplexity=9.0) for name, row in SPOKEN.rows.items()})
    for spoken in (older, *language):  # one anew
        add_to_run(tmp_path / "parts", koopman, language=[spoken])
    whole, joined = (read_json(tmp_path / each / places.METRICS) for each in ("whole", "parts"))
    assert sorted(joined.pop("figures")) == sorted(whole.pop("figures"))
    assert joined.pop("made").keys() == whole.pop("made").keys()  # at other times
    assert joined == whole
    assert page.read_text().count("<section") == (tmp_path / "whole" / "report.html").read_text().count("<section")
    files = [
        {path.relative_to(tmp_path / each) for path in (tmp_path / each).rglob("*")} for each in ("whole", "parts")
    ]
    assert files[0] == files[1]


def test_a_run_of_another_surrogate_is_not_added_to(trained, surrogate, tmp_path):
    _, koopman, data = trained
    add_to_run(tmp_path, koopman)
    with pytest.raises(HostMismatchError, match="another surrogate"):
        add_to_run(tmp_path, surrogate, spectrum=ki.spectrum(koopman, data))
