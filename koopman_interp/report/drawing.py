"""Which figures a run has, each drawn of one of its values. Costs a few seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from numpy import ndarray

from koopman_interp import plotting
from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.shapes.topology_bands import TopologyBands
from koopman_interp.analysis.spectra.mode_meanings import ModeMeanings
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.auditing.result import Audit
from koopman_interp.report.joined_audits import joined
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

Drawn = dict[str, Axes | ndarray]
"""Axes of figures by the names of their files."""


def of_surrogate(
    koopman: KoopmanAutoencoder | None,
    trajectories: Trajectories | None,
    spectrum: Spectrum | None,
    lens: LensReading | None,
    names: Mapping[int, str],
) -> Drawn:
    """Draw states, eigenvalues, what a lens reads and the fit, as far as there are such."""
    drawn: Drawn = {}
    if spectrum is not None:
        drawn["spectrum"] = plotting.plot_spectrum(spectrum)
    if trajectories is not None:
        drawn["trajectories"] = plotting.plot_trajectories(trajectories, class_names=names)
    if lens is not None:
        drawn["lens"] = plotting.plot_lens(lens)
    if koopman is not None and koopman.record.history:
        drawn["fit"] = plotting.plot_fit(koopman.record)
    return drawn


def of_fidelity(fidelity: Fidelity | None) -> Drawn:
    """Draw the fidelity by depth, at the output and by span, as far as it was measured."""
    if fidelity is None:
        return {}
    drawn: Drawn = {"fidelity": plotting.plot_fidelity(fidelity)}
    if fidelity.outputs:
        drawn["output"] = plotting.plot_output_fidelity(fidelity)
    if any(span.target == fidelity.depths[-1].site for span in fidelity.spans):
        drawn["spans"] = plotting.plot_span_fidelity(fidelity)
    return drawn


def of_topologies(topologies: Mapping[str, Topology | TopologyBands]) -> Drawn:
    """Draw the Betti curves of each dimension."""
    return {
        f"topology-{index}-{dimension}": (
            plotting.plot_betti_bands(each, dimension)
            if isinstance(each, TopologyBands)
            else plotting.plot_topology(each, dimension)
        )
        for index, each in enumerate(topologies.values())
        for dimension in range(each.max_dimension + 1)
    }


def of_modes(modes: ModeMeanings | None) -> Drawn:
    """Draw how modes grow over depth."""
    return {"modes": plotting.plot_mode_growth(modes)} if modes else {}


def of_audits(audits: Sequence[Audit]) -> Drawn:
    """Draw audits on the same rows together: at the output and in the states, by depth, by step of relearning."""
    drawn: Drawn = {}
    for index, made in enumerate(joined(audits)):
        drawn[f"audit-{index}"] = plotting.plot_audit(made.audit)
        if any(row.depths for row in made.audit.rows):
            drawn[f"audit-{index}-depths"] = plotting.plot_forgetting_by_depth(made.audit)
        if made.audit.relearn is not None:
            drawn[f"audit-{index}-relearning"] = plotting.plot_relearning(made.audit)
    return drawn
