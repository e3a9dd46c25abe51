"""How long each closed-form edit takes, from moments or rows to the certified edit, and how exactly it is undone.

A surrogate of given width with random encoder, operator and rows: the time of a solve does not depend on their values.
Times are of the processor, so that other work on the machine does not count. Takes under a minute.

    OMP_NUM_THREADS=1 python benchmarks/edit_speed.py
    python benchmarks/edit_speed.py --observables 64 --rows 200 --repeats 1        # smoke
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import machine

import koopman_interp as ki
from koopman_interp.files import write_json
from koopman_interp.tables import table
from koopman_interp.testing import ResidualMLP


def main() -> None:
    """Time, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--observables", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "edit_speed.json")
    told = parser.parse_args()
    torch.manual_seed(0)
    width = told.observables // 2
    model = ResidualMLP(inputs=32, width=width, blocks=2, outputs=10).eval()
    labels = torch.randint(0, 10, (told.rows,))
    x = torch.randn(told.rows, 32) + torch.randn(10, 32)[labels]
    trajectories = ki.attach(model).observe(x, labels, progress=False)
    koopman = ki.fit(trajectories, ki.FitConfig(observables=told.observables), method="least_squares")
    spectrum = ki.spectrum(koopman, trajectories)
    pair = next(index for index, value in enumerate(spectrum.eigenvalues) if value.imag > 0)
    quantity = torch.randn(told.rows)
    edits: dict[str, Callable[[], ki.OperatorEdit]] = {
        "erase_class": lambda: ki.erase_class(koopman, label=4, site=1),
        "erase_class, 3 jointly": lambda: ki.erase_class(koopman, label=(1, 4, 7), site=1),
        "erase_class, 3 in turn": lambda: ki.erase_class(koopman, label=(1, 4, 7), site=1, jointly=False),
        "erase_concept, categories": lambda: ki.erase_concept(koopman, trajectories, site=1),
        "erase_concept, a quantity": lambda: ki.erase_concept(koopman, trajectories, attribute=quantity, site=1),
        "redirect": lambda: ki.redirect(koopman, fitted=trajectories, label=4, site=1),
        "edit_modes, eigenpairs": lambda: ki.edit_modes(koopman, spectrum, modes=[pair], uncertified=True),
        "steer": lambda: ki.steer(koopman, spectrum, mode=pair, amount=1.0, uncertified=True),
    }
    rows = []
    for name, make in edits.items():
        seconds = []
        for _ in range(told.repeats):
            started = time.process_time()
            edit = make()
            seconds.append(time.process_time() - started)
        assert edit.certificate is not None
        rows.append(
            {"edit": name, "seconds": min(seconds), "undo error": edit.certificate.undo_error, "rank": edit.rank}
        )
    body = [[row["edit"], f"{row['seconds']:.2f}", str(row["rank"]), f"{row['undo error']:.1e}"] for row in rows]
    print(f"{told.observables:,} observables, {told.rows:,} rows; best of {told.repeats}")
    print(table(["edit", "processor seconds", "rank", "undo error"], body))
    write_json(told.out, {"observables": told.observables, "rows": told.rows, "edits": rows, "machine": machine()})


if __name__ == "__main__":
    main()
