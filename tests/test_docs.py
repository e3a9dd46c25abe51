"""The pages build without a warning, have every public name, and run as they stand but for their sizes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import koopman_interp as ki
from tests.pages import DOCS, ROOT, examples

# Sizes, so that a page takes seconds. A page that names another size is noticed.
SMALLER = {
    "index.md": {
        "yin_yang(5000)": "yin_yang(900)",
        "yin_yang(2000, seed=1)": "yin_yang(400, seed=1)",
        "epochs=60": "epochs=5",
        "observables=32": "observables=16, steps=20",
    },
    "how-to/vision.md": {
        ":1200]": ":300]",
        "[1200:]": "[1200:1500]",
        "channels=32": "channels=8",
        "epochs=15": "epochs=2",
        "ki.fit(trajectories)": "ki.fit(trajectories, ki.FitConfig(steps=20))",
    },
    "how-to/transformer-lens.md": {
        "[:200]": "[:12]",
        "[:40]": "[:4]",
        "steps=600": "steps=10",
        "texts[:20]": "texts[:4]",
    },
    "how-to/hugging-face.md": {"[:200]": "[:12]", "[:40]": "[:4]", "steps=300": "steps=20", "steps=150": "steps=5"},
    "how-to/sites-and-sizes.md": {"steps=300": "steps=20"},
    "how-to/spectrum.md": {
        "yin_yang(5000)": "yin_yang(900)",
        "yin_yang(2000, seed=1)": "yin_yang(400, seed=1)",
        "epochs=60": "epochs=5",
        "observables=32)": "observables=16, steps=20)",
    },
}


WITH_CODE = [page for page in examples.PAGES if examples.blocks(page.read_text(encoding="utf-8"))]


def needs(page, monkeypatch):
    """Say where the folders of models and data are, or skip."""
    text = page.read_text(encoding="utf-8")
    if "transformer_lens" in text:
        pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
    for variable, folder, what in (
        ("KOOPMAN_INTERP_DATA", "datasets", "stories-sampled"),
        ("KOOPMAN_INTERP_MODELS", "models", "stories260K"),
    ):
        if variable in text:
            given = Path(os.environ.get(variable, ROOT.parent / "shared" / folder))
            if not (given / what).is_dir():
                pytest.skip(f"There is no {what} in {given}; set {variable} to a folder that has it.")
            monkeypatch.setenv(variable, str(given))


@pytest.mark.tutorial
@pytest.mark.filterwarnings("ignore")  # few rows, few steps: what the software says of such fits is right
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_blocks_of_a_page_run_from_top_to_bottom(page, tmp_path, monkeypatch):
    needs(page, monkeypatch)
    printed, _ = examples.run(page, tmp_path, SMALLER.get(page.relative_to(DOCS).as_posix()))
    said = examples.prints(page.read_text(encoding="utf-8"))
    assert len(said) == len(printed)
    for now, kept in zip(printed, said, strict=True):
        # The same first words: a page shows what its own code prints, of other sizes.
        assert re.match(r"\W*(\w+)", now)[1] == re.match(r"\W*(\w+)", kept)[1]


def test_a_size_that_stands_nowhere_is_noticed(tmp_path):
    with pytest.raises(ValueError, match=r"index\.md has nowhere: yin_yang\(12345\)"):
        examples.run(DOCS / "index.md", tmp_path, {"yin_yang(12345)": "yin_yang(1)"})


def test_every_picture_is_shown():
    pages = "".join(page.read_text(encoding="utf-8") for page in examples.PAGES)
    for path in (DOCS / "figures").iterdir():
        assert f"figures/{path.name}" in pages, path


def test_what_is_marked_as_printed_is_found():
    text = "".join(page.read_text(encoding="utf-8") for page in examples.PAGES)
    assert len(examples.prints(text)) == text.count("<!-- printed -->") > 20


def test_what_is_printed_goes_below_its_mark():
    text = "```python\nprint(1)\n```\n\n<!-- printed -->\n```text\nold\n```\n\n```text\nkept\n```\n"
    assert examples.filled(text, ["1\n"]) == text.replace("old", "1")


def test_every_public_name_has_its_place_in_the_reference():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md")))
    placed = re.findall(r"^::: koopman_interp\.(\w+)$", pages, re.MULTILINE)
    assert sorted(set(placed) - {"errors"}) == sorted(ki.__all__)
    assert len(placed) == len(set(placed))
    index = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    assert all(f"[`{name}`](" in index for name in ki.__all__)


@pytest.mark.tutorial
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install -e ".[docs]"')
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:link|script|img|iframe)\b[^>]*\b(?:href|src)="(?:https?:)?//[^"]*"', html)
        assert not fetched, f"{page.name} asks the network for {fetched[0]}"
    mathematics = (tmp_path / "site" / "mathematics.html").read_text(encoding="utf-8")
    assert mathematics.count("<math ") >= 8
    assert "\\mathrm" not in mathematics
