"""The whole way by one command, and part by part into the same folder."""

import json

import pytest

import koopman_interp as ki
from koopman_interp.files import read_json
from tests.hosts.models import stories

DIGITS = """
import torch
from koopman_interp.testing import ResidualMLP, train_classifier, yin_yang

def model():
    torch.manual_seed(0)
    return train_classifier(ResidualMLP(4, 10, 3, 3), *yin_yang(600), epochs=4, batch_size=64)

def untrained():
    return ResidualMLP(4, 10, 3, 3).eval()

def train():
    return yin_yang(600)

def test():
    return yin_yang(300, seed=1)

def few():
    return yin_yang(30, seed=1)
"""

RUN = ("run", "points:model", "--train", "points:train", "--test", "points:test", "--label", "1")


@pytest.fixture
def points(tmp_path):
    (tmp_path / "points.py").write_text(DIGITS)


@pytest.mark.tutorial
@pytest.mark.usefixtures("points")
def test_one_command_goes_from_a_model_to_the_page(run, tmp_path):
    options = ("--set", "steps=20", "--mode", "delta", "--mode", "replace", "--retrained", "points:untrained")
    code, printed, err = run(*RUN, *options, "--out", "whole")
    assert code == 0, err
    assert max(map(len, printed.splitlines())) <= 100
    told = read_json(tmp_path / "whole" / "metrics.json")
    assert [audit["rows"][-1]["name"] for audit in told["audits"]] == ["edit (delta)", "edit (replace)"]
    assert all(any(row["name"] == "retrained reference" for row in audit["rows"]) for audit in told["audits"])
    assert {"observe", "fit", "read", "edit", "audit"} == set(told["seconds"])
    assert "--set steps=20" in told["command"]
    assert "not held out" not in told["facts"]
    koopman = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "whole" / "koopman")
    assert koopman.record.settings["steps"] == 20
    assert ki.OperatorEdit.load(tmp_path / "whole" / "edit.safetensors").operator == koopman.digest()
    # One of these says the same of the same edit as the verb for it.
    again = ("audit", "points:model", "points:test", "whole/koopman", "whole/edit.safetensors", "--json")
    alone = json.loads(run(*again, "--training", "points:train")[1])
    assert alone["rows"][-1]["forget_accuracy"] == told["audits"][0]["rows"][-1]["forget_accuracy"]


@pytest.mark.usefixtures("points")
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (("--label", "9"), "None of the rows to fit on is of class 9; they are of 0, 1, 2."),
        (("--test", "points:few"), "are too few to judge by; 20 are needed"),
        (("--train", "own_host:unlabelled"), "The rows to fit on have no labels"),
        (("--set", "stepz=3"), "Nearest: steps"),
        (("--test", "points:tets"), "Nearest: test"),
    ],
)
def test_what_the_end_would_refuse_is_refused_before_the_fit(run, monkeypatch, changed, sentence):
    monkeypatch.setattr("koopman_interp.pipeline.fit", lambda *_, **__: pytest.fail("it was fitted"))
    code, _, err = run(*RUN, *changed)
    assert code == 1
    assert sentence in " ".join(err.split())


@pytest.mark.tutorial
@pytest.mark.usefixtures("points")
def test_verbs_add_to_a_run_folder_part_by_part(run, tmp_path):
    assert "holds no run yet" in run("spectrum", "koopman", "t", "--run", "made")[2]
    assert run("observe", "points:model", "points:train", "--run", "made")[0] == 0
    rows, koopman = "made/trajectories.safetensors", "made/koopman"
    assert run("fit", rows, "--run", "made", "--method", "least_squares")[0] == 0
    host = ("points:model", "points:test")
    for arguments in (
        ("spectrum", koopman, rows),
        ("describe-modes", koopman, rows, "--modes", "2", "--model", *host, "--out", "modes.json"),
        ("topology", rows, "--points", "30"),
        ("fidelity", *host, koopman),
        ("edit", koopman, "--label", "1"),
        ("audit", *host, koopman, "made/edit.safetensors"),
        ("forget", *host, koopman, rows, "--label", "1"),
    ):
        code, _, err = run(*arguments, "--run", "made")
        assert code == 0, err
    told = read_json(tmp_path / "made" / "metrics.json")
    assert [name for name in ("spectrum", "modes", "topologies", "fidelity", "edits", "audits") if not told[name]] == []
    assert told["command"].startswith("koopman-interp forget")
    assert len(told["modes"]["modes"]) == 2
    chosen = read_json(tmp_path / "made" / "forgetting.json")["chosen"]["name"]
    assert ki.EditSet.load(tmp_path / "made" / "edit.safetensors").description == chosen
    assert run("report", "made")[0] == 0
    assert run("fit", rows, "--run", "made", "--method", "least_squares", "--set", "seed=1")[0] == 0
    assert read_json(tmp_path / "made" / "metrics.json")["audits"] == []  # another surrogate begins another run
    assert ki.ModeMeanings.load(tmp_path / "modes.json").as_dict() == told["modes"]


def test_a_language_model_says_side_by_side_what_it_says_under_an_edit(run, tmp_path):
    pytest.importorskip("transformers", reason="transformers is missing")
    run("observe", "language:model", "language:many", "--next-token", "--out", "t.safetensors")
    run("fit", "t.safetensors", "--out", "k", "--run", "r", "--method", "least_squares")
    label = str(int(ki.Trajectories.load(tmp_path / "t.safetensors").labels.mode().values))
    run("edit", "k", "--label", label, "--each-site", "--out", "e.safetensors")
    asked = ("language:model", "k", "e.safetensors", "--each-site")
    code, printed, err = run("generate", *asked, "once upon", "--new-tokens", "3", "--out", "g.json", "--run", "r")
    assert code == 0, err
    found = ki.LanguageAudit.load(tmp_path / "g.json")
    before, after = (row.samples[0] for row in found.rows.values())
    assert f"{before:<48} | {after}" in printed
    (tmp_path / "texts.txt").write_text("once upon a time\nthere was a girl\n")
    (tmp_path / "checks.json").write_text('{"edited": ["once upon"], "unrelated": ["there was"]}')
    checked = ("--text", "texts.txt", "--checks", "checks.json", "--unwanted", label)
    code, printed, err = run("audit-language", *asked, *checked, "--json", "--run", "r")
    assert code == 0, err
    told = [*json.loads(printed)["rows"].values()][-1]
    assert all(told[name] is not None for name in ("reliability", "locality", "perplexity"))
    texts, scores = read_json(tmp_path / "r" / "metrics.json")["language"]
    assert (texts, scores) == (found.as_dict(), json.loads(printed))
    (tmp_path / "checks.json").write_text('{"editd": []}')
    assert "Nearest: edited" in run("audit-language", *asked, *checked)[2]
    assert "There is nothing to ask" in run("audit-language", *asked)[2]
    code, printed, err = run("lens", "language:model", "k", "--data", "texts.txt", "--json")
    assert code == 0, err
    assert len(json.loads(printed)["inputs"]) == 8


@pytest.mark.tutorial
def test_texts_with_labels_are_judged_by_what_the_model_says(run, tmp_path):
    told = {"she": ("Lily", "Sue"), "he": ("Tom", "Ben")}
    lines = [
        {"text": f"There was a child named {name}. The ball of {name} was red {number}.", "label": label}
        for label, names in told.items()
        for name in names
        for number in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    given = ("--train", "rows.jsonl", "--test", "rows.jsonl", "--label", "she", "--skip", "1")
    code, _, err = run("run", str(stories()), *given, "--method", "least_squares", "--out", "r")
    assert code == 0, err
    told = read_json(tmp_path / "r" / "metrics.json")
    assert [spoken["edit"] for spoken in told["language"]] == ["erase class 1"]
    assert told["audits"] == []  # its outputs are no such classes


@pytest.mark.tutorial
def test_stories_go_the_whole_way_by_the_tokens_that_follow(run, tmp_path):
    model = str(stories())
    tellings = [f"Once upon a time, there was a little girl named Lily. She had a red ball {n}." for n in range(40)]
    (tmp_path / "texts.txt").write_text("\n".join(tellings))
    given = ("--train", "texts.txt", "--test", "texts.txt", "--next-token", "--label", "Lily", "--skip", "1")
    code, _, err = run("run", model, *given, "--method", "least_squares", "--out", "r")
    assert code == 0, err
    told = read_json(tmp_path / "r" / "metrics.json")
    (audit,) = told["audits"]
    assert audit["rows"][-1]["name"] == "edit (each site)"
    assert audit["rows"][0]["forget_accuracy"] > audit["rows"][-1]["forget_accuracy"]
    assert told["lens"] is not None
    (name,) = told["class_names"].values()
    assert name.endswith("Lily")
    assert f"{name} (class {audit['labels'][0]})" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert told["facts"]["not held out"].startswith("100.0 % of the rows to judge by")
    assert "zebra" in run("run", model, *given, "--label", "zebra", "--out", "r")[2]


def test_a_completion_is_what_click_answers_by(run, monkeypatch):
    for shell in ("bash", "zsh", "fish"):
        assert "_KOOPMAN_INTERP_COMPLETE" in run("completion", shell)[1]
    monkeypatch.setenv("_KOOPMAN_INTERP_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "koopman-interp audit-")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert "audit-language" in run()[1]
