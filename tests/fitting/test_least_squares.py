"""Closed-form fits against independent solves in float64."""

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, expm

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.fitting import rows
from koopman_interp.fitting.least_squares import (
    random_features,
    refit_decoder,
    ridge,
    start_encoder,
    start_operator,
    start_rows,
)
from koopman_interp.fitting.rows import HeldRows

HOST = ki.HostFingerprint(model="m.M", adapter="torch", basis="b", dtype="float32", weights="0" * 32)


def built(dimension=4, observables=6, times=(0.0, 1.0, 2.0), **changes):
    """A surrogate with random weights, in float64."""
    depths = len(times)
    settings = {
        "sites": tuple(f"s{depth}" for depth in range(depths)),
        "times": times,
        "widths": (dimension,) * depths,
        "shapes": ((dimension,),) * depths,
        "dimension": dimension,
        "observables": observables,
        "architecture": "linear_plus_nonlinear",
        "hidden": (9,),
        "operator": "dense",
        "rank": None,
        "classes": (),
        "host": HOST,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ki.KoopmanAutoencoder(ki.SurrogateConfig(**(settings | changes))).double()


def states(depths=3, samples=200, width=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=draw, dtype=torch.float64)
    return torch.randn(depths, samples, width, generator=draw, dtype=torch.float64) @ mixing + 0.3


def solved(inputs, outputs, strength):
    """Ridge regression as least squares on stacked rows, which forms no Gram matrix."""
    own = np.sqrt(strength * np.square(inputs).sum(0))
    stacked = np.concatenate([inputs, np.diag(own)])
    padded = np.concatenate([outputs, np.zeros((inputs.shape[1], outputs.shape[1]))])
    return np.linalg.lstsq(stacked, padded, rcond=None)[0]


@pytest.fixture(params=[8192, 37])
def chunk(request, monkeypatch):
    """Rows that are taken at a time: all, or a part that does not divide them."""
    monkeypatch.setattr(rows, "chunk_rows", lambda *_: request.param)


# --- ridge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 1e-4, 1.0])
def test_ridge_is_least_squares_with_a_penalty_on_the_scale_of_each_input(strength):
    x, y = states(1, 50, 5)[0], states(1, 50, 3, seed=1)[0]
    found = ridge(x.T @ x, x.T @ y, strength).numpy()
    np.testing.assert_allclose(found, solved(x.numpy(), y.numpy(), strength), rtol=1e-8, atol=1e-10)
    # So that the units of the inputs, each its own, make no difference to what is predicted.
    units = torch.tensor([1e3, 1.0, 1e-2, 10.0, 0.3], dtype=torch.float64)
    scaled = ridge((x * units).T @ (x * units), (x * units).T @ y, strength)
    np.testing.assert_allclose((units[:, None] * scaled).numpy(), found, rtol=1e-3)


# --- the start of K --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("strength", [0.0, 1e-2])
def test_the_start_of_k_is_the_regression_over_all_neighbouring_depths(strength):
    surrogate, x = built(), states()
    start_operator(surrogate, HeldRows(x), strength)
    with torch.no_grad():
        z = surrogate.encoder(x).numpy()
    expected = solved(np.concatenate(z[:-1]), np.concatenate(z[1:]), strength).T
    np.testing.assert_allclose(surrogate.K.detach().numpy(), expected, rtol=1e-6, atol=1e-8)


def linear_motion(K, times, samples=60):
    """States that K moves exactly, in the encoder's first coordinates."""
    x = torch.randn(samples, len(K), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([x @ torch.linalg.matrix_power(K, int(time)).T for time in times])


def identity_encoder(size, times):
    surrogate = built(size, size, times, hidden=())
    with torch.no_grad():
        # Without a hidden layer, encoder and its small map are linear; together they are the identity.
        surrogate.encoder.nonlinear[0].weight.zero_()
    return surrogate


@pytest.mark.parametrize("times", [(0.0, 2.0), (0.0, 3.0, 6.0), (0.0, 1.0, 4.0, 6.0)])
def test_several_steps_apart_the_root_is_taken(times):
    # Angles whose multiples stay below half a turn, so that the principal root is the right one.
    turn = expm(np.array([[0.0, -0.7], [0.7, 0.0]]))
    basis = np.eye(4) + 0.2 * np.random.default_rng(0).normal(size=(4, 4))
    K = torch.from_numpy(basis @ block_diag(0.9 * turn, 0.8, 0.5) @ np.linalg.inv(basis))
    surrogate = identity_encoder(4, times)
    start_operator(surrogate, HeldRows(linear_motion(K, times)), 0.0)
    torch.testing.assert_close(surrogate.K.detach(), K, rtol=1e-6, atol=1e-8)


def test_of_a_root_that_is_not_real_the_real_part_is_kept():
    surrogate = identity_encoder(2, (0.0, 2.0))
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start_operator(surrogate, HeldRows(torch.stack([x, x @ torch.diag(torch.tensor([0.49, -0.25]).double())])), 0.0)
    torch.testing.assert_close(
        surrogate.K.detach(), torch.diag(torch.tensor([0.7, 0.0], dtype=torch.float64)), rtol=0, atol=1e-7
    )


def test_gaps_of_different_lengths_count_the_same():
    # Two steps of one length and one of another: the mean is over lengths, not over pairs of depths.
    surrogate = identity_encoder(1 + 1, (0.0, 1.0, 2.0, 4.0))
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start_operator(surrogate, HeldRows(torch.stack([x, 0.9 * x, 0.81 * x, 0.25 * 0.81 * x])), 0.0)
    torch.testing.assert_close(surrogate.K.detach(), (0.9 + 0.5) / 2 * torch.eye(2).double(), rtol=1e-7, atol=1e-7)


def test_turning_the_observables_changes_neither_encoding_and_decoding_nor_the_motion():
    # Normal with distinct eigenvalues, so that 2 × 2 blocks hold all of it.
    turns = [r * expm(np.array([[0.0, -a], [a, 0.0]])) for r, a in ((0.9, 0.4), (0.8, 1.0))]
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    K = torch.from_numpy(Q @ block_diag(*turns) @ Q.T)
    surrogate = built(4, 4, (0.0, 1.0), operator="blocks")
    x = linear_motion(K, (0.0, 1.0))
    with torch.no_grad():
        surrogate.encoder.layers_out()[-1].weight.zero_()
        before = surrogate.decoder(surrogate.encoder(x))
        start_operator(surrogate, HeldRows(x), 0.0)
        torch.testing.assert_close(surrogate.decoder(surrogate.encoder(x)), before, rtol=1e-6, atol=1e-6)
        moved = surrogate.encoder(x[0]) @ surrogate.K.T
        torch.testing.assert_close(moved, surrogate.encoder(x[1]), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(surrogate.encoder(x), x, atol=1e-2)


# --- the start of the encoder ----------------------------------------------------------------------------------------


def test_fewer_observables_than_the_width_start_as_the_leading_components():
    surrogate, x = built(dimension=6, observables=2), states(width=6)
    start_encoder(surrogate, HeldRows(x))
    _, _, right = np.linalg.svd(x.flatten(0, 1).numpy(), full_matrices=False)
    expected = right[:2].T @ right[:2]
    W, V = (part.linear.weight.detach().numpy() for part in (surrogate.encoder, surrogate.decoder))
    np.testing.assert_allclose(W.T @ W, expected, atol=1e-10)
    np.testing.assert_allclose(V, W.T, atol=0)
    np.testing.assert_allclose(W @ W.T, np.eye(2), atol=1e-12)


@pytest.mark.parametrize("changes", [{"observables": 4}, {"observables": 9}, {"architecture": "mlp", "observables": 2}])
def test_where_nothing_is_lost_the_encoder_starts_as_it_was_built(changes):
    surrogate, untouched = built(**changes), built(**changes)
    start_encoder(surrogate, HeldRows(states()))
    for name, tensor in surrogate.state_dict().items():
        assert torch.equal(tensor, untouched.state_dict()[name])


@pytest.mark.parametrize(("samples", "observables"), [(100, 5), (8192, 5), (40_000, 5), (40_000, 700), (9_000, 10_000)])
def test_a_start_is_solved_on_enough_rows_that_are_evenly_spaced(samples, observables):
    x = torch.arange(float(samples)).reshape(1, samples, 1)
    rows = start_rows(HeldRows(x), observables).states[0, :, 0]
    assert len(rows) >= min(samples, max(8192, 16 * observables))
    assert len(rows) < 2 * max(8192, 16 * observables) + 1
    assert len(torch.unique(rows.diff())) == 1
    assert rows[0] == 0


# --- random features -------------------------------------------------------------------------------------------------


def test_random_features_carry_the_state_and_are_undone_exactly():
    surrogate, x = built(), states()[0]
    before = torch.get_rng_state()
    random_features(surrogate, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        z = surrogate.encoder(x)
        assert torch.equal(z[:, :4], x)
        assert torch.equal(surrogate.decoder(z), x)
        features = z[:, 4:]
        # Of the hidden layer by hand: none of them a linear function of the state.
        hidden = surrogate.encoder.nonlinear[0]
        leaky = torch.nn.functional.leaky_relu(x @ hidden.weight.T + hidden.bias)
        weight = surrogate.encoder.nonlinear[2].weight[4:]
        torch.testing.assert_close(features, leaky @ weight.T)
    residual = (
        features.numpy()
        - np.c_[x, np.ones(len(x))] @ np.linalg.lstsq(np.c_[x, np.ones(len(x))], features.numpy(), rcond=None)[0]
    )
    assert (residual.std(0) > 1e-3 * features.numpy().std(0)).all()


def test_random_features_come_of_their_generator_and_leave_distances_nearly_as_they_were():
    first, again, other = (built(dimension=4, observables=40, hidden=(64,)) for _ in range(3))
    for surrogate, seed in ((first, 0), (again, 0), (other, 1)):
        random_features(surrogate, torch.Generator().manual_seed(seed))
    x = states()[0]
    with torch.no_grad():
        assert torch.equal(first.encoder(x), again.encoder(x))
        assert not torch.allclose(first.encoder(x), other.encoder(x))
        ratio = torch.nn.functional.pdist(first.encoder(x)) / torch.nn.functional.pdist(x)
    assert float(ratio.min()) >= 1
    assert float(ratio.max()) < 1.1


def test_random_features_need_a_linear_part():
    with pytest.raises(InputError, match="linear_plus_nonlinear"):
        random_features(built(architecture="mlp"), torch.Generator())


# --- the decoder -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(("observables", "strength"), [(6, 0.0), (6, 1e-2), (3, 1e-4)])
def test_the_decoder_is_the_regression_of_states_on_observables(observables, strength):
    surrogate, x = built(observables=observables), states()
    refit_decoder(surrogate, HeldRows(x), strength)
    with torch.no_grad():
        z = surrogate.encoder(x).flatten(0, 1).numpy()
    expected = solved(z, x.flatten(0, 1).numpy(), strength).T
    np.testing.assert_allclose(surrogate.decoder.linear.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-7)


def test_inputs_of_very_different_sizes_are_all_served():
    """No input is lost beside a larger one: a solve in other units of the inputs gives the same map."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    wanted = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    units = torch.tensor([1e6, 1.0, 1e-3, 1e-9], dtype=torch.float64)
    scaled = z * units
    found = ridge(scaled.T @ scaled, scaled.T @ (z @ wanted), 1e-12)
    torch.testing.assert_close(found * units[:, None], wanted, rtol=1e-9, atol=1e-9)
    nothing = torch.cat([scaled, torch.zeros(500, 1, dtype=torch.float64)], 1)
    assert float(ridge(nothing.T @ nothing, nothing.T @ z, 1e-12)[4].abs().max()) == 0


@torch.no_grad()
def test_a_calm_start_does_not_amplify_what_is_nearly_nothing():
    """Observables that an encoder has only begun to make would be blown up, each unit of them to many."""
    surrogate = built(dimension=4, observables=10)
    random_features(surrogate, torch.Generator().manual_seed(0))
    surrogate.encoder.layers_out()[-1].weight.data[4:] *= 1e-3
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    after = 0.8 * x + 0.3 * x.abs()  # of which the features know something
    states = torch.stack([x, after, 0.8 * after + 0.3 * after.abs()])
    largest = {}
    for calm in (True, False):
        start_operator(surrogate, HeldRows(states), 1e-6, calm=calm)
        largest[calm] = float(surrogate.K[:, 4:].abs().max())
    start_operator(surrogate, HeldRows(states), 1e-6, calm=True)
    z, z_next = surrogate.encoder(states[0]), states[1]
    left = (surrogate.K[:4] @ z.T - z_next.T).square().mean()
    assert largest[False] > 100
    assert largest[True] < 1
    assert float(left) < 0.2 * float(z_next.square().mean())
