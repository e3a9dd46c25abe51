"""Closed-form fits: K and decoder by ridge regression on a fixed encoder; no gradient steps.

Used as the start of every gradient fit, and as a fit of its own, where random features take the place of a trained
encoder. Solves run in float64 on Gram matrices that are summed over chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.rows import HeldRows, Rows
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.context import CausalEncoder
from koopman_interp.surrogates.networks import LinearPlusNonlinear

_START = 8192
"""Samples that a start is solved on, at least."""
_START_ROWS = 16
"""The same for each observable."""
_SOLVED_ROWS = 128
"""Steps of samples per observable that a fit by least squares is solved on: more change its error by less than 1 %."""
_EXACT = 1e-6
"""Fraction of variance unexplained below which there is nothing to choose."""
_FEATURE_SCALE = 0.1
_CALM = 1e-4
"""Ridge of a calm start, relative to the mean square of all observables."""


def ridge(
    gram: Float[Tensor, "inputs inputs"], cross: Float[Tensor, "inputs outputs"], strength: float
) -> Float[Tensor, "inputs outputs"]:
    """Solve `(G + strength · diag G) B = C` for the map B of rows.

    The ridge is relative to each input's own mean square, and so is the solve, so that inputs of very different sizes
    are all served; an input that is zero is given nothing.
    """
    own = gram.diagonal()
    scale = torch.where(own > 0, own, 1).rsqrt()
    unit = scale[:, None] * gram * scale
    unit.diagonal().add_(strength + len(own) * torch.finfo(gram.dtype).eps)
    return scale[:, None] * torch.linalg.solve(unit, scale[:, None] * cross)


def start_rows(rows: Rows, observables: int) -> HeldRows:
    """Take evenly spaced rows, enough to start a gradient fit from; it leaves its start at once.

    Args:
        rows: all of them.
        observables: of the surrogate.
    """
    return rows.spaced(max(_START, _START_ROWS * observables))


def solved_rows(rows: Rows, observables: int) -> HeldRows:
    """Take evenly spaced rows, enough to solve for K and the decoder on."""
    return rows.spaced(max(_START, _SOLVED_ROWS * observables // (rows.depths - 1)))


@torch.no_grad()
def solve(
    surrogate: KoopmanAutoencoder,
    train: Rows,
    strength: float,
    generator: torch.Generator,
    judged: Callable[[KoopmanAutoencoder], float],
) -> str:
    """Fit by least squares on random features, and judge what they are worth beside the states alone.

    The rows that are held out judge, and decide nothing: no bit of the surrogate depends on them.

    Args:
        surrogate: what is fitted.
        train: rows to fit on.
        strength: of the ridge.
        generator: of the features.
        judged: the error of a surrogate on held-out rows.

    Returns:
        How many features there are, and both errors, in words.
    """
    random_features(surrogate, generator)
    start_encoder(surrogate, start_rows(train, surrogate.config.observables))
    rows = solved_rows(train, surrogate.config.observables)
    start_operator(surrogate, rows, strength)
    refit_decoder(surrogate, rows, strength)
    features = surrogate.config.observables - surrogate.config.dimension
    if features <= 0 or surrogate.config.operator != "dense":
        return f"random features: {max(0, features)}"
    plain = _without_features(surrogate, rows, strength)
    ours, theirs = judged(surrogate), judged(plain)
    worse = ours > 1.01 * theirs and ours > _EXACT
    remedy = ", which is better: fit with FitConfig(hidden=())" if worse else ""
    return f"random features: {features}; held-out FVU {ours:.3g} with them, {theirs:.3g} with the states alone{remedy}"


def _without_features(surrogate: KoopmanAutoencoder, rows: HeldRows, strength: float) -> KoopmanAutoencoder:
    """Solve for the motion of the states alone."""
    config = replace(surrogate.config, observables=surrogate.config.dimension, hidden=())
    with torch.random.fork_rng():
        plain = KoopmanAutoencoder(config).to(rows.states)
    random_features(plain, torch.Generator())
    start_operator(plain, rows, strength)
    refit_decoder(plain, rows, strength)
    return plain


@torch.no_grad()
def start_operator(surrogate: KoopmanAutoencoder, rows: Rows, strength: float, *, calm: bool = False) -> None:
    """Set K to the ridge regression of each depth's observables on those of the depth before.

    Args:
        surrogate: whose K is set.
        rows: of all depths.
        strength: of the ridge.
        calm: take the ridge relative to the mean square of all observables, which leaves what is nearly nothing out.
            Observables that an encoder has only begun to make are, and a K that amplifies them is a bad start.

    Sites that lie several steps apart give a power of K, of which the principal root is taken; the root of a
    negative eigenvalue is not real, and only its real part is kept.
    """
    gaps = [later - earlier for earlier, later in itertools.pairwise(surrogate.config.times)]
    size, device = surrogate.config.observables, next(surrogate.decoder.parameters()).device
    zeros = torch.zeros(size, size, dtype=torch.float64, device=device)
    sums = {gap: (zeros.clone(), zeros.clone()) for gap in sorted(set(gaps))}
    for states, sequences in rows.chunks(size):
        z = surrogate.lift(states.to(device), sequences).double()
        for depth, gap in enumerate(gaps):
            gram, cross = sums[gap]
            gram += z[depth].T @ z[depth]
            cross += z[depth].T @ z[depth + 1]
    rows.add_up(tensor for pair in sums.values() for tensor in pair)
    if calm:
        for gram, _ in sums.values():
            gram.diagonal().add_(_CALM * gram.diagonal().mean())
    solve_operator(surrogate, sums, strength)


@torch.no_grad()
def solve_operator(
    surrogate: KoopmanAutoencoder, sums: Mapping[float, tuple[Tensor, Tensor]], strength: float
) -> Float[Tensor, "observable observable"] | None:
    """Set K to the ridge regression that sums over rows give.

    Args:
        surrogate: whose K is set.
        sums: for each gap of operator steps between two depths, `ZᵀZ` of the earlier and `ZᵀZ⁺` with the later one.
        strength: of the ridge.

    Returns:
        Q where observables were turned, `z → z Q`, with encoder and decoder following; None where they were not.
    """
    K = torch.stack([_root(ridge(gram, cross, strength).T, gap) for gap, (gram, cross) in sums.items()]).mean(0)
    turn = surrogate.operator.start_from(K.to(next(surrogate.encoder.parameters())))
    if turn is not None:
        _turn(surrogate, turn)
    return turn


@torch.no_grad()
def start_encoder(surrogate: KoopmanAutoencoder, some: HeldRows) -> None:
    """Where observables are fewer than the width, start from the leading principal components of all depths."""
    encoder, decoder = surrogate.token_encoder, surrogate.decoder
    if not isinstance(encoder, LinearPlusNonlinear) or not isinstance(decoder, LinearPlusNonlinear):
        return
    if surrogate.config.observables >= surrogate.config.dimension:
        return
    gram = sum(rows.T @ rows for rows in (state.double() for state in some.states))
    _, vectors = torch.linalg.eigh(gram)
    components = vectors.flip(1)[:, : surrogate.config.observables].to(some.states.dtype)
    encoder.linear.weight.copy_(components.T)
    decoder.linear.weight.copy_(components)


@torch.no_grad()
def start_linear(surrogate: KoopmanAutoencoder, rows: Rows, strength: float) -> bool:
    """Leave nothing but linear maps: encoder and decoder without their nonlinear parts, and K solved for them.

    That is exact where a host's motion is linear in its states.

    Returns:
        Whether the architecture has such a part; without one, nothing is changed.
    """
    encoder, decoder = surrogate.token_encoder, surrogate.decoder
    if not isinstance(encoder, LinearPlusNonlinear) or not isinstance(decoder, LinearPlusNonlinear):
        return False
    for part in (encoder, decoder):
        last = part.layers_out()[-1]
        last.weight.zero_()
        last.bias.zero_()
    if isinstance(surrogate.encoder, CausalEncoder):
        surrogate.encoder.leave.weight.zero_()
    start_operator(surrogate, rows, strength)
    return True


@torch.no_grad()
def random_features(surrogate: KoopmanAutoencoder, generator: torch.Generator) -> None:
    """Make the encoder `[x, s·φ(x)]` with random leaky-ReLU features φ, and the decoder its exact inverse.

    The features fill the observables past the width and are small, so that distances stay nearly what they were.

    Raises:
        InputError: the architecture has no linear part to carry x.
    """
    encoder, decoder = surrogate.token_encoder, surrogate.decoder
    if not isinstance(encoder, LinearPlusNonlinear) or not isinstance(decoder, LinearPlusNonlinear):
        raise InputError("method='least_squares' needs architecture='linear_plus_nonlinear'.")
    width = surrogate.config.dimension
    for layer in (encoder.layers_out()[-1], decoder.layers_out()[-1]):
        layer.weight.zero_()
        layer.bias.zero_()
    extra = encoder.layers_out()[-1].weight[width:]
    if len(extra):
        extra.copy_(torch.randn(extra.shape, generator=generator).to(extra) * _FEATURE_SCALE * extra.shape[1] ** -0.5)


@torch.no_grad()
def refit_decoder(surrogate: KoopmanAutoencoder, rows: Rows, strength: float) -> None:
    """Set the decoder's linear part to the ridge regression of states on observables, over all depths."""
    decoder = surrogate.decoder
    assert isinstance(decoder, LinearPlusNonlinear)
    size, width = surrogate.config.observables, surrogate.config.dimension
    weight = decoder.linear.weight
    gram = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
    cross = torch.zeros(size, width, dtype=torch.float64, device=weight.device)
    for states, _ in rows.chunks(size):
        for state in states.to(weight.device):
            z = surrogate.token_encoder(state).double()
            gram += z.T @ z
            cross += z.T @ state.double()
    rows.add_up([gram, cross])
    weight.copy_(ridge(gram, cross, strength).T)


def _turn(surrogate: KoopmanAutoencoder, Q: Float[Tensor, "observable observable"]) -> None:
    """Turn the observable space, `z → z Q`, with encoder and decoder following."""
    for layer in surrogate.encoder.layers_out():
        layer.weight.copy_(Q.T @ layer.weight)
        if layer.bias is not None:
            layer.bias.copy_(layer.bias @ Q)
    for layer in surrogate.decoder.layers_in():
        layer.weight.copy_(layer.weight @ Q)


def _root(power: Float[Tensor, "n n"], steps: float) -> Float[Tensor, "n n"]:
    """Return the real part of the principal `steps`-th root."""
    if steps == 1:
        return power
    values, vectors = np.linalg.eig(power.cpu().numpy())
    root = (vectors * values.astype(complex) ** (1 / steps)) @ np.linalg.inv(vectors)
    return torch.from_numpy(np.real(root)).to(power)
