"""Steering, ablation and exchange of tokens along their lens vectors, by hooks on the model's own states.

With v the lens vectors of a site (see `lens_vectors`), x its state and m the median norm of its states:

    steering    x + α m v̂
    ablation    x − Q Qᵀ x         Q an orthonormal basis of the tokens' vectors
    swap        x + α V (σ c − c)   c = V⁺ x the coordinates along two of them, σ their exchange

as in TransformerLens's JacobianLens (Gurnee et al., Transformer Circuits Thread 2026), but for m: it is that of the
states the vectors were taken at, and not of the batch at hand, so that what is written at a place depends on neither
padding, nor the rest of the batch, nor a key-value cache. These change states and not the operator; edits of K, with a
certificate, are made by `erase_concept` and its kin.

What reads best does not move most. A token-wise lens knows nothing of attention, by which the model hears a state at
later places; the directions of a JacobianLens do, and `lens_vectors(…, lens=…)` takes them too. On stories260K a swap
along those goes farther than one along ours (`benchmarks/jacobian_lens.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from koopman_interp.analysis.substitutes.layers import Layers, depths_of_layers
from koopman_interp.analysis.substitutes.lens_vectors import LensVectors
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions
from koopman_interp.hosts.vocabulary import Token
from koopman_interp.own_kinds import own_kinds
from koopman_interp.patching.site_hooks import RowMap, SiteHooks

_NEARLY_PARALLEL = 0.999
"""Cosine of two vectors past which their coordinates are small differences of large numbers."""
_RANK_TOLERANCE = 1e-6


@own_kinds
def steering_hooks(
    model: nn.Module | Host,
    vectors: LensVectors,
    token: Token,
    *,
    strength: float = 1.0,
    layers: Layers = None,
    positions: Positions = None,
    check_weights: bool = True,
) -> SiteHooks:
    """Move states along the direction that says a token.

    Args:
        model: the model that the vectors are of.
        vectors: as `lens_vectors` finds them.
        token: one of theirs, as it was asked for, by name or by id.
        strength: length of the step at each site, in median norms of the states there; negative to say it less. 0
            changes no bit.
        layers: where to write: sites by name, or numbers of blocks, after which it is; None is every site of the
            vectors. Steps at several sites add up.
        positions: places to change, counted from each sequence's first real token on and through a key-value cache: a
            slice, whole numbers, or a function from places `[batch, position]` to a mask. None is the places that the
            surrogate was fitted on, `slice(0, None)` all.
        check_weights: refuse a model whose weights are not the ones that the vectors were taken on.

    Returns:
        The hooks, not yet in force: a context manager, and for TransformerLens a list of hooks.

    Raises:
        HostMismatchError: the vectors belong to another model.
        InputError: there is no such token or layer among the vectors, or no direction at a site.

    Examples:
        >>> import torch, koopman_interp as ki
        >>> from koopman_interp.testing import ResidualMLP
        >>> model = ResidualMLP(inputs=4, width=8, blocks=3, outputs=2).eval()
        >>> x = torch.randn(64, 4)
        >>> koopman = ki.fit(ki.attach(model).observe(x), method="least_squares")
        >>> vectors = ki.lens_vectors(model, koopman, [0, 1], x)
        >>> with torch.no_grad(), ki.steering_hooks(model, vectors, 0, layers=[2]):
        ...     steered = model(x)
        >>> bool((steered[:, 0] > model(x)[:, 0]).all())
        True
    """
    place = vectors.index(token)

    def at(depth: int) -> RowMap:
        direction = _directions(vectors, depth, [place])[0]
        return partial(_added, step=strength * vectors.size[depth] * direction / direction.norm())

    what = f"steer towards {vectors.names[place]!r} by {strength:g}"
    return _hooks(model, vectors, at if strength else None, layers, positions, what, check_weights)


@own_kinds
def ablation_hooks(
    model: nn.Module | Host,
    vectors: LensVectors,
    tokens: Token | Sequence[Token],
    *,
    layers: Layers = None,
    positions: Positions = None,
    check_weights: bool = True,
) -> SiteHooks:
    """Take out of states what lies along the directions that say some tokens.

    Args:
        model: the model that the vectors are of.
        vectors: as `lens_vectors` finds them.
        tokens: one of theirs or several, as they were asked for, by name or by id.
        layers: as for `steering_hooks`.
        positions: as for `steering_hooks`.
        check_weights: as for `steering_hooks`.

    Returns:
        The hooks; applied twice, they do what they do once.

    Raises:
        HostMismatchError: the vectors belong to another model.
        InputError: there is no such token or layer among the vectors, or no direction at a site.
    """
    given = [tokens] if isinstance(tokens, (str, int)) else list(tokens)
    places = [vectors.index(token) for token in given]

    def at(depth: int) -> RowMap:
        rows = torch.nn.functional.normalize(_directions(vectors, depth, places), dim=1)
        _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
        return partial(_without, basis=basis[sizes > _RANK_TOLERANCE * sizes[0]])

    what = f"take out {', '.join(repr(vectors.names[place]) for place in places)}"
    return _hooks(model, vectors, at if places else None, layers, positions, what, check_weights)


@own_kinds
def swap_hooks(
    model: nn.Module | Host,
    vectors: LensVectors,
    token: Token,
    other: Token,
    *,
    strength: float = 1.0,
    layers: Layers = None,
    positions: Positions = None,
    check_weights: bool = True,
) -> SiteHooks:
    """Exchange what states hold of two tokens, in the coordinates that their directions span.

    What is orthogonal to both stays. Swapped twice, a state is what it was, so that at the second of several sites in a
    row, between which these coordinates are kept, a swap can undo the first: where is to be said.

    Args:
        model: the model that the vectors are of.
        vectors: as `lens_vectors` finds them.
        token: one of theirs, as it was asked for, by name or by id.
        other: another one; the same one again changes no bit.
        strength: 1 exchanges the two, 2 goes as far again past that; 0 changes no bit.
        layers: as for `steering_hooks`; None only of vectors that have one site.
        positions: as for `steering_hooks`.
        check_weights: as for `steering_hooks`.

    Returns:
        The hooks.

    Raises:
        HostMismatchError: the vectors belong to another model.
        InputError: there is no such token or layer among the vectors, the two directions are nearly the same one, or
            it is not said where of several sites.
    """
    first, second = vectors.index(token), vectors.index(other)

    def at(depth: int) -> RowMap:
        pair = _directions(vectors, depth, [first, second])
        cosine = float(torch.nn.functional.cosine_similarity(pair[0], pair[1], dim=0))
        if abs(cosine) > _NEARLY_PARALLEL:
            raise InputError(
                f"At {vectors.sites[depth]!r} the directions of {vectors.names[first]!r} and "
                f"{vectors.names[second]!r} are nearly one (cosine {cosine:.4f}), so that nothing tells how much of a "
                "state is whose. Choose other layers, or tokens that are farther apart."
            )
        return partial(_swapped, pair=pair, inverse=torch.linalg.pinv(pair), strength=strength)

    what = f"swap {vectors.names[first]!r} and {vectors.names[second]!r}"
    acts = strength and vectors.tokens[first] != vectors.tokens[second]
    if acts and layers is None and len(vectors.sites) > 1:
        raise InputError(
            f"A swap at one of {len(vectors.sites)} sites can undo that at another. Say where it is to be: "
            f"layers=[{vectors.sites[-1]!r}]."
        )
    return _hooks(model, vectors, at if acts else None, layers, positions, what, check_weights)


def _hooks(
    model: nn.Module | Host,
    vectors: LensVectors,
    at: Callable[[int], RowMap] | None,
    layers: Layers,
    positions: Positions,
    what: str,
    check_weights: bool,
) -> SiteHooks:
    """Hook the maps of some depths; None for a change that is none, for which nothing is hooked."""
    host = host_for(model, vectors.layout)
    ignoring = () if check_weights else ("weights",)
    vectors.host.require(HostFingerprint.of(host), "set of lens vectors", ignoring=ignoring, host=host)
    depths = depths_of_layers(vectors.sites, layers)
    maps = {} if at is None else {vectors.sites[depth]: at(depth) for depth in depths}
    if positions is None and vectors.skip:
        positions = slice(vectors.skip, None)
    return SiteHooks(host, maps, positions, what)


def _directions(vectors: LensVectors, depth: int, places: Sequence[int]) -> Float[Tensor, "token width"]:
    rows = vectors.vectors[depth][list(places)]
    if not bool((torch.isfinite(rows).all(1) & rows.any(1)).all()):
        raise InputError(
            f"At {vectors.sites[depth]!r} there is no direction of a token: its gradient is zero, or not finite. "
            "Choose other layers."
        )
    return rows


def _added(rows: Tensor, step: Float[Tensor, " width"]) -> Tensor:
    return rows + step.to(rows)


def _without(rows: Tensor, basis: Float[Tensor, "direction width"]) -> Tensor:
    basis = basis.to(rows)
    return rows - (rows @ basis.T) @ basis


def _swapped(
    rows: Tensor, pair: Float[Tensor, "2 width"], inverse: Float[Tensor, "width 2"], strength: float
) -> Tensor:
    coordinates = rows @ inverse.to(rows)
    return rows + strength * ((coordinates.flip(-1) - coordinates) @ pair.to(rows))
