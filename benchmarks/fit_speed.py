"""Time to equal fidelity: our fits beside the recipe of arXiv 2505.12809.

One host (a residual MLP on MNIST: width 256 with 4 blocks, or the paper's 784 with 6), the same rows, one run each.
Fidelity is test accuracy with the surrogate in place of the whole span, and the goal 0.3 points below the model's own.
Ours are `FitConfig()`, which ends by itself, the same with fewer and fewer steps given, each a fit of its own, and the
closed form. The paper's recipe runs until it reaches the goal, or until its cap; its one cycle of the learning rate is
fitted to the steps that the cap holds. Seconds are the processor's on one thread, of setup and steps; looking at
held-out rows or at the test set is off the clock.

Cost: some minutes for the host unless --host has it, our fits, and up to --cap-minutes for the paper's recipe, whose
matrix exponential takes most of a step.

    OMP_NUM_THREADS=1 python benchmarks/fit_speed.py --host runs/mnist256.safetensors
    OMP_NUM_THREADS=1 python benchmarks/fit_speed.py --width 784 --host runs/mnist784.safetensors
    python benchmarks/fit_speed.py --slice 2000 --host-epochs 2 --steps 20 --cap-minutes 0.2   # smoke
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from typing import Any

from common import (
    MNIST_BLOCKS,
    MNIST_PIXELS,
    add_data_options,
    machine,
    mnist,
    mnist_host,
    peak_memory_gb,
    percent,
    predictions,
    share,
)
from paper_recipe import paper_fit
from paper_settings import SETTINGS
from stopwatch import FitClock, in_place_accuracy, seconds_per_step, watched_fit

import koopman_interp as ki
from koopman_interp.files import write_json
from koopman_interp.tables import table

NEAR = 0.003
"""How near to the host's accuracy a surrogate's has to come."""

OUR_LOOKS = 50
"""Steps between our looks at the accuracy."""
LENGTHS = (800, 600, 400, 300, 200, 100)
"""Steps of our shorter fits; the first that misses the goal is the last."""
PAPER_LOOKS = 60
"""Looks of the paper's recipe at its accuracy, until its cap."""


def least_squares(trajectories: ki.Trajectories, config: ki.FitConfig) -> tuple[ki.KoopmanAutoencoder, float]:
    """Fit in closed form, and return the surrogate and the seconds it took."""
    started = time.process_time()
    koopman = ki.fit(trajectories, config, method="least_squares")
    return koopman, time.process_time() - started


def row(name: str, record: FitClock, accuracy: float, goal: float) -> dict[str, Any]:
    """Collect the figures of one fit; one that ended at the goal took all its seconds to it."""
    # A look on the way is before K may be solved anew and moments are gathered.
    at_goal = next((look.seconds for look in record.looks if (look.accuracy or 0.0) >= goal), None)
    if at_goal is None and accuracy >= goal:
        at_goal = record.seconds
    return {
        "name": name,
        "steps": record.steps,
        "setup_seconds": record.setup,
        "seconds_per_step": record.mean_step,
        "seconds": record.seconds,
        "accuracy": accuracy,
        "best_look": max((look.accuracy or 0.0 for look in record.looks), default=accuracy),
        "seconds_to_goal": at_goal,
        "looks": [asdict(look) for look in record.looks],
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the fits on one host."""
    width = arguments.width
    data = mnist(arguments.mnist, arguments.slice, **MNIST_PIXELS[width])
    model = mnist_host(data, arguments.host, epochs=arguments.host_epochs, seed=arguments.seed, width=width)
    own = share(predictions(model, data.x_test) == data.y_test)
    goal = own - NEAR
    judge = in_place_accuracy(model, data)
    config = ki.FitConfig(seed=arguments.seed)
    if arguments.steps:
        config = replace(config, steps=arguments.steps)

    trajectories = ki.attach(model).observe(data.x, data.y)
    # The first fit of a process loads parts of torch that later ones find loaded; none of those timed shall pay it.
    seconds_per_step(trajectories, config)
    koopman, record = watched_fit(trajectories, config, accuracy=judge, look_every=OUR_LOOKS)
    rows = [row("ours: FitConfig()", record, judge(koopman), goal)]
    for steps in LENGTHS:
        if rows[-1]["seconds_to_goal"] is None or arguments.steps:
            break
        shorter = replace(config, steps=steps)
        koopman, record = watched_fit(trajectories, shorter, accuracy=judge, look_every=OUR_LOOKS)
        rows.append(row(f"ours: steps={steps}", record, judge(koopman), goal))
    koopman, seconds = least_squares(trajectories, config)
    rows.append(row("ours: least_squares", FitClock(setup=seconds, seconds=seconds), judge(koopman), goal))
    del trajectories

    recipe = replace(SETTINGS["mnist"].recipe, dimension=width)
    ends = recipe.tap(model).observe(data.x, data.y)
    koopman, record = paper_fit(recipe, ends, arguments.cap_minutes, looks=PAPER_LOOKS, accuracy=judge, goal=goal)
    rows.append(row("paper's recipe", record, judge(koopman), goal))
    reached = rows[-1]["seconds_to_goal"]
    return {
        "width": width,
        "host_accuracy": own,
        "goal_accuracy": goal,
        "rows": rows,
        "paper_epochs_run": record.steps / recipe.steps_per_epoch(len(ends)),
        "paper_epochs_published": recipe.epochs,
        "training_rows": len(data.x),
        "test_rows": len(data.x_test),
        "ratios": {
            fit["name"]: (record.clock if reached is None else reached) / fit["seconds_to_goal"]
            for fit in rows[:-1]
            if fit["seconds_to_goal"] is not None
        },
        "ratio_is_lower_bound": reached is None,
        "cap_minutes": arguments.cap_minutes,
        "machine": machine(),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table and the verdict."""
    body = [
        [
            fit["name"],
            str(fit["steps"]),
            f"{fit['setup_seconds']:.1f}",
            f"{fit['seconds_per_step']:.3f}",
            f"{fit['seconds']:.1f}",
            "not reached" if fit["seconds_to_goal"] is None else f"{fit['seconds_to_goal']:.1f}",
            percent(fit["accuracy"]),
        ]
        for fit in result["rows"]
    ]
    header = ["fit", "steps", "set-up s", "s/step", "s in all", "s to goal", "in place %"]
    print(f"Host {percent(result['host_accuracy'])} %, goal {percent(result['goal_accuracy'])} % in place of the span")
    print(table(header, body))
    paper = result["rows"][-1]
    if result["ratio_is_lower_bound"]:
        print(
            f"The paper's recipe did not reach the goal within {paper['seconds'] / 60:.1f} min "
            f"({result['paper_epochs_run']:.1f} of {result['paper_epochs_published']} epochs); "
            f"best {percent(paper['best_look'])} %."
        )
    sign = ">= " if result["ratio_is_lower_bound"] else ""
    for name, ratio in result["ratios"].items():
        print(f"Time to equal fidelity, paper's recipe over {name}: {sign}{ratio:.1f}")
    print(f"Peak memory {result['peak_memory_gb']:.2f} GB (whole process: data, host, all fits)")


def main() -> None:
    """Parse options, measure, print, and write JSON."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add_data_options(parser, "fit_speed")
    parser.add_argument("--width", type=int, choices=list(MNIST_BLOCKS), default=256, help="of the host")
    parser.add_argument("--host-epochs", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--cap-minutes", type=float, default=30.0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="of our fit, for smoke runs; FitConfig()'s own by default")
    arguments = parser.parse_args()
    result = measure(arguments) | {"peak_memory_gb": peak_memory_gb()}
    write_json(arguments.out, result)
    show(result)


if __name__ == "__main__":
    main()
