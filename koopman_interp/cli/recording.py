"""Verbs that make trajectories of a model and a surrogate of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from koopman_interp.cli.data import DATA, DataName
from koopman_interp.cli.hints import example, require_alone, said
from koopman_interp.cli.models import MODEL, ModelName
from koopman_interp.cli.paths import IN_ROWS, KOOPMAN, METRICS, OUT_FILE, OUT_FOLDER, SETTINGS, TRAJECTORIES
from koopman_interp.cli.run_folder import begins_run, keep, keep_names, observed_names, place
from koopman_interp.cli.settings import ASSIGNMENT, Assignment, assigned
from koopman_interp.cli.taking import Taking, takes


@click.command(
    epilog=example(
        "koopman-interp observe my:model my:batches --out trajectories.safetensors",
        "koopman-interp observe path/to/model owner/name:train[:500] --labels label --run run",
        "koopman-interp observe gpt2 texts.txt --skip 1 --next-token --run run",
        "torchrun --nproc-per-node 2 -m koopman_interp observe my:model my:batches --store states",
    )
)
@click.argument("model", type=MODEL)
@click.argument("data", type=DATA)
@click.option("--site", "sites", multiple=True, help="Site name or glob; several are allowed.")
@click.option("--skip", type=int, default=0, show_default=True, help="Leading positions to leave out from here on.")
@click.option("--next-token", is_flag=True, help="Label each token by the one that follows, to erase tokens later.")
@click.option("--out", type=OUT_FILE, help="Trajectories to write (.safetensors).")
@click.option("--store", type=OUT_FOLDER, help="Folder to write to instead: more than memory holds, and resumable.")
@click.option("--keep", "share", type=float, help="Share of the rows that --store keeps.")
@begins_run
@takes()
def observe(
    model: ModelName,
    data: DataName,
    sites: tuple[str, ...],
    skip: int,
    next_token: bool,
    out: Path | None,
    store: Path | None,
    share: float | None,
    run: Path | None,
    taking: Taking,
) -> None:
    """Record MODEL on DATA: inputs or texts, with labels where there are any.

    MODEL is module:callable, a folder of Hugging Face, or a name on its Hub. DATA is module:callable; a file of texts
    (.txt, one a line, or a paragraph where empty lines part them), of rows (.jsonl, .csv, .parquet) or of tensors
    (.safetensors, .npz); or a data set, by folder or by its name on the Hub, with a split: data:train[:500].
    """
    if store is not None and (out is not None or run is not None):
        raise click.UsageError("Give --out FILE or --run FOLDER, or --store FOLDER alone.")
    if share is not None and store is None:
        raise click.UsageError("--keep is the share of the rows that a store keeps. Give --store FOLDER with it.")
    target = place(out, run, TRAJECTORIES) if store is None else store
    from koopman_interp.observing.attaching import attach
    from koopman_interp.observing.next_tokens import labelled_by_next_token

    host, (rows,) = taking.all(model, data, labelled=not next_token)
    tap, batches = attach(host, sites or None, skip=skip), rows.given
    if next_token:
        batches = labelled_by_next_token(tap.host, batches, skip=skip, batch_size=taking.batch_size)
    if store is not None:
        kept = tap.observe(batches, batch_size=taking.batch_size, store=store, keep=share)
        said(kept, "fit", store, "--out", "koopman")
        return
    require_alone("--store FOLDER")
    trajectories = tap.observe(batches, batch_size=taking.batch_size)
    trajectories.save(target)
    if run is not None and out is None:
        keep_names(run, rows.names)
    said(repr(trajectories), "fit", target, *(["--out", "koopman"] if run is None else ["--run", run]))


@click.command(
    "fit",
    epilog=example(
        "koopman-interp fit trajectories.safetensors --out koopman",
        "koopman-interp fit trajectories.safetensors --out koopman --set steps=2000 --set normalization.dimension=64",
        "koopman-interp fit run/trajectories.safetensors --run run --model gpt2 texts.txt",
    ),
)
@click.argument("trajectories", type=IN_ROWS)
@click.option("--out", type=OUT_FOLDER, help="Folder for the surrogate.")
@click.option("--config", type=SETTINGS, help="JSON with settings; `koopman-interp config` lists them.")
@click.option("--set", "assignments", type=ASSIGNMENT, multiple=True, help="One setting, over --config; repeatable.")
@click.option("--method", type=click.Choice(["gradient", "least_squares"]), default="gradient", show_default=True)
@click.option("--model", type=(MODEL, DATA), metavar="MODEL DATA", help="Fit what MODEL says of DATA too.")
@click.option("--checkpoint", type=OUT_FILE, help="File that holds the fit's state.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
@begins_run
@takes()
def fit_(
    trajectories: Path,
    out: Path | None,
    config: dict[str, Any] | None,
    assignments: tuple[Assignment, ...],
    model: tuple[ModelName, DataName] | None,
    run: Path | None,
    taking: Taking,
    **options: Any,
) -> None:
    """Fit a surrogate to TRAJECTORIES: a file of them, or the folder of a store."""
    target = place(out, run, KOOPMAN)
    from koopman_interp.fitting.config import FitConfig
    from koopman_interp.fitting.fit import fit
    from koopman_interp.processes import Processes
    from koopman_interp.sources.opening import in_memory

    settings = FitConfig.from_dict(assigned(config or {}, assignments))
    host: dict[str, Any] = {}
    names = observed_names(trajectories)
    if model is not None:
        loaded, (rows,) = taking.all(*model)
        names = rows.names or names
        host = {"model": loaded, "batches": rows.given}
    koopman = fit(trajectories, settings, **host, **options)
    if not Processes.here().is_first:
        return
    koopman.save_pretrained(target)
    if run is not None:
        (run / METRICS).unlink(missing_ok=True)  # another surrogate begins another run
        rows_fitted, seconds = in_memory(trajectories), {"fit": koopman.record.seconds}
        keep(run, koopman, trajectories=rows_fitted, seconds=seconds, class_names=names)
    following: list[str | Path] = [] if run is None else ["--run", run]
    said(f"{koopman!r}\n{koopman.record!r}", "spectrum", target, trajectories, *following)
