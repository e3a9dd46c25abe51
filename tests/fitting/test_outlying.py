"""A few rows or coordinates that outlie all others neither spoil a fit nor hide in its figures."""

import warnings

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.surrogates.outlying_rows import outlying_rows
from koopman_interp.testing import LinearHost, ResidualMLP


def marks(states):
    return outlying_rows(states, 30.0, torch.zeros(len(states[0]), dtype=torch.bool))


QUICK = ki.FitConfig(steps=60, evaluate_every=30)


def observed(rows=600, far=0, by=1e4, width=12):
    torch.manual_seed(0)
    model = ResidualMLP(inputs=6, width=width, blocks=3, outputs=3).eval()
    x = torch.randn(rows, 6)
    if far:
        x[::far] *= by
    return model, x, ki.attach(model).observe(x, progress=False)


def scaled(trajectories, coordinate=3, by=1e4):
    """The same states in which one coordinate is larger."""
    factors = torch.ones(trajectories.widths[0])
    factors[coordinate] = by
    return ki.Trajectories(
        states=tuple(state * factors for state in trajectories.states),
        **{name: getattr(trajectories, name) for name in ("sites", "times", "host", "sequence", "position", "digests")},
    )


def test_rows_far_out_are_left_out_and_said():
    _, _, trajectories = observed(far=50)
    marked = marks(trajectories.states)
    assert marked.nonzero().squeeze(1).tolist() == list(range(0, 600, 50))
    with pytest.warns(UserWarning, match="12 of 600 lie more than 30 times as far out as the median row"):
        koopman = ki.fit(trajectories, QUICK)
    without = ki.fit(trajectories[~marked], QUICK)
    assert koopman.digest() == without.digest()
    assert any("12 of 600" in choice for choice in koopman.record.choices)
    torch.testing.assert_close(koopman.moments.covariance, without.moments.covariance, rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ki.fit(trajectories, ki.FitConfig(steps=1, outlying=None)).digest() != koopman.digest()


def test_moments_gathered_anew_leave_out_the_same_rows(tmp_path):
    _, _, trajectories = observed(far=50)
    with pytest.warns(UserWarning, match="left out"):
        koopman = ki.fit(trajectories, QUICK)
    koopman.save_pretrained(tmp_path)
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    loaded.gather_moments(trajectories)
    torch.testing.assert_close(loaded.moments.covariance, koopman.moments.covariance, rtol=0, atol=0)


def test_a_part_of_the_rows_that_is_large_is_no_outlier():
    _, _, trajectories = observed(far=10)
    assert not marks(trajectories.states).any()
    # Nor does one spread hide that most rows are one and the same.
    states = [torch.zeros(100, 3)]
    states[0][:30] = torch.randn(30, 3)
    assert not marks(states).any()


def test_distances_hold_past_the_range_of_squares():
    state = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) * 1e25
    state[7] *= 1e6
    assert marks([state]).nonzero().tolist() == [[7]]


def test_a_small_whole_that_is_of_one_coordinate_is_said_to_be():
    model = LinearHost(torch.diag(torch.tensor([0.9, 0.8, 0.7, 0.6])), 3).eval()
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e4, 1.0, 1.0, 1.0])
    koopman = ki.fit(ki.attach(model).observe(x, progress=False), QUICK)
    right = ki.fidelity(model, koopman, held_out=x, outputs=False)
    assert not any("large coordinates" in note for note in right.notes())
    # A surrogate that predicts the large coordinate and gives the mean of all others.
    koopman.normalization.maps(3)[2][:, 1:] = 0
    wrong = ki.fidelity(model, koopman, held_out=x, outputs=False)
    last = wrong.depths[-1]
    assert last.fvu["surrogate"] < 1e-6
    assert last.typical_coordinate == pytest.approx(1, abs=0.05)
    assert any("blocks.2 is of a few large coordinates or far rows" in note for note in wrong.notes())


def test_a_small_whole_that_is_of_far_rows_is_said_to_be():
    model = LinearHost(torch.eye(4) * 0.9, 3).eval()
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    koopman = ki.fit(ki.attach(model).observe(x, progress=False), QUICK)
    # Off by a constant as large as most rows, which is nothing beside a few.
    koopman.normalization.maps(3)[0].add_(1.0)
    x[::50] *= 1e4
    last = ki.fidelity(model, koopman, held_out=x, outputs=False).depths[-1]
    assert last.fvu["surrogate"] < 1e-4
    assert last.typical_row > 0.5
    assert last.misleading


def test_rows_that_an_encoder_looks_back_on_are_not_left_out_in_silence():
    _, _, trajectories = observed(far=50)
    with pytest.raises(InputError, match=r"12 of 600 lie more than 30 times .* none can be left out"):
        ki.fit(trajectories, ki.FitConfig(context="causal", steps=1))


def test_a_large_coordinate_neither_hides_the_others_nor_their_errors():
    _, _, trajectories = observed(rows=3000)
    plain, large = ki.fit(trajectories, QUICK), ki.fit(scaled(trajectories), QUICK)
    assert large.config.coordinates.outlying == 1
    others = [each for each in range(12) if each != 3]

    def left(koopman, rows):
        last = rows.states[-1]
        errors, spread = koopman.predict(rows.states[0]) - last, last - last.mean(0)
        return float(errors[:, others].square().sum() / spread[:, others].square().sum())

    assert left(large, scaled(trajectories)) < 3 * left(plain, trajectories) + 1e-3


def test_a_linear_host_with_an_outlying_coordinate_keeps_its_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    values = torch.linspace(0.95, 0.5, 10)
    turned = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0]
    size = torch.ones(10)
    size[2] = 1e4
    A = size[:, None] * (turned @ torch.diag(values) @ turned.T) / size
    x = size * torch.randn(3000, 10, generator=generator)
    trajectories = ki.attach(LinearHost(A, 4).eval()).observe(x, progress=False)
    koopman = ki.fit(trajectories)
    assert koopman.config.coordinates.outlying == 1
    spectrum = ki.spectrum(koopman, trajectories)
    found = sorted(spectrum.eigenvalues[spectrum.trusted].real.tolist(), reverse=True)
    for value in values.tolist():
        assert min(abs(value - each) for each in found) < 1e-3


def test_the_median_coordinate_and_row_agree_with_a_slow_computation():
    model, x, trajectories = observed(rows=300)
    koopman = ki.fit(trajectories, QUICK)
    depth = ki.fidelity(model, koopman, held_out=x).depths[-1]
    last = trajectories.states[-1].double()
    errors = (koopman.predict(trajectories.states[0]).double() - last).square()
    own = errors.sum(0) / (last - last.mean(0)).square().sum(0)
    assert depth.typical_coordinate == pytest.approx(float(own.median()), rel=1e-4)
    mean = koopman.normalization.maps(3)[0].double()
    expected = errors.sum(1).median() / (last - mean).square().sum(1).median()
    assert depth.typical_row == pytest.approx(float(expected), rel=1e-4)
