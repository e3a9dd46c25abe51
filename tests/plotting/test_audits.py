"""Figures of audits show the values they are given."""

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from koopman_interp import plotting
from koopman_interp.auditing.probe_scores import ProbeScores
from koopman_interp.auditing.relearning import Relearning, RelearningCurve
from koopman_interp.auditing.result import Audit
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.errors import InputError

AUDIT = Audit(
    labels=(4,),
    edit="erase class 4",
    rows=(
        AuditRow("base model", 0.98, 0.97, 0.0, 0.99, 0.995, 0.95),
        AuditRow("logit mask", 0.0, 0.975, 0.01, 0.99, 0.995, 0.95),
        AuditRow("edit (delta)", 0.01, 0.965, 0.02, 0.71, 0.93, 0.4),
    ),
    forget_rows=60,
    retain_rows=140,
)


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_an_audit_shows_every_method_under_every_measure_with_chance_for_the_probes():
    axes = plotting.plot_audit(AUDIT)
    expected = [
        [98.0, 0.0, 1.0],
        [97.0, 97.5, 96.5],
        [99.0, 99.0, 71.0],
        [99.5, 99.5, 93.0],
        [95.0, 95.0, 40.0],
    ]
    for ax, values in zip(axes, expected, strict=True):
        *_, others, edit = ax.lines
        assert [*others.get_xdata(), *edit.get_xdata()] == pytest.approx(values)
        assert [text for text in words(ax) if text.strip() != "at chance"] == [f"{value:.1f}" for value in values]
    assert ["at chance" in " ".join(words(ax)) for ax in axes] == [False, False, True, True, False]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["base model", "logit mask", "edit (delta)"]
    top, bottom = (axes[0].transData.transform((0, row))[1] for row in (0, 2))
    assert top > bottom


def test_an_audit_draws_on_one_axes_a_measure():
    axes = Figure().subplots(1, 5)
    assert plotting.plot_audit(AUDIT, axes).tolist() == axes.tolist()
    with pytest.raises(InputError, match="5 axes, one a measure; got 3"):
        plotting.plot_audit(AUDIT, Figure().subplots(1, 3))
    more = replace(AUDIT, rows=tuple(replace(row, mlp_probe=0.9, retrained_js=0.4) for row in AUDIT.rows))
    assert len(plotting.plot_audit(more)) == 7


def test_intervals_are_drawn_where_there_are_some():
    ends = (0.02, 0.13)
    rows = (*AUDIT.rows[:-1], replace(AUDIT.rows[-1], intervals={"forget_accuracy": ends}))
    axes = plotting.plot_audit(replace(AUDIT, rows=rows))
    drawn = [[segment[:, 0].tolist() for one in ax.collections[1:] for segment in one.get_segments()] for ax in axes]
    assert drawn == [[[100 * ends[0], 100 * ends[1]]], [], [], [], []]


def measured_all_the_way(name, at_depths, curves=()):
    scores = tuple(
        ProbeScores(site, {"linear": share, "rbf": share - 0.1}, {10: 0.5}, {})
        for site, share in zip("abc", at_depths, strict=True)
    )
    return AuditRow(name, 0.9, 0.95, 0.0, at_depths[-1], None, 0.5, depths=scores, relearning=curves)


THROUGH = Audit(
    (4,),
    "erase class 4",
    (
        measured_all_the_way("base model", (0.7, 0.8, 0.9)),
        measured_all_the_way("logit mask", (0.7, 0.8, 0.9)),
        measured_all_the_way(
            "edit (delta)",
            (0.7, 0.8, 0.6),
            (
                RelearningCurve("all parameters", (0, 1, 5), (0.0, 0.5, 1.0), (0.9, 0.8, 0.7)),
                RelearningCurve("K alone", (0, 1, 5), (0.0, 0.1, 0.2), (0.9, 0.9, 0.9)),
            ),
        ),
    ),
    60,
    140,
    relearn=Relearning(steps=(0, 1, 5)),
)


def test_forgetting_by_depth_is_drawn_for_each_probe_and_the_prototype():
    axes = plotting.plot_forgetting_by_depth(THROUGH)
    assert [ax.get_title() for ax in axes] == ["linear probe", "RBF probe", "10-shot prototype"]
    hosts, edits = ([70, 80, 90], [60, 70, 80], [50] * 3), ([70, 80, 60], [60, 70, 50], [50] * 3)
    for ax, host, edit in zip(axes, hosts, edits, strict=True):
        lines = {line.get_label(): line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 3}
        assert lines == {"base model": pytest.approx(host), "edit (delta)": pytest.approx(edit)}
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b", "c"]
    looks = {(line.get_marker(), line.get_markerfacecolor()) for line in axes[0].lines if len(line.get_xdata()) == 3}
    assert len(looks) == 2
    assert plotting.plot_forgetting_by_depth(THROUGH, Figure().subplots(1, 3)).shape == (3,)
    with pytest.raises(InputError, match="nothing by depth"):
        plotting.plot_forgetting_by_depth(AUDIT)
    with pytest.raises(InputError, match="3 axes"):
        plotting.plot_forgetting_by_depth(THROUGH, Figure().subplots(1, 2))


def test_relearning_shows_what_comes_back_and_what_it_costs():
    upper, lower = plotting.plot_relearning(THROUGH)
    curves = [line.get_ydata().tolist() for line in upper.lines if len(line.get_xdata()) == 3]
    assert curves == [pytest.approx([0, 50, 100]), pytest.approx([0, 10, 20])]
    assert lower.lines[0].get_ydata().tolist() == pytest.approx([90, 80, 70])
    assert [tick.get_text() for tick in lower.get_xticklabels()] == ["0", "1", "5"]
    assert len({line.get_linestyle() for line in upper.lines}) == 3
    with pytest.raises(InputError, match="no relearning"):
        plotting.plot_relearning(AUDIT)
    with pytest.raises(InputError, match="two axes"):
        plotting.plot_relearning(THROUGH, Figure().subplots(1, 3))
