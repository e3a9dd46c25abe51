"""Figures: each `plot_…` takes a value and the axes to draw on, and returns the axes; `plot` chooses by the value.

Without axes it makes a `matplotlib.figure.Figure` of its own (`axes.figure`), so no pyplot state, backend or setting
changes. In a notebook with the inline backend the figure is one of pyplot's, shown once at the end of the cell and then
closed; `pyplot.close(axes.figure)` in the same cell keeps it from being shown. All figures can be read without colour:
by marker, line style and label. Each costs under a second, since long lists of depths, classes and rows are thinned.
Knows nothing of models or of the report.
"""

from koopman_interp.plotting.audits import plot_audit as plot_audit
from koopman_interp.plotting.audits import plot_forgetting_by_depth as plot_forgetting_by_depth
from koopman_interp.plotting.audits import plot_relearning as plot_relearning
from koopman_interp.plotting.betti_curves import plot_betti_bands as plot_betti_bands
from koopman_interp.plotting.betti_curves import plot_topology as plot_topology
from koopman_interp.plotting.dispatch import plot as plot
from koopman_interp.plotting.fidelity import plot_fidelity as plot_fidelity
from koopman_interp.plotting.fidelity import plot_output_fidelity as plot_output_fidelity
from koopman_interp.plotting.fidelity import plot_span_fidelity as plot_span_fidelity
from koopman_interp.plotting.fits import plot_fit as plot_fit
from koopman_interp.plotting.frontiers import plot_frontier as plot_frontier
from koopman_interp.plotting.lens import plot_lens as plot_lens
from koopman_interp.plotting.lens import plot_lens_comparison as plot_lens_comparison
from koopman_interp.plotting.lens import plot_lens_vectors as plot_lens_vectors
from koopman_interp.plotting.modes import plot_class_amplitudes as plot_class_amplitudes
from koopman_interp.plotting.modes import plot_mode_growth as plot_mode_growth
from koopman_interp.plotting.persistence_diagrams import plot_diagram as plot_diagram
from koopman_interp.plotting.saving import save_figure as save_figure
from koopman_interp.plotting.spectrum import plot_pseudospectra as plot_pseudospectra
from koopman_interp.plotting.spectrum import plot_residuals as plot_residuals
from koopman_interp.plotting.spectrum import plot_spectrum as plot_spectrum
from koopman_interp.plotting.topology_by_depth import plot_intrinsic_dimension as plot_intrinsic_dimension
from koopman_interp.plotting.topology_by_depth import plot_topology_distances as plot_topology_distances
from koopman_interp.plotting.topology_by_depth import plot_topology_summary as plot_topology_summary
from koopman_interp.plotting.trajectories import plot_trajectories as plot_trajectories
from koopman_interp.plotting.transfer import plot_transfer_modes as plot_transfer_modes
