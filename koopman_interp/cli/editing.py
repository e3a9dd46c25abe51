"""Verbs that make an edit, choose one and judge one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from koopman_interp.cli.classes import by_next_token, foreseen, label_of, require_class, require_same
from koopman_interp.cli.data import DATA, DataName
from koopman_interp.cli.hints import example, in_run, say_next
from koopman_interp.cli.models import MODEL, ModelName
from koopman_interp.cli.paths import EDIT, IN_FILE, IN_ROWS, OUT_FILE, SURROGATE
from koopman_interp.cli.printing import Printing, printed
from koopman_interp.cli.rows import number_of
from koopman_interp.cli.run_folder import adds_to_run, keep, names_in_run, place
from koopman_interp.cli.taking import Taking, takes


@click.command(
    epilog=example(
        "koopman-interp edit koopman --label 4 --out edit.safetensors",
        "koopman-interp edit run/koopman --label 4 --each-site --run run",
    )
)
@click.argument("koopman", type=SURROGATE)
@click.option(
    "--label", "labels", multiple=True, required=True, help="Class to forget, by number, or name if the run knows it."
)
@click.option("--strength", type=float, default=1.0, show_default=True, help="1 erases; more pushes beyond.")
@click.option("--site", help="Site to erase at; by default where the classes are read best.")
@click.option("--each-site", is_flag=True, help="Erase at each site past the first, to be written in place.")
@click.option("--held-out", type=IN_ROWS, help="Held-out trajectories to measure the drift on.")
@click.option("--out", type=OUT_FILE, help="Edit to write (.safetensors).")
@adds_to_run
def edit(
    koopman: Path,
    labels: tuple[str, ...],
    strength: float,
    site: str | None,
    each_site: bool,
    held_out: Path | None,
    out: Path | None,
    run: Path | None,
) -> None:
    """Erase classes from KOOPMAN; needs no data."""
    target = place(out, run, EDIT)
    if each_site and site is not None:
        raise click.UsageError("Give --site or --each-site, not both.")
    names = names_in_run(run, koopman)
    numbers = tuple(number_of(label, names) for label in labels)
    from koopman_interp.edits.edit_set import each_site as at_each
    from koopman_interp.edits.erase import erase_class
    from koopman_interp.sources.opening import in_memory
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    rows = None if held_out is None else in_memory(held_out)
    erase = partial(erase_class, surrogate, label=numbers, strength=strength, held_out=rows)
    made = at_each(surrogate, lambda depth: erase(site=depth)) if each_site else erase(site=site)
    made.save(target)
    click.echo(repr(made))
    keep(run, surrogate, edit=made)
    say_next("audit", "MODEL", "HELD_OUT", koopman, target, *(["--each-site"] if each_site else []), *in_run(run))


@click.command(
    "forget",
    epilog=example(
        "koopman-interp forget my:model my:validation koopman trajectories.safetensors --label 4 --out e.safetensors",
        "koopman-interp forget gpt2 more.txt koopman trajectories.safetensors --label Lily --next-token --run run",
    ),
)
@click.argument("model", type=MODEL)
@click.argument("data", type=DATA)
@click.argument("koopman", type=SURROGATE)
@click.argument("trajectories", type=IN_ROWS)
@click.option("--label", required=True, help="Class to forget, by number or name; a token with --next-token.")
@click.option("--most", type=float, default=0.01, show_default=True, help="Share of it that may still be recognised.")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--next-token", is_flag=True, help="Of a language model: judge by the tokens that follow in DATA.")
@click.option("--out", type=OUT_FILE, help="Edit to write (.safetensors).")
@adds_to_run
@printed
@takes()
def forget_(
    model: ModelName,
    data: DataName,
    koopman: Path,
    trajectories: Path,
    label: str,
    most: float,
    mode: Any,
    next_token: bool,
    out: Path | None,
    run: Path | None,
    printing: Printing,
    taking: Taking,
) -> None:
    """Try edits of KOOPMAN in MODEL on DATA, and write the one that forgets a class best.

    DATA are inputs or texts with labels, or texts alone with --next-token, to choose on: other rows than those of
    TRAJECTORIES, which KOOPMAN was fitted on, and than those to be reported.
    """
    target = place(out, run, EDIT)
    from koopman_interp.forgetting.forget import forget
    from koopman_interp.sources.opening import in_memory
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    surrogate, fitted = KoopmanAutoencoder.from_pretrained(koopman), in_memory(trajectories)
    known = names_in_run(run, koopman)
    for number in foreseen([label], known, data, next_token=next_token):
        require_class(number, surrogate.config.classes, str(koopman))
    host, (rows,) = taking.all(model, data, labelled=not next_token)
    number = label_of(label, rows.names or known, host, next_token=next_token)
    require_class(number, surrogate.config.classes, str(koopman))
    chosen = forget(
        host,
        surrogate,
        fitted=fitted,
        held_out=by_next_token(host, rows.given, surrogate) if next_token else rows.given,
        label=number,
        most=most,
        mode=mode,
        batch_size=taking.batch_size,
    )
    chosen.edit.save(target)
    printing.show(chosen)
    if run is not None:
        from koopman_interp.report.parts_of_run import FORGETTING

        chosen.save(run / FORGETTING)
        keep(run, surrogate, edit=chosen.edit, class_names=rows.names)
    where = ["--each-site"] if chosen.at == "each site" else []
    judged = [*where, *(["--next-token"] if next_token else []), *in_run(run)]
    say_next("audit", model, "HELD_OUT", koopman, target, *judged)


@click.command(
    "audit",
    epilog=example(
        "koopman-interp audit my:model my:held_out koopman edit.safetensors",
        "koopman-interp audit my:model my:held_out koopman edit.safetensors --training my:training --relearn",
        "koopman-interp audit path/to/model path/to/data:test run/koopman run/edit.safetensors --run run",
    ),
)
@click.argument("model", type=MODEL)
@click.argument("data", type=DATA)
@click.argument("koopman", type=SURROGATE)
@click.argument("edit", type=IN_FILE)
@click.option(
    "--label", "asked", multiple=True, help="Class to forget, by number or name; repeatable. By default EDIT's."
)
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--each-site", is_flag=True, help="Write the edits in place at each of their sites.")
@click.option("--training", type=DATA, help="Rows that MODEL was trained on: accuracy on them, and membership.")
@click.option("--retrained", type=MODEL, help="The same model trained without the class: the reference.")
@click.option("--next-token", is_flag=True, help="Of a language model: judge by the tokens that follow in DATA.")
@click.option("--depths", type=click.Choice(["last", "all"]), default="last", show_default=True, help="Sites to probe.")
@click.option("--mlp", is_flag=True, help="Add a probe with a hidden layer.")
@click.option("--relearn", is_flag=True, help="Try to bring the class back by fine-tuning; needs --training.")
@click.option("--out", type=OUT_FILE, help="JSON to write.")
@adds_to_run
@printed
@takes()
def audit_(
    model: ModelName,
    data: DataName,
    koopman: Path,
    edit: Path,
    asked: tuple[str, ...],
    mode: Any,
    each_site: bool,
    training: DataName | None,
    retrained: ModelName | None,
    next_token: bool,
    depths: Any,
    mlp: bool,
    relearn: bool,
    out: Path | None,
    run: Path | None,
    printing: Printing,
    taking: Taking,
) -> None:
    """Judge EDIT of KOOPMAN in MODEL on held-out DATA, beside the baselines.

    DATA are inputs or texts with labels, or texts alone with --next-token. Tokens that follow too seldom for the
    probes are then left out.
    """
    if relearn and training is None:
        raise click.UsageError("--relearn needs rows to learn from: give --training.")
    from koopman_interp.auditing.audit import LEAST_ROWS, audit
    from koopman_interp.auditing.relearning import Relearning
    from koopman_interp.edits.edit_set import EditSet
    from koopman_interp.patching.patch import patched
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    edits = EditSet.load(edit)
    known = names_in_run(run, koopman)
    early = foreseen(asked, known, data, next_token=next_token)
    if early or not asked:
        require_same(early, edits.labels, str(edit))
    reference = None if retrained is None else retrained.prepared()
    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    host, rows = taking.all(model, data, training, labelled=not next_token, roles=(None, "training"))
    numbers = tuple(label_of(each, rows[0].names or known, host, next_token=next_token) for each in asked)
    require_same(numbers, edits.labels, str(edit))
    held_out, trained = (
        by_next_token(host, each.given, surrogate, LEAST_ROWS) if next_token and each.given is not None else each.given
        for each in rows
    )
    found = audit(
        patched(host, surrogate, edits, mode=mode, at="each site" if each_site else "target"),
        held_out=held_out,
        training=trained,
        label=numbers or None,
        retrained=None if reference is None else lambda: reference.model(taking.device, taking.dtype),
        probes=("linear", "rbf", "mlp") if mlp else ("linear", "rbf"),
        depths=depths,
        relearn=Relearning() if relearn else None,
        batch_size=taking.batch_size,
    )
    if out is not None:
        found.save(out)
    printing.show(found)
    keep(run, surrogate, audits=[found], class_names=rows[0].names)
    if training is None:
        again = ["--mode", mode] + ["--each-site"] * each_site + ["--next-token"] * next_token + in_run(run)
        say_next("audit", model, data, koopman, edit, *again, "--training", "TRAINING", "--relearn")
    elif run is not None:
        say_next("report", run)
