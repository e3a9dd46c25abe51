"""Which figure is drawn of which kind of value: what `.plot()` of a result looks up."""

from __future__ import annotations

from functools import singledispatch

from matplotlib.axes import Axes
from numpy import ndarray

from koopman_interp.analysis.shapes.diagram_distances import TopologyDistances
from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.shapes.dimension import IntrinsicDimension
from koopman_interp.analysis.shapes.topology_bands import TopologyBands
from koopman_interp.analysis.spectra.mode_meanings import ModeMeanings
from koopman_interp.analysis.spectra.pseudospectra import Pseudospectra
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.spectra.transfer import TransferModes
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.analysis.substitutes.lens_comparison import LensComparison
from koopman_interp.analysis.substitutes.lens_vectors import LensVectors
from koopman_interp.auditing.result import Audit
from koopman_interp.errors import InputError
from koopman_interp.forgetting.frontier import Frontier
from koopman_interp.plotting.audits import plot_audit
from koopman_interp.plotting.betti_curves import plot_betti_bands, plot_topology
from koopman_interp.plotting.fidelity import plot_fidelity
from koopman_interp.plotting.fits import plot_fit
from koopman_interp.plotting.frontiers import plot_frontier
from koopman_interp.plotting.lens import plot_lens, plot_lens_comparison, plot_lens_vectors
from koopman_interp.plotting.modes import plot_mode_growth
from koopman_interp.plotting.spectrum import plot_pseudospectra, plot_spectrum
from koopman_interp.plotting.topology_by_depth import plot_intrinsic_dimension, plot_topology_distances
from koopman_interp.plotting.trajectories import plot_trajectories
from koopman_interp.plotting.transfer import plot_transfer_modes
from koopman_interp.surrogates.record import FitRecord
from koopman_interp.trajectories import Trajectories


@singledispatch
def plot(value: object, **_: object) -> Axes | ndarray:
    """Draw a value by the `plot_…` function for its kind, with that function's options, and return its axes.

    Of kinds that have several figures this is the first. Another package adds figures of its own kinds by
    `plot.register`.

    Raises:
        InputError: there is no figure of this kind of value.
    """
    kinds = ", ".join(sorted(kind.__name__ for kind in plot.registry if kind is not object))
    raise InputError(f"There is no figure of a value of the kind {type(value).__name__}; there are figures of {kinds}.")


plot.register(Audit, plot_audit)
plot.register(Fidelity, plot_fidelity)
plot.register(FitRecord, plot_fit)
plot.register(Frontier, plot_frontier)
plot.register(IntrinsicDimension, plot_intrinsic_dimension)
plot.register(LensComparison, plot_lens_comparison)
plot.register(LensReading, plot_lens)
plot.register(LensVectors, plot_lens_vectors)
plot.register(ModeMeanings, plot_mode_growth)
plot.register(Pseudospectra, plot_pseudospectra)
plot.register(Spectrum, plot_spectrum)
plot.register(Topology, plot_topology)
plot.register(TopologyBands, plot_betti_bands)
plot.register(TopologyDistances, plot_topology_distances)
plot.register(Trajectories, plot_trajectories)
plot.register(TransferModes, plot_transfer_modes)
