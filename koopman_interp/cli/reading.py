"""Verbs that read a surrogate or trajectories, and change neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from koopman_interp.cli.hints import example, say_next
from koopman_interp.cli.names import NAME, called
from koopman_interp.cli.paths import IN_FILE, OUT_FILE, SURROGATE


@click.command("spectrum", epilog=example("koopman-interp spectrum koopman trajectories.safetensors"))
@click.argument("koopman", type=SURROGATE)
@click.argument("trajectories", type=IN_FILE)
@click.option("--modes", type=click.IntRange(min=1), default=10, show_default=True, help="How many to print.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def spectrum_(koopman: Path, trajectories: Path, modes: int, as_json: bool) -> None:
    """Eigenvalues of KOOPMAN with residuals on TRAJECTORIES."""
    from koopman_interp.analysis.spectra.decomposing import spectrum
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    found = spectrum(KoopmanAutoencoder.from_pretrained(koopman), Trajectories.load(trajectories))
    click.echo(json.dumps(found.as_dict()) if as_json else found.head(modes))
    say_next("fidelity", "MODEL", "HELD_OUT", koopman, "--fitted", trajectories)


@click.command(
    "topology", epilog=example("koopman-interp topology trajectories.safetensors --koopman koopman --points 200")
)
@click.argument("trajectories", type=IN_FILE)
@click.option("--koopman", type=SURROGATE, help="Take this surrogate's iterates in place of the model's states.")
@click.option("--points", type=int, default=400, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def topology_(trajectories: Path, koopman: Path | None, points: int, as_json: bool) -> None:
    """Betti numbers of TRAJECTORIES by depth."""
    from koopman_interp.analysis.shapes.topology import topology
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    surrogate = None if koopman is None else KoopmanAutoencoder.from_pretrained(koopman)
    found = topology(Trajectories.load(trajectories), surrogate, points=points)
    click.echo(json.dumps(found.as_dict()) if as_json else str(found))
    if koopman is None:
        say_next("topology", trajectories, "--koopman", "KOOPMAN", "--points", str(points))
    else:
        say_next("fidelity", "MODEL", "HELD_OUT", koopman, "--fitted", trajectories)


@click.command(
    "fidelity",
    epilog=example(
        "koopman-interp fidelity my:model my:held_out koopman --fitted trajectories.safetensors",
        "koopman-interp fidelity my:language_model my:texts koopman --next-token",
    ),
)
@click.argument("model", type=NAME)
@click.argument("data", type=NAME)
@click.argument("koopman", type=SURROGATE)
@click.option("--fitted", type=IN_FILE, help="Trajectories that KOOPMAN was fitted on: adds the best linear maps.")
@click.option("--spans", type=click.Choice(["given", "to_target", "all"]), default="given", show_default=True)
@click.option("--next-token", is_flag=True, help="Judge by the tokens that follow, in place of labels.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fidelity_(
    model: str, data: str, koopman: Path, fitted: Path | None, spans: Any, next_token: bool, as_json: bool
) -> None:
    """Judge KOOPMAN in MODEL on held-out DATA: inputs or texts, or pairs of these and labels."""
    from koopman_interp.analysis.substitutes.fidelity import fidelity
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    host, held_out = called(model, data)
    judged = fidelity(
        host,
        KoopmanAutoencoder.from_pretrained(koopman),
        held_out=held_out,
        fitted=None if fitted is None else Trajectories.load(fitted),
        spans=spans,
        next_token=next_token,
    )
    click.echo(json.dumps(judged.as_dict()) if as_json else str(judged))
    say_next("edit", koopman, "--label", "LABEL", "--out", "edit.safetensors")


@click.command(epilog=example('koopman-interp lens my:language_model koopman "once upon a time"'))
@click.argument("model", type=NAME)
@click.argument("koopman", type=SURROGATE)
@click.argument("texts", nargs=-1, required=True)
@click.option("--out", type=OUT_FILE, help="Reading to write (.safetensors).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lens(model: str, koopman: Path, texts: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Show what MODEL would say to TEXTS if its motion were KOOPMAN's from each depth on."""
    from koopman_interp.analysis.substitutes.lens import koopman_lens
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    (host,) = called(model)
    reading = koopman_lens(host, KoopmanAutoencoder.from_pretrained(koopman), list(texts))
    if out is not None:
        reading.save(out)
    click.echo(json.dumps(reading.as_dict()) if as_json else str(reading))
    say_next("fidelity", model, "HELD_OUT", koopman, "--next-token")
