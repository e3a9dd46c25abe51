"""One folder a run: every value, figure and number that it made, and the page that shows them.

Drawing costs a few seconds. The folder is whole or not there: it is written beside its place and swapped in. Knows
nothing of models, and computes nothing; the page itself is made by `koopman_interp.report.page` from what stands in the
folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from koopman_interp import plotting
from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.shapes.topology_bands import TopologyBands
from koopman_interp.analysis.spectra.mode_meanings import ModeMeanings
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.auditing.language import LanguageAudit
from koopman_interp.auditing.result import Audit
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.files import Json, jsonable, write_json
from koopman_interp.own_kinds import own_kinds
from koopman_interp.plotting.figures import unseen
from koopman_interp.report import drawing
from koopman_interp.report import folder as places
from koopman_interp.report.page import build_page
from koopman_interp.report.provenance import provenance
from koopman_interp.report.swapping import swapped
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories


@own_kinds
def write_run(
    folder: str | os.PathLike[str],
    koopman: KoopmanAutoencoder | None = None,
    *,
    trajectories: Trajectories | None = None,
    spectrum: Spectrum | None = None,
    modes: ModeMeanings | None = None,
    topologies: Mapping[str, Topology | TopologyBands] | None = None,
    fidelity: Fidelity | None = None,
    lens: LensReading | None = None,
    edit: OperatorEdit | EditSet | None = None,
    audits: Sequence[Audit] = (),
    language: Sequence[LanguageAudit] = (),
    class_names: Sequence[str] | Mapping[int, str] = (),
    title: str = "Koopman run",
    command: str = "",
    facts: Mapping[str, object] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Path:
    """Write all that a run made to a folder, and its page; what is not given has no part in it.

    The folder is swapped in as a whole: a kill leaves the run that was there or this one. What else lies in it stays.

    Args:
        folder: where to; a run that is there is replaced.
        koopman: the surrogate.
        trajectories: the states to keep and to draw.
        spectrum: of the surrogate.
        modes: what modes of the surrogate mean.
        topologies: by what they are of, such as "model" and "surrogate"; with bands where there are several runs.
        fidelity: of the surrogate, with a table and a figure of its spans where it has several.
        lens: what a lens reads on some inputs.
        edit: the edit, or a set of them.
        audits: of edits; those on the same rows stand in one table. The first is the one in the summary.
        language: what a language model says before and under edits: its scores, its texts, or both.
        class_names: in the order of the labels, or by label.
        title: of the page.
        command: what was typed, or the call that was made.
        facts: on the model and the data, by name.
        seconds: time of each stage, by name.

    Returns:
        Path of the page.

    Raises:
        InputError: the folder is the one that the process works in, or holds it.
        LockedError: another process is writing the folder.
        StorageError: it cannot be written. What stood there is as it was.
    """
    topologies = topologies or {}
    names = class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names))
    values = {
        "kind": places.KIND,
        "title": title,
        "command": command,
        "made": provenance(koopman, trajectories),
        "facts": facts or {},
        "class_names": names,
        "seconds": seconds or {},
        "surrogate": None if koopman is None else _described(koopman),
        "trajectories": None if trajectories is None else repr(trajectories),
        "spectrum": _plain(spectrum),
        "modes": _plain(modes),
        "topologies": {name: topology.as_dict() for name, topology in topologies.items()},
        "fidelity": _plain(fidelity),
        "lens": _plain(lens),
        "edits": None if edit is None else [each.as_dict() for each in _several(edit)],
        "audits": [audit.as_dict() for audit in audits],
        "language": [audit.as_dict() for audit in language],
    }
    with swapped(folder, ours=places.is_part) as new:
        if koopman is not None:
            koopman.save_pretrained(new / places.KOOPMAN)
        for value, name in (
            (trajectories, places.TRAJECTORIES),
            (spectrum, places.SPECTRUM),
            (lens, places.LENS),
            (edit, places.EDIT),
            *((topology, places.topology_file(index)) for index, topology in enumerate(topologies.values())),
        ):
            if value is not None:
                value.save(new / name)
        with unseen():
            drawn = drawing.of_surrogate(koopman, trajectories, spectrum, lens, names) | drawing.of_fidelity(fidelity)
            drawn |= drawing.of_topologies(topologies) | drawing.of_audits(audits) | drawing.of_modes(modes)
        for name, axes in drawn.items():
            plotting.save_figure(axes, new / places.FIGURES, name)
        write_json(new / places.METRICS, jsonable(values | {"figures": list(drawn)}))
        build_page(new)
    return Path(folder) / places.PAGE


def _described(koopman: KoopmanAutoencoder) -> dict[str, Json]:
    record = koopman.record
    return {"description": repr(koopman), "history": record.history, "notes": record.notes()}


def _plain(result: Any) -> dict[str, object] | None:
    return None if result is None else result.as_dict()


def _several(edit: OperatorEdit | EditSet) -> Sequence[OperatorEdit]:
    return (edit,) if isinstance(edit, OperatorEdit) else edit
