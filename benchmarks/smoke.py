"""Every benchmark in short, by the commands that its docstring marks as a smoke run: whether it still runs.

Figures of such runs say nothing. Each benchmark has such a line, or this script says which has none; each command runs
in a process of its own and writes its JSON to a folder that is thrown away. Some minutes on one core.

    python benchmarks/smoke.py
    python benchmarks/smoke.py --only mnist edits        # some of it
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OWN = Path(__file__).stem


def main() -> None:
    """Run them; those that fail are named at the end."""
    known = commands()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(known), default=list(known), help="default: all")
    failed = []
    for name in parser.parse_args().only:
        for arguments in known[name]:
            shown = shlex.join([f"{name}.py", *arguments])
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as scratch:
                out = ["--out", str(Path(scratch) / f"{name}.json")]
                status = subprocess.run([sys.executable, HERE / f"{name}.py", *arguments, *out], check=False).returncode
            print(f"== {shown}: status {status}, {time.perf_counter() - started:.0f} s ==\n", flush=True)
            if status:
                failed.append(shown)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


def commands() -> dict[str, list[list[str]]]:
    """Return the arguments of each benchmark's smoke runs, by its name.

    Raises:
        SystemExit: a benchmark has none.
    """
    found = {}
    for path in sorted(HERE.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.stem == OWN or '__name__ == "__main__"' not in text:
            continue
        lines = re.findall(
            rf"python benchmarks/{path.name} (.*?) +# smoke$", ast.get_docstring(ast.parse(text)) or "", re.M
        )
        if not lines:
            sys.exit(f"{path.name} has no line in its docstring that ends in # smoke; write the shortest run there.")
        found[path.stem] = [shlex.split(line) for line in lines]
    return found


if __name__ == "__main__":
    main()
