"""Figures of spectra and modes show the values they are given."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.errors import InputError
from tests.analysis.linear import known_operator, noisy_data, plain_surrogate

TIMES = (0.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def found():
    """Six modes, four of them with a real or an upper eigenvalue, on samples of three classes."""
    data = noisy_data(known_operator(), TIMES, rows=300, noise=0.2)
    koopman = plain_surrogate(known_operator(), TIMES)
    data = replace(data, labels=(data.states[0][:, 0] > 0).long() + 5)
    spectrum = ki.spectrum(koopman, data)
    return spectrum, ki.describe_modes(koopman, spectrum, data, modes=3)


def test_each_draws_on_the_axes_given_or_on_a_figure_of_its_own(found):
    spectrum, meanings = found
    for draw in (
        lambda ax=None: plotting.plot_spectrum(spectrum, ax=ax, pseudospectra=ki.pseudospectra(spectrum, points=8)),
        lambda ax=None: plotting.plot_pseudospectra(ki.pseudospectra(spectrum, points=8), ax=ax),
        lambda ax=None: plotting.plot_residuals(spectrum, ax=ax),
        lambda ax=None: plotting.plot_class_amplitudes(spectrum, ax=ax),
        lambda ax=None: plotting.plot_mode_growth(meanings, ax=ax),
    ):
        given = Figure().add_subplot()
        assert draw(given) is given
        own = draw()
        assert isinstance(own, Axes)
        assert own.get_title()
        own.figure.draw_without_rendering()


def test_residuals_stand_at_their_eigenvalues_and_intervals_hold_them(found):
    spectrum, _ = found
    # Of one step alone: over the whole span the noise of all steps adds up, and intervals are of one.
    spectrum = replace(spectrum, residuals=np.maximum(spectrum.about_mean, spectrum.about_zero))
    spectrum = replace(spectrum, tolerance=float(np.median(spectrum.residuals)))
    ax = plotting.plot_residuals(spectrum)
    trusted, others = (np.asarray(points.get_offsets()) for points in ax.collections)
    for points, chosen in ((trusted, spectrum.trusted), (others, ~spectrum.trusted)):
        np.testing.assert_allclose(points, np.stack([spectrum.decay, spectrum.residuals], 1)[chosen])
    assert len(trusted) + len(others) == 6
    spoilt = replace(spectrum, residuals=np.r_[np.inf, spectrum.residuals[1:]])
    assert "(1 without)" in plotting.plot_residuals(spoilt).get_title()
    bars = [line.get_data() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] > 0.3]
    bars = [(x[0], *y) for x, y in bars if x[0] == x[1]]
    own = spectrum.residuals == spectrum.about_mean
    assert len(bars) == own.sum() > 0
    for x, low, high in bars:
        near = np.flatnonzero(np.isclose(spectrum.decay, x))
        assert any(low <= spectrum.residuals[index] <= high for index in near)


def test_contours_are_drawn_where_pseudospectra_are_given(found):
    spectrum, _ = found
    alone = plotting.plot_spectrum(spectrum)
    with_contours = plotting.plot_spectrum(spectrum, pseudospectra=ki.pseudospectra(spectrum, points=20))
    assert len(with_contours.collections) == len(alone.collections) + 1
    several = replace(ki.pseudospectra(spectrum, points=4), gap=2.0)
    with pytest.raises(InputError, match=r"K\^2; the eigenvalues are those of K"):
        plotting.plot_spectrum(spectrum, pseudospectra=several)


def test_pseudospectra_are_drawn_with_the_eigenvalues_of_the_power_that_they_are_of(found):
    spectrum, _ = found
    once = ki.pseudospectra(spectrum, points=8)
    for pseudospectra in (once, replace(once, gap=2.0)):
        ax = plotting.plot_pseudospectra(pseudospectra)
        crosses = np.asarray(ax.collections[-1].get_offsets())
        powers = spectrum.operator_eigenvalues**pseudospectra.gap
        np.testing.assert_allclose(crosses, np.stack([powers.real, powers.imag], 1))


def test_unknown_intervals_are_left_out(found):
    spectrum, _ = found
    spectrum = replace(spectrum, tolerance=10.0)
    decay, rotation = spectrum.intervals.decay.copy(), spectrum.intervals.rotation.copy()
    decay[0] = rotation[0] = -np.inf, np.inf
    unknown = replace(spectrum, intervals=replace(spectrum.intervals, decay=decay, rotation=rotation))

    def rays(given):
        lines = plotting.plot_spectrum(given).lines
        return sum(len(line.get_xdata()) == 2 and line.get_color() == "k" for line in lines)

    assert rays(unknown) == rays(spectrum) - 1


def test_a_cross_marks_the_estimate_of_each_trusted_mode(found):
    spectrum, _ = found
    ax = plotting.plot_spectrum(replace(spectrum, tolerance=10.0))
    rays = [line.get_data() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_color() == "k"]
    ends = sorted(sorted(np.hypot(x, y)) for x, y in rays)
    np.testing.assert_allclose(ends, sorted(spectrum.intervals.decay.tolist()), rtol=1e-9)
    arcs = [line.get_xdata() + 1j * line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 25]
    turning = spectrum.eigenvalues.imag != 0
    turns = sorted(sorted(np.angle(arc[[0, -1]])) for arc in arcs)
    np.testing.assert_allclose(turns, sorted(spectrum.intervals.rotation[turning].tolist()), rtol=1e-9)


def test_the_heat_map_tells_the_contrast_of_each_class_in_numbers(found):
    spectrum, _ = found
    ax = plotting.plot_class_amplitudes(spectrum, depth=1)
    upper = spectrum.eigenvalues.imag >= 0
    expected = [f"{value:.1f}" for value in spectrum.amplitudes.contrast(1)[:, upper].ravel()]
    assert [text.get_text() for text in ax.texts] == expected
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["class 5", "class 6"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(index) for index in np.flatnonzero(upper)]
    bold = [tick.get_fontweight() == "bold" for tick in ax.get_xticklabels()]
    assert bold == spectrum.trusted[upper].tolist()
    with pytest.raises(InputError, match="depths 0 to 2; got 3"):
        plotting.plot_class_amplitudes(spectrum, depth=3)
    with pytest.raises(InputError, match="knows no classes"):
        plotting.plot_class_amplitudes(replace(spectrum, amplitudes=None))


def test_growth_is_drawn_beside_the_eigenvalue(found):
    _, meanings = found
    ax = plotting.plot_mode_growth(meanings)
    for one, measured, expected in zip(meanings, ax.lines[::2], ax.lines[1::2], strict=True):
        np.testing.assert_allclose(measured.get_ydata(), one.growth)
        np.testing.assert_allclose(expected.get_ydata(), one.expected)
        assert expected.get_linestyle() == "--"
    with pytest.raises(InputError, match="no modes to draw"):
        plotting.plot_mode_growth(replace(meanings, modes=()))


def test_a_mark_of_a_spectrum_tells_its_mode_to_a_pointer(found, tmp_path):
    spectrum, _ = found
    _, svg = plotting.save_figure(plotting.plot_spectrum(spectrum), tmp_path, "spectrum")
    titles = [each.text for each in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(int(title.split(":")[0].removeprefix("mode ")) for title in titles) == list(range(6))
    for title in titles:
        mode = int(title.split(":")[0].removeprefix("mode "))
        assert f"residual {spectrum.residuals[mode]:.3f}" in title
        assert title.endswith("not trusted") != spectrum.trusted[mode]
