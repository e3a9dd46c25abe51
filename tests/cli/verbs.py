"""All verbs of the command line, those within a group too."""

from __future__ import annotations

from collections.abc import Mapping

import click

from koopman_interp.cli.app import cli


def leaves(commands: Mapping[str, click.Command] = cli.commands, before: str = "") -> dict[str, click.Command]:
    """Name each by the words that it is called by."""
    found: dict[str, click.Command] = {}
    for name, command in commands.items():
        words = f"{before}{name}"
        found |= leaves(command.commands, f"{words} ") if isinstance(command, click.Group) else {words: command}
    return found
