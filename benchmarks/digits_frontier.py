"""How far prototype and divergence can be had together on digits 8×8: a grid of edits in the setting of `digits.py`.

Each edit gives one point: what ten examples a class still find of the class, and how far the output lies from that of a
network retrained without it; medians over seeds. A point is on the frontier if it forgets, keeps what the host retains
within half a point, and no other such point is better in both. Seeds 10 to 14 are those on which λ, rank and strength
of `edits.py digits` were chosen. Takes two minutes.

    python benchmarks/digits_frontier.py
    python benchmarks/digits_frontier.py --seeds 0 1 2
    python benchmarks/digits_frontier.py --seeds 10        # smoke
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import machine
from digits import LABEL, MEASURES, Setting, digits_setting, observed_and_fitted
from edits import everywhere_past_the_first, second_choices, written
from torch import Tensor, nn
from torch.nn.functional import kl_div

import koopman_interp as ki
from koopman_interp.auditing.baselines import BASE, LEACE, MASK, MEAN_DIFFERENCE, RETRAINED
from koopman_interp.files import write_json
from koopman_interp.tables import table

COLUMNS = ("forget ↓", "retain ↑", "10-shot", "JS to retrained", "membership: loss")
WEIGHTS = (0.1, 0.3, 1.0, 3.0)
LOST = 0.5
"""Points of retained accuracy that a point of the frontier may lose."""

Edit = ki.OperatorEdit | ki.EditSet


def main() -> None:
    """Run, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    out = Path(__file__).resolve().parent / "results" / "digits_frontier.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")
    given = parser.parse_args()
    figures: dict[str, list[list[float]]] = {}
    for seed in given.seeds:
        for name, row in figures_of(digits_setting(seed)):
            figures.setdefault(name, []).append([100 * MEASURES[column](row) for column in COLUMNS])
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in figures.items()
    }
    best = frontier(medians)
    body = [
        [name, *(f"{value:.1f}" for value in row), "frontier" if name in best else ""] for name, row in medians.items()
    ]
    print(table(["", *COLUMNS, ""], body))
    found = {"columns": COLUMNS, "medians": medians, "frontier": best}
    write_json(given.out, {"machine": machine(), "seeds": given.seeds, **found})


def figures_of(setting: Setting) -> Iterator[tuple[str, Any]]:
    """Audit each edit on one seed; what stands beside edits comes once."""
    trajectories, koopman = observed_and_fitted(setting)
    beside = True
    for name, edit in edits_of(setting, koopman, trajectories):
        audit = setting.audited(ki.patched(setting.model, koopman, edit, at=written(edit)), probes=())
        if beside:
            yield from ((row.name, row) for row in audit.rows[:-1])
        beside = False
        yield name, audit.rows[-1]


def edits_of(
    setting: Setting, koopman: ki.KoopmanAutoencoder, trajectories: ki.Trajectories
) -> Iterator[tuple[str, Edit]]:
    """Make the grid."""
    second = partial(ki.redirect, koopman, label=LABEL, targets=second_choices(setting))
    for site in (-1, -2, -3):
        erased = ki.erase_class(koopman, label=LABEL, site=site)
        yield f"erase, site {site}", erased
        for weight in WEIGHTS:
            yield f"second choice, site {site}, λ {weight:g}", second(fitted=trajectories, site=site, weight=weight)
            then = second(fitted=trajectories, after=erased, weight=weight)
            yield f"erase, then second choice, site {site}, λ {weight:g}", then
    for strength in (0.35, 0.5, 0.75, 1.0):
        each = everywhere_past_the_first(koopman, partial(ki.erase_class, koopman, label=LABEL, strength=strength))
        yield f"erase × {strength:g} at each site", each
        with ki.patched(setting.model, koopman, each, at="each site"):
            left = ki.attach(setting.model).observe(setting.x, setting.y, progress=False)
        for weight in WEIGHTS[1:]:
            last = second(fitted=left, site=-1, weight=weight) @ each[-1]
            made = ki.EditSet((*each[:-1], last), each.description)
            yield f"erase × {strength:g} at each site, then second choice, λ {weight:g}", made
    yield (
        "second choice, 50 steps towards the masked output",
        towards_the_mask(setting, koopman, second(fitted=trajectories)),
    )


def towards_the_mask(setting: Setting, koopman: ki.KoopmanAutoencoder, start: ki.OperatorEdit) -> Edit:
    """Train an edit until the class's rows are named as with the logit masked, and the others as before."""
    gone = setting.y == LABEL
    with torch.no_grad():
        masked = setting.model(setting.x[gone]).index_fill(1, torch.tensor([LABEL]), -1e4).softmax(1)
        before = setting.model(setting.x[~gone]).log_softmax(1)

    def objective(model: nn.Module) -> Tensor:
        away = -(masked * model(setting.x[gone]).log_softmax(1)).sum(1).mean()
        kept = kl_div(model(setting.x[~gone]).log_softmax(1), before, log_target=True, reduction="batchmean")
        return away + 3 * kept

    return ki.gradient_edit(setting.model, koopman, objective, start=start, steps=50, rate=0.01, progress=False)


def frontier(medians: dict[str, list[float]]) -> list[str]:
    """Name the edits that forget and retain, and that no other one beats in prototype and divergence."""
    base, asked = medians[BASE], {}
    beside = (BASE, MASK, MEAN_DIFFERENCE, LEACE, RETRAINED)
    for name, (forgotten, retained, prototype, divergence, _) in medians.items():
        if name not in beside and forgotten <= 1 and retained >= base[1] - LOST:
            asked[name] = (prototype, divergence)
    return [
        name
        for name, (prototype, divergence) in asked.items()
        if not any(p <= prototype and d <= divergence and (p, d) != (prototype, divergence) for p, d in asked.values())
    ]


if __name__ == "__main__":
    main()
