"""Whatever text stands in a run's numbers, its page is refused with a sentence, or holds it escaped."""

import copy
import json
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import koopman_interp as ki
from koopman_interp.errors import FileFormatError
from koopman_interp.files import read_json, write_json
from koopman_interp.report.page import build_page
from koopman_interp.testing import yin_yang
from tests.report.conftest import SPOKEN

HOSTILE = (
    "<script>alert(1)</script>", "<meta http-equiv=refresh content=0>", '"onload="alert(1)', "]]>", "$x_", "$x_{$",
    "\0", "\u202eevil\u200f", "--><i>", "${title}", "</title><script>", "../../secret", "'", "&amp;", "\ud800",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    model, koopman, fitted = trained
    x, y = yin_yang(120, seed=5)
    edit = ki.erase_class(koopman, label=2)
    folder = tmp_path_factory.mktemp("runs") / "run"
    ki.write_run(
        folder, koopman, fidelity=ki.fidelity(model, koopman, held_out=(x, y)), edit=edit,
        audits=[ki.audit(ki.patched(model, koopman, edit), held_out=(x, y))], command="run", facts={"data": ["x", 1]},
        topologies={"model": ki.topology(fitted, points=20)}, class_names=("yin", "yang", "dot"), seconds={"fit": 1.0},
        modes=ki.describe_modes(koopman, ki.spectrum(koopman, fitted), fitted, model=model, batches=x, modes=2),
        language=[SPOKEN],
    )  # fmt: skip
    # One figure does: what the others hold stands in files of their own.
    write_json(folder / "metrics.json", read_json(folder / "metrics.json") | {"figures": ["fit"]})
    build_page(folder)
    return folder


def places(value, path=()):
    """Where text stands in JSON: leaves, and keys of mappings."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield (*path, key), "key"
            yield from places(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from places(each, (*path, index))
    elif isinstance(value, str):
        yield path, "leaf"


def spoilt(values, path, kind, text):
    """Put a text in the place of a leaf or of a key."""
    values = copy.deepcopy(values)
    *way, last = path
    holder = values
    for step in way:
        holder = holder[step]
    if kind == "leaf":
        holder[last] = text
    else:
        items = [(text if key == last else key, each) for key, each in holder.items()]
        holder.clear()
        holder.update(items)
    return values


def is_harmless(page, honest):
    """Whether a page has no tag, attribute or unseen character that the honest one has not."""
    assert not re.search(r"<script|<meta http-equiv=refresh|<i>", page)
    assert not re.search(r"[\0\u202e\u200f]", page)
    outside = re.sub(r">[^<]*<", "><", page)
    assert "alert(" not in re.sub(r'aria-label="[^"]*"', "", outside)
    assert set(re.findall(r"<(\w+)", page)) <= set(re.findall(r"<(\w+)", honest)) | {"b", "span", "figcaption"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_hostile_text_is_refused_or_escaped(folder, tmp_path_factory, data):
    values, honest = read_json(folder / "metrics.json"), (folder / "report.html").read_text(encoding="utf-8")
    path, kind = data.draw(st.sampled_from(sorted(places(values), key=str)))
    text = data.draw(st.sampled_from(HOSTILE))
    made = tmp_path_factory.mktemp("spoilt") / "run"
    shutil.copytree(folder, made, copy_function=shutil.copyfile)
    (made / "report.html").unlink()
    (made / "metrics.json").write_text(json.dumps(spoilt(values, path, kind, text)))
    try:
        page = build_page(made).read_text(encoding="utf-8")
    except (FileFormatError, FileNotFoundError) as error:
        assert "Write the run again" in str(error) or "no folder" in str(error)
        return
    is_harmless(page, honest)


@pytest.mark.parametrize("text", HOSTILE)
def test_all_free_text_at_once_is_escaped(folder, tmp_path, text):
    values = read_json(folder / "metrics.json")
    honest = (folder / "report.html").read_text(encoding="utf-8")
    shutil.copytree(folder, tmp_path / "run")
    values |= {"title": text, "command": text, "facts": {text: [text, {text: text}]}, "seconds": {text: 1.0}}
    values |= {"made": {text: text}, "class_names": {"2": text}, "trajectories": text}
    values["audits"][0] |= {"edit": text, "left_out": [text]}
    for row in values["audits"][0]["rows"]:
        row["name"] = text
    spoken, (mode, *_) = values["language"][0], values["modes"]["modes"]
    spoken |= {"edit": text, "way": text, "rows": {text: spoken["rows"]["base model"], **spoken["rows"]}}
    for row in spoken["rows"].values():
        row["samples"] = [text, f"{text}{text}"]
    values["modes"]["site"] = mode["verdict"] = mode["high"][0]["text"] = mode["up"][0][0] = text
    values["topologies"] = {text: values["topologies"]["model"]}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(values))
    is_harmless(build_page(tmp_path / "run").read_text(encoding="utf-8"), honest)
    compared = ki.compare_runs(folder, tmp_path / "run", tmp_path / "compared.html")
    is_harmless(compared.read_text(encoding="utf-8"), honest)


def test_a_figure_is_named_and_no_path(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "secret.svg").write_text("<svg/>")
    write_json(tmp_path / "run" / "metrics.json", read_json(folder / "metrics.json") | {"figures": ["../../secret"]})
    with pytest.raises(FileFormatError, match="no name of a figure"):
        build_page(tmp_path / "run")
