import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

# The example is run as it stands, but for its sizes.
SMALLER = {
    "yin_yang(5000)": "yin_yang(600)",
    "yin_yang(2000, seed=1)": "yin_yang(300, seed=1)",
    "epochs=60": "epochs=5",
    "observables=32": "observables=16, steps=20",
}


@pytest.mark.tutorial
def test_the_first_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1)
    for large, small in SMALLER.items():
        assert large in code
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {})
    assert (tmp_path / "run" / "koopman" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "without-2.safetensors").is_file()
    assert "edit (delta)" in capsys.readouterr().out


def test_the_commands_of_the_readme_name_files_that_exist():
    text = README.read_text(encoding="utf-8")
    assert "-c constraints.txt" in text
    for name in re.findall(r"\]\(([\w/.]+\.md)\)", text):
        assert (README.parent / name).is_file(), name
