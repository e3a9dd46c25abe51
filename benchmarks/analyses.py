"""All figures of the analyses, one script after the other: what they cost, and what they show.

Spectrum and topology are timed, fidelity and lenses judged on stories260K, and Betti numbers followed by depth over
five seeds. Each part is a script of its own; here each runs with its defaults, one at a time. Half an hour of one core;
`--only spectrum topology` leaves out the long ones.

    OMP_NUM_THREADS=1 python benchmarks/analyses.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PARTS = {
    "spectrum": "spectrum.py",
    "topology": "topology.py",
    "stories": "stories.py",
    "topology-by-depth": "topology_by_depth.py",
}


def main() -> None:
    """Run the parts; the first that fails ends it with its own status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    here = Path(__file__).resolve().parent
    for part in parser.parse_args().only:
        print(f"== {part} ==", flush=True)
        status = subprocess.run([sys.executable, here / PARTS[part]], check=False).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
