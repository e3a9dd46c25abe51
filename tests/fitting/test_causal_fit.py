"""Fits whose encoder looks back: they see what earlier rows tell, keep sequences whole, and say what they cannot."""

from dataclasses import replace

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FitInterrupted, InputError
from koopman_interp.fitting.data import InMemory
from koopman_interp.fitting.row_order import RowOrder
from koopman_interp.surrogates.context import CausalEncoder
from koopman_interp.surrogates.normalization import fit_normalization
from koopman_interp.testing import ResidualMLP
from tests.causal import fitted
from tests.interrupting import interrupted_at

LENGTHS, WIDTH = (5, 9, 7), 6
SMALL = {"observables": 16, "hidden": (32,), "context_width": 16, "context_heads": 2, "context": "causal"}


def moved_by_what_came_before(inputs=150, skip=0):
    """Trajectories whose second state is the mean of the sequence up to there: nothing that a row alone tells."""
    generator = torch.Generator().manual_seed(0)
    host = ki.attach(ResidualMLP(4, WIDTH, 2, 3).eval()).observe(torch.randn(4, 4), progress=False).host
    before, after, sequence, position = [], [], [], []
    for number in range(inputs):
        length = LENGTHS[number % len(LENGTHS)]
        states = torch.randn(length, WIDTH, generator=generator)
        mean = states.cumsum(0) / torch.arange(1, length + 1)[:, None]
        before.append(states)
        after.append(2.0 * mean)
        sequence.append(torch.full((length,), number))
        position.append(torch.arange(skip, skip + length))
    return ki.Trajectories(
        (torch.cat(before), torch.cat(after)),
        ("first", "second"),
        (0.0, 1.0),
        host,
        torch.cat(sequence),
        torch.cat(position),
        skip=skip,
    )


@pytest.fixture(scope="module")
def data():
    return moved_by_what_came_before()


@pytest.fixture(scope="module")
def quick():
    return ki.FitConfig(steps=60, evaluate_every=20, batch_size=128, **SMALL)


@pytest.fixture(scope="module")
def surrogate(data, quick):
    return ki.fit(data, quick, progress=False)


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def fvu(koopman, data):
    held_out = data[koopman.is_held_out(data)]
    found = koopman.predict(held_out.states[0], 0, 1, sequences=held_out.in_sequence())
    last = held_out.states[1]
    return float((found - last).square().sum() / (last - last.mean(0)).square().sum())


def test_it_sees_what_a_row_alone_does_not_tell(data):
    settings = {"steps": 500, "batch_size": 256, "observables": 16, "hidden": (32,)}
    looking = ki.fit(data, ki.FitConfig(**(settings | SMALL)), progress=False)
    blind = ki.fit(data, ki.FitConfig(**settings), progress=False)
    assert fvu(looking, data) < 0.6 * fvu(blind, data)


@pytest.mark.parametrize("pairs", ["sampled", "all", "endpoints"])
@pytest.mark.parametrize("aim", ["prediction", "spectrum"])
def test_every_kind_of_fit_lowers_its_loss(data, quick, aim, pairs):
    koopman = ki.fit(data, replace(quick, aim=aim, pairs=pairs), progress=False)
    history = koopman.record.history
    assert min(look["loss"] for look in history[1:]) < history[0]["loss"]
    assert isinstance(koopman.encoder, CausalEncoder)
    assert koopman.encoder.leave.weight.any()


def test_at_its_start_it_is_the_token_wise_fit(data, quick):
    """From one seed, encoder, K and decoder begin alike; what the context adds begins at nothing."""
    still = replace(quick, steps=1, learning_rate=1e-30, averaging=0.0)
    first = [ki.fit(data, replace(still, context=each), progress=False) for each in ("causal", None)]
    for name in ("operator", "decoder"):
        assert same_weights(getattr(first[0], name), getattr(first[1], name))
    assert same_weights(first[0].token_encoder, first[1].encoder)


def test_moments_are_those_of_whole_sequences(data, surrogate, monkeypatch):
    fitted_on = data[~surrogate.is_held_out(data)]
    z = surrogate.encode(fitted_on.states[1], 1, fitted_on.in_sequence()).double()
    torch.testing.assert_close(surrogate.moments.total_mean(1), z.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(surrogate.moments.covariance[1], torch.cov(z.T, correction=0), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("koopman_interp.surrogates.autoencoder._CHUNK", 11)  # cuts sequences, were they not kept whole
    again = ki.KoopmanAutoencoder(surrogate.config)
    again.load_state_dict(surrogate.state_dict())
    again.record = surrogate.record
    again.gather_moments(data)
    torch.testing.assert_close(again.moments.covariance, surrogate.moments.covariance, rtol=1e-4, atol=1e-5)


def test_observables_are_those_of_whole_sequences_whatever_rows_are_wanted(data, surrogate, monkeypatch):
    whole = surrogate.encode(data.states[0], 0, data.in_sequence())
    monkeypatch.setattr("koopman_interp.surrogates.autoencoder._CHUNK", 11)
    rows = torch.tensor([40, 3, 3, 700])
    torch.testing.assert_close(surrogate.observables_of(data, 0), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(surrogate.observables_of(data, 0, rows), whole[rows], rtol=1e-5, atol=1e-5)


def test_it_is_saved_and_loaded(surrogate, data, tmp_path):
    surrogate.save_pretrained(tmp_path)
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    assert loaded.config == surrogate.config
    assert loaded.digest() == surrogate.digest()
    sequences = data.in_sequence()
    assert torch.equal(loaded.encode(data.states[0], 0, sequences), surrogate.encode(data.states[0], 0, sequences))


def test_what_it_looks_back_by_is_in_the_digest(surrogate):
    other = ki.KoopmanAutoencoder(surrogate.config)
    other.load_state_dict(surrogate.state_dict())
    assert other.digest() == surrogate.digest()
    other.encoder.leave.weight.data[0, 0] += 1
    assert other.digest() != surrogate.digest()


@pytest.mark.parametrize("stop", [0, 25, 45])
def test_a_resumed_fit_is_bit_identical_to_one_never_interrupted(data, quick, surrogate, tmp_path, monkeypatch, stop):
    path = tmp_path / "kept.safetensors"
    mend = interrupted_at(monkeypatch, stop)
    with pytest.raises(FitInterrupted):
        ki.fit(data, quick, checkpoint=path, progress=False)
    mend()
    assert same_weights(ki.fit(data, quick, checkpoint=path, resume=True, progress=False), surrogate)


def test_the_rows_of_a_step_are_whole_sequences(data):
    order = RowOrder.of(data, torch.device("cpu"))
    rows, sequences = order.take(torch.tensor([4, 0]))
    assert data.sequence[rows].tolist() == [4] * LENGTHS[1] + [0] * LENGTHS[0]
    assert data.position[rows].tolist() == [*range(LENGTHS[1]), *range(LENGTHS[0])]
    assert torch.equal(sequences.take(data.states[0][rows])[1, : LENGTHS[0]], data.states[0][: LENGTHS[0]])
    pieces = [rows for rows, _ in order.pieces(30)]
    assert torch.equal(torch.cat(pieces), torch.arange(len(data)))
    assert len(order.first(3)[0]) == LENGTHS[0], "one sequence at least"
    assert len(order.first(20)[0]) == LENGTHS[0] + LENGTHS[1]


def test_the_order_of_the_rows_makes_no_difference(data, surrogate):
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    mixed = data[order]
    found = surrogate.encode(mixed.states[0], 0, mixed.in_sequence())
    torch.testing.assert_close(found, surrogate.encode(data.states[0], 0, data.in_sequence())[order])


def test_skipped_places_are_not_missed():
    data = moved_by_what_came_before(skip=1)
    koopman = fitted(data)
    assert koopman.config.skip == 1


def test_what_a_context_cannot_do_is_refused(data, quick, unchecked):
    with pytest.raises(InputError, match="method='least_squares' takes none"):
        ki.fit(data, quick, method="least_squares")
    with pytest.raises(InputError, match="isometry='chords' moves one row alone"):
        replace(quick, isometry="chords")
    with pytest.raises(InputError, match="context='future' is not one of causal, None"):
        replace(quick, context="future")
    with pytest.raises(InputError, match=r"where place 4 was expected there is place 5"):
        ki.fit(data[data.position != 4], quick, progress=False)
    alone = replace(data[data.position == 0], position=torch.zeros(150, dtype=torch.long))
    with pytest.raises(InputError, match=r"each input here has one row alone\. Fit with context=None"):
        ki.fit(alone, quick, progress=False)


@pytest.mark.parametrize(("dimension", "heads", "width"), [(10, 4, 64), (100, 4, 96), (4096, 4, 256), (64, 3, 60)])
def test_the_width_of_a_context_follows_the_states(dimension, heads, width):
    assert ki.FitConfig(context="causal", context_heads=heads).context_shape(dimension).width == width
    assert ki.FitConfig().context_shape(dimension) is None


@pytest.mark.parametrize("statistics", [100, 400, 5000])
def test_a_solve_goes_through_whole_sequences_of_inputs_drawn(data, statistics):
    rows = InMemory(data, ki.FitConfig(**SMALL, statistics=statistics))
    normalization = fit_normalization(rows.chunks(), times=data.times)
    train, _ = rows.rows(normalization, torch.device("cpu"))
    first = normalization.normalize(data.states[0], 0)
    found = []
    for states, laid in train.chunks(2):
        nearest = torch.cdist(states[0], first).argmin(1)
        for line in laid.rows:
            numbers = nearest[line[line >= 0]]
            whole = (data.sequence == data.sequence[numbers[0]]).nonzero()[:, 0]
            assert torch.equal(numbers, whole)  # all of its rows, in their order
        found += nearest.tolist()
    assert len(found) == len(set(found)) == pytest.approx(min(statistics, rows.fitted), rel=0.25)
    assert not bool(rows.is_held_out(data.digests[found]).any())
