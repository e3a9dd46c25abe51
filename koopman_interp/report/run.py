"""One folder a run: every value, figure and number that it made, and the page that shows them.

Drawing costs a few seconds. Knows nothing of models, and computes nothing; the page itself is made by
`koopman_interp.report.page` from what stands in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from numpy import ndarray

from koopman_interp import plotting
from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.auditing.result import Audit
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.files import jsonable, write_json
from koopman_interp.plotting.figures import unseen
from koopman_interp.report import folder as places
from koopman_interp.report.page import build_page
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

Drawn = dict[str, Axes | ndarray]
"""Axes of figures by the names of their files."""


def write_run(
    folder: str | os.PathLike[str],
    koopman: KoopmanAutoencoder,
    *,
    trajectories: Trajectories | None = None,
    spectrum: Spectrum | None = None,
    topologies: Mapping[str, Topology] | None = None,
    fidelity: Fidelity | None = None,
    lens: LensReading | None = None,
    edit: OperatorEdit | EditSet | None = None,
    audits: Sequence[Audit] = (),
    title: str = "Koopman run",
    command: str = "",
    facts: Mapping[str, object] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Path:
    """Write all that a run made to a folder, and its page; what is not given has no part in it.

    Args:
        folder: where to; files of an earlier run there are replaced.
        koopman: the surrogate.
        trajectories: the states to keep and to draw.
        spectrum: of the surrogate.
        topologies: by what they are of, such as "model" and "surrogate".
        fidelity: of the surrogate, with a table and a figure of its spans where it has several.
        lens: what a lens reads on some inputs.
        edit: the edit, or a set of them.
        audits: of the edit; the first is the one in the summary.
        title: of the page.
        command: what was typed, or the call that was made.
        facts: on the model and the data, by name.
        seconds: time of each stage, by name.

    Returns:
        Path of the page.
    """
    to, topologies = Path(folder), topologies or {}
    koopman.save_pretrained(to / places.KOOPMAN)
    for value, name in (
        (trajectories, places.TRAJECTORIES),
        (spectrum, places.SPECTRUM),
        (lens, places.LENS),
        (edit, places.EDIT),
        *((topology, places.topology_file(index)) for index, topology in enumerate(topologies.values())),
    ):
        if value is not None:
            value.save(to / name)
    with unseen():
        drawn = _of_surrogate(koopman, trajectories, spectrum, fidelity, lens) | _of_topologies(topologies)
        drawn |= _of_audits(audits)
    for name, axes in drawn.items():
        plotting.save_figure(axes, to / places.FIGURES, name)
    values = {
        "kind": places.KIND,
        "title": title,
        "command": command,
        "facts": facts or {},
        "seconds": seconds or {},
        "surrogate": {
            "description": repr(koopman),
            "history": koopman.record.history,
            "notes": koopman.record.notes(),
        },
        "trajectories": None if trajectories is None else repr(trajectories),
        "spectrum": _plain(spectrum),
        "topologies": {name: topology.as_dict() for name, topology in topologies.items()},
        "fidelity": _plain(fidelity),
        "lens": _plain(lens),
        "edits": None if edit is None else [each.as_dict() for each in _several(edit)],
        "audits": [audit.as_dict() for audit in audits],
        "figures": list(drawn),
    }
    write_json(to / places.METRICS, jsonable(values))
    return build_page(to)


def _plain(result: Spectrum | Fidelity | LensReading | None) -> dict[str, object] | None:
    return None if result is None else result.as_dict()


def _several(edit: OperatorEdit | EditSet) -> Sequence[OperatorEdit]:
    return (edit,) if isinstance(edit, OperatorEdit) else edit


def _of_surrogate(
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories | None,
    spectrum: Spectrum | None,
    fidelity: Fidelity | None,
    lens: LensReading | None,
) -> Drawn:
    drawn: Drawn = {}
    if spectrum is not None:
        drawn["spectrum"] = plotting.plot_spectrum(spectrum)
    if fidelity is not None:
        drawn["fidelity"] = plotting.plot_fidelity(fidelity)
        if fidelity.outputs:
            drawn["output"] = plotting.plot_output_fidelity(fidelity)
        if any(span.target == fidelity.depths[-1].site for span in fidelity.spans):
            drawn["spans"] = plotting.plot_span_fidelity(fidelity)
    if trajectories is not None:
        drawn["trajectories"] = plotting.plot_trajectories(trajectories)
    if lens is not None:
        drawn["lens"] = plotting.plot_lens(lens)
    if koopman.record.history:
        drawn["fit"] = plotting.plot_fit(koopman.record)
    return drawn


def _of_topologies(topologies: Mapping[str, Topology]) -> Drawn:
    return {
        f"topology-{index}-{dimension}": plotting.plot_topology(topology, dimension)
        for index, topology in enumerate(topologies.values())
        for dimension in range(topology.max_dimension + 1)
    }


def _of_audits(audits: Sequence[Audit]) -> Drawn:
    drawn: Drawn = {}
    for index, audit in enumerate(audits):
        drawn[f"audit-{index}"] = plotting.plot_audit(audit)
        if any(row.depths for row in audit.rows):
            drawn[f"audit-{index}-depths"] = plotting.plot_forgetting_by_depth(audit)
        if audit.relearn is not None:
            drawn[f"audit-{index}-relearning"] = plotting.plot_relearning(audit)
    return drawn
