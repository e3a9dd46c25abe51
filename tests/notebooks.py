"""What tests of the tutorials share: the script that makes notebooks of them, their trial runs and what they need."""

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "tutorials"
SLICES = {
    "00_ten_minutes": 300,
    "01_observe_and_fit": 600,
    "02_unlearn_a_class": 2000,
    "03_transformer_lens": 12,
    "04_modes": 300,
    "05_topology": 600,
    "06_concepts_in_a_language_model": 8,
    "07_is_it_really_gone": 400,
    "08_modular_addition": 1,
}
"""Rows of a trial run of each tutorial."""
NEEDS = {
    "02_unlearn_a_class": ("data/mnist",),
    "03_transformer_lens": ("models/stories260K", "data/stories-sampled"),
    "04_modes": ("models/stories260K", "data/stories-sampled"),
    "06_concepts_in_a_language_model": ("models/stories260K", "data/stories-sampled", "data/sst2"),
}
"""What a tutorial looks for in the folder where it runs, before it asks the Hub."""
WITH_TRANSFORMER_LENS = ("03_transformer_lens", "04_modes")


def builder():
    """Load the script that makes notebooks, as a module; or skip."""
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    found = importlib.util.spec_from_file_location("build_notebooks", TUTORIALS / "build_notebooks.py")
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def missing(name):
    """Say what of a tutorial's needs is not on this machine; nothing is None."""
    if name in WITH_TRANSFORMER_LENS and importlib.util.find_spec("transformer_lens") is None:
        return "transformer-lens is not installed"
    for path in NEEDS.get(name, ()):
        kind, what = path.split("/")
        if not (_folder(kind) / what).is_dir():
            return f"There is no {what} in {_folder(kind)}; set KOOPMAN_INTERP_{kind.upper()} to a folder that has it."
    return None


def supply(name, folder):
    """Put what a tutorial needs where it looks for it."""
    for path in NEEDS.get(name, ()):
        kind, what = path.split("/")
        (folder / kind).mkdir(exist_ok=True)
        (folder / path).symlink_to(_folder(kind) / what, target_is_directory=True)


def environment(folder):
    """The environment of a run: no network, one thread, no cache but its own."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "PYTHONIOENCODING": "utf-8",
    }


def _folder(kind):
    beside = ROOT.parent / "shared" / {"data": "datasets", "models": "models"}[kind]
    return Path(os.environ.get(f"KOOPMAN_INTERP_{kind.upper()}", beside)).resolve()
