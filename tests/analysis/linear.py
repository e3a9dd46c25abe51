"""Linear systems with a known spectrum, and surrogates that are exact on them."""

import numpy as np
import torch
from scipy.linalg import block_diag

import koopman_interp as ki
from koopman_interp.testing import LinearHost

HOST = ki.HostFingerprint(model="m.M", adapter="torch", basis="b", dtype="float64", weights="0" * 32)


def turn(radius, angle):
    return radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


BLOCKS = (turn(0.95, 0.4), turn(0.7, 2.0), [[0.9]], [[-0.5]])
KNOWN = np.array([0.95 * np.exp(0.4j), 0.95 * np.exp(-0.4j), 0.9, 0.7 * np.exp(2.0j), 0.7 * np.exp(-2.0j), -0.5])
"""Slowest decay first, and the upper member of a pair before the lower."""


def known_operator(seed=0):
    basis = np.eye(6) + 0.3 * np.random.default_rng(seed).normal(size=(6, 6))
    return basis @ block_diag(*BLOCKS) @ np.linalg.inv(basis)


def plain_surrogate(K, times, kind="dense"):
    """Observables are the states themselves: no normalisation, and encoder and decoder the identity."""
    depths = len(times)
    config = ki.SurrogateConfig(
        sites=tuple(f"site.{depth}" for depth in range(depths)),
        times=times,
        widths=(len(K),) * depths,
        shapes=((len(K),),) * depths,
        dimension=len(K),
        observables=len(K),
        architecture="linear_plus_nonlinear",
        hidden=(4,),
        operator=kind,
        rank=None,
        classes=(),
        host=HOST,
    )
    koopman = ki.KoopmanAutoencoder(config).double().eval().requires_grad_(False)
    for part in (koopman.encoder, koopman.decoder):
        part.linear.weight.copy_(torch.eye(len(K)))
        part.nonlinear[-1].weight.zero_()
    parameter = koopman.operator.K if kind == "dense" else koopman.operator.A
    parameter.copy_(torch.from_numpy(K))
    return koopman


def trajectories_of(states, times, labels=None):
    return ki.Trajectories(
        states=tuple(torch.as_tensor(state, dtype=torch.float64) for state in states),
        sites=tuple(f"site.{depth}" for depth in range(len(states))),
        times=times,
        host=HOST,
        sequence=torch.arange(len(states[0])),
        position=torch.zeros(len(states[0]), dtype=torch.long),
        labels=None if labels is None else torch.as_tensor(labels),
    )


def clouds_of(*clouds, labels=None):
    """One cloud a depth, one step apart."""
    return trajectories_of(clouds, tuple(map(float, range(len(clouds)))), labels)


def whole_power(K, time):
    return np.linalg.matrix_power(K, int(time))


def linear_data(K, times, rows=100, power=whole_power):
    x = np.random.default_rng(1).normal(size=(rows, len(K)))
    return trajectories_of([x @ power(K, time).T for time in times], times)


def noisy_data(K, times, rows, noise, seed=0):
    """Each step adds noise of its own, so that least squares over steps finds K without bias."""
    draw = np.random.default_rng(seed)
    states = [draw.normal(size=(rows, len(K)))]
    for _ in times[1:]:
        states.append(states[-1] @ K.T + noise * draw.normal(size=(rows, len(K))))
    return trajectories_of(states, times)


def pairs_of(koopman, trajectories):
    """All pairs of consecutive depths, row by row: gap, observables before and after."""
    times = koopman.config.times
    for depth in range(trajectories.depths - 1):
        before, after = (koopman.encode(trajectories.states[d], d).double().numpy() for d in (depth, depth + 1))
        yield times[depth + 1] - times[depth], before, after


def exact_on_a_linear_host():
    """A host each of whose three blocks is one matrix K, K, inputs, what was observed, and a surrogate exact on it."""
    K = torch.eye(6) * 0.9 + 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    model = LinearHost(K, 3).eval()
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    data = ki.attach(model).observe(x, progress=False)
    # Without a scale and a rotation of its own for each depth, all steps of the normalised states are one matrix.
    config = ki.FitConfig(observables=6, ridge=0.0, normalization=ki.NormalizationConfig(scale="common"))
    return model, K, x, data, ki.fit(data, config, method="least_squares")
