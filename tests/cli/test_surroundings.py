import json
import re
import shlex
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest
import torch

import koopman_interp as ki
from koopman_interp.cli import installed
from tests.cli.verbs import leaves


def test_adapters_are_listed(run):
    code, listed, complaints = run("hosts")
    assert (code, complaints) == (0, "")
    assert listed.splitlines() == [
        "transformer-lens  koopman_hosts.transformer_lens:TransformerLensHost",
        "torch  koopman_hosts.torch_modules:TorchHost",
    ]


def test_every_setting_has_a_meaning_and_a_default_that_set_takes(run):
    code, printed, _ = run("config", "--json")
    assert code == 0
    told = json.loads(printed)
    assert all(setting["meaning"].endswith(".") for setting in told.values())
    plain = {name: setting["default"] for name, setting in told.items() if "." not in name}
    assert ki.FitConfig.from_dict(plain) == ki.FitConfig()
    nested = {name.partition(".")[2] for name in told if name.startswith("normalization.")}
    assert nested == set(ki.NormalizationConfig.__dataclass_fields__)
    assert run("config", "steps")[1].startswith("steps=20000\n    gradient steps at most.")


def test_what_is_set_goes_over_the_file_and_leaves_the_rest(run, tmp_path):
    run("observe", "own_host:model", "own_host:data", "--out", "t.safetensors")
    written = {"steps": 20, "hidden": [8], "normalization": {"whiten": 0.5, "dimension": 4}}
    (tmp_path / "fit.json").write_text(json.dumps(written))
    sets = ("--set", "steps=3", "--set", "normalization.dimension=3", "--set", "activation=gelu")
    assert run("fit", "t.safetensors", "--out", "k", "--config", "fit.json", *sets)[0] == 0
    config = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "k").record.settings
    assert (config["steps"], config["activation"], config["hidden"]) == (3, "gelu", [8])
    assert (config["normalization"]["dimension"], config["normalization"]["whiten"]) == (3, 0.5)


def test_the_doctor_tells_what_fails_and_goes_on(run, monkeypatch):
    code, printed, _ = run("doctor", "--json")
    assert code == 0
    parts = {(part["kind"], part["name"]): part for part in json.loads(printed)}
    assert parts["version", "torch"]["found"] == torch.__version__
    assert parts["host", "torch"]["usable"]
    broken = EntryPoint("broken", "nowhere.at_all:Host", "koopman_interp.hosts")
    monkeypatch.setattr(installed, "entry_points", lambda group: [broken, *entry_points(group=group)])
    needs = ["torch>=2", "no-such-thing>=3; extra == 'leace'", "torch>99; extra == 'topology'"]
    monkeypatch.setattr(installed, "requires", lambda _: needs)
    code, printed, _ = run("doctor")
    assert code == 0
    assert "nowhere.at_all:Host does not load: ModuleNotFoundError" in printed
    assert 'no-such-thing is absent; to get it: pip install "no-such-thing>=3"' in printed
    assert f"torch is {torch.__version__}, needed is >99" in printed
    monkeypatch.setattr(installed, "entry_points", lambda group: [broken])
    assert run("doctor")[0] == 1
    monkeypatch.setattr(installed, "entry_points", entry_points)
    monkeypatch.setattr(installed, "requires", lambda _: ["torch>99"])
    code, printed, _ = run("doctor")
    assert code == 1
    assert "NOT usable" in printed


@pytest.mark.parametrize("verb", leaves())
def test_every_help_has_an_example_that_can_be_read(run, verb):
    code, printed, _ = run(*verb.split(), "--help")
    assert code == 0
    examples = re.findall(r"^ +koopman-interp (.+)$", printed, re.MULTILINE)
    assert examples
    for line in examples:
        assert line.startswith(f"{verb} ") or line == verb
        words, command = shlex.split(line.removeprefix(verb)), leaves()[verb]
        with command.context_class(command) as context:
            given, left, _ = command.make_parser(context).parse_args(words)
        assert not left
        missing = [each.name for each in command.params if each.required and given.get(each.name) in (None, ())]
        assert not missing


def test_verbs_are_listed_in_the_order_of_the_work(run):
    listed = re.findall(r"^  ([a-z]+)  ", run("--help")[1].partition("Commands:")[2], re.MULTILINE)
    order = ["observe", "fit", "spectrum", "fidelity", "edit", "audit", "report"]
    assert [verb for verb in listed if verb in order] == order


def test_the_next_command_is_named_on_a_terminal_alone(run, monkeypatch):
    observe = ("observe", "own_host:model", "own_host:data", "--out", "t.safetensors")
    assert "next:" not in run(*observe)[2]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "next: koopman-interp fit t.safetensors --out koopman\n" in run(*observe)[2]
