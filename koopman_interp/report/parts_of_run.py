"""A run that is made part by part, by several commands, in one folder: each adds its part to what is there.

A part is written as a whole run would write it, and then joined: so what a run has is known in one place alone. Costs
what drawing the part costs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from koopman_interp.auditing.language import LanguageAudit
from koopman_interp.errors import HostMismatchError
from koopman_interp.files import read_json, write_json
from koopman_interp.report.folder import KOOPMAN, METRICS, PAGE, is_part, read_run
from koopman_interp.report.page import build_page
from koopman_interp.report.run import write_run
from koopman_interp.report.swapping import swapped
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

Kept = TypeVar("Kept")

FORGETTING = "forgetting.json"
"""What is kept in a run's folder of how its edit was chosen; it is no part of the page."""


def add_to_run(folder: str | os.PathLike[str], koopman: KoopmanAutoencoder, **parts: Any) -> Path:
    """Add parts to the run in a folder, or begin one there; a part that is there already is replaced.

    Topologies are added to those of other names, audits to those of other edits or ways of writing them; so is what a
    language model says, its scores and its texts each by itself.

    Args:
        folder: of the run.
        koopman: the surrogate; that of the run, where there is one.
        **parts: as `write_run` takes them.

    Returns:
        Path of the page.

    Raises:
        HostMismatchError: the run there is of another surrogate.
        FileFormatError: what is there is no whole run.
    """
    to = Path(folder)
    if not (to / METRICS).is_file():
        return write_run(to, koopman, **parts)
    there = read_run(to)
    if there.koopman is not None and there.koopman.digest() != koopman.digest():
        raise HostMismatchError(
            f"{to} holds a run of another surrogate than this one. Take that of {to / KOOPMAN}, or another folder."
        )
    if "topologies" in parts:
        parts["topologies"] = {**there.topologies, **parts["topologies"]}
    if "audits" in parts:
        parts["audits"] = _renewed(there.audits, parts["audits"], lambda audit: (audit.edit, audit.rows[-1].name))
    if "language" in parts:
        parts["language"] = _renewed(there.language, parts["language"], _asked)
    with TemporaryDirectory() as beside:
        added = Path(beside) / "added"
        write_run(added, koopman, **parts)
        joined = _joined(read_json(to / METRICS), read_json(added / METRICS))
        with swapped(to, ours=is_part) as new:
            for folder in (to, added):
                shutil.copytree(folder, new, dirs_exist_ok=True)
            write_json(new / METRICS, joined)
            build_page(new)
    return to / PAGE


def _renewed(old: Sequence[Kept], new: Sequence[Kept], key: Callable[[Kept], object]) -> list[Kept]:
    """Leave out those of the old ones that new ones take the place of."""
    renewed = {key(each) for each in new}
    return [*(each for each in old if key(each) not in renewed), *new]


def _asked(audit: LanguageAudit) -> object:
    """What two language audits share where one takes the place of the other."""
    return audit.edit, [*audit.rows][-1], audit.scored


def _joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Put what is new over what is old; figures of both are kept, and nothing is emptied."""
    given = {name: value for name, value in new.items() if value not in (None, "", [], {})}
    both: dict[str, Any] = {
        name: {**old[name], **given[name]} for name in ("facts", "seconds") if name in old and name in given
    }
    figures = list(dict.fromkeys([*old["figures"], *new["figures"]]))
    title = {"title": old["title"]} if old.get("title") else {}
    return {**old, **given, **both, **title, "figures": figures}
