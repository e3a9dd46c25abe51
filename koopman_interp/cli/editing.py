"""Verbs that make an edit, choose one and judge one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from koopman_interp.cli.hints import example, say_next
from koopman_interp.cli.names import NAME, called, imported
from koopman_interp.cli.paths import IN_FILE, OUT_FILE, SURROGATE

if TYPE_CHECKING:
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder


@click.command(epilog=example("koopman-interp edit koopman --label 4 --out edit.safetensors"))
@click.argument("koopman", type=SURROGATE)
@click.option("--label", "labels", type=int, multiple=True, required=True, help="Class to forget; several are allowed.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="1 erases; more pushes beyond.")
@click.option("--site", help="Site to erase at; by default where the classes are read best.")
@click.option("--each-site", is_flag=True, help="Erase at each site past the first, to be written in place.")
@click.option("--held-out", type=IN_FILE, help="Held-out trajectories to measure the drift on.")
@click.option("--out", type=OUT_FILE, required=True, help="Edit to write (.safetensors).")
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
    say_next("audit", "MODEL", "HELD_OUT", koopman, out, *(["--each-site"] if each_site else []))


@click.command(
    "forget",
    epilog=example(
        "koopman-interp forget my:model my:validation koopman trajectories.safetensors --label 4 --out edit.safetensors"
    ),
)
@click.argument("model", type=NAME)
@click.argument("data", type=NAME)
@click.argument("koopman", type=SURROGATE)
@click.argument("trajectories", type=IN_FILE)
@click.option("--label", type=int, required=True, help="Class to forget, or token id with --next-token.")
@click.option("--most", type=float, default=0.01, show_default=True, help="Share of it that may still be recognised.")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--next-token", is_flag=True, help="Of a language model: judge by the tokens that follow in DATA.")
@click.option("--out", type=OUT_FILE, required=True, help="Edit to write (.safetensors).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forget_(
    model: str,
    data: str,
    koopman: Path,
    trajectories: Path,
    label: int,
    most: float,
    mode: Any,
    next_token: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Try edits of KOOPMAN in MODEL on DATA, and write the one that forgets a class best.

    DATA are pairs of inputs or texts and labels, or texts alone with --next-token, to choose on: other rows than those
    of TRAJECTORIES, which KOOPMAN was fitted on, and than those to be reported.
    """
    from koopman_interp.forgetting.forget import forget
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    surrogate, fitted = KoopmanAutoencoder.from_pretrained(koopman), Trajectories.load(trajectories)
    _require_class(label, surrogate.config.classes, str(koopman))
    host, rows = called(model, data)
    chosen = forget(
        host,
        surrogate,
        fitted=fitted,
        held_out=_by_next_token(host, rows, surrogate) if next_token else rows,
        label=label,
        most=most,
        mode=mode,
    )
    chosen.edit.save(out)
    click.echo(json.dumps(chosen.as_dict()) if as_json else str(chosen))
    where = ["--each-site"] if chosen.at == "each site" else []
    say_next("audit", model, "HELD_OUT", koopman, out, *where, *(["--next-token"] if next_token else []))


def _require_class(label: int, classes: Iterable[int], koopman: str) -> None:
    from koopman_interp.errors import InputError

    if label not in classes:
        known = ", ".join(map(str, classes))
        seen = f"rows of the classes {known}" if known else "rows without labels"
        raise InputError(f"{koopman} was fitted on {seen}, so it has no class {label}. Observe labelled rows of it.")


def _by_next_token(model: Any, texts: Any, koopman: KoopmanAutoencoder, least: int = 1) -> list[tuple[Any, Any]]:
    """Label texts by next tokens, of the positions that the surrogate was fitted on."""
    from koopman_interp.hosts.finding import host_for
    from koopman_interp.observing.next_tokens import labelled_by_next_token

    host = host_for(model, koopman.config.layout)
    return labelled_by_next_token(host, texts, skip=koopman.config.skip, least=least)


@click.command(
    "audit",
    epilog=example(
        "koopman-interp audit my:model my:held_out koopman edit.safetensors",
        "koopman-interp audit my:model my:held_out koopman edit.safetensors --training my:training --relearn",
    ),
)
@click.argument("model", type=NAME)
@click.argument("data", type=NAME)
@click.argument("koopman", type=SURROGATE)
@click.argument("edit", type=IN_FILE)
@click.option("--label", type=int, multiple=True, help="Class to forget, repeatable, where EDIT does not say.")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--each-site", is_flag=True, help="Write the edits in place at each of their sites.")
@click.option(
    "--training", type=NAME, help="Rows that MODEL was trained on, as module:callable: accuracy and membership."
)
@click.option(
    "--retrained", type=NAME, help="The same model trained without the class, as module:callable: the reference."
)
@click.option("--next-token", is_flag=True, help="Of a language model: judge by the tokens that follow in DATA.")
@click.option("--depths", type=click.Choice(["last", "all"]), default="last", show_default=True, help="Sites to probe.")
@click.option("--mlp", is_flag=True, help="Add a probe with a hidden layer.")
@click.option("--relearn", is_flag=True, help="Try to bring the class back by fine-tuning; needs --training.")
@click.option("--out", type=OUT_FILE, help="JSON to write.")
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
    next_token: bool,
    depths: Any,
    mlp: bool,
    relearn: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge EDIT of KOOPMAN in MODEL on held-out DATA, beside the baselines.

    DATA are pairs of inputs or texts and labels, or texts alone with --next-token. Tokens that follow too seldom for
    the probes are then left out.
    """
    from koopman_interp.auditing.audit import LEAST_ROWS, audit
    from koopman_interp.auditing.relearning import Relearning
    from koopman_interp.edits.edit_set import EditSet
    from koopman_interp.files import jsonable
    from koopman_interp.patching.patch import patched
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    if relearn and training is None:
        raise click.UsageError("--relearn needs rows to learn from: give --training.")
    edits = EditSet.load(edit)
    _require_same(label, edits.labels, str(edit))
    reference = None if retrained is None else imported(retrained)
    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    host, held_out, *trained = called(model, data, *([] if training is None else [training]))
    if next_token:
        held_out, *trained = (_by_next_token(host, rows, surrogate, LEAST_ROWS) for rows in (held_out, *trained))
    found = audit(
        patched(host, surrogate, edits, mode=mode, at="each site" if each_site else "target"),
        held_out=held_out,
        training=trained[0] if trained else None,
        label=label or None,
        retrained=reference,
        probes=("linear", "rbf", "mlp") if mlp else ("linear", "rbf"),
        depths=depths,
        relearn=Relearning() if relearn else None,
    )
    if out is not None:
        found.save(out)
    click.echo(json.dumps(jsonable(found.as_dict())) if as_json else str(found))
    if training is None:
        again = ["--mode", mode] + ["--each-site"] * each_site + ["--next-token"] * next_token
        say_next("audit", model, data, koopman, edit, *again, "--training", "TRAINING", "--relearn")


def _require_same(asked: tuple[int, ...], forgotten: tuple[int, ...], edit: str) -> None:
    """Refuse to judge an edit by other classes than it forgets: it would be blamed for doing its job."""
    from koopman_interp.labels import classes_named

    if not asked and not forgotten:
        raise click.UsageError(f"{edit} does not say which class it forgets: give --label.")
    if asked and forgotten and set(asked) != set(forgotten):
        raise click.UsageError(
            f"{edit} forgets {classes_named(forgotten)}, and --label says {classes_named(asked)}. Leave out --label, "
            "or audit an edit of these."
        )
