"""A notebook shows each figure once, below the cell that draws it; elsewhere none is shown, nor pyplot imported.

The tutorials' notebooks are of the tutorials as they are: code, words and pictures.
"""

import ast
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from tests import notebooks

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytest.importorskip("jupytext", reason="jupytext is not installed")
pytest.importorskip("nbclient", reason="nbclient is not installed")

TUTORIALS = notebooks.TUTORIALS
SOURCES = sorted(path.stem for path in TUTORIALS.glob("[0-9]*.py"))
IMAGES = {
    "00_ten_minutes": 6,
    "01_observe_and_fit": 9,
    "02_unlearn_a_class": 2,
    "03_transformer_lens": 1,
    "04_modes": 6,
    "05_topology": 7 + bool(find_spec("skdim")),
    "06_concepts_in_a_language_model": 1,
    "07_is_it_really_gone": 3,
    "08_modular_addition": 1,
}
"""How many each tutorial shows."""
VALUES = """
import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.testing import ResidualMLP, yin_yang

points, labels = yin_yang(80, seed=0)
trajectories = ki.attach(ResidualMLP(inputs=4, width=6, blocks=2, outputs=3)).observe(points, labels, progress=False)
koopman = ki.fit(trajectories, ki.FitConfig(observables=8, hidden=(8,), steps=2), progress=False)
spectrum = ki.spectrum(koopman, trajectories)
topology = ki.topology(trajectories, points=20)
"""
# By what is done in a cell: the code, and how many images it shows.
CELLS = {
    "values": (VALUES, 0),
    "before pyplot is imported": ("spectrum.plot()", 1),
    "imports": ("import gc, weakref; import matplotlib.pyplot as plt; from matplotlib.figure import Figure", 0),
    "a spectrum": ("spectrum.plot()", 1),
    "trajectories": ("trajectories.plot()", 1),
    "a topology": ("topology.plot()", 1),
    "kept by name": ("drawn = spectrum.plot()", 1),
    "nothing new": ("drawn", 0),
    "two": ("spectrum.plot(); topology.plot()", 2),
    "saved": ("plotting.save_figure(spectrum.plot(), 'figures', 'spectrum')", 1),
    "closed": ("plt.close(spectrum.plot().figure)", 0),
    "on axes of a figure that pyplot shows": ("_, ax = plt.subplots(); spectrum.plot(ax=ax)", 1),
    "on axes of a bare figure": ("spectrum.plot(ax=Figure().add_subplot())", 0),
    "a page": ("ki.write_run('run', koopman, trajectories=trajectories, spectrum=spectrum); len(plt.get_fignums())", 0),
    "after the page": ("topology.plot()", 1),
    "a loop": ("held = [weakref.ref(spectrum.plot().figure) for _ in range(15)]", 15),
    "after the loop": (
        "gc.collect(); print('held:', sum(one() is not None for one in held), len(plt.get_fignums()))",
        0,
    ),
}
SCRIPT = f"""{VALUES}
import sys, IPython
for value in (spectrum, trajectories, topology):
    plotting.save_figure(value.plot(), "figures", type(value).__name__)
print("pyplot:", "matplotlib.pyplot" in sys.modules, "IPython:", IPython.get_ipython() is not None)
"""


def images(cell):
    """Count the images below a cell."""
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))


def execute(command, folder, **more):
    """Run Python on arguments in a folder, and return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"} | more
    found = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stdout


@pytest.fixture(scope="module")
def builder():
    """The script that makes notebooks, as a module."""
    return notebooks.builder()


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The cells of a notebook, executed, by what is done in them."""
    folder = tmp_path_factory.mktemp("notebook")
    source = folder / "cells.py"
    source.write_text("\n".join(f"# %%\n{code}\n" for code, _ in CELLS.values()), encoding="utf-8")
    build = "import build_notebooks, pathlib; build_notebooks.build(pathlib.Path('cells.py'), pathlib.Path())"
    path = os.pathsep.join([str(TUTORIALS), os.environ.get("PYTHONPATH", "")])
    execute(["-c", build], folder, PYTHONPATH=path)
    notebook = nbformat.read(folder / "cells.ipynb", 4)
    assert (folder / "run" / "figures" / "spectrum.png").is_file()
    assert (folder / "figures" / "spectrum.png").is_file()
    return dict(zip(CELLS, notebook.cells, strict=True))


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Notebooks of all tutorials, of few rows, by name: what was printed and the path; two are built at a time."""

    def build(name):
        folder = tmp_path_factory.mktemp(name)
        notebooks.supply(name, folder)
        command = [TUTORIALS / "build_notebooks.py", name, "--slice", str(notebooks.SLICES[name]), "--out", "made"]
        cache = str(folder / "cache")
        return execute(command, folder, MPLBACKEND="Agg", HF_DATASETS_CACHE=cache), folder / "made" / f"{name}.ipynb"

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(build, name) for name in SOURCES if notebooks.missing(name) is None}


@pytest.mark.tutorial
def test_each_tutorial_has_a_trial(trials):
    # The first of the file, so that the trials run beside what follows, and are asked for at its end.
    assert list(IMAGES) == list(notebooks.SLICES) == SOURCES
    assert all(name in trials or notebooks.missing(name) for name in SOURCES)


@pytest.mark.tutorial
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_shows_each_figure_that_it_draws_once(cells, name):
    assert images(cells[name]) == CELLS[name][1]


@pytest.mark.tutorial
def test_figures_that_were_shown_leave_nothing_behind(cells):
    assert "held: 0 0" in str(cells["after the loop"].outputs)


@pytest.mark.tutorial
@pytest.mark.parametrize(
    ("how", "backend", "running"),
    [(["script.py"], "inline", False), (["-m", "IPython", "script.py"], "agg", True)],
    ids=["script", "IPython without inline figures"],
)
def test_elsewhere_no_pyplot_is_imported(tmp_path, how, backend, running):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    printed = execute(how, tmp_path, MPLBACKEND=backend, IPYTHONDIR=str(tmp_path / "ipython"))
    assert f"pyplot: False IPython: {running}" in printed
    assert (tmp_path / "figures" / "Topology.png").is_file()


@pytest.mark.parametrize("name", SOURCES)
def test_the_notebook_that_is_kept_is_of_the_tutorial(builder, name):
    path = TUTORIALS / "notebooks" / f"{name}.ipynb"
    kept, source = nbformat.read(path, 4), builder.notebook_of((TUTORIALS / f"{name}.py").read_text(encoding="utf-8"))
    assert builder.code_of(kept) == builder.code_of(source)  # else build it anew
    words = [cell.source for cell in kept.cells if cell.cell_type == "markdown" and not cell.metadata.get("tags")]
    assert words == [cell.source for cell in source.cells if cell.cell_type == "markdown"]  # else build it with --text
    assert sum(map(images, kept.cells)) >= IMAGES[name]
    assert path.stat().st_size < 1.5e6
    require_clean(kept, path)


def require_clean(notebook, path):
    """Check that a notebook ran from top to bottom, and holds neither warnings nor folders of whoever built it."""
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in ran]
    assert all(counts)
    assert counts == sorted(counts)
    assert not [output for cell in ran for output in cell.outputs if output.output_type == "error"]
    assert not [output.text for cell in ran for output in cell.outputs if output.get("name") == "stderr"]
    text = path.read_text(encoding="utf-8")
    for folder in (str(TUTORIALS.parent), str(path.parents[1]), "/home/", "/root/", "/tmp/"):
        assert folder not in text
    folds = [cell.source for cell in notebook.cells if "solution" in cell.metadata.get("tags", ())]
    assert len(folds) >= 2
    assert all(fold.startswith("<details><summary>") and "It prints:" in fold for fold in folds)


@pytest.mark.parametrize("name", SOURCES)
def test_a_tutorial_asks_says_what_it_takes_and_answers(builder, name):
    cells = builder.notebook_of((TUTORIALS / f"{name}.py").read_text(encoding="utf-8")).cells
    words = [cell.source for cell in cells if cell.cell_type == "markdown"]
    for label in ("**The question:**", "**Time and memory:**", "**What you will know:**"):
        assert label in words[1], label
    assert [text.splitlines()[0] for text in words[-2:]] == ["## Exercises", "## The answer"]
    assert sum("solution" in cell.metadata.get("tags", ()) for cell in cells) == 2


@pytest.mark.parametrize("name", SOURCES)
def test_a_tutorial_needs_only_what_a_reader_has(builder, name):
    """No settings of the environment, and of this package only what is public."""
    text = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8")
    assert "environ" not in text
    assert "sys.path" not in text
    public = ("koopman_interp", "koopman_interp.plotting", "koopman_interp.testing")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("koopman"):
            assert node.module.startswith(public[1:]) or [each.name for each in node.names] == ["plotting"]
        if isinstance(node, ast.Import):
            assert all(each.name in public for each in node.names if each.name.startswith("koopman"))


@pytest.fixture
def small_source(builder, tmp_path):
    """A tutorial of three cells, and the notebook that was built of it."""
    source = tmp_path / "0_small.py"
    source.write_text(
        '# %% [markdown]\n# old words\n\n# %%\nprint(1)\n\n# %% tags=["solution"]\nprint(2)\n', encoding="utf-8"
    )
    builder.build(source, tmp_path)
    return source


@pytest.mark.tutorial
def test_a_solution_is_folded_with_what_it_printed(builder, small_source):
    words, code, fold = nbformat.read(small_source.with_suffix(".ipynb"), 4).cells
    assert (words.source, code.outputs[0].text) == ("old words", "1\n")
    assert fold.cell_type == "markdown"
    assert "```python\nprint(2)\n```" in fold.source
    assert "```text\n2\n```" in fold.source


@pytest.mark.tutorial
def test_new_words_leave_what_was_found_and_new_code_is_refused(builder, small_source):
    path = small_source.with_suffix(".ipynb")
    before = nbformat.read(path, 4).cells
    text = small_source.read_text(encoding="utf-8")
    small_source.write_text(text.replace("old words", "new\n#\n# words"), encoding="utf-8")
    assert builder.reworded(small_source, path.parent) == path
    after = nbformat.read(path, 4).cells
    assert after[0].source == "new\n\nwords"
    assert after[1:] == before[1:]
    small_source.write_text(text.replace("print(2)", "print(3)"), encoding="utf-8")
    with pytest.raises(ValueError, match="Build it without --text"):
        builder.reworded(small_source, path.parent)


def test_a_trial_takes_the_one_parameter_there_is(builder):
    assert builder.sliced("SLICE = 0  # rows\nx = SLICE\n", 7) == "SLICE = 7  # rows\nx = SLICE\n"
    with pytest.raises(ValueError, match="found 0"):
        builder.sliced("x = 1\n", 7)


def test_tutorials_are_named_by_number_or_name(builder):
    assert [path.stem for path in builder.chosen(["05", "01_observe"])] == ["01_observe_and_fit", "05_topology"]
    assert builder.chosen([]) == sorted(TUTORIALS.glob("[0-9]*.py"))


def test_a_name_of_no_tutorial_is_refused_before_any_is_built(builder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        builder.main(["05", "99", "--out", str(tmp_path / "made")])
    assert "There is no tutorial '99'" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.tutorial
def test_a_cell_that_fails_is_told_and_what_came_before_is_kept(tmp_path):
    (tmp_path / "0_wrong.py").write_text("# %%\nprint('before')\n\n# %%\n1 / 0\n", encoding="utf-8")
    script = (TUTORIALS / "build_notebooks.py").read_text(encoding="utf-8")
    (tmp_path / "build_notebooks.py").write_text(script, encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "build_notebooks.py"], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120
    )
    assert found.returncode == 1
    assert "0_wrong.py failed" in found.stderr
    assert "ZeroDivisionError" in found.stderr
    first, second = nbformat.read(tmp_path / "notebooks" / "0_wrong.ipynb", 4).cells
    assert first.outputs[0].text == "before\n"
    assert second.outputs[0].output_type == "error"


@pytest.mark.tutorial
@pytest.mark.parametrize("name", SOURCES)
def test_a_tutorial_becomes_a_notebook_that_holds_its_figures(trials, name):
    if name not in trials:
        pytest.skip(notebooks.missing(name))
    printed, path = trials[name].result()
    assert re.fullmatch(rf"made/{name}\.ipynb: \d+ s, \d+\.\d GiB at most so far\n", printed)
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert sum(map(images, notebook.cells)) == IMAGES[name]
    require_clean(notebook, path)
