"""Verbs that make trajectories of a model and a surrogate of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from koopman_interp.cli.names import FILE, FOLDER, called


@click.command()
@click.argument("model")
@click.argument("data")
@click.option("--site", "sites", multiple=True, help="Site name or glob; several are allowed.")
@click.option("--skip", type=int, default=0, show_default=True, help="Leading positions to leave out from here on.")
@click.option("--out", type=FILE, required=True, help="Trajectories to write (.safetensors).")
def observe(model: str, data: str, sites: tuple[str, ...], skip: int, out: Path) -> None:
    """Record MODEL on DATA, both as module:callable; DATA gives batches, of pairs (inputs, labels) for labels."""
    from koopman_interp.observing.tap import attach

    trajectories = attach(called(model), sites or None, skip=skip).observe(called(data))
    trajectories.save(out)
    click.echo(repr(trajectories))


@click.command("fit")
@click.argument("trajectories", type=FILE)
@click.option("--out", type=FOLDER, required=True, help="Folder for the surrogate.")
@click.option("--config", type=FILE, help="JSON with settings of FitConfig.")
@click.option("--method", type=click.Choice(["gradient", "least_squares"]), default="gradient", show_default=True)
@click.option("--model", nargs=2, metavar="MODEL DATA", help="Fit what MODEL says of DATA too, both module:callable.")
@click.option("--checkpoint", type=FILE, help="File that holds the fit's state.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
def fit_(trajectories: Path, out: Path, config: Path | None, model: tuple[str, str] | None, **options: Any) -> None:
    """Fit a surrogate to TRAJECTORIES."""
    from koopman_interp.files import read_json
    from koopman_interp.fitting.config import FitConfig
    from koopman_interp.fitting.fit import fit
    from koopman_interp.trajectories import Trajectories

    settings = FitConfig.from_dict(read_json(config)) if config else FitConfig()
    host = dict(zip(("model", "batches"), map(called, model or ()), strict=False))
    koopman = fit(Trajectories.load(trajectories), settings, **host, **options)
    koopman.save_pretrained(out)
    click.echo(f"{koopman!r}\n{koopman.record!r}")
