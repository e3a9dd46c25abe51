"""The version is written in the code, so that it is known where the package was not installed or cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest

import koopman_interp as ki

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("file", "begins"), [("CITATION.cff", "version: "), ("CHANGELOG.md", "## ")], ids=["citation", "changelog"]
)
def test_all_who_say_the_version_say_the_same(file, begins):
    said = next(line for line in (ROOT / file).read_text().splitlines() if line.startswith(begins))
    assert said == f"{begins}{ki.__version__}"


_NO_METADATA = """
import importlib.metadata as metadata
import sys

def version(name, there=metadata.version):
    if name == "koopman-interp":
        raise metadata.PackageNotFoundError(name)
    return there(name)

metadata.version = version
import torch
import koopman_interp as ki

model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3))).eval()
trajectories = ki.attach(model).observe(torch.randn(60, 4), progress=False)
koopman = ki.fit(trajectories, ki.FitConfig(steps=2), progress=False)
ki.write_run(sys.argv[1], koopman, trajectories=trajectories)
print(koopman.record.versions["koopman-interp"])
"""


def test_a_fit_and_a_run_ask_for_no_metadata(tmp_path):
    command = [sys.executable, "-c", _NO_METADATA, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{ki.__version__}\n"), done.stderr
