"""The MNIST figures: host, fit, fidelity, and each class erased in turn, at every strength side by side.

One host (residual MLP of width 256 with 4 blocks, or 784 with 6), one default fit on the 60,000 training rows, figures
on the 10,000 test rows. The strength of each class is chosen on training rows, for each mode: the smallest at which
none of the class's is recognised. Cost: a minute or two for the host unless --host has it, one for the fit, four for
the edits.

    python benchmarks/mnist.py --host runs/mnist256.safetensors
    python benchmarks/mnist.py --width 784 --classes 4
    python benchmarks/mnist.py --slice 2000 --host-epochs 2 --steps 20        # smoke
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import MNIST_BLOCKS, MNIST_PIXELS, add_data_options, machine, mnist, mnist_host, peak_memory_gb, predictions
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.files import write_json
from koopman_interp.patching.motion import Mode
from koopman_interp.tables import table

STRENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
MODES: tuple[Mode, ...] = ("delta", "replace")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser, "mnist")
    parser.add_argument("--host-epochs", type=int, default=12)
    parser.add_argument("--width", type=int, choices=list(MNIST_BLOCKS), default=256, help="default: 256")
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)), help="to erase; default: all ten")
    parser.add_argument("--steps", type=int, default=ki.FitConfig().steps)
    given = parser.parse_args()
    data = mnist(given.mnist, given.slice, **MNIST_PIXELS[given.width])
    model = mnist_host(data, given.host, epochs=given.host_epochs, seed=given.seed, width=given.width)
    trajectories = ki.attach(model).observe(data.x, data.y, progress=False)
    start = time.perf_counter()
    koopman = ki.fit(trajectories, ki.FitConfig(steps=given.steps, seed=given.seed))
    fit_seconds = time.perf_counter() - start
    faith = ki.fidelity(model, koopman, held_out=(data.x_test, data.y_test), fitted=trajectories)
    print(f"{koopman!r}\nfit: {fit_seconds:.0f} s\n\n{faith}\n")
    start = time.perf_counter()
    ki.erase_class(koopman, label=4)
    edit_seconds = time.perf_counter() - start
    with torch.no_grad():
        plain = model(data.x_test)
        with ki.patched(model, koopman):
            null = torch.equal(model(data.x_test), plain)
        none = ki.erase_class(koopman, label=4).scaled(0.0)
        with ki.patched(model, koopman, none):
            zero = torch.equal(model(data.x_test), plain)
    print(f"edit: {edit_seconds * 1000:.0f} ms; null edit bit-identical: {null}; strength 0: {zero}\n")
    strengths = {mode: chosen(model, koopman, data.x, data.y, mode, given.classes) for mode in MODES}
    cells = erased(model, koopman, data.x_test, data.y_test, given.classes)
    print(by_strength(cells), "\n")
    print(by_class(cells, strengths), "\n")
    print(f"peak memory {peak_memory_gb():.2f} GB")
    write_json(
        given.out,
        {
            "machine": machine(),
            "fit_seconds": fit_seconds,
            "edit_seconds": edit_seconds,
            "null_edit_bit_identical": null and zero,
            "fidelity": faith.as_dict(),
            "chosen_strengths": strengths,
            "erased": cells,
            "peak_memory_gb": peak_memory_gb(),
        },
    )


def chosen(
    model: nn.Module, koopman: ki.KoopmanAutoencoder, x: Tensor, y: Tensor, mode: Mode, classes: Sequence[int]
) -> dict[int, float]:
    """Choose each class's strength on training rows, or the greatest where none suffices."""
    strengths = dict[int, float]()
    for label in classes:
        for strength in STRENGTHS:
            edit = ki.erase_class(koopman, label=label, strength=strength)
            with ki.patched(model, koopman, edit, mode=mode):
                left = int((predictions(model, x[y == label]) == label).sum())
            if not left:
                break
        strengths[label] = strength
    return strengths


def erased(
    model: nn.Module, koopman: ki.KoopmanAutoencoder, x: Tensor, y: Tensor, classes: Sequence[int]
) -> list[dict[str, Any]]:
    """Erase each class at each strength in each mode; figures in percent, on the given rows."""
    host = predictions(model, x)
    cells = []
    for label in classes:
        gone = y == label
        host_retained = 100 * float((host[~gone] == y[~gone]).double().mean())
        for strength in STRENGTHS:
            edit = ki.erase_class(koopman, label=label, strength=strength)
            for mode in MODES:
                with ki.patched(model, koopman, edit, mode=mode):
                    guess = predictions(model, x)
                retained = 100 * float((guess[~gone] == y[~gone]).double().mean())
                cells.append(
                    {
                        "label": label,
                        "site": edit.site,
                        "strength": strength,
                        "mode": mode,
                        "rows": int(gone.sum()),
                        "forgotten_rows": int((guess[gone] == label).sum()),
                        "forgotten": 100 * float((guess[gone] == label).double().mean()),
                        "retained": retained,
                        "retained_minus_host": retained - host_retained,
                    }
                )
    return cells


def by_strength(cells: list[dict[str, Any]]) -> str:
    """Tabulate the range over the classes at each strength, and one of them."""
    labels = list(dict.fromkeys(cell["label"] for cell in cells))
    one = labels.index(4) if 4 in labels else 0
    rows = []
    for mode in MODES:
        for strength in STRENGTHS:
            here = [cell for cell in cells if cell["mode"] == mode and cell["strength"] == strength]
            forgotten = [cell["forgotten"] for cell in here]
            moved = [cell["retained_minus_host"] for cell in here]
            rows.append(
                [
                    mode,
                    f"{strength:g}",
                    f"{min(forgotten):.2f} … {max(forgotten):.2f}",
                    f"{forgotten[one]:.2f}",
                    f"{min(moved):+.2f} … {max(moved):+.2f}",
                    f"{here[one]['retained']:.2f}",
                ]
            )
    header = [
        "mode",
        "strength",
        "still recognised %",
        f"class {labels[one]}",
        "retained − host",
        f"class {labels[one]}: retained %",
    ]
    return table(header, rows)


def by_class(cells: list[dict[str, Any]], strengths: dict[Mode, dict[int, float]]) -> str:
    """Tabulate the classes, each at the strength chosen for it in each mode."""
    rows = []
    for label in strengths[MODES[0]]:
        row = [str(label)]
        for mode in MODES:
            strength = strengths[mode][label]
            (cell,) = (one for one in cells if (one["label"], one["mode"], one["strength"]) == (label, mode, strength))
            row += [
                f"{strength:g}",
                f"{cell['forgotten']:.2f} ({cell['forgotten_rows']} of {cell['rows']:,})",
                f"{cell['retained_minus_host']:+.2f}",
            ]
        rows.append([*row, cell["site"]])
    of_mode = [f"{mode}: {what}" for mode in MODES for what in ("strength", "recognised %", "retained − host")]
    return table(["class", *of_mode, "site"], rows)


if __name__ == "__main__":
    main()
