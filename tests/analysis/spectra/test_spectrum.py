"""Eigenvalues are those of K, and a residual tells true modes from false ones."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, expm

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError, NonFiniteError
from tests.analysis.linear import (
    BLOCKS,
    KNOWN,
    known_operator,
    linear_data,
    pairs_of,
    plain_surrogate,
    trajectories_of,
)


def naive_residuals(found, koopman, trajectories, centre=False):
    """Eigenfunctions evaluated row by row, and compared."""
    residuals = []
    for value, reader in zip(found.operator_eigenvalues, found.readers.T, strict=True):
        missed = size = 0.0
        for gap, before, after in pairs_of(koopman, trajectories):
            now, then = before @ reader, after @ reader
            if centre:
                now, then = now - now.mean(), then - then.mean()
            missed += float((np.abs(then - value**gap * now) ** 2).sum())
            size += float((np.abs(now) ** 2).sum())
        residuals.append(np.sqrt(missed / size))
    return residuals


def naive_span_residuals(found, koopman, trajectories):
    """A later depth, and what as many steps as lie between make of the first, as long as a tenth is left."""
    z = [koopman.encode(state, depth).double().numpy() for depth, state in enumerate(trajectories.states)]
    elapsed = [time - koopman.config.times[0] for time in koopman.config.times]
    residuals = []
    for value, reader in zip(found.operator_eigenvalues, found.readers.T, strict=True):
        end = max(depth for depth, steps in enumerate(elapsed) if abs(value) ** steps >= 0.1)
        now, then, power = z[0] @ reader, z[end] @ reader, value ** elapsed[end]
        about_zero = np.linalg.norm(then - power * now) / np.linalg.norm(then)
        now, then = now - now.mean(), then - then.mean()
        residuals.append(max(about_zero, np.linalg.norm(then - power * now) / np.linalg.norm(then)))
    return residuals


def assert_residuals_as_counted(found, koopman, trajectories, **tolerance):
    zero, mean = (naive_residuals(found, koopman, trajectories, centre=centre) for centre in (False, True))
    np.testing.assert_allclose(found.about_zero, zero, **tolerance)
    np.testing.assert_allclose(found.about_mean, mean, **tolerance)
    np.testing.assert_allclose(found.over_span, naive_span_residuals(found, koopman, trajectories), **tolerance)
    worst = np.maximum.reduce([found.about_zero, found.about_mean, found.over_span])
    if found.unit_error is not None:
        worst = np.maximum(worst, found.decay * found.unit_error)
    np.testing.assert_allclose(found.residuals, worst, rtol=1e-12)


def test_the_eigenvalues_are_those_of_the_known_operator_slowest_first():
    times = (0.0, 1.0, 2.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    np.testing.assert_allclose(found.eigenvalues, KNOWN, atol=1e-10)
    np.testing.assert_allclose(found.decay, [0.95, 0.95, 0.9, 0.7, 0.7, 0.5], atol=1e-10)
    np.testing.assert_allclose(found.rotation, [0.4, -0.4, 0, 2, -2, np.pi], atol=1e-10)
    assert found.samples == 100


def test_vectors_are_eigenvectors_from_either_side():
    times = (0.0, 1.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    np.testing.assert_allclose(K @ found.modes, found.modes * found.eigenvalues, atol=1e-10)
    np.testing.assert_allclose(K.T @ found.readers, found.readers * found.eigenvalues, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(found.modes, axis=0), 1, atol=1e-12)
    # Each reads its own mode only.
    paired = found.readers.T @ found.modes
    np.testing.assert_allclose(paired - np.diag(np.diag(paired)), 0, atol=1e-10)
    assert np.abs(np.diag(paired)).min() > 1e-3


def test_the_same_laws_hold_for_a_fitted_surrogate(surrogate, trajectories):
    found = ki.spectrum(surrogate, trajectories)
    K = surrogate.K.double().numpy()
    np.testing.assert_allclose(K.T @ found.readers, found.readers * found.operator_eigenvalues, atol=1e-9)
    expected = np.sort_complex(np.linalg.eigvals(K))
    np.testing.assert_allclose(np.sort_complex(found.operator_eigenvalues), expected, atol=1e-9)
    assert (np.diff(found.decay) <= 1e-9).all()
    assert_residuals_as_counted(found, surrogate, trajectories, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 1.0, 2.0, 3.0), (0.0, 2.0, 3.0), (2.0, 5.0)])
def test_nothing_is_left_over_on_linear_data(times):
    K = known_operator()
    data = linear_data(K, times)
    found = ki.spectrum(plain_surrogate(K, times), data)
    assert found.residuals.max() < 1e-6
    assert found.trusted.all()


def test_parts_of_a_step_take_the_eigenvalue_to_their_power():
    generator = np.array([[-0.1, -0.6, 0], [0.6, -0.1, 0.2], [0, 0, -0.4]])
    times = (0.0, 0.5, 2.0)
    data = linear_data(generator, times, power=lambda A, time: expm(A * time))
    found = ki.spectrum(plain_surrogate(generator, times, "generator"), data)
    np.testing.assert_allclose(np.sort(found.decay)[::-1], np.exp([-0.1, -0.1, -0.4]), atol=1e-10)
    assert found.residuals.max() < 1e-6


def test_much_is_left_over_on_noise_and_as_much_as_counted_row_by_row():
    times = (0.0, 1.0, 2.0)
    draw = np.random.default_rng(2)
    noise = trajectories_of(draw.normal(size=(3, 80, 6)), times)
    koopman = plain_surrogate(known_operator(), times)
    found = ki.spectrum(koopman, noise)
    assert found.residuals.min() > 0.9
    assert not found.trusted.any()
    assert_residuals_as_counted(found, koopman, noise, rtol=1e-9)


@pytest.mark.parametrize("times", [(0.0, 1.0, 2.0), (0.0, 3.0, 4.0)])
def test_a_residual_in_between_is_as_counted_row_by_row(times):
    K = known_operator()
    clean = linear_data(K, times)
    draw = torch.Generator().manual_seed(3)
    spoilt = replace(
        clean,
        states=tuple(s + 0.1 * torch.randn(s.shape, generator=draw, dtype=s.dtype) for s in clean.states),
    )
    koopman = plain_surrogate(K, times)
    found = ki.spectrum(koopman, spoilt)
    assert 0.01 < found.residuals.min() < found.residuals.max()
    assert_residuals_as_counted(found, koopman, spoilt, rtol=1e-8)


def test_many_rows_are_streamed(monkeypatch):
    times = (0.0, 1.0, 2.0)
    koopman = plain_surrogate(known_operator(), times)
    noise = trajectories_of(np.random.default_rng(2).normal(size=(3, 80, 6)), times)
    whole = ki.spectrum(koopman, noise).residuals
    monkeypatch.setattr("koopman_interp.analysis.encoding._CHUNK_NUMBERS", 64 * 3 * 6)
    np.testing.assert_allclose(ki.spectrum(koopman, noise).residuals, whole, rtol=1e-12)


def test_the_tolerance_marks_modes():
    times = (0.0, 1.0)
    noise = trajectories_of(np.random.default_rng(2).normal(size=(2, 80, 6)), times)
    koopman = plain_surrogate(known_operator(), times)
    strict, lax = (ki.spectrum(koopman, noise, tolerance=tolerance) for tolerance in (0.1, 10.0))
    assert "0 trusted at residual ≤ 0.1" in repr(strict)
    assert str(strict).count("spurious") == 4
    assert "spurious" not in str(lax)
    # What the data give for λ is not asked here.
    strict = replace(strict, solved_anew=None)
    assert replace(lax, solved_anew=None).trusted.all()
    between = float(np.median(strict.residuals))
    some = replace(strict, tolerance=between).trusted
    assert some.tolist() == (strict.residuals <= between).tolist()
    assert 0 < some.sum() < 6


def test_what_the_data_contradict_is_not_trusted():
    """An eigenfunction that leans on another has a small residual at an eigenvalue that neither has."""
    true = np.array([[0.9, 30.0], [0.0, 0.5]])
    values = np.linalg.eigvals(true)
    wrong = true + np.array([[0.0, 0.0], [0.002, 0.0]])
    found = ki.spectrum(plain_surrogate(wrong, TIMES), linear_data(true, TIMES, rows=500))
    off = np.abs(found.eigenvalues[:, None] - values).min(1)
    assert off.max() > 0.1
    assert "contradicted" in found.verdicts
    assert not found.trusted[off > 0.1].any()
    np.testing.assert_allclose(np.sort(found.solved_anew.real), np.sort(values), atol=1e-6)


def test_an_error_that_adds_up_over_the_span_is_seen():
    """Each step is off by a little, the same way; the whole span is off by much."""
    times = tuple(map(float, range(11)))
    K = np.diag([0.95, 0.7])
    found = ki.spectrum(plain_surrogate(K + np.diag([-0.06, 0]), times), linear_data(K, times, rows=200))
    assert found.about_mean[0] < 0.1 < found.over_span[0]
    assert found.over_span[0] == pytest.approx(1 - (0.89 / 0.95) ** 10, rel=1e-6)
    assert found.verdicts == ("spurious", "trusted")


def test_fewer_than_ten_samples_a_mode_judge_nothing():
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=59))
    assert set(found.verdicts) == {"unknown"}
    assert "fewer than 10 samples a mode" in str(found)
    assert ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=60)).trusted.all()


def test_without_one_scale_there_are_no_host_units():
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES))
    assert not found.in_host_units
    assert "no host's units" in str(found)


def test_energy_orders_modes_and_counts_shares():
    K = np.diag([0.9, 0.8, 0.7])
    x = np.random.default_rng(0).normal(size=(2000, 3)) * [1.0, 10.0, 0.1]
    data = trajectories_of([x @ np.linalg.matrix_power(K, int(time)) for time in TIMES], TIMES)
    found = ki.spectrum(plain_surrogate(K, TIMES), data)
    assert found.energy.sum() == pytest.approx(1)
    assert found.by_energy().columns[0].values == (1, 0, 2)
    assert found.tables()[0].columns[0].values == (0, 1, 2)
    assert found.variance_in() == pytest.approx(1)
    assert found.variance_in([1]) == pytest.approx(found.energy[1], abs=0.01)
    assert found.variance_in([]) == 0


def test_a_normal_operator_is_well_conditioned_and_a_crooked_one_is_not():
    times = (0.0, 1.0)
    normal = block_diag(*BLOCKS)
    assert ki.spectrum(plain_surrogate(normal, times), linear_data(normal, times)).condition == pytest.approx(1)
    crooked = np.array([[0.9, 5.0], [0.0, 0.9 - 1e-6]])
    found = ki.spectrum(plain_surrogate(crooked, times), linear_data(crooked, times))
    assert found.condition > 1e6


def test_an_operator_that_only_stretches_has_a_spectrum():
    times = (0.0, 1.0)
    K = np.array([[0.9, 0.3], [0.0, 0.5]])
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    assert np.iscomplexobj(found.modes)
    assert np.iscomplexobj(found.readers)
    np.testing.assert_allclose(found.eigenvalues, [0.9, 0.5], atol=1e-12)
    assert found.residuals.max() < 1e-6


def test_a_conjugate_pair_is_one_line():
    times = (0.0, 1.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    lines = found.tables()[0].text().split("\n")[2:]
    assert [line.split()[2] for line in lines] == ["±22.9", "0.0", "±114.6", "180.0"]
    assert [line.split()[0] for line in lines] == ["0", "2", "3", "5"]
    frame = found.to_frame()
    assert frame["mode"].tolist() == [0, 2, 3, 5]
    np.testing.assert_allclose(frame["|λ|"], found.decay[frame["mode"]])
    np.testing.assert_allclose(frame["turn, °"], np.degrees(found.rotation[frame["mode"]]))


def test_the_head_is_as_long_as_asked():
    times = (0.0, 1.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    assert len(found.tables()[0].text().split("\n")) == 2 + 4
    assert len(found.tables(2)[0].text().split("\n")) == 2 + 2 + 1
    assert "… and 2 more" in found.head(2)
    assert len(found.tables(2)[0].frame()) == 4


def test_plain_values_go_through_json():
    times = (0.0, 1.0)
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, times), linear_data(K, times))
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    np.testing.assert_array_equal([complex(*pair) for pair in values["eigenvalues"]], found.eigenvalues)
    assert values["residuals"] == found.residuals.tolist()
    assert (values["samples"], values["condition"]) == (100, found.condition)


def test_other_sites_are_refused(surrogate, trajectories):
    with pytest.raises(InputError, match=r"the sites blocks\.0, blocks\.1"):
        ki.spectrum(surrogate, trajectories.between("blocks.0", None))


def test_nothing_is_changed(surrogate, trajectories):
    before = copy.deepcopy(surrogate.state_dict())
    ki.spectrum(surrogate, trajectories)
    assert all(torch.equal(tensor, before[name]) for name, tensor in surrogate.state_dict().items())


TIMES = (0.0, 1.0, 2.0)


def test_an_eigenfunction_that_is_the_same_for_all_samples_is_not_trusted():
    mix = np.eye(7)
    mix[-1, :-1] = 0.2
    K = mix @ block_diag(*BLOCKS, [[1.0]]) @ np.linalg.inv(mix)
    x = np.random.default_rng(0).normal(size=(80, 7))
    x[:, -1] = 3.0  # which every step keeps, and no observable shows alone
    states = [x @ mix.T @ np.linalg.matrix_power(K, int(time)).T for time in TIMES]
    found = ki.spectrum(plain_surrogate(K, TIMES), trajectories_of(states, TIMES))
    constant = [index for index, verdict in enumerate(found.verdicts) if verdict == "constant"]
    assert len(constant) == 1
    assert found.eigenvalues[constant[0]] == pytest.approx(1)
    assert found.about_zero[constant[0]] < 1e-6
    assert np.isinf(found.residuals[constant[0]])
    assert not found.trusted[constant[0]]
    assert found.trusted.sum() == 6
    assert "1 mode is constant" in str(found)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["residuals"][constant[0]] is None


def test_an_offset_does_not_pass_for_a_prediction():
    draw = np.random.default_rng(0)
    noise = trajectories_of(20 + draw.normal(size=(3, 200, 2)), TIMES)
    K = np.diag([1.0, 0.5])
    found = ki.spectrum(plain_surrogate(K, TIMES), noise)
    assert found.about_zero[0] < 0.1  # φ hardly changes, beside its size
    assert found.residuals[0] > 1  # and what differs between samples is not predicted at all
    assert not found.trusted[0]


def test_observables_that_the_data_never_reach_are_not_judged():
    K = np.diag([0.9, 0.8, 0.7])
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1, 0, 1]
    data = trajectories_of([x @ np.linalg.matrix_power(K, int(time)).T for time in TIMES], TIMES)
    found = ki.spectrum(plain_surrogate(K, TIMES), data)
    assert found.verdicts == ("trusted", "unreached", "trusted")
    assert np.isinf(found.residuals[1])
    assert "1 mode is unreached" in str(found)
    assert found.as_dict()["residuals"][1] is None
    low, high = found.intervals.decay[1]
    assert (low, high) == (-np.inf, np.inf)


@pytest.mark.parametrize("size", [2, 3])
def test_a_jordan_block_is_said_to_be_defective(size):
    K = 0.9 * np.eye(size + 1) + np.diag([1.0] * (size - 1) + [0.0], 1)
    K[-1, -1] = 0.3
    found = ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES))
    assert found.verdicts == ("defective",) * size + ("trusted",)
    assert "without an eigenvector of their own" in str(found)
    assert all(np.isfinite(part).all() for part in (found.modes, found.readers))
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_zero_operator_has_a_spectrum_too():
    K = np.zeros((3, 3))
    found = ki.spectrum(plain_surrogate(K, TIMES), linear_data(K + 1e-3, TIMES))
    np.testing.assert_array_equal(found.eigenvalues, 0)
    assert "Spectrum(3 modes" in repr(found)


def test_a_badly_conditioned_spectrum_is_still_recovered_from_data():
    K = np.diag([0.9, 0.8, 0.7]) + np.triu(np.full((3, 3), 30.0), 1)
    found = ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES))
    np.testing.assert_allclose(found.eigenvalues, [0.9, 0.8, 0.7], atol=1e-9)
    assert found.condition > 1e4
    assert found.trusted.all()
    # φ is read past observables that are thousands of times larger.
    np.testing.assert_allclose(found.readers.T @ found.modes, np.eye(3), atol=1e-8)


def test_a_stream_gives_what_the_whole_gives(surrogate, trajectories):
    whole = ki.spectrum(surrogate, trajectories)
    parts = (trajectories[start : start + 100] for start in range(0, 600, 100))
    streamed = ki.spectrum(surrogate, parts)
    np.testing.assert_allclose(streamed.residuals, whole.residuals, rtol=1e-6)
    np.testing.assert_allclose(streamed.intervals.decay, whole.intervals.decay, rtol=1e-6)
    np.testing.assert_allclose(streamed.amplitudes.mean, whole.amplitudes.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(streamed.amplitudes.square, whole.amplitudes.square, rtol=1e-6)
    np.testing.assert_array_equal(streamed.amplitudes.count, whole.amplitudes.count)
    assert streamed.samples == 600


@pytest.mark.parametrize("modes", [1, 2, 5, 12])
def test_a_few_modes_are_the_first_of_all(surrogate, trajectories, modes):
    whole = ki.spectrum(surrogate, trajectories)
    few = ki.spectrum(surrogate, trajectories, modes=modes)
    count = len(few.eigenvalues)
    assert modes - 1 <= count <= max(2, modes)
    np.testing.assert_allclose(few.eigenvalues, whole.eigenvalues[:count], rtol=1e-9)
    np.testing.assert_allclose(few.residuals, whole.residuals[:count], rtol=1e-5)
    assert few.grams.width == count


def test_a_spectrum_comes_back_from_its_file(tmp_path, surrogate, trajectories):
    found = ki.spectrum(surrogate, trajectories)
    found.save(tmp_path / "spectrum.safetensors")
    back = ki.Spectrum.load(tmp_path / "spectrum.safetensors")
    assert str(back) == str(found)
    assert back.as_dict() == found.as_dict()
    np.testing.assert_array_equal(back.modes, found.modes)
    np.testing.assert_array_equal(back.amplitudes.mean, found.amplitudes.mean)
    assert back.amplitudes.labels == found.amplitudes.labels
    with pytest.raises(FileFormatError, match="holds 'spectrum'"):
        ki.Grams.load(tmp_path / "spectrum.safetensors")


def test_bad_input_gets_a_sentence(surrogate, trajectories):
    with pytest.raises(InputError, match="no samples"):
        ki.spectrum(surrogate, trajectories[:0])
    with pytest.raises(InputError, match="1 to 14 modes; asked for 15"):
        ki.spectrum(surrogate, trajectories, modes=15)
    with pytest.raises(InputError, match="between 0 and 1; got 95"):
        ki.spectrum(surrogate, trajectories, level=95.0)
    for tolerance in (-0.1, float("nan")):
        with pytest.raises(InputError, match="0 or more; got"):
            ki.spectrum(surrogate, trajectories, tolerance=tolerance)
    spoilt = [state.clone() for state in trajectories.states]
    spoilt[1][3, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="row 3"):
        ki.spectrum(surrogate, replace(trajectories, states=tuple(spoilt)))


def test_an_encoder_that_overflows_is_told_from_states_that_do():
    koopman = plain_surrogate(known_operator(), TIMES)
    koopman.encoder.linear.weight.mul_(1e300)
    huge = trajectories_of(1e10 * np.ones((3, 20, 6)), TIMES)
    with pytest.raises(NonFiniteError, match="encoder made NaN or infinity of finite states"):
        ki.spectrum(koopman, huge)


def test_parts_with_and_without_labels_do_not_mix(surrogate, trajectories):
    parts = [trajectories[:100], replace(trajectories[100:200], labels=None)]
    with pytest.raises(InputError, match="with all or with none"):
        ki.spectrum(surrogate, parts)
