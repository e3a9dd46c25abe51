"""Modes in the host's coordinates, eigenfunctions on data, and what a mode is said to mean, against slow counts."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis.spectra.amplitudes import by_group
from koopman_interp.analysis.spectra.meaning import _axes, _steps
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.testing import LinearHost
from tests.analysis.linear import known_operator, linear_data, plain_surrogate, trajectories_of
from tests.hosts.lens_models import tokenizer

TIMES = (0.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def found(surrogate, trajectories):
    return ki.spectrum(surrogate, trajectories)


def test_eigenfunctions_read_the_encoder_and_are_multiplied_at_each_step():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), linear_data(K, TIMES)
    found = ki.spectrum(koopman, data)
    before = ki.eigenfunctions(koopman, found, data)
    np.testing.assert_allclose(before, data.states[0].numpy() @ found.readers, atol=1e-12)
    for depth, time in enumerate(TIMES):
        after = ki.eigenfunctions(koopman, found, data, site=depth, modes=[0, 3])
        np.testing.assert_allclose(after, (before * found.eigenvalues**time)[:, [0, 3]], atol=1e-9)
    # The states are the sum of the modes, each with its amplitude.
    np.testing.assert_allclose(before @ found.modes.T, data.states[0].numpy(), atol=1e-9)


@pytest.mark.parametrize("site", ["blocks.1", -1])
def test_host_modes_are_differences_of_what_is_decoded(surrogate, trajectories, found, site):
    depth = surrogate.sites.index(site) if isinstance(site, str) else len(surrogate.sites) - 1
    double = deepcopy(surrogate).double()
    states = trajectories.states[depth][:5].double()
    point = double.encode(states, depth)
    step = 1e-7
    ours = ki.host_modes(double, found, site=site, states=states)
    for part in ("real", "imag"):
        v = torch.from_numpy(getattr(found.modes, part).copy())
        for mode in range(len(found.eigenvalues)):
            apart = double.decode(point + step * v[:, mode], depth) - double.decode(point - step * v[:, mode], depth)
            slow = (apart / (2 * step)).mean(0).numpy()
            np.testing.assert_allclose(getattr(ours[:, mode], part), slow, atol=1e-6)


def test_the_jacobian_is_that_at_the_mean_unless_told(surrogate, found):
    double = deepcopy(surrogate).double()
    last = len(surrogate.sites) - 1
    mean = double.moments.total_mean(last)[None]
    v = torch.from_numpy(found.modes.real.copy()).T
    step = 1e-8
    slow = (double.decode(mean + step * v, last) - double.decode(mean - step * v, last)) / (2 * step)
    np.testing.assert_allclose(ki.host_modes(double, found).real, slow.numpy().T, atol=1e-5)


def test_amplitudes_by_class_are_those_counted_row_by_row(surrogate, trajectories, found):
    sizes = found.amplitudes
    count = sizes.square.shape[-1]
    for depth in (0, 2):
        phi = ki.eigenfunctions(surrogate, found, trajectories, site=depth)[:, :count]
        for index, label in enumerate(sizes.labels):
            own = phi[(trajectories.labels == label).numpy()]
            np.testing.assert_allclose(sizes.mean[depth, index], own.mean(0), rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(sizes.square[depth, index], (np.abs(own) ** 2).mean(0), rtol=1e-5)
            contrast = np.abs(own.mean(0) - phi.mean(0)) / phi.std(0)
            np.testing.assert_allclose(sizes.contrast(depth)[index], contrast, rtol=1e-4)
        np.testing.assert_allclose(sizes.spread[depth], phi.std(0), rtol=1e-4)
    assert sizes.count.sum() == 600


def test_amplitudes_by_group_are_root_mean_squares():
    values = np.array([[3.0 + 4.0j], [0.0], [1.0]])
    groups, size, count = by_group(values, torch.tensor([7, 7, 2]))
    assert groups.tolist() == [2, 7]
    assert count.tolist() == [1, 2]
    np.testing.assert_allclose(size[:, 0], [1, np.sqrt(12.5)])


def linear_host(K=((0.9, 0.2, 0.0), (0.0, 0.6, 0.0), (0.0, 0.0, 0.3))):
    """A host whose output is its last state, so that what a step changes there is known."""
    host = LinearHost(torch.tensor(K), blocks=3).eval()
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    tap = ki.attach(host)
    data = tap.observe(x, (x[:, 0] > 0).long(), progress=False)
    config = ki.FitConfig(observables=3, normalization=ki.NormalizationConfig(scale="common"))
    koopman = ki.fit(data, config, method="least_squares")
    return host, x, data, koopman


def test_what_a_mode_says_is_the_change_of_the_hosts_own_output():
    host, x, data, koopman = linear_host()
    spectrum = ki.spectrum(koopman, data)
    meanings = ki.describe_modes(koopman, spectrum, data, model=host, batches=[x[:100], x[100:]], names=["a", "b", "c"])
    assert len(meanings) == 3
    for one in meanings:
        phi = ki.eigenfunctions(koopman, spectrum, data, site=-1)[:, one.mode]
        axis = np.exp(0.5j * np.angle(((phi - phi.mean()) ** 2).mean()))
        move = (ki.host_modes(koopman, spectrum, modes=[one.mode])[:, 0] * axis).real * phi.std()
        last = data.states[-1].double()
        logp = [torch.log_softmax(last + sign * torch.from_numpy(move) / 2, 1) for sign in (1, -1)]
        change = (logp[0] - logp[1]).mean(0).numpy()
        told = {**dict(one.up), **dict(one.down)}
        for name, expected in zip("abc", change, strict=True):
            assert told[name] == pytest.approx(expected, abs=1e-4)
        assert all(gain > 0 for _, gain in one.up)
        assert all(loss < 0 for _, loss in one.down)


def test_examples_are_the_rows_farthest_out_and_growth_is_measured():
    _, _, data, koopman = linear_host()
    spectrum = ki.spectrum(koopman, data)
    meanings = ki.describe_modes(koopman, spectrum, data, modes=[0], examples=3)
    (one,) = meanings
    phi = ki.eigenfunctions(koopman, spectrum, data, site=-1)[:, 0].real
    along = (phi - phi.mean()) / phi.std()
    ends = {tuple(np.argsort(-along)[:3]), tuple(np.argsort(along)[:3])}
    assert {tuple(e.row for e in one.high), tuple(e.row for e in one.low)} == ends
    for example in (*one.high, *one.low):
        assert abs(example.amplitude) == pytest.approx(abs(along[example.row]), rel=1e-6)
        assert example.text == f"class {int(data.labels[example.row])}"
    assert min(e.amplitude for e in one.high) > 0 > max(e.amplitude for e in one.low)
    spread = [ki.eigenfunctions(koopman, spectrum, data, site=depth)[:, 0].std() for depth in range(4)]
    np.testing.assert_allclose(one.growth, np.array(spread) / spread[0], rtol=1e-6)
    np.testing.assert_allclose(one.expected, spectrum.decay[0] ** np.arange(4), rtol=1e-9)
    np.testing.assert_allclose(one.growth, one.expected, rtol=1e-2)
    assert one.varying == pytest.approx(phi.var() / (phi**2).mean())
    assert one.up == ()


def test_meanings_print_and_go_through_json(surrogate, trajectories, found, model):
    meanings = ki.describe_modes(surrogate, found, trajectories, modes=2)
    printed = str(meanings)
    assert printed.startswith("ModeMeanings(2 modes at 'blocks.3')")
    assert "expected" in printed
    assert "says more" not in printed
    values = json.loads(json.dumps(meanings.as_dict(), allow_nan=False))
    assert [one["mode"] for one in values["modes"]] == [one.mode for one in meanings]
    assert ki.ModeMeanings.from_dict(values) == meanings
    assert meanings.to_frame()["mode"].tolist() == [one.mode for one in meanings]


def test_batches_of_any_size_say_the_same_and_the_model_names_its_own_tokens():
    host, x, data, koopman = linear_host()
    spectrum = ki.spectrum(koopman, data)
    whole, cut = (
        ki.describe_modes(koopman, spectrum, data, model=host, batches=x, batch_size=size) for size in (300, 7)
    )
    for one, other in zip(whole, cut, strict=True):
        assert dict(one.up).keys() == dict(other.up).keys()
        np.testing.assert_allclose([change for _, change in one.up], [change for _, change in other.up], atol=1e-6)
    host.tokenizer = tokenizer()
    named = ki.describe_modes(koopman, spectrum, data, model=host, batches=x)
    for one, other in zip(whole, named, strict=True):
        names = [host.tokenizer.convert_ids_to_tokens(int(output)) for output, _ in one.up]
        assert [name for name, _ in other.up] == names
    assert "says more" in str(named)


def test_trusted_modes_come_first_and_constant_ones_never():
    K = np.diag([1.0, 0.9, 0.8, 0.7])
    x = np.random.default_rng(0).normal(size=(200, 4))
    x[:, 0] = 2.0
    states = [x @ np.linalg.matrix_power(K, int(time)) for time in TIMES]
    states[1][:, 1] = np.random.default_rng(1).normal(size=200)
    koopman, data = plain_surrogate(K, TIMES), trajectories_of(states, TIMES)
    spectrum = ki.spectrum(koopman, data)
    assert spectrum.verdicts == ("constant", "spurious", "trusted", "trusted")
    assert [one.mode for one in ki.describe_modes(koopman, spectrum, data, modes=2)] == [2, 3]
    assert [one.mode for one in ki.describe_modes(koopman, spectrum, data, modes=4)] == [1, 2, 3]
    (constant,) = ki.describe_modes(koopman, spectrum, data, modes=[0])
    assert (constant.varying, constant.residual) == (0, None)
    assert (constant.high, constant.low, constant.growth) == ((), (), (0, 0, 0))


def test_tokens_are_named_and_shown_in_their_text(surrogate, trajectories, found):
    names = tokenizer()
    ids = torch.arange(600) % 20 + 1
    # One that has most of any mode, but occurs too seldom to be named.
    (chosen,) = ki.describe_modes(surrogate, found, trajectories, modes=1)
    ids[chosen.high[0].row if chosen.high[0].amplitude > -chosen.low[0].amplitude else chosen.low[0].row] = 21
    data = replace(trajectories, tokens=ids, sequence=torch.arange(600) // 20, position=torch.arange(600) % 20)
    (one,) = ki.describe_modes(surrogate, found, data, modes=1, tokenizer=names, examples=2)
    phi = ki.eigenfunctions(surrogate, found, data, site=-1)[:, one.mode]
    axis = np.exp(0.5j * np.angle(((phi - phi.mean()) ** 2).mean()))
    along = ((phi - phi.mean()) * axis.conj()).real
    along = along / along.std()
    sizes = {i: np.sqrt((along[(ids == i).numpy()] ** 2).mean()) for i in range(1, 21)}
    assert np.abs(along[(ids == 21).numpy()]) > max(sizes.values())
    best = sorted(sizes, key=lambda i: -sizes[i])[:2]
    assert [token for token, _, _ in one.tokens] == [names.convert_ids_to_tokens(i) for i in best]
    assert [count for _, _, count in one.tokens] == [int((ids == i).sum()) for i in best]
    means = [along[(ids == i).numpy()].mean() for i in best]
    np.testing.assert_allclose([amplitude for _, amplitude, _ in one.tokens], means, rtol=1e-6)
    assert "⟦" in one.high[0].text


def test_bad_input_gets_a_sentence(surrogate, trajectories, found, model):
    with pytest.raises(InputError, match="give batches beside the model"):
        ki.describe_modes(surrogate, found, trajectories, model=model)
    with pytest.raises(InputError, match="3 outputs; names were given for 2"):
        inputs = [torch.zeros(2, 4)]
        ki.describe_modes(surrogate, found, trajectories, model=model, batches=inputs, names=["a", "b"])
    with pytest.raises(InputError, match="no samples to look for examples among"):
        ki.describe_modes(surrogate, found, trajectories[:0])
    with pytest.raises(InputError, match="no mode 14"):
        ki.describe_modes(surrogate, found, trajectories, modes=[14])
    with pytest.raises(InputError, match="1 mode or more"):
        ki.describe_modes(surrogate, found, trajectories, modes=0)
    with pytest.raises(InputError, match=r"not among the fitted sites"):
        ki.host_modes(surrogate, found, site="blocks.9")
    other = ki.spectrum(plain_surrogate(known_operator(), TIMES), linear_data(known_operator(), TIMES))
    with pytest.raises(InputError, match="modes of 6 observables; the surrogate has 14"):
        ki.host_modes(surrogate, other)
    unfitted = ki.KoopmanAutoencoder(surrogate.config)
    with pytest.raises(InputError, match="not fitted"):
        ki.host_modes(unfitted, found)
    torch.nn.init.ones_(model.head.weight)
    with pytest.raises(HostMismatchError, match="belongs to another host"):
        ki.describe_modes(surrogate, found, trajectories, model=model, batches=[torch.zeros(2, 4)])


def test_a_step_raises_its_own_amplitude_by_a_standard_deviation_and_no_other():
    """Of a complex mode too, whose conjugate moves with it so that the state stays real."""
    _, _, data, koopman = linear_host([[0.8, -0.4, 0.1], [0.5, 0.7, 0.0], [0.0, 0.0, 0.6]])
    found = ki.spectrum(koopman, data)
    chosen = [0, 2]
    assert (found.eigenvalues[chosen].imag > 0).tolist() == [True, False]
    phi = ki.eigenfunctions(koopman, found, data, modes=chosen)
    axes = _axes(phi)
    spread = ((phi - phi.mean(0)) * axes.conj()).real.std(0)
    for place, step in enumerate(_steps(koopman, found, 0, chosen, axes, phi).T):
        first, *rest = data.states
        moved = replace(data, states=(first + torch.from_numpy(step).to(first), *rest))
        raised = ki.eigenfunctions(koopman, found, moved, modes=chosen) - phi
        np.testing.assert_allclose(raised, np.tile((spread * axes) * np.eye(2)[place], (300, 1)), atol=1e-3)
    # No other axis holds more of the variance.
    for angle in np.linspace(0, np.pi, 60):
        assert (((phi - phi.mean(0)) * np.exp(-1j * angle)).real.std(0) <= spread * (1 + 1e-9)).all()


def test_leading_positions_that_were_not_fitted_are_left_out_at_the_output():
    host, x, data, koopman = linear_host()
    spectrum = ki.spectrum(koopman, data)
    sequences = x.reshape(60, 5, 3)
    skipping = deepcopy(koopman)
    skipping.config = replace(koopman.config, skip=2)
    ours, theirs = (
        ki.describe_modes(surrogate, spectrum, data, model=host, batches=[batch])
        for batch, surrogate in ((sequences, skipping), (sequences[:, 2:].reshape(-1, 3), koopman))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert [name for name, _ in one.up] == [name for name, _ in other.up]
        np.testing.assert_allclose([change for _, change in one.up], [change for _, change in other.up], atol=1e-6)


def test_a_constant_stands_out_in_no_class():
    x = np.random.default_rng(0).normal(size=(200, 3))
    x[:, 0] = 2.0
    K = np.diag([1.0, 0.8, 0.7])
    data = trajectories_of(
        [x @ np.linalg.matrix_power(K, int(time)) for time in TIMES], TIMES, (x[:, 1] > 0).astype(int)
    )
    contrast = ki.spectrum(plain_surrogate(K, TIMES), data).amplitudes.contrast()
    assert contrast[:, 0].tolist() == [0, 0]
    assert contrast[:, 1].min() > 0.5


def test_modes_that_cannot_be_judged_are_described_all_the_same():
    host, x, data, koopman = linear_host()
    few = data[:20]
    found = ki.spectrum(koopman, few)
    assert set(found.verdicts) == {"unknown"}
    meanings = ki.describe_modes(koopman, found, few, model=host, batches=x[:20], modes=2)
    assert [meaning.verdict for meaning in meanings] == ["unknown", "unknown"]
