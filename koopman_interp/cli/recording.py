"""Verbs that make trajectories of a model and a surrogate of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from koopman_interp.cli.hints import example, require_alone, said
from koopman_interp.cli.names import NAME, called
from koopman_interp.cli.paths import IN_ROWS, OUT_FILE, OUT_FOLDER, SETTINGS
from koopman_interp.cli.settings import ASSIGNMENT, Assignment, assigned


@click.command(
    epilog=example(
        "koopman-interp observe my:model my:batches --out trajectories.safetensors",
        "torchrun --nproc-per-node 2 -m koopman_interp observe my:model my:batches --store states",
    )
)
@click.argument("model", type=NAME)
@click.argument("data", type=NAME)
@click.option("--site", "sites", multiple=True, help="Site name or glob; several are allowed.")
@click.option("--skip", type=int, default=0, show_default=True, help="Leading positions to leave out from here on.")
@click.option("--next-token", is_flag=True, help="Label each token by the one that follows, to erase tokens later.")
@click.option("--out", type=OUT_FILE, help="Trajectories to write (.safetensors).")
@click.option("--store", type=OUT_FOLDER, help="Folder to write to instead: more than memory holds, and resumable.")
@click.option("--keep", type=float, help="Share of the rows that --store keeps.")
def observe(
    model: str,
    data: str,
    sites: tuple[str, ...],
    skip: int,
    next_token: bool,
    out: Path | None,
    store: Path | None,
    keep: float | None,
) -> None:
    """Record MODEL on DATA, both as module:callable; DATA gives batches, of pairs (inputs, labels) for labels."""
    from koopman_interp.observing.next_tokens import labelled_by_next_token
    from koopman_interp.observing.tap import attach

    if (out is None) == (store is None) or (keep is not None and store is None):
        raise click.UsageError("Give --out FILE, or --store FOLDER and with it --keep SHARE.")
    host, batches = called(model, data)
    tap = attach(host, sites or None, skip=skip)
    given = labelled_by_next_token(tap.host, batches, skip=skip) if next_token else batches
    if store is not None:
        said(tap.observe(given, store=store, keep=keep), "fit", store, "--out", "koopman")
        return
    require_alone("--store FOLDER")
    trajectories = tap.observe(given)
    trajectories.save(out)
    said(trajectories, "fit", out, "--out", "koopman")


@click.command(
    "fit",
    epilog=example(
        "koopman-interp fit trajectories.safetensors --out koopman",
        "koopman-interp fit trajectories.safetensors --out koopman --set steps=2000 --set normalization.dimension=64",
    ),
)
@click.argument("trajectories", type=IN_ROWS)
@click.option("--out", type=OUT_FOLDER, required=True, help="Folder for the surrogate.")
@click.option("--config", type=SETTINGS, help="JSON with settings; `koopman-interp config` lists them.")
@click.option("--set", "assignments", type=ASSIGNMENT, multiple=True, help="One setting, over --config; repeatable.")
@click.option("--method", type=click.Choice(["gradient", "least_squares"]), default="gradient", show_default=True)
@click.option(
    "--model", type=NAME, nargs=2, metavar="MODEL DATA", help="Fit what MODEL says of DATA too, both module:callable."
)
@click.option("--checkpoint", type=OUT_FILE, help="File that holds the fit's state.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
def fit_(
    trajectories: Path,
    out: Path,
    config: dict[str, Any] | None,
    assignments: tuple[Assignment, ...],
    model: tuple[str, str] | None,
    **options: Any,
) -> None:
    """Fit a surrogate to TRAJECTORIES: a file of them, or the folder of a store."""
    from koopman_interp.fitting.config import FitConfig
    from koopman_interp.fitting.fit import fit
    from koopman_interp.processes import Processes

    settings = FitConfig.from_dict(assigned(config or {}, assignments))
    host = dict(zip(("model", "batches"), called(*model or ()), strict=False))
    koopman = fit(trajectories, settings, **host, **options)
    if Processes.here().is_first:
        koopman.save_pretrained(out)
    said(f"{koopman!r}\n{koopman.record!r}", "spectrum", out, trajectories)
