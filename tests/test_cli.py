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

HOST = """
import torch
from koopman_interp.testing import ResidualMLP, yin_yang

def model():
    torch.manual_seed(0)
    return ResidualMLP(4, 10, 3, 3).eval()

def data():
    x, y = yin_yang(300)
    return [(x[:150], y[:150]), (x[150:], y[150:])]

def unlabelled():
    return [yin_yang(30)[0]]

number = 3

def broken():
    raise RuntimeError("no such disk")
"""


LANGUAGE = """
import torch
import transformers
from tests.hosts.lens_models import SENTENCE, tokenizer

def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    host = transformers.GPT2LMHeadModel(config).eval()
    host.tokenizer = tokenizer()
    return host

def texts():
    words = SENTENCE.split()
    return [" ".join(words[start : start + 5]) for start in range(18)]
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_host.py").write_text(HOST)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_host", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


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
    assert "None of the held-out rows is of class 9; they are of 0, 1, 2." in err
    replace(ki.OperatorEdit.load("e.safetensors"), labels=()).save("silent.safetensors")
    code, _, err = run("audit", *host, "k", "silent.safetensors")
    assert code == 2
    assert "does not say which class it forgets: give --label" in err
    more = ("--training", "own_host:data", "--retrained", "own_host:model", "--depths", "all", "--mlp", "--relearn")
    code, printed, _ = run("audit", *host, "k", "e.safetensors", "--label", "1", *more, "--out", "a.json")
    audit = ki.Audit.load(tmp_path / "a.json")
    assert printed == f"{audit}\n"
    assert audit["retrained reference"].retrained_kl == 0
    assert len(audit.rows[-1].relearning) == 2
    assert len(audit.rows[-1].depths) == 4
    assert audit.rows[-1].mlp_probe is not None
    assert run("audit", *host, "k", "e.safetensors", "--label", "1", "--relearn")[0] == 1


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
    assert "at most 50.00%" in told["asked"]
    assert run(*arguments, "--mode", "replace")[1].count("chosen") == 1


def test_spans_and_a_lens_of_a_language_model(run, tmp_path):
    pytest.importorskip("transformers", reason="transformers is missing")
    (tmp_path / "language.py").write_text(LANGUAGE)
    host = ("language:model", "language:texts")
    assert run("observe", *host, "--skip", "1", "--out", "t.safetensors")[0] == 0
    assert run("fit", "t.safetensors", "--out", "k", "--method", "least_squares")[0] == 0
    code, printed, err = run("fidelity", *host, "k", "--spans", "to_target", "--next-token", "--json")
    assert code == 0, err
    told = json.loads(printed)
    assert len(told["spans"]) == 2
    assert told["rows"] == 18 * 4
    code, printed, err = run("lens", "language:model", "k", "once upon a", "she liked it", "--out", "l.safetensors")
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


def test_adapters_are_listed(run):
    code, listed, complaints = run("hosts")
    assert (code, complaints) == (0, "")
    assert listed.splitlines() == [
        "transformer-lens  koopman_hosts.transformer_lens:TransformerLensHost",
        "torch  koopman_hosts.torch_modules:TorchHost",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("nonsense",), 2, "No such command"),
        (("edit", "k", "--out", "e.safetensors"), 2, "--label"),
        (("observe", "own_host", "own_host:data", "--out", "t"), 2, "module:callable"),
        (("observe", "own_host:model", "own_host:none", "--out", "t"), 2, "could not be imported"),
        (("observe", "own_host:number", "own_host:data", "--out", "t"), 2, "is a int, which cannot be called"),
        (("audit", "own_host:model", "own_host:unlabelled", "k", "e", "--label", "1"), 2, "pairs of inputs and labels"),
        (("audit", "own_host:model", "builtins:list", "k", "e", "--label", "1"), 2, "one or more pairs"),
        (("spectrum", "k", "t", "--modes", "0"), 2, "0 is not in the range"),
        (("observe", "own_host:model", "own_host:data", "--site", "blokcs.*", "--out", "t"), 1, "Nearest: blocks"),
        (("observe", "own_host:broken", "own_host:data", "--out", "t"), 1, "RuntimeError: no such disk"),
        (("edit", "nowhere/at/all", "--label", "1", "--out", "e.safetensors"), 1, "There is no folder"),
        (("spectrum", "nowhere", "t.safetensors"), 1, "There is no folder 'nowhere'; a name on the Hub"),
        (("fit", "missing.safetensors", "--out", "k"), 1, "There is no file"),
        (("audit", "own_host:model", "own_host:unlabelled", "k", "e"), 2, "pairs of inputs and labels"),
        (("audit", "own_host:model", "own_host:data", "k", "e"), 1, "There is no file"),
        (("report", "nowhere"), 1, "nowhere"),
        (("demo", "--label", "7"), 1, "0 (yin)"),
    ],
)
def test_what_is_refused_gets_a_sentence_and_no_traceback(run, arguments, code, sentence):
    left, _, err = run(*arguments)
    assert left == code
    assert sentence in err
    assert "Traceback" not in err


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
