"""Figures of topology by depth show the values that they are given."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from koopman_interp import plotting
from koopman_interp.analysis.shapes.diagram_distances import topology_distances
from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.shapes.dimension import IntrinsicDimension
from koopman_interp.analysis.shapes.topology_bands import TopologyBands
from koopman_interp.errors import InputError


def run(shift):
    loops = np.array([[0.1, 0.3 + shift], [0.2, np.inf]])
    pieces = [np.array([[0, 0.1 * depth + shift], [0, np.inf]]) for depth in (1, 2, 3)]
    return Topology(
        names=("a", "b", "c"),
        diagrams=tuple((piece, loops) for piece in pieces),
        diameters=(1.0, 2.0, 3.0),
        thresholds=(0.5, 0.5, 0.4),
        points=2,
    )


BANDS = TopologyBands(tuple(run(shift) for shift in (0.0, 0.01, 0.02)))
DISTANCES = topology_distances(run(0.0), run(0.02))
DIMENSION = IntrinsicDimension(
    names=("a", "b"),
    estimators=("TwoNN", "PCA"),
    values=np.array([[[1.0, 2.0], [3.0, 4.0]], [[2.0, 2.0], [3.0, 6.0]]]),
    widths=(8, 8),
    points=50,
    distinct=np.full((2, 2), 50),
    reasons={},
)
SINGLE = {
    "diagram": lambda ax=None: plotting.plot_diagram(run(0.0), ax=ax),
    "summary": lambda ax=None: plotting.plot_topology_summary({"one": BANDS, "two": BANDS}, ax=ax),
    "distances": lambda ax=None: plotting.plot_topology_distances(DISTANCES, ax=ax),
    "dimension": lambda ax=None: plotting.plot_intrinsic_dimension(DIMENSION, ax=ax),
}


@pytest.mark.parametrize("draw", SINGLE.values(), ids=SINGLE)
def test_each_draws_on_the_axes_given_or_on_a_figure_of_its_own(draw, tmp_path):
    given = Figure().add_subplot()
    assert draw(given) is given
    own = draw()
    assert isinstance(own, Axes)
    assert own.get_title()
    plotting.save_figure(own, tmp_path, "figure")


def test_a_diagram_shows_each_feature_and_lifts_what_lives_on():
    ax = plotting.plot_diagram(run(0.0), 0)
    pieces, loops = ax.collections
    assert pieces.get_offsets()[0].tolist() == [0.0, 0.1]
    top = ax.lines[1].get_ydata()[0]
    assert loops.get_offsets().tolist() == [[0.1, 0.3], [0.2, top]]
    assert top > 0.5
    with pytest.raises(InputError, match="clouds 0 to 2; got 3"):
        plotting.plot_diagram(run(0.0), 3)


def edges(band, places):
    """Lower and upper edge of a filled band at each place."""
    corners = band.get_paths()[0].vertices
    found = [corners[corners[:, 0] == place, 1] for place in places]
    return [[float(one.min()) for one in found], [float(one.max()) for one in found]]


def test_bands_are_the_bands():
    axes = plotting.plot_betti_bands(BANDS, 0)
    assert [ax.get_title() for ax in axes] == ["0  a", "1  b", "2  c"]
    first, own = axes[1].lines
    scales = own.get_xdata()
    np.testing.assert_allclose([first.get_ydata(), own.get_ydata()], BANDS.curves(0, scales).mean(0)[:2])
    low, _, high = BANDS.band(BANDS.curves(0, scales))
    (band,) = axes[1].collections
    assert edges(band, scales) == [low[1].tolist(), high[1].tolist()]
    # Loops are drawn as far as all clouds know them.
    assert plotting.plot_betti_bands(BANDS, 1)[0].get_xlim()[1] == pytest.approx(0.4)


def test_a_summary_is_the_statistic():
    ax = plotting.plot_topology_summary(BANDS, "longest lifetime", 0)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.11, 0.21, 0.31])
    low, _, high = BANDS.band(BANDS.statistic("longest lifetime", 0))
    assert edges(ax.collections[0], range(3)) == [low.tolist(), high.tolist()]
    assert ax.get_legend() is None
    with pytest.raises(InputError, match="as many clouds"):
        plotting.plot_topology_summary({"a": BANDS, "b": TopologyBands(tuple(each[:2] for each in BANDS.runs))})


def test_distances_are_the_distances():
    ax = plotting.plot_topology_distances({"x": DISTANCES}, dimension=0, kind="wasserstein")
    assert ax.lines[0].get_ydata().tolist() == DISTANCES.wasserstein[:, 0].tolist()
    with pytest.raises(InputError, match="got 'hausdorff'"):
        plotting.plot_topology_distances(DISTANCES, kind="hausdorff")
    by_default = plotting.plot_topology_distances(DISTANCES)
    assert by_default.lines[0].get_ydata().tolist() == DISTANCES.bottleneck[:, 1].tolist()
    pieces = replace(DISTANCES, bottleneck=DISTANCES.bottleneck[:, :1], wasserstein=DISTANCES.wasserstein[:, :1])
    assert "H0" in plotting.plot_topology_distances(pieces).get_title()
    with pytest.raises(InputError, match="H2 was not compared"):
        plotting.plot_topology_distances(DISTANCES, dimension=2)


def test_dimensions_are_means_with_their_range():
    ax = plotting.plot_intrinsic_dimension(DIMENSION)
    means = [bars.lines[0].get_ydata().tolist() for bars in ax.containers]
    assert means == [[1.5, 3.0], [2.0, 5.0]]
    ranges = [[bar[:, 1].tolist() for bar in bars.lines[2][0].get_segments()] for bars in ax.containers]
    assert ranges == [[[1.0, 2.0], [3.0, 3.0]], [[2.0, 2.0], [4.0, 6.0]]]


def test_a_dimension_that_was_not_computed_is_refused():
    for draw in (plotting.plot_betti_bands, lambda bands, k: plotting.plot_topology_summary(bands, dimension=k)):
        with pytest.raises(InputError, match="dimensions 0 to 1; got 2"):
            draw(BANDS, 2)
