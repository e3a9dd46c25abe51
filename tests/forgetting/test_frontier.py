"""A frontier gives its curves back, and finds the best point of each."""

import json

import pytest

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.plotting import plot_frontier, save_figure


@pytest.fixture
def frontier():
    points = [("ours", 1.0, 2.0, 0.1), ("ours", 2.0, 0.4, 0.6), ("ours", 3.0, 1.0, 1.5), ("theirs", 1.0, 1.5, 3.0)]
    return ki.Frontier("nats left", "more loss, %", 5.0, tuple(ki.FrontierPoint(*point) for point in points))


def test_curves_and_best_points(frontier):
    assert frontier.methods == ("ours", "theirs")
    assert [point.strength for point in frontier.curve("ours")] == [1, 2, 3]
    assert frontier.cheapest("ours", 1.0).strength == 2
    assert frontier.cheapest("ours", 2.0).strength == 1
    assert frontier.cheapest("ours", 0.4).strength == 2
    assert frontier.least("ours", 0.2).left == 2.0
    assert frontier.least("ours", 0.6).strength == 2
    assert frontier.cheapest("theirs", 1.0) is None
    assert frontier.least("theirs", 1.0) is None
    with pytest.raises(InputError, match="there are ours, theirs"):
        frontier.curve("nobody's")


def test_it_prints_and_saves(frontier, tmp_path):
    assert str(frontier).splitlines()[3].split() == ["base", "model", "–", "5.00", "+0.00"]
    assert frontier.to_frame()["nats left"].tolist() == [5.0, 2.0, 0.4, 1.0, 1.5]
    assert "not reached" in frontier.summary(1.0, 2.0)
    assert "0.40 (at 2)" in frontier.summary(1.0, 2.0)
    frontier.save(tmp_path / "frontier.json")
    assert json.loads((tmp_path / "frontier.json").read_text())["points"][1]["left"] == 0.4


def test_the_figure_holds_every_point_within_reach(frontier, tmp_path):
    ax = plot_frontier(frontier, wanted=(2.0, 0.5), dearest=2.0)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines if not line.get_label().startswith("_")}
    assert drawn["ours"] == [[0, 5], [0.1, 2.0], [0.6, 0.4], [1.5, 1.0]]
    assert drawn["theirs"] == [[0, 5]]
    styles = {(line.get_marker(), line.get_linestyle()) for line in ax.lines if line.get_label() in frontier.methods}
    assert len(styles) == 2
    save_figure(ax, tmp_path, "frontier")
    assert (tmp_path / "frontier.png").stat().st_size > 1000
