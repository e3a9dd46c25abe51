import subprocess
import sys
from pathlib import Path

import pytest

from koopman_interp.cli.paths import OUT_FILE
from tests.cli.verbs import leaves


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("nonsense",), 2, "No such command"),
        (("edit", "owner/k", "--out", "e.safetensors"), 2, "--label"),
        (("observe", "own_host", "own_host:data", "--out", "t"), 1, "Did you mean own_host:model, own_host:data"),
        (("observe", "own_host:model", "own_host:dta", "--out", "t"), 1, "own_host has no dta. Nearest: data"),
        (("observe", "own_host:number", "own_host:data", "--out", "t"), 1, "is a int, which cannot be called"),
        (("spectrum", "k/k", "own_host.py", "--modes", "0"), 2, "0 is not in the range"),
        (("observe", "own_host:model", "own_host:data", "--site", "blokcs.*", "--out", "t"), 1, "Nearest: blocks"),
        (("observe", "own_host:broken", "own_host:data", "--out", "t"), 1, "RuntimeError: no such disk"),
        (("edit", "nowhere/at/all", "--label", "1", "--out", "e.safetensors"), 1, "There is no folder"),
        (("spectrum", "nowhere", "own_host.py"), 1, "There is no folder 'nowhere'; a name on the Hub"),
        (("fit", "missing.safetensors", "--out", "k"), 1, "There is no file"),
        (("audit", "own_host:model", "own_host:data", "owner/k", "e"), 1, "There is no file e."),
        (("observe", "own_host:broken", "own_host:none", "--out", "t"), 1, "could not be imported"),
        (("fit", "own_host.py", "--out", "k", "--config", "own_host.py"), 1, "own_host.py cannot be read as JSON"),
        (("fit", "own_host.py", "--out", "k", "--set", "stepz=3"), 1, "stepz is no setting of a fit. Nearest: steps"),
        (("fit", "own_host.py", "--out", "k", "--set", "normalization.dimensoin=3"), 1, "Nearest: dimension"),
        (("fit", "own_host.py", "--out", "k", "--set", "steps"), 2, "not of the form key=value"),
        (("fit", "own_host.py", "--out", "k", "--set", "learning_rate=fast"), 1, "of another kind"),
        (("config", "stepz"), 1, "Nearest: steps"),
        (("report", "nowhere"), 1, "nowhere"),
        (("sites", "owner/nothing"), 1, "is no folder here, and as a name on the Hub could not be loaded"),
        (("observe", "own_hst:model", "own_host:data", "--out", "t"), 1, "There is no module 'own_hst'"),
        (("observe", "own_host:model", "none.txt", "--out", "t"), 1, "There is no file none.txt"),
        (("observe", "own_host:model", "own_host:data", "--out", "t", "--inputs", "x"), 1, "has no columns"),
        (("observe", "own_host:model", "own_host:data"), 2, "--out, or --run"),
        (("lens", "own_host:model", "owner/k"), 2, "one of the two"),
        (("obsrve",), 2, "Nearest: observe"),
        (("demo", "--label", "7"), 1, "0 (yin)"),
    ],
)
def test_what_is_refused_gets_a_sentence_and_no_traceback(run, arguments, code, sentence):
    left, _, err = run(*arguments)
    assert left == code
    assert sentence in err
    assert "Traceback" not in err


def test_rows_without_labels_and_classes_that_the_fit_has_not_seen_are_refused(run):
    host = ("own_host:model", "own_host:data")
    run("observe", *host, "--out", "t.safetensors")
    run("fit", "t.safetensors", "--out", "k", "--method", "least_squares")
    run("edit", "k", "--label", "1", "--out", "e.safetensors")
    code, _, err = run("audit", "own_host:model", "own_host:unlabelled", "k", "e.safetensors")
    assert code == 1
    assert "pairs of inputs and labels" in err
    # Before the model is made, which would fail.
    early = ("audit", "own_host:broken", "own_host:data", "k", "e.safetensors")
    assert "own_host:none' could not be imported" in run(*early, "--retrained", "own_host:none")[2]
    assert "e.safetensors forgets class 1, and --label says class 2" in run(*early, "--label", "2")[2]
    refused = run("forget", "own_host:broken", "own_host:data", "k", "t.safetensors", "--label", "7", "--out", "f")
    assert refused[0] == 1
    assert "k was fitted on rows of the classes 0, 1, 2, so it has no class 7" in refused[2]


WRITERS = [
    (verb, option.name)
    for verb, command in leaves().items()
    for option in command.params
    if isinstance(option.type, type(OUT_FILE))
]


def test_verbs_that_write_are_known():
    """Those below are all: none writes to a path that is only looked at afterwards."""
    silent = {"doctor", "hosts", "sites", "config", "report", "completion"}  # which write nothing but a page
    silent |= {"store info", "store verify", "store push"}
    assert {verb for verb, _ in WRITERS} == {*leaves()} - silent


@pytest.mark.parametrize(("verb", "option"), WRITERS)
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_read(run, verb, option):
    code, _, err = run(*verb.split(), f"--{option}", "own_host.py/below")
    assert code == 1
    assert "cannot be written: own_host.py is a file, and not a folder" in err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc, which takes files from nobody")
def test_a_folder_that_takes_no_files_is_known_whatever_its_rights_say(run):
    code, _, err = run("edit", "owner/k", "--label", "1", "--out", "/proc/e.safetensors")
    assert code == 1
    assert "/proc takes no files" in err


def test_a_path_that_is_looked_at_is_left_as_it_was(run, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert run("fit", "missing.safetensors", "--out", "new/folder")[0] == 1
    assert sorted(tmp_path.iterdir()) == before


def test_checks_come_before_any_framework():
    code = (
        "import sys, koopman_interp.cli as c\n"
        "try: c.main(['fit', sys.executable, '--out', sys.executable + '/k'])\n"
        "except SystemExit as left: assert left.code == 1\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
