"""The runner of the pages' examples, docs/examples.py, which is a script and in no package."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

_made = importlib.util.spec_from_file_location("docs_examples", DOCS / "examples.py")
examples = importlib.util.module_from_spec(_made)
_made.loader.exec_module(examples)
