"""Closed-form fits: K and decoder by ridge regression on a fixed encoder; no gradient steps.

Used as the start of every gradient fit, and as a fit of its own, where random features take the place of a trained
encoder. Solves run in float64 on Gram matrices that are summed over chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.row_order import RowOrder
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.context import CausalEncoder
from koopman_interp.surrogates.networks import LinearPlusNonlinear

_CHUNK = 8192
_START_ROWS = 16
"""Samples per observable that a start is solved on, at least."""
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


def start_rows(
    states: Float[Tensor, "depth sample width"], observables: int, order: RowOrder | None = None
) -> tuple[Float[Tensor, "depth some width"], RowOrder | None]:
    """Take evenly spaced samples, enough to start a gradient fit from; it leaves its start at once.

    Args:
        states: normalised.
        observables: of the surrogate.
        order: of the samples, for an encoder that looks back: evenly spaced sequences are taken whole.

    Returns:
        Samples, and their order.
    """
    enough = max(_CHUNK, _START_ROWS * observables)
    if order is not None:
        rows, laid = order.spaced(enough)
        return states[:, rows], RowOrder(laid)
    return states[:, :: max(1, states.shape[1] // enough)], None


def solved_rows(states: Float[Tensor, "depth sample width"], observables: int) -> Float[Tensor, "depth some width"]:
    """Take evenly spaced samples, enough to solve for K and the decoder on."""
    enough = max(_CHUNK, _SOLVED_ROWS * observables // (len(states) - 1))
    return states[:, :: max(1, states.shape[1] // enough)]


@torch.no_grad()
def solve(
    surrogate: KoopmanAutoencoder,
    train: Float[Tensor, "depth sample width"],
    strength: float,
    generator: torch.Generator,
    judged: Callable[[KoopmanAutoencoder], float],
) -> str:
    """Fit by least squares on random features, and judge what they are worth beside the states alone.

    The rows that are held out judge, and decide nothing: no bit of the surrogate depends on them.

    Args:
        surrogate: what is fitted.
        train: normalised states.
        strength: of the ridge.
        generator: of the features.
        judged: the error of a surrogate on held-out rows.

    Returns:
        How many features there are, and both errors, in words.
    """
    random_features(surrogate, generator)
    start_encoder(surrogate, train)
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


def _without_features(
    surrogate: KoopmanAutoencoder, rows: Float[Tensor, "depth sample width"], strength: float
) -> KoopmanAutoencoder:
    """Solve for the motion of the states alone."""
    config = replace(surrogate.config, observables=surrogate.config.dimension, hidden=())
    with torch.random.fork_rng():
        plain = KoopmanAutoencoder(config).to(rows)
    random_features(plain, torch.Generator())
    start_operator(plain, rows, strength)
    refit_decoder(plain, rows, strength)
    return plain


@torch.no_grad()
def start_operator(
    surrogate: KoopmanAutoencoder,
    states: Float[Tensor, "depth sample width"],
    strength: float,
    *,
    calm: bool = False,
    order: RowOrder | None = None,
) -> None:
    """Set K to the ridge regression of each depth's observables on those of the depth before.

    Args:
        surrogate: whose K is set.
        states: normalised.
        strength: of the ridge.
        calm: take the ridge relative to the mean square of all observables, which leaves what is nearly nothing out.
            Observables that an encoder has only begun to make are, and a K that amplifies them is a bad start.
        order: of the samples, for an encoder that looks back.

    Sites that lie several steps apart give a power of K, of which the principal root is taken; the root of a
    negative eigenvalue is not real, and only its real part is kept.
    """
    times = surrogate.config.times
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    size = surrogate.config.observables
    sums: dict[float, tuple[Tensor, Tensor]] = {}
    for gap in sorted(set(gaps)):
        gram = torch.zeros(size, size, dtype=torch.float64, device=states.device)
        cross = torch.zeros_like(gram)
        for depth in (depth for depth, own in enumerate(gaps) if own == gap):
            for z, z_next in _lifted(surrogate, states[depth : depth + 2], order):
                gram += z.T @ z
                cross += z.T @ z_next
        if calm:
            gram.diagonal().add_(_CALM * gram.diagonal().mean())
        sums[gap] = gram, cross
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
def start_encoder(surrogate: KoopmanAutoencoder, states: Float[Tensor, "depth sample width"]) -> None:
    """Where observables are fewer than the width, start from the leading principal components of all depths."""
    encoder, decoder = surrogate.token_encoder, surrogate.decoder
    if not isinstance(encoder, LinearPlusNonlinear) or not isinstance(decoder, LinearPlusNonlinear):
        return
    if surrogate.config.observables >= surrogate.config.dimension:
        return
    rows = states.flatten(0, 1).double()
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    components = vectors.flip(1)[:, : surrogate.config.observables].to(states.dtype)
    encoder.linear.weight.copy_(components.T)
    decoder.linear.weight.copy_(components)


@torch.no_grad()
def start_linear(
    surrogate: KoopmanAutoencoder,
    states: Float[Tensor, "depth sample width"],
    strength: float,
    order: RowOrder | None = None,
) -> bool:
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
    start_operator(surrogate, states, strength, order=order)
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
def refit_decoder(surrogate: KoopmanAutoencoder, states: Float[Tensor, "depth sample width"], strength: float) -> None:
    """Set the decoder's linear part to the ridge regression of states on observables, over all depths."""
    decoder = surrogate.decoder
    assert isinstance(decoder, LinearPlusNonlinear)
    size, width = surrogate.config.observables, surrogate.config.dimension
    gram = torch.zeros(size, size, dtype=torch.float64, device=states.device)
    cross = torch.zeros(size, width, dtype=torch.float64, device=states.device)
    for rows in states.flatten(0, 1).split(_CHUNK):
        z = surrogate.token_encoder(rows).double()
        gram += z.T @ z
        cross += z.T @ rows.double()
    decoder.linear.weight.copy_(ridge(gram, cross, strength).T)


def _lifted(
    surrogate: KoopmanAutoencoder, states: Float[Tensor, "depth sample width"], order: RowOrder | None
) -> Iterator[Float[Tensor, "depth some observable"]]:
    """Go through samples as observables, in float64."""
    if order is None:
        encoder = surrogate.encoder
        assert not isinstance(encoder, CausalEncoder), "an encoder that looks back needs the order of the rows"
        yield from (encoder(chunk).double() for chunk in states.split(_CHUNK, 1))
        return
    for rows, sequences in order.pieces(_CHUNK):
        yield surrogate.lift(states[:, rows], sequences).double()


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
