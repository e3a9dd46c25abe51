"""One folder a run: every value, figure and number that it made, and the page that shows them.

Drawing costs a few seconds. Knows nothing of models, and computes nothing; the page itself is made by
`koopman_interp.report.page` from what stands in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from numpy import ndarray

from koopman_interp import plotting
from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.auditing.findings import Audit
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.files import jsonable, write_json
from koopman_interp.report.page import FIGURES, KIND, METRICS_FILE, build_page
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories


def write_run(
    folder: str | os.PathLike[str],
    *,
    title: str,
    command: str,
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories,
    spectrum: Spectrum,
    topologies: Mapping[str, Topology],
    fidelity: Fidelity,
    edit: OperatorEdit | EditSet,
    audits: Sequence[Audit],
    host: Mapping[str, Any],
    seconds: Mapping[str, float],
    lens: LensReading | None = None,
) -> Path:
    """Write all that a run made to a folder, and its page.

    Args:
        folder: where to; files of an earlier run there are replaced.
        title: of the page.
        command: what was typed, or the call that was made.
        koopman: the surrogate.
        trajectories: the states to keep and to draw.
        spectrum: of the surrogate.
        topologies: by what they are of, such as "host" and "surrogate".
        fidelity: of the surrogate, with a table and a figure of its spans where it has several.
        edit: the edit, or a set of them.
        audits: of the edit; the first is the one in the summary.
        host: facts on the host, by name.
        seconds: time of each stage, by name.
        lens: what a lens reads on some inputs, if that is to be shown.

    Returns:
        Path of the page.
    """
    to = Path(folder)
    koopman.save_pretrained(to / "koopman")
    edit.save(to / "edit.safetensors")
    trajectories.save(to / "trajectories.safetensors")
    drawn = _figures(koopman, trajectories, spectrum, topologies, fidelity, audits)
    if lens is not None:
        lens.save(to / "lens.safetensors")
        drawn["lens"] = plotting.plot_lens(lens)
    for name, axes in drawn.items():
        plotting.save_figure(axes, to / FIGURES, name)
    values = {
        "kind": KIND,
        "title": title,
        "command": command,
        "host": host,
        "seconds": seconds,
        "surrogate": {"description": repr(koopman), "history": koopman.record.history},
        "trajectories": {"description": repr(trajectories)},
        "edits": [_facts(one) for one in ((edit,) if isinstance(edit, OperatorEdit) else edit)],
        "audits": [audit.as_dict() for audit in audits],
        "fidelity": fidelity.as_dict(),
        "lens": None if lens is None else lens.as_dict(),
        "spectrum": spectrum.as_dict(),
        "topologies": {name: topology.as_dict() for name, topology in topologies.items()},
        "figures": list(drawn),
    }
    write_json(to / METRICS_FILE, jsonable(values))
    return build_page(to)


def _facts(edit: OperatorEdit) -> dict[str, Any]:
    known = edit.certificate
    return {
        "description": edit.description,
        "site": edit.site,
        "rank": edit.rank,
        "certificate": None if known is None else asdict(known),
    }


def _figures(
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories,
    spectrum: Spectrum,
    topologies: Mapping[str, Topology],
    fidelity: Fidelity,
    audits: Sequence[Audit],
) -> dict[str, Axes | ndarray]:
    """Draw all figures of a run, by the names of their files."""
    drawn: dict[str, Axes | ndarray] = {
        "spectrum": plotting.plot_spectrum(spectrum),
        "fidelity": plotting.plot_fidelity(fidelity),
        "output": plotting.plot_output_fidelity(fidelity),
        "trajectories": plotting.plot_trajectories(trajectories),
    }
    if any(one.target == fidelity.depths[-1].site for one in fidelity.spans):
        drawn["spans"] = plotting.plot_span_fidelity(fidelity)
    for index, audit in enumerate(audits):
        drawn[f"audit-{index}"] = plotting.plot_audit(audit)
        if any(row.depths for row in audit.rows):
            drawn[f"audit-{index}-depths"] = plotting.plot_forgetting_by_depth(audit)
        if audit.relearn is not None:
            drawn[f"audit-{index}-relearning"] = plotting.plot_relearning(audit)
    if koopman.record.history:
        drawn["fit"] = plotting.plot_fit(koopman.record.history)
    for index, topology in enumerate(topologies.values()):
        for dimension in range(min(map(len, topology.diagrams))):
            drawn[f"topology-{index}-{dimension}"] = plotting.plot_topology(topology, dimension)
    return drawn
