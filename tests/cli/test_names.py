"""Classes are named as the data names them, wherever a verb asks for one."""

import json

import pytest

import koopman_interp as ki
from koopman_interp.cli.rows import number_of
from koopman_interp.errors import InputError
from koopman_interp.files import read_json
from koopman_interp.testing import yin_yang

NAMES = ("dot", "yang", "yin")  # as they are numbered where nobody says otherwise


@pytest.fixture
def rows(tmp_path):
    x, y = yin_yang(300)
    lines = [{"x": each, "label": NAMES[label]} for each, label in zip(x.tolist(), y.tolist(), strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return "rows.jsonl"


def test_a_name_is_a_number_and_an_unknown_one_is_told_which_there_are():
    assert [number_of(label, NAMES) for label in ("yang", "2", "7")] == [1, 2, 7]
    assert [number_of(label, {3: "yang", 5: "2"}) for label in ("yang", "2", "1")] == [3, 5, 1]
    with pytest.raises(InputError, match=r"no class 'yan'\. The classes are 0 dot, 1 yang, 2 yin\."):
        number_of("yan", NAMES)
    with pytest.raises(InputError, match="Nothing here knows names of the classes: give a number"):
        number_of("yan", ())
    many = [f"class{number}" for number in range(1000)]
    with pytest.raises(InputError, match=r"Nearest: class77.* 0 class0, .*, 9 class9, … \(1,000\)\."):
        number_of("klass77", many)


@pytest.mark.tutorial
def test_a_run_knows_the_names_that_its_data_had(run, rows, tmp_path):
    model = "own_host:model"
    assert run("observe", model, rows, "--run", "r")[0] == 0
    assert run("fit", "r/trajectories.safetensors", "--run", "r", "--method", "least_squares")[0] == 0
    assert read_json(tmp_path / "r" / "metrics.json")["class_names"] == dict(zip("012", NAMES, strict=True))
    for place in (("--run", "r"), ("--out", "e.safetensors")):
        code, _, err = run("edit", "r/koopman", "--label", "yang", *place)
        assert code == 0, err
    assert ki.OperatorEdit.load(tmp_path / "e.safetensors").labels == (1,)
    assert "The classes are 0 dot, 1 yang, 2 yin." in run("edit", "r/koopman", "--label", "yan", "--run", "r")[2]
    named = ("audit", model, rows, "r/koopman", "r/edit.safetensors", "--run", "r")
    assert "forgets class 1, and --label says class 0" in run(*named, "--label", "dot")[2]
    code, _, err = run(*named, "--label", "yang")
    assert code == 0, err
    assert "yang (class 1)" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    # What a function gives has no names, and the run has.
    nameless = ("forget", model, "own_host:data", "r/koopman", "r/trajectories.safetensors")
    assert run(*nameless, "--label", "yang", "--run", "r")[0] == 0
    assert read_json(tmp_path / "r" / "forgetting.json")["label"] == 1
    assert run("observe", model, "own_host:data", "--run", "r")[0] == 0  # other data, of which nobody knows names
    assert run("fit", "r/trajectories.safetensors", "--run", "r", "--method", "least_squares")[0] == 0
    refused = run("edit", "r/koopman", "--label", "yang", "--run", "r")
    assert "There is no class 'yang'. Nothing here knows names" in refused[2]


@pytest.mark.tutorial
def test_one_command_names_classes_on_its_page(run, rows, tmp_path):
    given = ("--train", rows, "--test", rows, "--label", "yang", "--method", "least_squares", "--out", "r")
    code, _, err = run("run", "own_host:model", *given)
    assert code == 0, err
    assert read_json(tmp_path / "r" / "metrics.json")["class_names"] == dict(zip("012", NAMES, strict=True))
    assert "The classes are 0 dot, 1 yang, 2 yin." in run("run", "own_host:model", *given, "--label", "yan")[2]
    code, _, err = run("edit", "r/koopman", "--label", "yin", "--out", "e.safetensors")
    assert code == 0, err
    assert ki.OperatorEdit.load(tmp_path / "e.safetensors").labels == (2,)


@pytest.mark.parametrize("label", ["1", "yang"])
def test_a_name_that_is_a_number_is_asked_of_the_data_before_it_is_refused(run, tmp_path, label):
    """Where classes are called "1" and "yang", 1 is the first of them."""
    x, y = yin_yang(300)
    lines = [
        {"x": each, "label": ("1", "yang", "yin")[name]} for each, name in zip(x.tolist(), y.tolist(), strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    run("observe", "own_host:model", "own_host:data", "--out", "t.safetensors")
    run("fit", "t.safetensors", "--out", "k", "--method", "least_squares")
    run("edit", "k", "--label", "0", "--out", "e.safetensors")
    err = run("audit", "own_host:model", "rows.jsonl", "k", "e.safetensors", "--label", label)[2]
    assert ("--label says" in err) == (label == "yang")
