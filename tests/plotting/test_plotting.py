"""Figures show each value they are given, draw where they are told, and change nothing global."""

from dataclasses import replace
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import DepthFidelity, Fidelity, OutputFidelity, SpanFidelity
from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.analysis.substitutes.lens_comparison import LensComparison
from koopman_interp.analysis.substitutes.lens_vectors import LensVectors
from koopman_interp.analysis.substitutes.token_floor import FLOOR
from koopman_interp.errors import InputError
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.plotting import plot_trajectories
from koopman_interp.plotting.fidelity import _PREDICTORS
from koopman_interp.plotting.style import label_ends
from tests.plotting.test_audits import AUDIT

SPECTRUM = Spectrum(
    operator_eigenvalues=np.array([1.1, 0.8 + 0.3j, 0.8 - 0.3j, 0.2], dtype=complex),
    modes=np.eye(4, dtype=complex),
    readers=np.eye(4, dtype=complex),
    residuals=np.array([0.1, 0.2, 0.2, 5.0]),
    condition=1.0,
    samples=100,
)
TOPOLOGY = Topology(
    names=("first", "second"),
    diagrams=(
        (np.array([[0, 0.1], [0, 0.2], [0, np.inf]]), np.array([[0.1, 0.3]])),
        (np.array([[0, 0.05], [0, 0.1], [0, np.inf]]), np.empty((0, 2))),
    ),
    diameters=(1.0, 2.0),
    thresholds=(0.5, 0.5),
    points=3,
)
FIDELITY = Fidelity(
    depths=(
        DepthFidelity(
            "a",
            {"surrogate": 0.0, "identity": None, "mean": None, "endpoint linear": None},
            None,
            (1.0, 1.0, 1.0),
            0.1,
            0.1,
        ),
        DepthFidelity(
            "b",
            {"surrogate": 0.1, "identity": None, "mean": 1.0, "endpoint linear": 0.2},
            0.1,
            (1.0, 1.0, 1.0),
            0.1,
            0.1,
        ),
        DepthFidelity(
            "c",
            {"surrogate": 0.2, "identity": None, "mean": 1.0, "endpoint linear": 0.2},
            0.1,
            (1.0, 1.0, 1.0),
            0.1,
            0.1,
        ),
    ),
    outputs=(
        OutputFidelity("base model", 0.9, 1.0, 0.0),
        OutputFidelity("surrogate", 0.8, 0.85, 0.1),
        OutputFidelity("mean", 0.3, 0.35, 1.1),
    ),
    rows=200,
)
SPANS = replace(
    FIDELITY,
    spans=tuple(
        SpanFidelity(source, "c", (FIDELITY.outputs[0], *(OutputFidelity(n, 0.5, 0.5, kl) for n, kl in kls)))
        for source, kls in (("a", [("surrogate", 0.3), ("mean", 2.0)]), ("b", [("surrogate", 0.1), ("mean", 2.0)]))
    ),
)
READING = LensReading(
    lens="Koopman lens",
    sites=("a", "b"),
    top=torch.tensor([[[0, 1], [1, 0]], [[1, 0], [1, 0]]]),
    probability=torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.7, 0.3], [0.8, 0.2]]]),
    kl=torch.tensor([[0.5, 0.1], [0.0, 0.0]]),
    own=torch.tensor([[0.1, 0.6], [0.7, 0.8]]),
    sequence=torch.tensor([0, 0]),
    position=torch.tensor([1, 2]),
    inputs=("once", "upon"),
    names={0: "$x", 1: "time"},
)
VECTORS = LensVectors(
    vectors=(torch.eye(2, 3, dtype=torch.float64), torch.eye(2, 4, dtype=torch.float64)),
    agreement=torch.tensor([[0.5, 0.4], [0.9, 0.8]]),
    size=torch.tensor([2.0, 3.0]),
    sites=("a", "b"),
    tokens=(0, 1),
    names=("$x", "time"),
    written=("$x", " time"),
    samples=7,
    lens="Koopman lens",
    host=HostFingerprint("m", "torch", "b", "float32", "w"),
)
LENSES = LensComparison(
    ("a", "b"),
    {"Koopman lens": 1234, "logit lens": 0},
    (
        (OutputFidelity("base model", None, 1.0, 0.0), OutputFidelity("Koopman lens", None, 0.5, 0.4)),
        (
            OutputFidelity("base model", None, 1.0, 0.0),
            OutputFidelity("Koopman lens", None, 0.5, 0.2),
            OutputFidelity("logit lens", None, 0.5, 0.7),
        ),
    ),
)
RECORD = ki.FitRecord(
    (
        {"step": 0, "loss": 3.0, "fvu": 0.9, "stress": 0.1},
        {"step": 20, "loss": 1.0, "fvu": 0.2, "stress": 0.05},
        {"step": 40, "loss": 2.0, "fvu": 0.3, "stress": 0.0},
    )
)
SINGLE = {
    "spectrum": lambda ax=None: plotting.plot_spectrum(SPECTRUM, ax=ax),
    "fidelity": lambda ax=None: plotting.plot_fidelity(FIDELITY, ax=ax),
    "output": lambda ax=None: plotting.plot_output_fidelity(FIDELITY, ax=ax),
    "fit": lambda ax=None: plotting.plot_fit(RECORD, ax=ax),
    "spans": lambda ax=None: plotting.plot_span_fidelity(SPANS, ax=ax),
    "lens": lambda ax=None: plotting.plot_lens(READING, ax=ax),
    "lenses": lambda ax=None: plotting.plot_lens_comparison(LENSES, ax=ax),
    "vectors": lambda ax=None: plotting.plot_lens_vectors(VECTORS, ax=ax),
}


def lines(ax, labels):
    """Lines by label, in the order asked for."""
    found = {line.get_label(): line for line in ax.lines}
    return [found[label] for label in labels]


def words(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("draw", SINGLE.values(), ids=SINGLE)
def test_each_draws_on_the_axes_given_or_on_a_figure_of_its_own(draw):
    given = Figure().add_subplot()
    assert draw(given) is given
    own = draw()
    assert isinstance(own, Axes)
    assert own.get_title()
    assert len(own.figure.axes) == 1


def test_class_names_are_told_where_they_are_known(trajectories):
    drawn = plot_trajectories(trajectories, class_names={0: "yin", 2: "d$t"})
    assert [points.get_label() for points in drawn[0].collections] == ["yin (0)", "class 1", r"d\$t (2)"]


def test_nothing_global_changes(trajectories, tmp_path):
    before, open_before = dict(matplotlib.rcParams), pyplot.get_fignums()
    for draw in SINGLE.values():
        draw()
    plot_trajectories(trajectories)
    plotting.plot_audit(AUDIT)
    plotting.save_figure(plotting.plot_fit(RECORD), tmp_path, "fit")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == open_before


def test_a_spectrum_shows_each_eigenvalue_once_and_fills_the_trusted():
    hollow, filled = plotting.plot_spectrum(SPECTRUM).collections
    assert hollow.get_offsets().tolist() == [[0.2, 0.0]]
    assert sorted(filled.get_offsets().tolist()) == [[0.8, -0.3], [0.8, 0.3], [1.1, 0.0]]
    assert len(hollow.get_facecolors()) == 0
    assert len(filled.get_facecolors()) == 1
    assert hollow.get_paths()[0].vertices.shape != filled.get_paths()[0].vertices.shape  # told apart without colour


def test_a_spectrum_numbers_the_upper_of_each_pair_and_covers_no_mark():
    ax = plotting.plot_spectrum(SPECTRUM)
    numbers = [text for text in ax.texts if text.get_text().isdecimal()]
    assert {text.get_text(): text.xy for text in numbers} == {"0": (1.1, 0.0), "1": (0.8, 0.3), "3": (0.2, 0.0)}
    assert {text.get_text() for text in numbers if text.get_fontweight() == "bold"} == {"0", "1"}
    boxes = [text.get_window_extent() for text in numbers]
    for point in SPECTRUM.eigenvalues:
        at = ax.transData.transform((point.real, point.imag))
        assert not any(box.contains(*at) for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_betti_curves_are_the_betti_numbers():
    for dimension in (0, 1):
        axes = plotting.plot_topology(TOPOLOGY, dimension)
        assert [ax.get_title() for ax in axes] == ["0  first", "1  second"]
        first, second, own = lines(axes[0], ["0  first"]) + lines(axes[1], ["0  first", "1  second"])
        for cloud, line in ((0, first), (0, second), (1, own)):
            x, y = line.get_data()
            assert y.tolist() == [TOPOLOGY.betti(scale)[cloud][dimension] for scale in x]
        assert second.get_linestyle() != own.get_linestyle()
    assert plotting.plot_topology(TOPOLOGY, 0)[0].get_yscale() == "log"


def test_betti_curves_draw_on_the_axes_given():
    axes = Figure().subplots(1, 2)
    assert plotting.plot_topology(TOPOLOGY, axes=axes).tolist() == axes.tolist()
    assert axes[0].get_xlabel()
    with pytest.raises(InputError, match="1 to 2 axes, one a depth; got 3"):
        plotting.plot_topology(TOPOLOGY, axes=Figure().subplots(1, 3))


def test_a_dimension_that_was_not_computed_is_refused():
    with pytest.raises(InputError, match="dimensions 0 to 1; got 2"):
        plotting.plot_topology(TOPOLOGY, 2)


def test_many_depths_are_thinned_to_a_few_with_both_ends():
    many = replace(
        TOPOLOGY,
        names=tuple(f"s{i}" for i in range(33)),
        diagrams=TOPOLOGY.diagrams[:1] * 33,
        diameters=(1.0,) * 33,
        thresholds=(0.5,) * 33,
    )
    axes = plotting.plot_topology(many)
    shown = [ax.get_title().split()[0] for ax in axes]
    assert len(shown) <= 8
    assert shown[0] == "0"
    assert shown[-1] == "32"
    assert "of 33 depths" in axes[0].figure.get_suptitle()


def test_fidelity_shows_every_predictor_that_exists_and_names_it_at_its_end():
    ax = plotting.plot_fidelity(FIDELITY)
    surrogate, mean, linear = lines(ax, ["surrogate", "mean", "endpoint linear"])
    assert len(ax.lines) == 3
    assert surrogate.get_ydata().tolist() == [1e-8, 0.1, 0.2]
    assert mean.get_xdata().tolist() == [1, 2]
    assert linear.get_ydata().tolist() == [0.2, 0.2]
    assert sorted(words(ax)) == ["endpoint linear", "mean", "surrogate"]
    heights = sorted(text.get_position()[1] for text in ax.texts)
    assert min(np.diff(heights)) > 0.06
    assert len({line.get_marker() for line in ax.lines}) == len({line.get_linestyle() for line in ax.lines}) == 3


def test_span_fidelity_shows_each_stand_in_by_where_its_span_starts():
    ax = plotting.plot_span_fidelity(SPANS)
    ours, mean = lines(ax, ["surrogate", "mean"])
    assert list(ours.get_ydata()) == [0.3, 0.1]
    assert list(mean.get_ydata()) == [2.0, 2.0]
    assert ours.get_marker() != mean.get_marker()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b"]
    assert "surrogate" in words(ax)
    between = SpanFidelity("a", "b", (FIDELITY.outputs[0], OutputFidelity("mean", 0.5, 0.5, 9.0)))
    more = plotting.plot_span_fidelity(replace(SPANS, spans=(between, *SPANS.spans)))
    assert list(lines(more, ["mean"])[0].get_ydata()) == [2.0, 2.0]  # not of what ends before the target
    with pytest.raises(InputError, match="to_target"):
        plotting.plot_span_fidelity(FIDELITY)


def test_a_lens_writes_the_likeliest_output_in_each_cell_in_bold_where_the_host_says_it():
    ax = plotting.plot_lens(READING)
    cells = {tuple(text.get_position()): text for text in ax.texts}
    assert [cells[0, 0].get_text(), cells[1, 0].get_text(), cells[0, 1].get_text()] == [
        r"\$x" + "\n90",
        "time\n60",
        "time\n70",
    ]
    assert [cells[0, 0].get_fontweight(), cells[1, 0].get_fontweight()] == ["normal", "bold"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["once", "upon"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    shades = {patch.get_xy(): patch.get_alpha() for patch in ax.patches}
    assert shades[-0.5, -0.5] / shades[0.5, -0.5] == pytest.approx(0.9 / 0.6)
    assert len(plotting.plot_lens(READING, start=1).texts) == 2
    for start in (2, -1):
        with pytest.raises(InputError, match="none to show"):
            plotting.plot_lens(READING, start=start)


def test_lenses_are_drawn_with_their_parameters_where_they_exist():
    ax = plotting.plot_lens_comparison(LENSES)
    ours, logit = lines(ax, ["Koopman lens", "logit lens"])
    assert list(ours.get_ydata()) == [0.4, 0.2]
    assert (list(logit.get_xdata()), list(logit.get_ydata())) == ([1], [0.7])
    assert ours.get_linestyle() != logit.get_linestyle()
    assert {"Koopman lens (1,234)", "logit lens (0)"} <= set(words(ax))


def test_lens_vectors_show_how_far_a_token_is_one_direction():
    ax = VECTORS.plot()
    ours, theirs = lines(ax, [r"\$x", "time"])
    assert list(ours.get_ydata()) == pytest.approx([0.5, 0.9])
    assert list(theirs.get_ydata()) == pytest.approx([0.4, 0.8])
    assert ours.get_linestyle() != theirs.get_linestyle()
    assert ax.get_ylim()[0] == 0


def test_output_fidelity_shows_agreement_and_accuracy_where_there_is_one():
    ax = plotting.plot_output_fidelity(FIDELITY)
    assert [line.get_xdata().tolist() for line in ax.lines] == [[100, 85, 35], [90, 80, 30]]
    assert words(ax) == ["100.0 / 90.0", "85.0 / 80.0", "35.0 / 30.0"]
    unlabelled = replace(FIDELITY, outputs=tuple(replace(row, accuracy=None) for row in FIDELITY.outputs))
    ax = plotting.plot_output_fidelity(unlabelled)
    assert len(ax.lines) == 1
    assert words(ax) == ["100.0", "85.0", "35.0"]


def test_a_fit_marks_the_weights_it_kept():
    ax = plotting.plot_fit(RECORD)
    assert lines(ax, ["FVU"])[0].get_ydata().tolist() == [0.9, 0.2, 0.3]
    kept = next(text for text in ax.texts if text.get_text() == "kept")
    assert kept.get_position()[0] == 20
    of_record = RECORD.plot()
    assert [line.get_ydata().tolist() for line in of_record.lines[:2]] == [
        line.get_ydata().tolist() for line in ax.lines[:2]
    ]


def test_a_least_squares_fit_is_one_dot_each():
    ax = plotting.plot_fit(ki.FitRecord(({"fvu": 0.1, "stress": 0.02},)))
    assert [len(line.get_xdata()) for line in ax.lines] == [1, 1]
    with pytest.raises(InputError, match="of no fit"):
        plotting.plot_fit(ki.FitRecord())


def test_trajectories_show_every_class_at_every_depth_with_its_own_mark(trajectories):
    drawn = plot_trajectories(trajectories)
    assert len(drawn) == trajectories.depths
    assert len(drawn[0].figure.legends) == 1
    for ax in drawn:
        assert [points.get_label() for points in ax.collections] == ["class 0", "class 1", "class 2"]
        assert len({points.get_paths()[0].vertices.tobytes() for points in ax.collections}) == 3
        assert len({tuple(points.get_facecolor()[0]) for points in ax.collections}) == 3


def test_a_plane_keeps_all_distances_that_lie_in_it(trajectories):
    flat = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    made = replace(trajectories[:60], states=(flat, flat @ turn[:2]), sites=("a", "b"), times=(0.0, 1.0), shapes=())
    first, second = plot_trajectories(made)
    for before, after in zip(first.collections, second.collections, strict=True):
        assert np.allclose(before.get_offsets(), after.get_offsets())
    assert "100 % of variance" in second.get_title()
    cube = replace(made, states=(torch.cat([torch.eye(3), -torch.eye(3)]).double().repeat(10, 1),) * 2)
    assert "67 % of variance" in plot_trajectories(cube)[0].get_title()


def test_more_classes_than_marks_and_no_classes_at_all(trajectories):
    many = trajectories.with_labels(torch.arange(len(trajectories)) % 30)
    names = [points.get_label() for points in plot_trajectories(many)[0].collections]
    assert len(names) == 10
    assert names[-1] == "others"
    bare = replace(trajectories, labels=None)
    assert [len(ax.collections) for ax in plot_trajectories(bare)] == [1] * trajectories.depths


def test_trajectories_draw_on_the_axes_given(trajectories):
    axes = Figure().subplots(1, 2)
    drawn = plot_trajectories(trajectories, axes)
    assert drawn.tolist() == axes.tolist()
    assert [ax.get_title().split("\n")[0] for ax in drawn] == [
        f"0  {trajectories.sites[0]}",
        f"{trajectories.depths - 1}  {trajectories.sites[-1]}",
    ]
    with pytest.raises(InputError, match="one a depth; got 9"):
        plot_trajectories(trajectories, Figure().subplots(3, 3))


def test_saved_figures_are_the_same_bytes_each_time_and_carry_no_date(tmp_path):
    first = plotting.save_figure(plotting.plot_fit(RECORD), tmp_path / "a", "fit")
    second = plotting.save_figure(plotting.plot_fit(RECORD).figure, tmp_path / "b", "fit")
    assert [path.name for path in first] == ["fit.png", "fit.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert b"<dc:date>" not in first[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["fit.png", "fit.svg"]
    with pytest.raises(InputError, match="no axes"):
        plotting.save_figure(np.array([]), tmp_path, "none")


def test_no_two_predictors_share_a_colour():
    colours = [to_rgba(colour) for colour, _, _ in _PREDICTORS.values()]
    assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("values", [(1.0, 0.99, 0.98, 0.01), (1.0, 0.0101, 0.0102, 0.01)], ids=["top", "bottom"])
def test_names_of_lines_keep_apart_in_the_order_of_the_lines_and_off_the_title(values):
    ax = pyplot.figure().add_subplot()
    for value in values:
        ax.plot([0, 1], [value, value])
    ax.set_yscale("log")
    label_ends(ax, {f"{value:g}": (value, "black") for value in values})
    places = {float(text.get_text()): text.get_position()[1] for text in ax.texts}
    heights = [places[value] for value in sorted(values)]
    assert all(b - a >= 0.07 - 1e-9 for a, b in pairwise(heights))
    assert heights[-1] <= 1
    pyplot.close(ax.figure)


def test_the_token_wise_floor_is_a_level_at_the_first_depth_alone():
    floor = OutputFidelity(FLOOR, 0.3, 0.3, 0.25)
    first, *rest = SPANS.spans
    spans = replace(
        SPANS, outputs=(*SPANS.outputs, floor), spans=(replace(first, outputs=(*first.outputs, floor)), *rest)
    )
    lenses = replace(
        LENSES,
        parameters=LENSES.parameters | {FLOOR: 99},
        outputs=((*LENSES.outputs[0], floor), *LENSES.outputs[1:]),
    )
    for ax in (plotting.plot_span_fidelity(spans), plotting.plot_lens_comparison(lenses)):
        level = lines(ax, [FLOOR])[0]
        assert list(level.get_ydata()) == [0.25, 0.25]
        assert max(abs(level.get_xdata())) < 0.5
        assert FLOOR in words(ax)
