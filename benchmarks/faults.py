"""What faults do to files and runs: kills, flipped bits, hostile files, full disks, folders not ours, little memory.

(a) SIGKILL at random moments of a fit, of an observation to a store by one process and by two, of saving, and of
writing a run: a reader has to find the old or the new, the next attempt has to give the same to the bit, nothing may be
left over, and a process whose other was killed has to end in a sentence of ours. (b) One flipped
bit at a time in each kind of file: it has to be noticed or make no difference. (c) Files that are cut short, deep, huge
or of wrong types, and systems that say no: each has to end in a sentence of ours with the path. Prints the tables and
writes JSON; the exit status is 1 where something did not hold.

Cost: some minutes, most of it for drawing the pages of runs; with --smoke less than one.

    OMP_NUM_THREADS=1 python benchmarks/faults.py
    OMP_NUM_THREADS=1 python benchmarks/faults.py --smoke
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from common import machine
from fault_damage import flipped, hostile
from fault_kills import JOBS, killed
from fault_limits import refused
from fault_values import Values

from koopman_interp.files import write_json
from koopman_interp.tables import table


def main() -> int:
    """Try, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="of each job (default: %(default)s)")
    parser.add_argument("--jobs", nargs="+", metavar="JOB", help="those to kill, by name (default: all)")
    parser.add_argument("--bits", type=int, default=100, help="of each kind of file (default: %(default)s)")
    parser.add_argument("--files", type=int, default=300, help="hostile ones a kind, at most (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="2 kills, 10 bits, 40 hostile files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "faults.json")
    told = parser.parse_args()
    kills, bits, files = (2, 10, 40) if told.smoke else (told.kills, told.bits, told.files)
    torch.set_num_threads(1)  # processes are forked
    matplotlib.use("Agg")
    started, values = time.perf_counter(), Values()
    kinds, jobs = values.kinds(), tuple(make(values) for make in JOBS)
    names = [job.name for job in jobs]
    if unknown := set(told.jobs or ()) - set(names):
        parser.error(f"there is no job {', '.join(sorted(unknown))}; there are {', '.join(names)}")

    by_job = {job.name: killed(job, kills, told.seed) for job in jobs if job.name in (told.jobs or names)}
    print(_shown("killed at random moments", by_job), flush=True)
    raw: list[str] = []
    by_bit, by_file = dict[str, dict[str, int]](), dict[str, dict[str, int]]()
    for kind in kinds:
        by_bit[kind.name], unlike = flipped(kind, bits, told.seed)
        raw += unlike
        by_file[kind.name], unlike = hostile(kind, files, told.seed)
        raw += unlike
    print(_shown("bits flipped", by_bit), _shown("hostile files", by_file), sep="\n", flush=True)
    # What the jobs that fit and observe write is there already when it is written again.
    written_once = tuple(kind for kind in kinds if kind.name not in ("checkpoint", "shard", "index"))
    limits, unlike = refused(values, written_once, jobs)
    raw += unlike
    print(_shown("full disks, folders not ours, little memory", {"all": limits}), *raw, sep="\n")
    amiss = raw + [f"{name}: {counts}" for name, counts in by_job.items() if not _holds(counts, kills)]
    result: dict[str, Any] = {
        "machine": machine(),
        "seconds": time.perf_counter() - started,
        "kills": by_job,
        "bits": by_bit,
        "hostile": by_file,
        "limits": limits,
        "amiss": amiss,
    }
    write_json(told.out, result)
    print(f"{len(amiss)} amiss; {result['seconds']:.0f} s; written to {told.out}")
    return 1 if amiss else 0


def _holds(counts: dict[str, int], kills: int) -> bool:
    return counts["old_or_new"] == counts["same_after"] == kills and not counts["left_over"] and not counts["unsaid"]


def _shown(title: str, counts: dict[str, dict[str, int]]) -> str:
    names = list(dict.fromkeys(name for each in counts.values() for name in each))
    rows = ([row, *(f"{each.get(name, 0):,}" for name in names)] for row, each in counts.items())
    return table([title, *(name.replace("_", " ") for name in names)], rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
