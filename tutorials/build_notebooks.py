"""Make notebooks of the tutorials, executed, so that their figures and tables stand below their cells.

    python tutorials/build_notebooks.py             # all of them
    python tutorials/build_notebooks.py 01 05 --out notebooks

Each runs as long as its script does, in the current folder and with the same environment variables. What it needs
comes with `pip install "koopman-interp[notebooks]"`.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ENVIRONMENT = {
    "MPLBACKEND": "inline",  # with another backend, figures would be drawn for a window or a file
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, of bars that only a live notebook can show
}
SOURCES = sorted(Path(__file__).parent.glob("[0-9]*.py"))


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


def build(source: Path, folder: Path) -> Path:
    """Execute a tutorial as a notebook, and write that.

    Raises:
        CellExecutionError: a cell failed. The notebook is written up to there.
    """
    notebook = jupytext.read(source)
    # A module's docstring is text to a reader, and would be echoed below its cell.
    first = notebook.cells[0]
    if first.source.startswith('"""'):
        notebook.cells[0] = nbformat.v4.new_markdown_cell(first.source.strip('"'))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel})
    path = folder / f"{source.stem}.ipynb"
    try:
        NotebookClient(notebook, timeout=None).execute(env=os.environ | ENVIRONMENT)
    finally:
        nbformat.write(notebook, path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line names, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="numbers or names of tutorials; all of them without any")
    parser.add_argument("--out", type=Path, default=Path("notebooks"), help="where to write (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        sources = chosen(given.names)
    except ValueError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for source in sources:
        began = time.perf_counter()
        try:
            print(f"{build(source, given.out)}: {time.perf_counter() - began:.0f} s", flush=True)
        except CellExecutionError as error:
            failed += 1
            print(f"{source.name} failed:\n{error}", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
