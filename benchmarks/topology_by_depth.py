"""What arXiv 2505.12809 finds in topology, with bands over seeds, and on hosts with and without skip connections.

Its findings: the number of pieces falls with depth in trained hosts, and with the iterates of K in the surrogate, and
the isometry keeps the diagrams. It counts pieces at one scale, chosen by hand for each panel; whether they fall depends
on that choice, so each is counted here in two units: shares of each cloud's own diameter, and of the first cloud's, in
which growth shows. Per seed: a host of its own, trained on 5,000 rows; five surrogates that differ in encoder and
weight of the isometry alone; clouds of held-out rows. About ten minutes on one core.

    OMP_NUM_THREADS=1 python benchmarks/topology_by_depth.py
    python benchmarks/topology_by_depth.py --seeds 2 --points 60 --steps 20 --epochs 2        # smoke
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Data, default_mnist, machine, mnist, predictions, share

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.analysis.shapes.topology_bands import exchanged
from koopman_interp.files import write_json
from koopman_interp.tables import table
from koopman_interp.testing import ResidualMLP, train_classifier, yin_yang

SURROGATES = {
    f"{short}, isometry {weight:g}": (architecture, weight)
    for short, architecture, weights in (
        ("MLP", "mlp", (1.0, 1e-3, 0.0)),
        ("linear + MLP", "linear_plus_nonlinear", (1.0, 0.0)),
    )
    for weight in weights
}
"""Encoder and weight of the isometry: the paper's encoder with its weight for Yin-Yang, its weight for MNIST, and none;
and our default encoder, which starts as an isometry."""

SCALES = (0.05, 0.1, 0.2, 0.3)
ROWS, TEST_ROWS = 5000, 1250
HOSTS = {
    "yin-yang": {"inputs": 4, "width": 10, "blocks": 5, "outputs": 3},
    "mnist": {"inputs": 784, "width": 64, "blocks": 4, "outputs": 10},
}
UNITS = ("own", "first")


def data_of(name: str, seed: int, folder: str) -> Data:
    """Draw Yin-Yang anew for each seed; MNIST is the same."""
    if name == "mnist":
        return mnist(folder, ROWS)
    return Data(*yin_yang(ROWS, seed=2 * seed), *yin_yang(TEST_ROWS, seed=2 * seed + 1))


def one_run(name: str, seed: int, data: Data, skip: bool, given: argparse.Namespace) -> dict[str, Any]:
    """Train a host, fit surrogates to it, and compute the topology of their clouds on held-out rows."""
    torch.manual_seed(seed)
    model = ResidualMLP(**HOSTS[name], skip=skip)
    epochs = given.epochs or (60 if name == "yin-yang" else 12)
    train_classifier(model, data.x, data.y, epochs=epochs, peak_rate=1e-2 if name == "yin-yang" else 4e-3, seed=seed)
    untrained = ResidualMLP(**HOSTS[name], skip=skip).eval()
    held_out = ki.attach(model).observe(data.x_test, data.y_test, progress=False)
    shape = {"points": given.points, "seed": seed}
    found: dict[str, Any] = {
        "accuracy": share(predictions(model, data.x_test) == data.y_test),
        "host": {unit: ki.topology(held_out, unit=unit, **shape) for unit in UNITS},
        "untrained": ki.topology(ki.attach(untrained).observe(data.x_test, progress=False), **shape),
        "of class": [ki.topology(held_out, label=label, points=80, seed=seed) for label in held_out.classes],
        "surrogates": {},
    }
    if not skip:
        return found
    trajectories = ki.attach(model).observe(data.x, data.y, progress=False)
    for name_of, (architecture, weight) in SURROGATES.items():
        observables = 32 if name == "yin-yang" else None
        config = ki.FitConfig(
            observables=observables, architecture=architecture, isometry_weight=weight, steps=given.steps, seed=seed
        )
        koopman = ki.fit(trajectories, config, progress=False)
        iterates = {unit: ki.topology(held_out, koopman, unit=unit, **shape) for unit in UNITS}
        states = ki.topology(held_out, koopman, of="normalized", **shape)
        found["surrogates"][name_of] = {
            "iterates": iterates,
            "encoded to states": ki.topology_distances(states, ki.topology(held_out, koopman, of="encoded", **shape)),
            "iterates to states": ki.topology_distances(states, iterates["own"]),
            "to no features": [states.statistic("longest lifetime", k).mean() / 2 for k in (0, 1)],
            "FVU": koopman.record.kept["fvu"],
            "stress": koopman.record.kept["stress"],
        }
    return found


def falls(name: str, runs: list[ki.Topology]) -> tuple[list[list[str]], dict[str, Any]]:
    """Count pieces at the first and the last depth, with the exact sign-exchange test over seeds."""
    scales = np.array(SCALES)
    counts = np.stack([run.curves(0, scales) for run in runs])
    rows, kept = [], {}
    for place, scale in enumerate(SCALES):
        first, last = counts[:, 0, place], counts[:, -1, place]
        test = exchanged(first, last, paired=True, exchanges=9999, seed=0)
        steps = np.diff(counts[:, :, place], axis=1)
        monotone = int((steps <= 0).all(1).sum())
        rows.append([
            name, f"{scale:g}", _spread(first), _spread(last),
            f"{int((last < first).sum())} of {len(runs)}", f"{monotone} of {len(runs)}", f"{test.p_value:.3f}",
        ])  # fmt: skip
        kept[f"{scale:g}"] = {"counts": counts[:, :, place].tolist(), "test": test.as_dict()}
    return rows, kept


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.3g} [{values.min():.3g}, {values.max():.3g}]"


def report_falls(title: str, groups: dict[str, list[ki.Topology]]) -> dict[str, Any]:
    """Print one table of falls; return its numbers."""
    rows, kept = [], {}
    for name, runs in groups.items():
        more, kept[name] = falls(name, runs)
        rows += more
    print(f"\n{title}: β0, mean [least, most] over seeds")
    print(table(["", "scale", "first", "last", "fell", "at every step", "p"], rows))
    return kept


def report_isometry(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Print distances between normalised states and what the surrogate makes of them, by encoder and weight."""
    rows, kept = [], {}
    for name in SURROGATES:
        each = [run["surrogates"][name] for run in runs]
        figures = {
            f"{what}: H{k}": np.array([one[key].bottleneck[:, k].mean() for one in each])
            for what, key in (("E(x)", "encoded to states"), ("K^n E(x0)", "iterates to states"))
            for k in (0, 1)
        }
        figures |= {f"no features: H{k}": np.array([one["to no features"][k] for one in each]) for k in (0, 1)}
        figures |= {key: np.array([one[key] for one in each]) for key in ("stress", "FVU")}
        rows.append([name, *map(_spread, figures.values())])
        kept[name] = {key: values.tolist() for key, values in figures.items()}
    print("\nBottleneck distance from the diagrams of the normalised states, in own diameters, mean over depths")
    print(table(["", *figures], rows))
    return kept


def draw(name: str, groups: dict[str, list[ki.Topology]], folder: Path) -> None:
    """Draw the curves of each group over all scales, with bands over seeds."""
    for group, runs in groups.items():
        title = re.sub(r"[^\w.]+", "-", f"{name}-{group}")
        plotting.save_figure(plotting.plot_betti_bands(ki.TopologyBands(tuple(runs)), 0), folder, title)


def study(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run all seeds of one data set, print and draw."""
    runs: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for seed in range(given.seeds):
        data = data_of(name, seed, given.mnist)
        for skip in runs:
            runs[skip].append(one_run(name, seed, data, skip, given))
    print(f"\n== {name} ==")
    for skip, those in runs.items():
        print(f"{'with' if skip else 'without'} skips: accuracy {_spread(np.array([r['accuracy'] for r in those]))}")
    hosts = {
        f"{'skip' if skip else 'no skip'}, {unit}": [run["host"][unit] for run in runs[skip]]
        for skip in (True, False)
        for unit in UNITS
    }
    hosts["untrained, skip, own"] = [run["untrained"] for run in runs[True]]
    hosts["untrained, no skip, own"] = [run["untrained"] for run in runs[False]]
    of_class = {
        f"{'skip' if skip else 'no skip'}, class {label}": [run["of class"][label] for run in runs[skip]]
        for skip in (True, False)
        for label in range(min(3, HOSTS[name]["outputs"]))
    }
    iterates = {
        f"{surrogate}, {unit}": [run["surrogates"][surrogate]["iterates"][unit] for run in runs[True]]
        for surrogate in SURROGATES
        for unit in UNITS
    }
    kept = {
        "accuracy": {str(skip): [run["accuracy"] for run in those] for skip, those in runs.items()},
        "hosts": report_falls("Host by depth", hosts),
        "classes": report_falls("Host by depth, one class alone", of_class),
        "iterates": report_falls("Surrogate by iterate", iterates),
        "isometry": report_isometry(runs[True]),
    }
    if given.figures:
        draw(name, hosts | iterates, given.figures)
    return kept


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(HOSTS), default=list(HOSTS), help="default: both")
    parser.add_argument("--mnist", default=default_mnist(), help="folder or Hub name (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--points", type=int, default=400, help="of each cloud (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="of each fit (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="of each host (default: 60 for Yin-Yang, 12 for MNIST)")
    parser.add_argument("--figures", type=Path, help="folder for Betti curves with bands")
    out = Path(__file__).resolve().parent / "results" / "topology_by_depth.json"
    parser.add_argument("--out", type=Path, default=out, help="default: %(default)s")
    given = parser.parse_args()
    found = {name: study(name, given) for name in given.data}
    write_json(given.out, {"machine": machine(), "seeds": given.seeds, "points": given.points, **found})


if __name__ == "__main__":
    main()
