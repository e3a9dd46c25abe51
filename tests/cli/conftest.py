"""A small model and a small language model in files, and a way to run a verb on them."""

from __future__ import annotations

import sys

import pytest

from koopman_interp.cli import main

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

def many():
    return 6 * texts()

def labelled():
    return [(many(), [place % 2 for place in range(6 * 18)])]
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_host.py").write_text(HOST)
    (tmp_path / "language.py").write_text(LANGUAGE)
    monkeypatch.chdir(tmp_path)
    for module in ("own_host", "language"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run
