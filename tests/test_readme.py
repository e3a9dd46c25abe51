import re

import pytest

from tests.pages import ROOT, examples

README = ROOT / "README.md"

# The examples are run as they stand, but for their sizes.
SMALLER = {
    "yin_yang(5000)": "yin_yang(600)",
    "yin_yang(2000, seed=1)": "yin_yang(300, seed=1)",
    "epochs=60": "epochs=5",
    "observables=32": "observables=16, steps=20",
    "steps=300": "steps=20",
    "steps=100": "steps=5",
}

EXAMPLES = dict(
    zip(("torch", "TransformerLens", "Hugging Face"), examples.blocks(README.read_text(encoding="utf-8")), strict=True)
)


def run(example, folder):
    """Run one example in a folder, from nothing."""
    page = folder / "example.md"
    page.write_text(f"```python\n{EXAMPLES[example]}```\n", encoding="utf-8")
    return examples.run(page, folder, {large: small for large, small in SMALLER.items() if large in EXAMPLES[example]})


def test_every_size_stands_in_an_example():
    assert all(any(large in code for code in EXAMPLES.values()) for large in SMALLER)


@pytest.mark.tutorial
def test_the_example_of_torch_runs_as_it_stands(tmp_path):
    _, names = run("torch", tmp_path)
    assert (tmp_path / "run" / "koopman" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "without-2.safetensors").is_file()
    assert names["logits"].shape == (300, 3)


@pytest.mark.tutorial
def test_the_example_of_transformer_lens_runs_as_it_stands(tmp_path):
    pytest.importorskip("transformer_lens.config", reason="TransformerLens 4 is not installed")
    _, names = run("TransformerLens", tmp_path)
    assert names["logits"].equal(names["hooked"])
    assert not names["logits"].equal(names["model"](names["tokens"]))


@pytest.mark.tutorial
def test_the_example_of_hugging_face_runs_as_it_stands(tmp_path):
    _, names = run("Hugging Face", tmp_path)
    assert names["unlearned"](names["tokens"]).logits.equal(names["logits"])
    assert not names["logits"].equal(names["model"](names["tokens"]).logits)


def test_the_commands_of_the_readme_name_files_that_exist():
    text = README.read_text(encoding="utf-8")
    assert "-c constraints.txt" in text
    for name in re.findall(r"\]\(([\w/.-]+\.(?:md|png|svg|cff))\)", text):
        assert (README.parent / name).is_file(), name
    for name in re.findall(r"`((?:benchmarks|tutorials|docs)/[\w/]+\.py)", text):
        assert (README.parent / name).is_file(), name
