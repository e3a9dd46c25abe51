"""What a verb says beside its result: an example under its --help, and on a terminal the command to write next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click


def example(*lines: str) -> str:
    """Return examples as the end of a help text, their lines as they are."""
    return "\b\n" + "\n".join(["Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


def say_next(*words: object) -> None:
    """Say which command to write next, to a person: neither a file nor a pipe gets it."""
    if sys.stdout.isatty():
        click.echo(f"next: koopman-interp {shlex.join(map(str, words))}", err=True)


def in_run(run: Path | None) -> list[str]:
    """Return the words that keep the next result in the same run, where there is one."""
    return [] if run is None else ["--run", str(run)]


def said(result: object, *words: str | Path) -> None:
    """Show a result and what to write next; of several processes, the first does."""
    from koopman_interp.processes import Processes

    if Processes.here().is_first:
        click.echo(str(result))
        say_next(*words)


def require_alone(instead: str) -> None:
    """Refuse several processes, as `torchrun` starts them, where each would do the whole.

    Raises:
        InputError: there are several.
    """
    from koopman_interp.errors import InputError
    from koopman_interp.processes import Processes

    if Processes.here().are_several:
        raise InputError(f"Each process would do the whole. Give {instead} to share it among them, or start one.")
