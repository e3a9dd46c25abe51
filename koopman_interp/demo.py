"""The demo: Yin-Yang end to end, with nothing to download.

Trains the residual MLP of arXiv 2505.12809 on the Yin-Yang data set, observes it, fits a surrogate, reads it,
erases a class, patches, audits, and writes a run folder. Under a minute on two cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from koopman_interp.errors import InputError
from koopman_interp.fitting.config import FitConfig
from koopman_interp.pipeline import Plan, run_pipeline
from koopman_interp.tables import in_percent
from koopman_interp.testing import ResidualMLP, train_classifier, yin_yang

CLASSES = ("yin", "yang", "dot")

_POINTS, _HELD_OUT = 5000, 2000
_WIDTH, _BLOCKS = 10, 5
_EPOCHS = 40
_RUNS, _POINTS_A_RUN = 5, 200
"""Disjoint subsets of the rows held out, of which topologies have bands."""
_FIT = FitConfig(aim="spectrum", observables=32)
"""Its spectrum is to be read."""


def run_demo(
    folder: str | os.PathLike[str],
    *,
    label: int = 2,
    strength: float = 1.0,
    seed: int = 0,
    say: Callable[[object], None] = lambda _: None,
    command: str = "koopman-interp demo",
) -> Path:
    """Run the demo.

    Args:
        folder: where the run goes.
        label: class to erase: 0 is yin, 1 yang, 2 the dots.
        strength: of the edit.
        seed: of model, data and fit.
        say: called with each result or sentence as it is found.
        command: to be named in the report.

    Returns:
        The path of the report page.

    Raises:
        InputError: there is no such class.
    """
    if label not in range(len(CLASSES)):
        raise InputError(f"Yin-Yang has the classes 0 (yin), 1 (yang) and 2 (dot); got {label}.")
    x, y = yin_yang(_POINTS, seed=seed)
    held_out = yin_yang(_HELD_OUT, seed=seed + 1)
    started = time.perf_counter()
    model = _host(x, y, seed)
    seconds = {"train the model": time.perf_counter() - started}
    with torch.no_grad():
        accuracy = float((model(held_out[0]).argmax(1) == held_out[1]).double().mean())
    judged = f"{in_percent(accuracy)} on {_HELD_OUT:,} held-out points"
    say(f"Model: residual MLP, {_BLOCKS} blocks of width {_WIDTH}, {judged}.")
    plan = Plan(
        label=label,
        config=_FIT,
        strength=strength,
        modes=("delta", "replace"),
        retrained=lambda: _host(x[y != label], y[y != label], seed),
        class_names=CLASSES,
        bands=(_RUNS, _POINTS_A_RUN),
    )
    return run_pipeline(
        folder,
        model,
        plan,
        train=(x, y),
        test=held_out,
        title=f"Yin-Yang without class {label} ({CLASSES[label]})",
        command=command,
        facts={
            "model": f"residual MLP, {_BLOCKS} blocks of width {_WIDTH}",
            "data": f"Yin-Yang, {_POINTS:,} points to fit and {_HELD_OUT:,} held out",
            "held-out accuracy": in_percent(accuracy),
        },
        seconds=seconds,
        say=say,
    )


def _host(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResidualMLP(x.shape[1], _WIDTH, _BLOCKS, len(CLASSES))
    return train_classifier(model, x, y, epochs=_EPOCHS, peak_rate=1e-2, weight_decay=1e-4, seed=seed)
