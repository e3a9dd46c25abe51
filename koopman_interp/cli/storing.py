"""Verbs on stores: say what is in one, check it, join several, and send one to the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import click

from koopman_interp.cli.hints import example, say_next
from koopman_interp.cli.paths import IN_FOLDER, OUT_FOLDER


@click.group("store", epilog=example("koopman-interp store info states", "koopman-interp store verify states"))
def store_() -> None:
    """Look at the folders that `observe --store` writes: check, join and share them."""


@store_.command(epilog=example("koopman-interp store info states"))
@click.argument("store", type=IN_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(store: Path, as_json: bool) -> None:
    """Say what is in STORE, and how it was observed."""
    from koopman_interp.sources.store import Store

    opened = Store(store)
    index, host = opened.index, opened.host
    told = {
        "rows": len(opened),
        "inputs": index.inputs,
        "complete": index.complete,
        "sites": list(opened.sites),
        "times": list(opened.times),
        "widths": list(opened.widths),
        "dtypes": list(index.dtypes),
        "classes": list(index.classes),
        "tokens": index.tokenised,
        "skip": opened.skip,
        "kept": index.settings.get("share") or 1.0,
        "coordinates": bool(index.settings.get("coordinates")),
        "shards": len(index.shards),
        "bytes": opened.bytes,
        "model": host.model,
        "weights": host.weights,
    }
    if as_json:
        click.echo(json.dumps(told))
        return
    click.echo(repr(opened))
    for name, value in told.items():
        click.echo(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    say_next("fit", store, "--out", "koopman")


@store_.command(epilog=example("koopman-interp store verify states"))
@click.argument("store", type=IN_FOLDER)
def verify(store: Path) -> None:
    """Read all of STORE and check it against its digests; exit with 1 where something is wrong."""
    from tqdm.auto import tqdm

    from koopman_interp.sources.store import Store

    opened = Store(store)
    with tqdm(total=len(opened), desc="verify", unit="row", disable=None) as bar:
        wrong = opened.verify(bar.update)
    for sentence in wrong:
        click.echo(sentence)
    click.echo(f"{len(opened):,} rows read; {len(wrong)} wrong." if wrong else f"{len(opened):,} rows, all whole.")
    if wrong:
        raise click.exceptions.Exit(1)


@store_.command(epilog=example("koopman-interp store merge first second --out both"))
@click.argument("stores", type=IN_FOLDER, nargs=-1, required=True)
@click.option("--out", type=OUT_FOLDER, required=True, help="Folder for the new store.")
def merge(stores: tuple[Path, ...], out: Path) -> None:
    """Join STORES of one model into a new one; shards are linked where the disk allows it."""
    from koopman_interp.sources.merging import merge_stores

    click.echo(repr(merge_stores(stores, out)))
    say_next("fit", out, "--out", "koopman")


@store_.command(epilog=example("koopman-interp store push states owner/name"))
@click.argument("store", type=IN_FOLDER)
@click.argument("repo")
@click.option("--private", is_flag=True, default=None, help="Show it to nobody else.")
def push(store: Path, repo: str, private: bool | None) -> None:
    """Send STORE to the data set REPO (owner/name) on the Hub."""
    from koopman_interp.sources.store import Store

    click.echo(Store(store).push_to_hub(repo, private=private))
