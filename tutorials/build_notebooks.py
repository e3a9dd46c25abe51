"""Make notebooks of the tutorials, executed, so that their figures and tables stand below their cells.

    python tutorials/build_notebooks.py             # all of them, to tutorials/notebooks
    python tutorials/build_notebooks.py 01 05 --out notebooks
    python tutorials/build_notebooks.py --text      # new words for notebooks whose code is as it was; runs nothing
    python tutorials/build_notebooks.py 01 --slice 600 --out small      # trial runs, in seconds

Each runs as long as its script does, in the current folder: local models and data are looked for in `models` and `data`
there. Solutions of exercises run like any other cell, and are then folded, with what they printed. What it needs comes
with `pip install "koopman-interp[notebooks]"`.
"""

import argparse
import os
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ENVIRONMENT = {
    "MPLBACKEND": "inline",  # with another backend, figures would be drawn for a window or a file
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, of bars that only a live notebook can show
    "TQDM_DISABLE": "1",  # bars are for who waits, not for who reads
}
HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("[0-9]*.py"))
SOLUTION = "solution"
"""Tag of the cells that are folded."""


def chosen(names: Sequence[str]) -> list[Path]:
    """Find tutorials by number or name; all of them without names.

    Raises:
        ValueError: a name is of no tutorial.
    """
    for name in names:
        if not any(path.stem.startswith(name) for path in SOURCES):
            known = ", ".join(path.stem for path in SOURCES)
            raise ValueError(f"There is no tutorial {name!r}. Give a number or a name of these: {known}.")
    return [path for path in SOURCES if not names or path.stem.startswith(tuple(names))]


def sliced(text: str, rows: int) -> str:
    """Make a trial run of a tutorial: its own parameter, at the one place where it stands.

    Raises:
        ValueError: it has no such parameter.
    """
    changed, places = re.subn(r"^SLICE = 0\b", f"SLICE = {rows}", text, flags=re.MULTILINE)
    if places != 1:
        raise ValueError(f"Expected one line 'SLICE = 0' in the cell of parameters; found {places}.")
    return changed


def notebook_of(text: str) -> NotebookNode:
    """Read the cells of a tutorial, its docstring as text."""
    notebook = jupytext.reads(text, fmt="py:percent")
    # A module's docstring is text to a reader, and would be echoed below its cell.
    first = notebook.cells[0]
    if first.source.startswith('"""'):
        notebook.cells[0] = nbformat.v4.new_markdown_cell(first.source.strip('"'))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel})
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"  # so that building it twice makes the same file, but for what it found
    return notebook


def folded(cell: NotebookNode) -> NotebookNode:
    """Fold a solution where any reader of notebooks can unfold it, with what it printed."""
    printed = "".join(output.get("text", "") for output in cell.outputs)
    told = f"\n\nIt prints:\n\n```text\n{printed.rstrip()}\n```" if printed else ""
    text = f"<details><summary>A solution</summary>\n\n```python\n{cell.source}\n```{told}\n\n</details>"
    kept = nbformat.v4.new_markdown_cell(text, metadata={"tags": [SOLUTION]})
    return nbformat.from_dict(kept | {"id": cell.id})


def code_of(notebook: NotebookNode) -> list[str]:
    """Return the code of a notebook, cell by cell, that of folded solutions too."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found.append(cell.source)
        elif SOLUTION in cell.metadata.get("tags", ()):
            found.append(cell.source.split("```python\n")[1].split("\n```")[0])
    return found


def build(source: Path, folder: Path, rows: int = 0) -> Path:
    """Execute a tutorial as a notebook, and write that.

    Args:
        source: the tutorial.
        folder: for the notebook.
        rows: of a trial run; 0 is the whole.

    Returns:
        The path of the notebook.

    Raises:
        CellExecutionError: a cell failed. The notebook is written up to there.
    """
    text = source.read_text(encoding="utf-8")
    notebook = notebook_of(sliced(text, rows) if rows else text)
    path = folder / f"{source.stem}.ipynb"
    try:
        NotebookClient(notebook, timeout=None, record_timing=False).execute(env=os.environ | ENVIRONMENT)
        solved = [SOLUTION in cell.metadata.get("tags", ()) for cell in notebook.cells]
        notebook.cells = [folded(cell) if fold else cell for cell, fold in zip(notebook.cells, solved, strict=True)]
        del notebook.metadata["language_info"]  # the version of whoever built it
    finally:
        nbformat.write(notebook, path)
    return path


def reworded(source: Path, folder: Path) -> Path:
    """Write the words of a tutorial anew into its notebook, and leave what the code found.

    Raises:
        ValueError: the code is no longer that of the notebook, so that it has to run anew.
    """
    path = folder / f"{source.stem}.ipynb"
    new, old = notebook_of(source.read_text(encoding="utf-8")), nbformat.read(path, 4)
    if code_of(new) != code_of(old):
        raise ValueError(f"The code of {source.name} is not that of {path}. Build it without --text.")
    solved = (SOLUTION in cell.metadata.get("tags", ()) for cell in old.cells)
    found = iter([cell for cell, fold in zip(old.cells, solved, strict=True) if cell.cell_type == "code" or fold])
    for place, cell in enumerate(new.cells):
        if cell.cell_type == "code":
            new.cells[place] = nbformat.from_dict(next(found) | {"id": cell.id})
    nbformat.write(new, path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line names, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="numbers or names of tutorials; all of them without any")
    parser.add_argument("--out", type=Path, default=HERE / "notebooks", help="where to write (default: %(default)s)")
    parser.add_argument("--slice", type=int, default=0, help="rows of a trial run; 0, the default, is the whole")
    parser.add_argument("--text", action="store_true", help="write the words alone anew, where the code is as it was")
    given = parser.parse_args(arguments)
    try:
        sources = chosen(given.names)
        if given.text:
            print(*(reworded(source, given.out) for source in sources), sep="\n")
            return 0
    except ValueError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for source in sources:
        began = time.perf_counter()
        try:
            path = build(source, given.out, given.slice)
            # The most that one of the kernels so far has held; it is reported once a kernel has ended.
            most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"{path}: {time.perf_counter() - began:.0f} s, {most:.1f} GiB at most so far", flush=True)
        except CellExecutionError as error:
            failed += 1
            print(f"{source.name} failed:\n{error}", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
