"""Run folders: where a verb puts its result beside those of the others, so that `report` makes one page of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from koopman_interp.cli.paths import BEGUN_RUN, METRICS, OUT_FOLDER

if TYPE_CHECKING:
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

Verb = Callable[..., Any]

_OBSERVED = "classes.json"
"""Where names of classes lie beside trajectories, until the run itself has them."""


def begins_run(verb: Verb) -> Verb:
    """Give a verb --run, for a folder in which there need not be anything yet."""
    return click.option("--run", type=OUT_FOLDER, help="Run folder to write to, in place of or beside --out.")(verb)


def adds_to_run(verb: Verb) -> Verb:
    """Give a verb --run, for a folder with the surrogate that it works with."""
    return click.option("--run", type=BEGUN_RUN, help="Run folder that gets the result too, and its page.")(verb)


def place(out: Path | None, run: Path | None, name: str) -> Path:
    """Say where a result is written: to --out, else under its name in a run folder.

    Raises:
        UsageError: neither was given.
    """
    if out is None and run is None:
        raise click.UsageError("Say where to write it: --out, or --run for a run folder.")
    return out if out is not None else Path(run or ".") / name


def keep(run: Path | None, koopman: KoopmanAutoencoder | None, **parts: Any) -> None:
    """Add parts to a run, if there is one, and say where its page is.

    Args:
        run: its folder.
        koopman: the surrogate; None takes that of the run.
        **parts: as `write_run` takes them.
    """
    if run is None:
        return
    from koopman_interp.report.folder import KOOPMAN
    from koopman_interp.report.parts_of_run import add_to_run
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    surrogate = KoopmanAutoencoder.from_pretrained(run / KOOPMAN) if koopman is None else koopman
    click.echo(f"Report: {add_to_run(run, surrogate, command=typed(), **parts)}", err=True)


def keep_names(run: Path, names: Sequence[str]) -> None:
    """Keep the names of the classes that were observed into a run, which begins when it is fitted."""
    from koopman_interp.files import write_json

    if names:
        write_json(run / _OBSERVED, list(names))
    else:
        (run / _OBSERVED).unlink(missing_ok=True)


def observed_names(trajectories: Path) -> tuple[str, ...]:
    """Return the names of classes that `observe` kept beside trajectories; none where it knew none."""
    from koopman_interp.files import read_json

    kept = trajectories.parent / _OBSERVED
    return tuple(map(str, read_json(kept))) if kept.is_file() else ()


def names_in_run(run: Path | None, koopman: Path) -> dict[int, str]:
    """Return the names of classes that a run knows by number: of the run given, or that a surrogate lies in."""
    from koopman_interp.files import read_json

    metrics = (koopman.parent if run is None else run) / METRICS
    values = read_json(metrics) if metrics.is_file() else {}
    names = values.get("class_names") if isinstance(values, dict) else None
    return {int(label): str(name) for label, name in (names or {}).items()}


def typed() -> str:
    """Return the command as it was typed."""
    given = click.get_current_context().find_root().obj or ()
    return shlex.join(["koopman-interp", *map(str, given)])
