"""The experiment of arXiv 2505.12809 in its own settings, beside ours on the same hosts.

Yin-Yang (host of width 10 with 5 blocks, 5,000 points) and MNIST (residual MLP of width 784 with 6 blocks).
Each host is fitted twice: by the paper's recipe (plain MLP, K = exp(A / k), first and last representation
only, isometry over all pairs) said in `FitConfig`'s terms, and by `FitConfig()` on all sites. A class is then
forgotten by the paper's edit (equality form, next-best targets, replace) and by `erase_class` (delta and
replace). Everything is judged on test rows; FVU (fraction of variance unexplained) and stress are of held-out
rows, at the weights that were kept. Stress is relative and so does not depend on the paper's small units.

Cost: each fit stops at --budget-minutes (10 by default); on a CPU that is not enough for the paper's 100
epochs on MNIST, and the table says how many were run. Training the hosts comes on top: minutes for Yin-Yang,
and for MNIST about a minute an epoch unless --host has it.

    python benchmarks/paper.py --host runs/mnist784.safetensors
    python benchmarks/paper.py --slice 2000 --host-epochs 2 --budget-minutes 0.1 --steps 20   # smoke
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

from common import Data, add_data_options, machine, peak_memory_gb, percent, predictions, share
from equality_edit import EqualityEdit, equality_edits, replaced
from paper_recipe import PATIENCE_ON_CLOCK, paper_fit
from paper_settings import SETTINGS, Figures, Setting, build_host, load
from stopwatch import FitClock, seconds_per_step, watched_fit
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.errors import NonFiniteError
from koopman_interp.files import write_json
from koopman_interp.fitting.sizes import sizes
from koopman_interp.patching.motion import Mode
from koopman_interp.tables import table

JUDGED_ROWS = 10_000
STRENGTHS = (1.0, 1.5)

Factory = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Fitted:
    """A surrogate with what is known of its fit."""

    name: str
    koopman: ki.KoopmanAutoencoder
    record: FitClock
    epochs: str


def judged(model: nn.Module, x: Tensor, y: Tensor, forgotten: int, patch: Factory) -> tuple[float, float]:
    """Return the share of the class still recognised and the accuracy on the rest, under a patch."""
    with patch():
        guess = predictions(model, x)
    gone = y == forgotten
    return share(guess[gone] == forgotten), share(guess[~gone] == y[~gone])


def best_equality_edit(
    model: nn.Module, fitted: Fitted, trajectories: ki.Trajectories, data: Data, forgotten: int
) -> tuple[EqualityEdit, list[dict[str, float]]]:
    """Choose ε by retained minus forgotten accuracy on training rows, and record the test figures of each."""
    x, y = data.x[:JUDGED_ROWS], data.y[:JUDGED_ROWS]
    tried, scores = [], []
    for edit in equality_edits(fitted.koopman, trajectories, forgotten):

        def patch(edit: EqualityEdit = edit) -> AbstractContextManager[None]:
            return replaced(model, fitted.koopman, edit)

        gone, kept = judged(model, x, y, forgotten, patch)
        test_gone, test_kept = judged(model, data.x_test, data.y_test, forgotten, patch)
        score = {"epsilon": edit.epsilon, "score": kept - gone, "forgotten": test_gone, "retained": test_kept}
        scores.append(score)
        tried.append(edit)
    best = max(range(len(tried)), key=lambda index: scores[index]["score"])
    return tried[best], scores


def fit_paper(setting: Setting, trajectories: ki.Trajectories, arguments: argparse.Namespace) -> Fitted:
    """Fit by the paper's recipe, within the budget."""
    recipe = setting.recipe
    epochs = recipe.epochs * arguments.epochs
    if arguments.steps:
        epochs = min(epochs, arguments.steps / recipe.steps_per_epoch(len(trajectories)))
    koopman, record = paper_fit(recipe, trajectories, arguments.budget_minutes, epochs=epochs)
    run = record.steps / recipe.steps_per_epoch(len(trajectories))
    return Fitted("paper's recipe", koopman, record, f"{run:.1f} of {recipe.epochs}")


def fit_ours(name: str, config: ki.FitConfig, trajectories: ki.Trajectories, arguments: argparse.Namespace) -> Fitted:
    """Fit on all sites, with fewer steps where the budget holds fewer."""
    config, whole = replace(config, seed=arguments.seed), config.steps
    most = 60 * arguments.budget_minutes
    fewer = max(1, int(most / seconds_per_step(trajectories, config)))
    steps = min(config.steps, fewer, arguments.steps or config.steps)
    if steps < config.steps:
        config = replace(config, steps=steps, evaluate_every=min(config.evaluate_every, max(1, steps // 10)))
    koopman, record = watched_fit(trajectories, config, most_seconds=PATIENCE_ON_CLOCK * most)
    batch = sizes(config, koopman.config.dimension, len(trajectories), len(trajectories.sites)).batch_size
    passes = record.steps * batch / (len(trajectories) * (1 - config.validation))
    return Fitted(name, koopman, record, f"{passes:.1f} ({record.steps} of {whole} steps)")


def figures(name: str, model: nn.Module, data: Data, fitted: Fitted, forgotten: int, patch: Factory) -> Figures:
    """Judge one edit of one surrogate on test rows."""
    own = predictions(model, data.x_test)
    with ki.patched(model, fitted.koopman, mode="replace"):
        in_place = predictions(model, data.x_test)
    of_class = data.y_test == forgotten
    gone, kept = judged(model, data.x_test, data.y_test, forgotten, patch)
    kept_weights = fitted.koopman.record.kept
    return Figures(
        name,
        fitted.epochs,
        host=share(own == data.y_test),
        host_class=share(own[of_class] == forgotten),
        in_place=share(in_place == data.y_test),
        in_place_class=share(in_place[of_class] == forgotten),
        forgotten=gone,
        retained=kept,
        host_retained=share(own[~of_class] == data.y_test[~of_class]),
        seconds=fitted.record.seconds,
        stress=kept_weights["stress"],
        fvu=kept_weights["fvu"],
    )


def erasures(model: nn.Module, data: Data, fitted: Fitted, forgotten: int, modes: Sequence[Mode]) -> list[Figures]:
    """Judge `erase_class` on a surrogate, in some modes and at each strength."""
    rows = []
    for strength in STRENGTHS:
        edit = ki.erase_class(fitted.koopman, label=forgotten, strength=strength)
        for mode in modes:

            def patch(edit: ki.OperatorEdit = edit, mode: Mode = mode) -> AbstractContextManager[Any]:
                return ki.patched(model, fitted.koopman, edit, mode=mode)

            name = f"{fitted.name}, erase_class × {strength:g}, {mode}"
            rows.append(figures(name, model, data, fitted, forgotten, patch))
    return rows


def measure(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both recipes and all edits on one data set."""
    data = load(setting, arguments)
    model = build_host(setting, data, arguments)
    ends = setting.recipe.tap(model).observe(data.x, data.y)
    surrogates: list[Fitted] = []
    notes: list[str] = []
    try:
        surrogates.append(fit_paper(setting, ends, arguments))
    except NonFiniteError as error:
        notes.append(f"paper's recipe: {error}")
    trajectories = ki.attach(model).observe(data.x, data.y)
    surrogates += [fit_ours(name, config, trajectories, arguments) for name, config in setting.ours.items()]
    classes = []
    for forgotten in setting.forget:
        rows = [] if setting.published is None else [setting.published]
        tried: list[dict[str, float]] = []
        for fitted in surrogates:
            if fitted.name not in setting.ours:
                edit, tried = best_equality_edit(model, fitted, ends, data, forgotten)
                name = f"{fitted.name}, equality edit (ε {edit.epsilon:g}), replace"

                def patch(fitted: Fitted = fitted, edit: EqualityEdit = edit) -> AbstractContextManager[None]:
                    return replaced(model, fitted.koopman, edit)

                rows.append(figures(name, model, data, fitted, forgotten, patch))
            modes: tuple[Mode, ...] = ("delta", "replace") if fitted.name in setting.ours else ("replace",)
            rows += erasures(model, data, fitted, forgotten, modes)
        shown = [asdict(row) for row in rows]
        classes.append({"forgotten": forgotten, "rows": shown, "equality_edits": tried})
    return {
        "name": setting.name,
        "host_epochs": None if arguments.host else arguments.host_epochs or setting.host_epochs,
        "training_rows": len(data.x),
        "test_rows": len(data.x_test),
        "seconds_per_step": {fitted.name: fitted.record.mean_step for fitted in surrogates},
        "classes": classes,
        "notes": notes,
    }


def show(result: dict[str, Any]) -> None:
    """Print one table a forgotten class."""
    header = [
        "%", "epochs", "host", "host: class", "in place", "in place: class", "forgotten", "retained",
        "host retained", "fit s", "stress", "FVU",
    ]  # fmt: skip
    shares = ("host", "host_class", "in_place", "in_place_class", "forgotten", "retained", "host_retained")
    for of_class in result["classes"]:
        forgotten, rows = of_class["forgotten"], result["test_rows"]
        print(f"\n{result['name']}, class {forgotten} forgotten; {rows:,} test rows")
        body = [
            [
                row["name"],
                row["epochs"],
                *(percent(row[name]) for name in shares),
                "–" if row["seconds"] is None else f"{row['seconds']:.0f}",
                "–" if row["stress"] is None else f"{row['stress']:.4f}",
                "–" if row["fvu"] is None else f"{row['fvu']:.4f}",
            ]
            for row in of_class["rows"]
        ]
        print(table(header, body))
    for note in result["notes"]:
        print(f"Did not finish: {note}")


def main() -> None:
    """Parse options, measure, print, and write JSON after each data set."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add_data_options(parser, "paper")
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--budget-minutes", type=float, default=10.0, help="a fit (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=1.0, help="share of the paper's epochs, at most")
    parser.add_argument("--steps", type=int, help="of either fit at most, for smoke runs")
    parser.add_argument("--host-epochs", type=int, help="2,000 for Yin-Yang and 10 for MNIST unless given")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in arguments.data:
        results.append(measure(SETTINGS[name], arguments))
        facts = {"budget_minutes": arguments.budget_minutes, "machine": machine(), "data_sets": results}
        write_json(arguments.out, facts | {"peak_memory_gb": peak_memory_gb()})
        show(results[-1])
    print(f"\nPeak memory {peak_memory_gb():.2f} GB")


if __name__ == "__main__":
    main()
