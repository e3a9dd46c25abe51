"""A notebook shows each figure once, below the cell that draws it; elsewhere none is shown, nor pyplot imported."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytest.importorskip("jupytext", reason="jupytext is not installed")
pytest.importorskip("nbclient", reason="nbclient is not installed")

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
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
    found = importlib.util.spec_from_file_location("build_notebooks", TUTORIALS / "build_notebooks.py")
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


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


@pytest.mark.tutorial
@pytest.mark.parametrize("name", ["01_observe_and_fit", "05_topology"])
def test_a_tutorial_becomes_a_notebook_that_holds_its_figures(tmp_path, name):
    printed = execute(
        [TUTORIALS / "build_notebooks.py", name[:2], "--out", "made"],
        tmp_path,
        MPLBACKEND="Agg",
        KOOPMAN_INTERP_SLICE="600",
        KOOPMAN_INTERP_OUT="out",
    )
    path = Path("made") / f"{name}.ipynb"
    assert re.fullmatch(rf"{re.escape(str(path))}: \d+ s\n", printed)
    notebook = nbformat.read(tmp_path / path, 4)
    nbformat.validate(notebook)
    drawn = len(list((tmp_path / "out" / "figures").glob("*.png")))
    assert drawn > 5
    assert sum(map(images, notebook.cells)) == drawn
    assert [cell.cell_type for cell in notebook.cells[:2]] == ["markdown", "markdown"]
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    # What a reader gets holds no folder of whoever built it.
    assert str(TUTORIALS.parent) not in (tmp_path / path).read_text(encoding="utf-8")


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
    (tmp_path / "build_notebooks.py").write_text((TUTORIALS / "build_notebooks.py").read_text(encoding="utf-8"))
    found = subprocess.run(
        [sys.executable, "build_notebooks.py"], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120
    )
    assert found.returncode == 1
    assert "0_wrong.py failed" in found.stderr
    assert "ZeroDivisionError" in found.stderr
    first, second = nbformat.read(tmp_path / "notebooks" / "0_wrong.ipynb", 4).cells
    assert first.outputs[0].text == "before\n"
    assert second.outputs[0].output_type == "error"
