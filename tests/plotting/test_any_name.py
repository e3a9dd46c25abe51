"""Names may hold anything: no figure takes them for mathematics, or fails at what no font has."""

from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import pytest

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.plotting.style import plain_text, share
from tests.analysis.linear import known_operator, noisy_data, plain_surrogate
from tests.plotting.test_audits import THROUGH
from tests.plotting.test_plotting import LENSES, READING, SPANS, SPECTRUM, TOPOLOGY, VECTORS
from tests.plotting.test_topology import BANDS, DIMENSION, DISTANCES

NAMES = ("$x_$ and $", "_a$\\frac$ %s {x:g} {", "\0\x07 \u202eevil\u200f \ud800 <script>& a\\$b_{")


def named(values, name):
    return tuple(f"{name}{place}" for place in range(len(values)))


def figures(name, trajectories, analysed):
    """Every figure, of values with this name wherever a name goes in."""
    spectrum, meanings, transfer = analysed
    topology = replace(TOPOLOGY, names=named(TOPOLOGY.names, name))
    bands = replace(BANDS, runs=tuple(replace(run, names=named(run.names, name)) for run in BANDS.runs))
    depths = tuple(replace(depth, site=f"{name}{place}") for place, depth in enumerate(SPANS.depths))
    outputs = (*SPANS.outputs, replace(SPANS.outputs[-1], name=name))
    end = depths[-1].site
    spans = tuple(replace(span, source=f"{name}{place}", target=end) for place, span in enumerate(SPANS.spans))
    fidelity = replace(SPANS, depths=depths, outputs=outputs, spans=spans)
    read = [tuple(replace(one, site=name + one.site) for one in row.depths) for row in THROUGH.rows]
    rows = tuple(replace(row, name=name, depths=each) for row, each in zip(THROUGH.rows, read, strict=True))
    audit = replace(THROUGH, rows=rows, edit=name)
    words = {"inputs": (name, name), "names": {0: name, 1: name}}
    reading = replace(READING, lens=name, sites=named(READING.sites, name), **words)
    lenses = replace(LENSES, sites=named(LENSES.sites, name), parameters={name: 1, "logit lens": 0})
    vectors = replace(VECTORS, sites=named("ab", name), names=named("ab", name), lens=name)
    point = ki.FrontierPoint(name, 1.0, 0.5, 0.25)
    states = replace(trajectories, sites=named(trajectories.sites, name))
    names = {0: name, 5: name}
    return {
        "plot": lambda: plotting.plot(topology),
        "plot_audit": lambda: plotting.plot_audit(audit),
        "plot_betti_bands": lambda: plotting.plot_betti_bands(bands),
        "plot_class_amplitudes": lambda: plotting.plot_class_amplitudes(spectrum, class_names=names),
        "plot_diagram": lambda: plotting.plot_diagram(topology),
        "plot_fidelity": lambda: plotting.plot_fidelity(fidelity),
        "plot_fit": lambda: plotting.plot_fit(ki.FitRecord(({"fvu": 0.1, "stress": 0.02},))),
        "plot_forgetting_by_depth": lambda: plotting.plot_forgetting_by_depth(audit),
        "plot_frontier": lambda: plotting.plot_frontier(ki.Frontier(name, name, 97.0, (point,))),
        "plot_intrinsic_dimension": lambda: plotting.plot_intrinsic_dimension(
            replace(DIMENSION, names=named("ab", name), estimators=named("ab", name))
        ),
        "plot_lens": lambda: plotting.plot_lens(reading),
        "plot_lens_comparison": lambda: plotting.plot_lens_comparison(lenses),
        "plot_lens_vectors": lambda: plotting.plot_lens_vectors(vectors),
        "plot_mode_growth": lambda: plotting.plot_mode_growth(replace(meanings, sites=named(meanings.sites, name))),
        "plot_output_fidelity": lambda: plotting.plot_output_fidelity(fidelity),
        "plot_pseudospectra": lambda: plotting.plot_pseudospectra(ki.pseudospectra(spectrum, points=4)),
        "plot_relearning": lambda: plotting.plot_relearning(audit),
        "plot_residuals": lambda: plotting.plot_residuals(SPECTRUM),
        "plot_span_fidelity": lambda: plotting.plot_span_fidelity(fidelity),
        "plot_spectrum": lambda: plotting.plot_spectrum(SPECTRUM),
        "plot_topology": lambda: plotting.plot_topology(topology, 1),
        "plot_topology_distances": lambda: plotting.plot_topology_distances({name: DISTANCES, "other": DISTANCES}),
        "plot_topology_summary": lambda: plotting.plot_topology_summary({name: bands, "other": bands}),
        "plot_trajectories": lambda: plotting.plot_trajectories(states, class_names=names),
        "plot_transfer_modes": lambda: plotting.plot_transfer_modes(replace(transfer, source=name, target=name)),
    }


@pytest.fixture(scope="module")
def analysed(trained):
    data = noisy_data(known_operator(), (0.0, 1.0, 2.0), rows=60, noise=0.2)
    data = replace(data, labels=(data.states[0][:, 0] > 0).long() + 5)
    koopman = plain_surrogate(known_operator(), (0.0, 1.0, 2.0))
    spectrum = ki.spectrum(koopman, data)
    return spectrum, ki.describe_modes(koopman, spectrum, data, modes=2), ki.transfer_modes(*trained[1:])


def test_every_figure_is_looked_at_here(trajectories, analysed):
    public = {name for name, each in vars(plotting).items() if name.startswith("plot") and callable(each)}
    assert set(figures("name", trajectories, analysed)) == public


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn(name, trajectories, analysed):
    for draw in figures(name, trajectories[:40], analysed).values():
        drawn = draw()
        first = drawn.flat[0] if hasattr(drawn, "flat") else drawn
        first.figure.figure.draw_without_rendering()


def test_any_name_is_whole_xml(tmp_path):
    drawn = plotting.plot_topology(replace(TOPOLOGY, names=(NAMES[2], NAMES[0])))
    _, svg = plotting.save_figure(drawn, tmp_path, "figure")
    told = [each.text for each in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}title")]
    assert any("⟨U+0000⟩⟨U+0007⟩ ⟨U+202E⟩evil⟨U+200F⟩ ⟨U+D800⟩ <script>&" in each for each in told)
    assert any(NAMES[0] in each for each in told)


@pytest.mark.parametrize("name", ["$x_$ and $", r"a\$b_{", "$\\frac$"])
def test_what_is_drawn_of_a_plain_text_is_the_text(name):
    text = matplotlib.text.Text(0, 0, plain_text(name))
    shown, is_math = text._preprocess_math(text.get_text())
    assert (shown, is_math) == (name, False)


def test_shares_are_written_one_way():
    assert (share(0.985), share(0.98521, 2)) == ("98 %", "98.52 %")
