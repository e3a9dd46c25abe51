import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import koopman_interp as ki
from koopman_interp.cli import main
from koopman_interp.testing import yin_yang


@pytest.mark.tutorial
def test_every_step_runs_on_files(run, tmp_path):
    (tmp_path / "fit.json").write_text(json.dumps({"steps": 20, "hidden": [8]}))
    host = ("own_host:model", "own_host:data")
    assert run("observe", *host, "--out", "t.safetensors")[0] == 0
    assert run("fit", "t.safetensors", "--out", "k", "--config", "fit.json", "--checkpoint", "c.safetensors")[0] == 0
    code, printed, _ = run("spectrum", "k", "t.safetensors", "--json")
    assert code == 0
    surrogate = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "k")
    found = torch.tensor([complex(*pair) for pair in json.loads(printed)["operator_eigenvalues"]]).abs().max()
    torch.testing.assert_close(found, torch.linalg.eigvals(surrogate.K).abs().max(), rtol=1e-4, atol=0)
    code, printed, _ = run("topology", "t.safetensors", "--points", "60", "--json")
    assert code == 0
    assert json.loads(printed)["points"] == 60
    code, printed, _ = run("fidelity", *host, "k", "--fitted", "t.safetensors", "--json")
    assert json.loads(printed)["rows"] == 300
    assert run("edit", "k", "--label", "1", "--out", "e.safetensors")[0] == 0
    code, printed, _ = run("audit", *host, "k", "e.safetensors", "--json")
    assert code == 0
    assert json.loads(printed)["labels"] == [1]
    assert next(row["name"] for row in json.loads(printed)["rows"]) == "base model"
    code, _, err = run("audit", *host, "k", "e.safetensors", "--label", "9")
    assert code == 1
    assert "e.safetensors forgets class 1, and --label says class 9." in err
    replace(ki.OperatorEdit.load("e.safetensors"), labels=()).save("silent.safetensors")
    code, _, err = run("audit", *host, "k", "silent.safetensors")
    assert code == 1
    assert "does not say which class it forgets: give --label" in err
    code, _, err = run("audit", *host, "k", "silent.safetensors", "--label", "9")
    assert code == 1
    assert "None of the held-out rows is of class 9; they are of 0, 1, 2." in err
    more = ("--training", "own_host:data", "--retrained", "own_host:model", "--depths", "all", "--mlp", "--relearn")
    code, printed, _ = run("audit", *host, "k", "e.safetensors", "--label", "1", *more, "--out", "a.json", "--wide")
    audit = ki.Audit.load(tmp_path / "a.json")
    assert printed == f"{audit}\n"
    assert audit["retrained reference"].retrained_kl == 0
    assert len(audit.rows[-1].relearning) == 2
    assert len(audit.rows[-1].depths) == 4
    assert audit.rows[-1].mlp_probe is not None
    assert run("audit", *host, "k", "e.safetensors", "--label", "1", "--relearn")[0] == 2


def test_a_fit_is_given_the_model_too(run, tmp_path):
    host = ("own_host:model", "own_host:data")
    (tmp_path / "fit.json").write_text(json.dumps({"steps": 4, "hidden": [8]}))
    run("observe", *host, "--out", "t.safetensors")
    assert run("fit", "t.safetensors", "--out", "k", "--config", "fit.json", "--model", *host)[0] == 0
    history = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "k").record.history
    assert [look["step"] for look in history] == [0, 4]
    assert all(look["kl"] >= 0 for look in history)


def test_options_of_an_edit_reach_it(run, tmp_path):
    host = ("own_host:model", "own_host:data")
    run("observe", *host, "--site", "blocks.*", "--out", "t.safetensors")
    run("fit", "t.safetensors", "--out", "k", "--method", "least_squares")
    options = ("--strength", "2", "--site", "blocks.1", "--held-out", "t.safetensors")
    assert run("edit", "k", "--label", "1", *options, "--out", "e.safetensors")[0] == 0
    koopman = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "k")
    rows = ki.Trajectories.load(tmp_path / "t.safetensors")
    assert koopman.sites == ("blocks.0", "blocks.1", "blocks.2")
    made = ki.OperatorEdit.load(tmp_path / "e.safetensors")
    expected = ki.erase_class(koopman, label=1, strength=2.0, site="blocks.1", held_out=rows)
    assert str(made) == str(expected)
    assert torch.equal(made.directions, expected.directions)
    audit = ("audit", *host, "k", "e.safetensors", "--label", "1", "--mode", "replace", "--json")
    names = [row["name"] for row in json.loads(run(*audit)[1])["rows"]]
    assert "edit (replace)" in names
    assert "edit (delta)" not in names


def test_edits_of_several_classes_and_sites(run, tmp_path):
    host = ("own_host:model", "own_host:data")
    run("observe", *host, "--out", "t.safetensors")
    run("fit", "t.safetensors", "--out", "k", "--method", "least_squares")
    koopman = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "k")
    assert run("edit", "k", "--label", "1", "--label", "2", "--site", "blocks.1", "--out", "two.safetensors")[0] == 0
    two = ki.OperatorEdit.load(tmp_path / "two.safetensors")
    assert torch.equal(two.directions, ki.erase_class(koopman, label=(1, 2), site="blocks.1").directions)
    assert run("edit", "k", "--label", "1", "--each-site", "--strength", "0.5", "--out", "e.safetensors")[0] == 0
    each = ki.EditSet.load(tmp_path / "e.safetensors")
    assert [edit.depth for edit in each] == [1, 2, 3]
    expected = ki.erase_class(koopman, label=1, site=2, strength=0.5)
    assert torch.equal(each[1].directions, expected.directions)
    code, printed, _ = run("audit", *host, "k", "e.safetensors", "--label", "1", "--each-site", "--json")
    assert code == 0
    assert json.loads(printed)["rows"][-1]["name"] == "edit (each site)"
    both = run("edit", "k", "--label", "1", "--each-site", "--site", "blocks.1", "--out", "e.safetensors")
    assert both[0] == 2
    assert "not both" in both[2]


def test_forget_writes_the_edit_that_its_table_marks(run, tmp_path):
    host = ("own_host:model", "own_host:data")
    run("observe", *host, "--out", "t.safetensors")
    run("fit", "t.safetensors", "--out", "k", "--method", "least_squares")
    arguments = ("forget", *host, "k", "t.safetensors", "--label", "1", "--most", "0.5", "--out", "e.safetensors")
    code, printed, _ = run(*arguments, "--json")
    assert code == 0
    told = json.loads(printed)
    assert told["forget_rows"] == int((yin_yang(300)[1] == 1).sum())
    kept = ki.EditSet.load(tmp_path / "e.safetensors")
    assert kept.description == told["chosen"]["name"]
    assert "at most 50.00 %" in told["asked"]
    assert run(*arguments, "--mode", "replace")[1].count("chosen") == 1


def test_spans_and_a_lens_of_a_language_model(run, tmp_path):
    pytest.importorskip("transformers", reason="transformers is missing")
    host = ("language:model", "language:texts")
    assert run("observe", *host, "--skip", "1", "--out", "t.safetensors")[0] == 0
    assert run("fit", "t.safetensors", "--out", "k", "--method", "least_squares")[0] == 0
    code, printed, err = run("fidelity", *host, "k", "--spans", "to_target", "--next-token", "--json")
    assert code == 0, err
    told = json.loads(printed)
    assert len(told["spans"]) == 2
    assert told["rows"] == 18 * 4
    code, printed, err = run(
        "lens", "language:model", "k", "once upon a", "she liked it", "--out", "l.safetensors", "--wide"
    )
    assert code == 0, err
    reading = ki.LensReading.load(tmp_path / "l.safetensors")
    assert printed == f"{reading}\n"
    assert reading.inputs == ("upon", "a", "liked", "it")


def test_an_interrupted_fit_says_how_to_go_on(run, monkeypatch):
    from koopman_interp.fitting.descent import Descent

    descend, taken = Descent._descend, []

    def interrupted(descent, step):
        taken.append(step)
        if len(taken) == 15:
            raise KeyboardInterrupt
        descend(descent, step)

    monkeypatch.setattr(Descent, "_descend", interrupted)
    Path("fit.json").write_text(json.dumps({"steps": 20, "hidden": [8], "evaluate_every": 10}))
    run("observe", "own_host:model", "own_host:data", "--out", "t.safetensors")
    arguments = ("fit", "t.safetensors", "--out", "k", "--config", "fit.json", "--checkpoint", "c.safetensors")
    code, _, err = run(*arguments)
    assert code == 1
    assert "c.safetensors holds step 10" in err
    assert "resume" in err
    assert run(*arguments, "--resume")[0] == 0


def test_texts_are_judged_by_labels_and_by_next_tokens(run, tmp_path):
    pytest.importorskip("transformers", reason="transformers is missing")
    model = "language:model"
    assert run("observe", model, "language:many", "--next-token", "--out", "t.safetensors")[0] == 0
    rows = ki.Trajectories.load(tmp_path / "t.safetensors")
    assert run("fit", "t.safetensors", "--out", "k", "--method", "least_squares")[0] == 0
    label = str(int(rows.labels.mode().values))
    edit = ("edit", "k", "--label", label, "--out", "e.safetensors")
    assert run(*edit)[0] == 0
    code, printed, err = run("audit", model, "language:many", "k", "e.safetensors", "--next-token", "--json")
    assert code == 0, err
    told = json.loads(printed)
    assert told["labels"] == [int(label)]
    assert told["forget_rows"] == int((rows.labels == int(label)).sum())
    chosen = ("forget", model, "language:many", "k", "t.safetensors", "--label", label, "--out", "f.safetensors")
    code, printed, err = run(*chosen, "--next-token", "--json")
    assert code == 0, err
    assert json.loads(printed)["forget_rows"] == told["forget_rows"]
    both = run("audit", model, "language:labelled", "k", "e.safetensors", "--next-token")
    assert both[0] == 1
    assert "got both" in both[2]
    assert run("observe", model, "language:labelled", "--out", "l.safetensors")[0] == 0
    assert run("fit", "l.safetensors", "--out", "l", "--method", "least_squares")[0] == 0
    assert run("edit", "l", "--label", "1", "--out", "g.safetensors")[0] == 0
    code, printed, err = run("audit", model, "language:labelled", "l", "g.safetensors", "--json")
    assert code == 0, err
    assert json.loads(printed)["labels"] == [1]
    code, _, err = run("forget", model, "language:labelled", "l", "l.safetensors", "--label", "1", "--out", "h")
    assert code == 0, err


def test_a_traceback_is_shown_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "fit", "missing.safetensors", "--out", "k"])


def test_help_loads_no_framework():
    code = (
        "import sys, koopman_interp.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'sklearn', 'matplotlib', 'datasets', 'ripser'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_every_name_loads_no_optional_framework():
    code = (
        "import sys, koopman_interp as ki\n"
        "for name in dir(ki): getattr(ki, name)\n"
        "assert not {'transformers', 'transformer_lens', 'koopman_hosts'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_command_leaves_the_number_of_threads_as_it_was(run):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert run("demo", "--label", "7")[0] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
