"""Verbs that read a surrogate or trajectories, and change neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from koopman_interp.cli.data import DATA, DataName
from koopman_interp.cli.hints import example, in_run, say_next
from koopman_interp.cli.models import MODEL, ModelName
from koopman_interp.cli.paths import IN_ROWS, OUT_FILE, SURROGATE
from koopman_interp.cli.printing import Printing, printed
from koopman_interp.cli.run_folder import adds_to_run, keep
from koopman_interp.cli.taking import Taking, takes


@click.command(
    "spectrum",
    epilog=example(
        "koopman-interp spectrum koopman trajectories.safetensors",
        "koopman-interp spectrum run/koopman run/trajectories.safetensors --modes 20 --run run",
    ),
)
@click.argument("koopman", type=SURROGATE)
@click.argument("trajectories", type=IN_ROWS)
@click.option("--modes", type=click.IntRange(min=1), default=10, show_default=True, help="How many to print.")
@adds_to_run
@printed
def spectrum_(koopman: Path, trajectories: Path, modes: int, run: Path | None, printing: Printing) -> None:
    """Eigenvalues of KOOPMAN with residuals on TRAJECTORIES."""
    from koopman_interp.analysis.spectra.decomposing import spectrum
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    found = spectrum(surrogate, trajectories)
    printing.show(found, found.tables(modes)[:1])
    keep(run, surrogate, spectrum=found)
    say_next("describe-modes", koopman, trajectories, *in_run(run))


@click.command(
    "describe-modes",
    epilog=example(
        "koopman-interp describe-modes koopman trajectories.safetensors",
        "koopman-interp describe-modes koopman trajectories.safetensors --model gpt2 texts.txt --mode 0 --mode 3",
    ),
)
@click.argument("koopman", type=SURROGATE)
@click.argument("trajectories", type=IN_ROWS)
@click.option("--model", type=(MODEL, DATA), metavar="MODEL DATA", help="Tell what MODEL then says of DATA, too.")
@click.option("--mode", "chosen", type=click.IntRange(min=0), multiple=True, help="A mode by its number; repeatable.")
@click.option("--modes", type=click.IntRange(min=1), default=5, show_default=True, help="Else so many, slowest first.")
@click.option("--examples", type=click.IntRange(min=1), default=4, show_default=True, help="Samples of each end.")
@click.option("--site", help="Site to read at; by default the last.")
@click.option("--out", type=OUT_FILE, help="JSON to write.")
@adds_to_run
@printed
@takes()
def describe_modes_(
    koopman: Path,
    trajectories: Path,
    model: tuple[ModelName, DataName] | None,
    chosen: tuple[int, ...],
    modes: int,
    examples: int,
    site: str | None,
    out: Path | None,
    run: Path | None,
    printing: Printing,
    taking: Taking,
) -> None:
    """What modes of KOOPMAN mean: the samples of TRAJECTORIES that have most of each, and what is then said."""
    from koopman_interp.analysis.spectra.decomposing import spectrum
    from koopman_interp.analysis.spectra.meaning import describe_modes
    from koopman_interp.sources.opening import in_memory
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    surrogate, observed = KoopmanAutoencoder.from_pretrained(koopman), in_memory(trajectories)
    given: dict[str, Any] = {}
    if model is not None:
        loaded, (rows,) = taking.all(*model, labelled=None)
        named = {"names": rows.names} if rows.names else {}
        given = {"model": loaded, "batches": rows.given, "batch_size": taking.batch_size, **named}
    found = describe_modes(
        surrogate,
        spectrum(surrogate, observed),
        observed,
        modes=list(chosen) or modes,
        examples=examples,
        site=-1 if site is None else site,
        **given,
    )
    if out is not None:
        found.save(out)
    printing.show(found)
    keep(run, surrogate, modes=found)
    say_next("topology", trajectories, *in_run(run))


@click.command(
    "topology",
    epilog=example(
        "koopman-interp topology trajectories.safetensors",
        "koopman-interp topology trajectories.safetensors --koopman koopman --points 200",
    ),
)
@click.argument("trajectories", type=IN_ROWS)
@click.option("--koopman", type=SURROGATE, help="Take this surrogate's iterates in place of the model's states.")
@click.option("--points", type=int, default=400, show_default=True)
@adds_to_run
@printed
def topology_(trajectories: Path, koopman: Path | None, points: int, run: Path | None, printing: Printing) -> None:
    """Betti numbers of TRAJECTORIES by depth."""
    from koopman_interp.analysis.shapes.topology import topology
    from koopman_interp.sources.opening import in_memory
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    surrogate = None if koopman is None else KoopmanAutoencoder.from_pretrained(koopman)
    found = topology(in_memory(trajectories), surrogate, points=points)
    printing.show(found)
    keep(run, surrogate, topologies={"model" if surrogate is None else "surrogate": found})
    if koopman is None:
        say_next("topology", trajectories, "--koopman", "KOOPMAN", "--points", str(points), *in_run(run))
    else:
        say_next("fidelity", "MODEL", "HELD_OUT", koopman, "--fitted", trajectories, *in_run(run))


@click.command(
    "fidelity",
    epilog=example(
        "koopman-interp fidelity my:model my:held_out koopman --fitted trajectories.safetensors",
        "koopman-interp fidelity path/to/model path/to/data:test koopman --spans to_target --run run",
        "koopman-interp fidelity gpt2 texts.txt koopman --next-token",
    ),
)
@click.argument("model", type=MODEL)
@click.argument("data", type=DATA)
@click.argument("koopman", type=SURROGATE)
@click.option("--fitted", type=IN_ROWS, help="Trajectories that KOOPMAN was fitted on: adds the best linear maps.")
@click.option("--spans", type=click.Choice(["given", "to_target", "all"]), default="given", show_default=True)
@click.option("--next-token", is_flag=True, help="Judge by the tokens that follow, in place of labels.")
@adds_to_run
@printed
@takes()
def fidelity_(
    model: ModelName,
    data: DataName,
    koopman: Path,
    fitted: Path | None,
    spans: Any,
    next_token: bool,
    run: Path | None,
    printing: Printing,
    taking: Taking,
) -> None:
    """Judge KOOPMAN in MODEL on held-out DATA: inputs or texts, with labels where the model's outputs are classes."""
    from koopman_interp.analysis.substitutes.fidelity import fidelity
    from koopman_interp.sources.opening import in_memory
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    host, (rows,) = taking.all(model, data, labelled=False if next_token else None)
    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    judged = fidelity(
        host,
        surrogate,
        held_out=rows.given,
        fitted=None if fitted is None else in_memory(fitted),
        spans=spans,
        next_token=next_token,
        batch_size=taking.batch_size,
    )
    printing.show(judged)
    keep(run, surrogate, fidelity=judged, class_names=rows.names)
    say_next("edit", koopman, "--label", "LABEL", *(in_run(run) or ["--out", "edit.safetensors"]))


@click.command(
    epilog=example(
        'koopman-interp lens my:language_model koopman "once upon a time"',
        "koopman-interp lens gpt2 koopman --data texts.txt --out lens.safetensors",
    )
)
@click.argument("model", type=MODEL)
@click.argument("koopman", type=SURROGATE)
@click.argument("texts", nargs=-1)
@click.option("--data", type=DATA, help="Inputs to read, in place of TEXTS.")
@click.option("--out", type=OUT_FILE, help="Reading to write (.safetensors).")
@adds_to_run
@printed
@takes()
def lens(
    model: ModelName,
    koopman: Path,
    texts: tuple[str, ...],
    data: DataName | None,
    out: Path | None,
    run: Path | None,
    printing: Printing,
    taking: Taking,
) -> None:
    """Show what MODEL would say to TEXTS if its motion were KOOPMAN's from each depth on."""
    if bool(texts) == (data is not None):
        raise click.UsageError("Give TEXTS to read, or --data with them; one of the two.")
    from koopman_interp.analysis.substitutes.lens import koopman_lens
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    host, (rows,) = taking.all(model, data, labelled=False)
    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    read = rows.given if data else list(texts)
    reading = koopman_lens(host, surrogate, read, batch_size=taking.batch_size)
    if out is not None:
        reading.save(out)
    printing.show(reading)
    keep(run, surrogate, lens=reading)
    say_next("fidelity", model, "HELD_OUT", koopman, "--next-token", *in_run(run))
