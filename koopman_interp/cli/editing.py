"""Verbs that make an edit, choose one and judge one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from koopman_interp.cli.names import FILE, FOLDER, called, labelled


@click.command()
@click.argument("koopman", type=FOLDER)
@click.option("--label", "labels", type=int, multiple=True, required=True, help="Class to forget; several are allowed.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="1 erases; more pushes beyond.")
@click.option("--site", help="Site to erase at; by default where the classes are read best.")
@click.option("--each-site", is_flag=True, help="Erase at each site past the first, to be written in place.")
@click.option("--held-out", type=FILE, help="Held-out trajectories to measure the drift on.")
@click.option("--out", type=FILE, required=True, help="Edit to write (.safetensors).")
def edit(
    koopman: Path,
    labels: tuple[int, ...],
    strength: float,
    site: str | None,
    each_site: bool,
    held_out: Path | None,
    out: Path,
) -> None:
    """Erase classes from KOOPMAN; needs no data."""
    from koopman_interp.edits.edit_set import each_site as at_each
    from koopman_interp.edits.erase import erase_class
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    if each_site and site is not None:
        raise click.UsageError("Give --site or --each-site, not both.")
    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    rows = None if held_out is None else Trajectories.load(held_out)
    erase = partial(erase_class, surrogate, label=labels, strength=strength, held_out=rows)
    made = at_each(surrogate, lambda depth: erase(site=depth)) if each_site else erase(site=site)
    made.save(out)
    click.echo(repr(made))


@click.command("forget")
@click.argument("model")
@click.argument("data")
@click.argument("koopman", type=FOLDER)
@click.argument("trajectories", type=FILE)
@click.option("--label", type=int, required=True, help="Class to forget.")
@click.option("--most", type=float, default=0.01, show_default=True, help="Share of it that may still be recognised.")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--out", type=FILE, required=True, help="Edit to write (.safetensors).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forget_(
    model: str,
    data: str,
    koopman: Path,
    trajectories: Path,
    label: int,
    most: float,
    mode: Any,
    out: Path,
    as_json: bool,
) -> None:
    """Try edits of KOOPMAN in MODEL on DATA, and write the one that forgets a class best.

    DATA are rows to choose on, other than those of TRAJECTORIES, which KOOPMAN was fitted on, and than those to be
    reported.
    """
    from koopman_interp.forgetting.forget import forget
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    chosen = forget(
        called(model),
        KoopmanAutoencoder.from_pretrained(koopman),
        fitted=Trajectories.load(trajectories),
        held_out=labelled(data),
        label=label,
        most=most,
        mode=mode,
    )
    chosen.edit.save(out)
    click.echo(json.dumps(chosen.as_dict()) if as_json else str(chosen))


@click.command("audit")
@click.argument("model")
@click.argument("data")
@click.argument("koopman", type=FOLDER)
@click.argument("edit", type=FILE)
@click.option("--label", type=int, multiple=True, help="Class to forget, repeatable (default: what EDIT says).")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--each-site", is_flag=True, help="Write the edits in place at each of their sites.")
@click.option("--training", help="Rows that MODEL was trained on, as module:callable: accuracy and membership.")
@click.option("--retrained", help="The same model trained without the class, as module:callable: the reference.")
@click.option("--depths", type=click.Choice(["last", "all"]), default="last", show_default=True, help="Sites to probe.")
@click.option("--mlp", is_flag=True, help="Add a probe with a hidden layer.")
@click.option("--relearn", is_flag=True, help="Try to bring the class back by fine-tuning; needs --training.")
@click.option("--out", type=FILE, help="JSON to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit_(
    model: str,
    data: str,
    koopman: Path,
    edit: Path,
    label: tuple[int, ...],
    mode: Any,
    each_site: bool,
    training: str | None,
    retrained: str | None,
    depths: Any,
    mlp: bool,
    relearn: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge EDIT of KOOPMAN in MODEL on held-out DATA, beside the baselines."""
    from koopman_interp.auditing.audit import audit
    from koopman_interp.auditing.relearning import Relearning
    from koopman_interp.edits.edit_set import EditSet
    from koopman_interp.files import jsonable
    from koopman_interp.patching.patch import patched
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    held_out = labelled(data)
    edits = EditSet.load(edit)
    if not label and not any(one.labels for one in edits):
        raise click.UsageError(f"{edit} does not say which class it forgets: give --label.")
    found = audit(
        patched(
            called(model),
            KoopmanAutoencoder.from_pretrained(koopman),
            edits,
            mode=mode,
            at="each site" if each_site else "target",
        ),
        held_out=held_out,
        training=None if training is None else labelled(training),
        label=label or None,
        retrained=None if retrained is None else partial(called, retrained),
        probes=("linear", "rbf", "mlp") if mlp else ("linear", "rbf"),
        depths=depths,
        relearn=Relearning() if relearn else None,
    )
    if out is not None:
        found.save(out)
    click.echo(json.dumps(jsonable(found.as_dict())) if as_json else str(found))
