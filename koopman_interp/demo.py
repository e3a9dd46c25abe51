"""The demo: Yin-Yang end to end, with nothing to download.

Trains the residual MLP of arXiv 2505.12809 on the Yin-Yang data set, observes it, fits a surrogate, reads it,
erases a class, patches, audits, and writes a run folder. Under a minute on two cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from koopman_interp.analysis.shapes.topology_bands import topology_bands
from koopman_interp.analysis.spectra.decomposing import spectrum
from koopman_interp.analysis.substitutes.fidelity import fidelity
from koopman_interp.auditing.audit import audit
from koopman_interp.edits.erase import erase_class
from koopman_interp.errors import InputError
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.fit import fit
from koopman_interp.observing.tap import attach
from koopman_interp.patching.motion import Mode
from koopman_interp.patching.patch import patched
from koopman_interp.report.run import write_run
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import percent
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
    say: Callable[[str], None] = lambda _: None,
    command: str = "koopman-interp demo",
) -> Path:
    """Run the demo.

    Args:
        folder: where the run goes.
        label: class to erase: 0 is yin, 1 yang, 2 the dots.
        strength: of the edit.
        seed: of model, data and fit.
        say: called with each piece of text as it is found.
        command: to be named in the report.

    Returns:
        The path of the report page.

    Raises:
        InputError: there is no such class.
    """
    if label not in range(len(CLASSES)):
        raise InputError(f"Yin-Yang has the classes 0 (yin), 1 (yang) and 2 (dot); got {label}.")
    seconds: dict[str, float] = {}
    x, y = yin_yang(_POINTS, seed=seed)
    x_test, y_test = yin_yang(_HELD_OUT, seed=seed + 1)
    with _timed("train the model", seconds):
        model = _host(x, y, seed)
    with torch.no_grad():
        accuracy = float((model(x_test).argmax(1) == y_test).double().mean())
    judged = f"{percent(accuracy)} % on {_HELD_OUT:,} held-out points"
    say(f"Model: residual MLP, {_BLOCKS} blocks of width {_WIDTH}, {judged}.\n")
    with _timed("observe", seconds):
        tap = attach(model)
        trajectories = tap.observe(x, y, progress=False)
        held_out = tap.observe(x_test, y_test, progress=False)
    say(f"{trajectories!r}\n")
    with _timed("fit", seconds):
        koopman = fit(trajectories, _FIT, progress=None)
    say(f"{koopman!r}\n")
    with _timed("read", seconds):
        spectra = spectrum(koopman, held_out)
        shapes = {
            "model": topology_bands(held_out, subsets=_RUNS, points=_POINTS_A_RUN),
            "surrogate": topology_bands(held_out, koopman, subsets=_RUNS, points=_POINTS_A_RUN),
        }
        faith = fidelity(model, koopman, held_out=(x_test, y_test), fitted=trajectories, spans="to_target")
    say(f"{spectra}\n\nBetti numbers of the model, by depth:\n{shapes['model']}\n")
    say(f"Betti numbers of the surrogate's iterates:\n{shapes['surrogate']}\n\n{faith}\n")
    with _timed("edit", seconds):
        edit = erase_class(koopman, label=label, strength=strength, held_out=held_out)
    say(f"{edit!r}\n\n{_null_edit(model, koopman, x_test)}\n")
    with _timed("audit", seconds):
        retrained = _host(x[y != label], y[y != label], seed)
        modes: tuple[Mode, ...] = ("delta", "replace")
        audits = [
            audit(
                patched(model, koopman, edit, mode=mode),
                held_out=(x_test, y_test),
                training=(x, y),
                retrained=retrained,
            )
            for mode in modes
        ]
    say("\n\n".join(map(str, audits)) + "\n")
    return write_run(
        folder,
        koopman,
        title=f"Yin-Yang without class {label} ({CLASSES[label]})",
        command=command,
        class_names=CLASSES,
        trajectories=held_out,
        spectrum=spectra,
        topologies=shapes,
        fidelity=faith,
        edit=edit,
        audits=audits,
        facts={
            "model": f"residual MLP, {_BLOCKS} blocks of width {_WIDTH}",
            "data": f"Yin-Yang, {_POINTS:,} points to fit and {_HELD_OUT:,} held out",
            "held-out accuracy": f"{percent(accuracy)} %",
        },
        seconds=seconds,
    )


def _host(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResidualMLP(x.shape[1], _WIDTH, _BLOCKS, len(CLASSES))
    return train_classifier(model, x, y, epochs=_EPOCHS, peak_rate=1e-2, weight_decay=1e-4, seed=seed)


@torch.no_grad()
def _null_edit(model: nn.Module, koopman: KoopmanAutoencoder, x: torch.Tensor) -> str:
    plain = model(x)
    with patched(model, koopman):
        same = torch.equal(model(x), plain)
    return f"Patched without an edit, the logits are {'bit-identical' if same else 'NOT bit-identical'}."


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
