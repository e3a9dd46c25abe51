"""What topology by depth costs: against bare ripser and GUDHI, and at 100,000 rows against 1,000.

The clouds are the six depths of a host, width 10 on Yin-Yang (the paper's) or wider on MNIST, observed anew. Times are
CPU seconds of one thread, the ways in turn, round after round, compared by the median of the rounds' own ratios. Bare
engines start from the points too and stop at the thresholds that ours chose. Peak memory is that of a
process of its own, with torch, the engines and the trajectories in it. About three minutes.

    OMP_NUM_THREADS=1 python benchmarks/topology.py
    python benchmarks/topology.py --rounds 1 --points 100 --rows 2000        # smoke
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import default_mnist, machine, mnist, peak_memory_gb
from ripser import ripser
from scipy.spatial.distance import pdist, squareform

import koopman_interp as ki
from koopman_interp.files import write_json
from koopman_interp.tables import table
from koopman_interp.testing import ResidualMLP, train_classifier, yin_yang

BLOCKS = 5
WIDTH_ON_MNIST = 64


def trajectories_of(data: str, rows: int, folder: str) -> ki.Trajectories:
    """Train a host of five blocks, and observe as many rows; of MNIST, whole images that are shifted to make more."""
    torch.manual_seed(0)
    if data == "yin-yang":
        x, y = yin_yang(5000)
        model = ResidualMLP(inputs=4, width=10, blocks=BLOCKS, outputs=3)
        train_classifier(model, x, y, epochs=30, peak_rate=1e-2)
        return ki.attach(model).observe(*yin_yang(rows, seed=1), progress=False)
    digits = mnist(folder, 5000)
    model = ResidualMLP(inputs=784, width=WIDTH_ON_MNIST, blocks=BLOCKS, outputs=10)
    train_classifier(model, digits.x, digits.y, epochs=6)
    images = digits.x.view(-1, 28, 28)
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)][: 1 + rows // len(images)]
    x = torch.cat([images.roll(by, (1, 2)).flatten(1) for by in shifts])[:rows]
    return ki.attach(model).observe(x, progress=False)


def bare_gudhi(cloud: np.ndarray, threshold: float) -> Any:
    """GUDHI as its documentation calls it, from distances, over the field of two elements."""
    from gudhi.sklearn import RipsPersistence

    engine = RipsPersistence([0, 1], threshold=threshold, input_type="full distance matrix", homology_coeff_field=2)
    return engine.fit_transform([squareform(pdist(cloud))])


def timed_in_turn(ways: dict[str, Callable[[], Any]], rounds: int, once: set[str]) -> dict[str, list[float]]:
    """Time each way in each round; those of `once` in the first alone."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, run in ways.items():
            if name in once and turn:
                continue
            started = time.process_time()
            run()
            found[name].append(time.process_time() - started)
    return found


def against_engines(trajectories: ki.Trajectories, points: int, rounds: int) -> dict[str, Any]:
    """Compare with ripser and GUDHI on the same clouds."""
    subset = trajectories[:points]
    clouds = [state.double().numpy() for state in subset.states]
    found = ki.topology(subset, points=points, unit="none")
    limits = found.thresholds
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: ki.topology(subset, points=points),
        "ours, engine ripser": lambda: ki.topology(subset, points=points, engine="ripser"),
        "ripser, same thresholds": lambda: [ripser(c, thresh=t) for c, t in zip(clouds, limits, strict=True)],
        "ripser, no threshold": lambda: [ripser(cloud) for cloud in clouds],
    }
    if find_spec("gudhi"):
        ways["GUDHI, same thresholds"] = lambda: [bare_gudhi(c, t) for c, t in zip(clouds, limits, strict=True)]
    ways["ours"]()  # imports
    seconds = timed_in_turn(ways, rounds, {"ripser, no threshold"})
    shown = {name: median(each) for name, each in seconds.items()}
    bare = [name for name in ways if name.endswith("same thresholds")]
    rows = [[name, f"{value:.2f}", f"{shown['ours'] / value:.2f}"] for name, value in shown.items()]
    print(table(["way", "CPU s", "ours / it"], rows))
    fastest = [min(seconds[name][turn] for name in bare) for turn in range(rounds)]
    ratios = {
        "to the fastest engine": median(a / b for a, b in zip(seconds["ours"], fastest, strict=True)),
        "with ripser, to ripser": median(
            a / b for a, b in zip(seconds["ours, engine ripser"], seconds["ripser, same thresholds"], strict=True)
        ),
        "to ripser without a threshold": shown["ours"] / shown["ripser, no threshold"],
        "with ripser, to ripser without a threshold": shown["ours, engine ripser"] / shown["ripser, no threshold"],
    }
    print("\n".join(f"{name}: {value:.2f}" for name, value in ratios.items()))
    return {"seconds": seconds, "ratios": ratios, "engine": found.engine, "thresholds": list(limits)}


def at_scale(trajectories: ki.Trajectories, points: int, rounds: int) -> dict[str, Any]:
    """Compare all rows by landmarks with a cloud of as many points and no other rows."""
    few = trajectories[:points]
    ways = {
        "few": lambda: ki.topology(few, points=points),
        "random": lambda: ki.topology(trajectories, points=points),
        "farthest": lambda: ki.topology(trajectories, points=points, sampling="farthest"),
    }
    ways["few"]()
    seconds = timed_in_turn(ways, rounds, set())
    ratios = {
        name: median(a / b for a, b in zip(seconds[name], seconds["few"], strict=True))
        for name in ("random", "farthest")
    }
    rows, bounds = [], {}
    for name, ratio in ratios.items():
        shape = ways[name]()
        bounds[name] = [2 * radius for radius in shape.covering]
        shown = f"{min(bounds[name]):.3f} … {max(bounds[name]):.3f}"
        rows.append(
            [f"{points:,} {name} of {len(trajectories):,}", f"{median(seconds[name]):.2f}", f"{ratio:.2f}", shown]
        )
    rows.insert(0, [f"{points:,} of {points:,}", f"{median(seconds['few']):.2f}", "1", "0"])
    print("\n" + table(["rows", "CPU s", "ratio", "bound, diameters"], rows))
    return {"seconds": seconds, "ratios": ratios, "bounds": bounds}


def peak(path: Path, points: int, sampling: str) -> float:
    """Compute in this process; return its peak in MB, with torch, the engines and the trajectories in it."""
    ki.topology(ki.Trajectories.load(path), points=points, sampling=sampling)
    return 1000 * peak_memory_gb()


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=["yin-yang", "mnist"], default=["yin-yang", "mnist"])
    parser.add_argument("--mnist", default=default_mnist(), help="folder or Hub name (default: %(default)s)")
    parser.add_argument("--points", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sampling", default="random", help=argparse.SUPPRESS)
    folder = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=folder / "topology.json", help="default: %(default)s")
    given = parser.parse_args()
    if given.memory_of:
        print(json.dumps({"MB": peak(given.memory_of, given.points, given.sampling)}))
        return
    found: dict[str, Any] = {"machine": machine(), "points": given.points, "rows": given.rows}
    for data in given.data:
        trajectories = trajectories_of(data, given.rows, given.mnist)
        print(f"\n== {data}: {trajectories!r} ==")
        kept = given.out.parent / f"topology-{data}.safetensors"
        trajectories.save(kept)
        command = [sys.executable, __file__, "--memory-of", str(kept), "--points", str(given.points), "--sampling"]
        memory = {
            sampling: json.loads(
                subprocess.run([*command, sampling], check=True, capture_output=True, text=True).stdout
            )["MB"]
            for sampling in ("random", "farthest")
        }
        kept.unlink()
        found[data] = {
            "engines": against_engines(trajectories, given.points, given.rounds),
            "scale": at_scale(trajectories, given.points, given.rounds),
            "peak_mb": memory,
        }
        print(
            "Peak memory of a process, all in all: " + ", ".join(f"{name} {mb:.0f} MB" for name, mb in memory.items())
        )
    write_json(given.out, found)


if __name__ == "__main__":
    main()
