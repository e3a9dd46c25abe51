"""Normalisation: one affine map per depth that brings all depths to one width and scale, and bends the operator least.

Each depth is centred. Where all widths agree, one basis serves all depths, the principal components of the pooled,
centred and scaled states; a basis of its own for each depth would turn the motion. Scales are geometric in depth,
`s_l = s₀ gᵗ`, which multiplies the operator by 1/g and leaves it otherwise as it is, or each depth's own. Before all
that, the few coordinates that outlie the others, as large language models have them, are brought down to the others'
size; where one basis serves all depths, so do the factors, and eigenvalues stay the host's. The maps are
`y = (x − mean) forward`, undone by `x = mean + y inverse`; all comes from means and second moments, which one streamed
pass gathers (see `state_moments`). Knows nothing of hosts or operators.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from koopman_interp.errors import InputError
from koopman_interp.processes import Processes
from koopman_interp.surrogates.coordinates import Centre, Coordinates, NormalizationConfig, Scale
from koopman_interp.surrogates.state_moments import Linearity, StateMoments

MOST_COMPONENTS = 1024
"""Components kept at most, unless told otherwise."""
FEWEST_CUT = 64
"""Components that are kept before any is cut for its small variance: narrow states cost little whole."""

UNEVEN = math.log(1.5)
"""Largest distance of a depth's log size from even growth up to which a geometric scale is taken unasked."""
LINEAR = 0.01
"""Share of the motion that one linear operator may leave unexplained for a geometric scale to be taken in any case."""
AFFINE = 1e-6
"""Share of the motion that one linear operator may leave unexplained for a motion to count as affine."""
ONE_MAP, NO_WORSE = 0.1, 2.0
"""Share of the motion that one affine map may leave, and how many times what a map for each step leaves, for a motion
to count as one and the same map at all depths."""

OUTLYING = 10.0
"""Size of a coordinate, in units of the root mean square of those that do not outlie, from which on it does."""
MOST_OUTLYING = 0.05
"""Share of the coordinates that may outlie; one may in any case."""

_RANK_TOLERANCE = 1e-10
_PRECISE_TOLERANCE = 1e-14
"""Share of the largest variance from which on a component is more than rounding: of sums in float32, in float64."""


class Normalization(nn.Module):
    """Affine maps between the states of each depth and one common space; made by `fit_normalization`.

    Args:
        widths: width of the state at each depth.
        dimension: width of the common space.

    The maps are buffers `mean_l [width]`, `forward_l [width, dimension]` and `inverse_l [dimension, width]`, with
    `inverse_l @ forward_l` the identity. So normalising undoes denormalising exactly, and denormalising undoes
    normalising on the range of `inverse_l`: everywhere, where no component was dropped.
    """

    def __init__(self, widths: Sequence[int], dimension: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.dimension = dimension
        self.coordinates = Coordinates()
        for depth, width in enumerate(self.widths):
            self.register_buffer(f"mean_{depth}", torch.zeros(width))
            self.register_buffer(f"forward_{depth}", torch.eye(width, dimension))
            self.register_buffer(f"inverse_{depth}", torch.eye(dimension, width))

    def normalize(self, states: Float[Tensor, "*batch width"], depth: int) -> Float[Tensor, "*batch dimension"]:
        """Map states at a depth to the common space."""
        mean, forward, _ = self.maps(depth)
        return (states.to(mean.dtype) - mean) @ forward

    def denormalize(self, points: Float[Tensor, "*batch dimension"], depth: int) -> Float[Tensor, "*batch width"]:
        """Map points of the common space back to states at a depth."""
        mean, _, inverse = self.maps(depth)
        return mean + points @ inverse

    def denormalize_difference(
        self, difference: Float[Tensor, "*batch dimension"], depth: int
    ) -> Float[Tensor, "*batch width"]:
        """Map a difference of two points back to a difference of two states at a depth."""
        return difference @ self.maps(depth)[2]

    def maps(self, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, forward and inverse of a depth."""
        return (
            self.get_buffer(f"mean_{depth}"),
            self.get_buffer(f"forward_{depth}"),
            self.get_buffer(f"inverse_{depth}"),
        )


def fit_normalization(
    batches: Iterable[Sequence[Float[Tensor, "_ _"]]],
    config: NormalizationConfig | None = None,
    *,
    times: Sequence[float] | None = None,
    stride: int = 1,
    dtype: torch.dtype = torch.float32,
    processes: Processes | None = None,
) -> Normalization:
    """Fit a normalisation in one pass.

    Args:
        batches: chunks of trajectories, each a sequence with one tensor of rows a depth.
        config: which steps to take.
        times: of the depths, in operator steps; None is one step apart.
        stride: second moments are taken of every so many-th row.
        dtype: of the maps; the solves run in float64.
        processes: that each give chunks of their own, for the maps of all.

    Returns:
        The fitted maps.

    Raises:
        InputError: there are fewer samples than the kept dimension needs, or a depth never varies.
    """
    config = config or NormalizationConfig()
    moments: StateMoments | None = None
    for states in batches:
        if moments is None:
            widths = [state.shape[1] for state in states]
            _require_basis(widths, config)
            moments = StateMoments(
                widths,
                min(config.dimension or MOST_COMPONENTS, *widths),
                align=config.align,
                stride=stride,
                processes=processes,
            )
        moments.update(states)
    if moments is not None:
        moments.add_up()
    if moments is None or moments.count == 0:
        raise InputError("There are no samples to fit a normalisation on.")
    return _solved(moments, config, tuple(map(float, times or range(len(moments.widths)))), dtype)


def _require_basis(widths: Sequence[int], config: NormalizationConfig) -> None:
    if config.dimension is not None and config.dimension > min(widths):
        raise InputError(
            f"Cannot keep {config.dimension} components of a depth of width {min(widths)}. "
            f"Set NormalizationConfig(dimension=…) to {min(widths)} or less."
        )
    if len(set(widths)) == 1:
        return
    if config.basis == "shared":
        raise InputError(
            f"One basis for all depths needs one width; the depths have {list(widths)}. Leave basis=None, or give "
            "basis='per depth'."
        )
    if config.centre == "common":
        raise InputError(
            f"One centre for all depths needs one width; the depths have {list(widths)}. Leave centre='auto', or give "
            "centre='per depth'."
        )


def _solved(
    moments: StateMoments, config: NormalizationConfig, times: Sequence[float], dtype: torch.dtype
) -> Normalization:
    """Turn moments into maps."""
    depths = range(len(moments.widths))
    shared = config.basis == "shared" or (config.basis is None and len(set(moments.widths)) == 1)
    centres = [moments.mean(depth) for depth in depths]
    factors = _factors([_variances(moments, depth) for depth in depths], shared)
    linearity = moments.linearity(factors[0]) if shared else None
    centre = _centre(linearity, times, config)
    if centre == "common":
        centres = [torch.stack(centres).mean(0)] * len(centres)
        factors = _factors([_variances(moments, depth, centres[depth]) for depth in depths], shared)
    variances = [
        float((_variances(moments, depth, centres[depth]) * factors[depth].square()).sum()) for depth in depths
    ]
    scale, growth, reason = _scale(variances, moments.widths, times, linearity, centre, config)
    sizes = _sizes(variances, moments.widths, times, scale, growth)
    weights = [1 / (size**2 * len(sizes)) for size in sizes]
    bases = (
        [moments.components(depths, weights, centres, factors[0])] * len(sizes)
        if shared
        else [
            moments.components([depth], [1 / sizes[depth] ** 2], [centres[depth]], factors[depth]) for depth in depths
        ]
    )
    tolerance = _PRECISE_TOLERANCE if moments.precise else _RANK_TOLERANCE
    dimension = config.dimension or max(
        _kept(values, config.variance, moments.widths, tolerance) for values, _ in bases
    )
    dimension = min(dimension, *moments.widths)
    # As few rows as components leave the rank of the rows where that of the states is asked for.
    wanted = config.dimension or max(dimension, min(moments.count, FEWEST_CUT, *moments.widths))
    _require_rows(moments.count, wanted)
    maps = []
    for size, factor, (values, vectors) in zip(sizes, factors, bases, strict=True):
        kept = values[:dimension].clamp_min(values[0] * tolerance) ** (config.whiten / 2)
        forward, inverse = vectors[:, :dimension] / (kept * size), (vectors[:, :dimension] * kept * size).T
        maps.append((factor[:, None] * forward, inverse / factor))
    normalization = Normalization(moments.widths, dimension).to(dtype)
    for depth, (forward, inverse) in enumerate(maps):
        if config.align and depth < len(maps) - 1:
            rotation = _procrustes(moments.cross(depth, forward, maps[-1][0]))
            forward, inverse = forward @ rotation, rotation.T @ inverse
        for buffer, value in zip(normalization.maps(depth), (centres[depth], forward, inverse), strict=True):
            buffer.copy_(value)
    own = growth if shared and not config.align and config.whiten == 0 else None
    outlying = max(int((factor < 1).sum()) for factor in factors)
    normalization.coordinates = Coordinates(
        "shared" if shared else "per depth", scale, own, config.align and len(maps) > 1, centre, reason, outlying
    )
    return normalization


def _factors(variances: Sequence[Float[Tensor, " _"]], shared: bool) -> list[Float[Tensor, " _"]]:
    """Return what each coordinate of each depth is multiplied by, at one for all depths where they share a basis."""
    if not shared:
        return [_factors_of(each) for each in variances]
    # Depths count alike, whatever their sizes.
    pooled = torch.stack([each / each.mean() for each in variances]).mean(0)
    return [_factors_of(pooled)] * len(variances)


def _factors_of(variances: Float[Tensor, " coordinate"]) -> Float[Tensor, " coordinate"]:
    """Bring the coordinates that outlie, those still `OUTLYING` times the size of all after them, to these' size."""
    most = max(1, int(MOST_OUTLYING * len(variances)))
    descending = variances.sort(descending=True).values
    totals = descending.flip(0).cumsum(0).flip(0)
    for count in range(min(most, len(variances) - 1), 0, -1):
        level = float(totals[count]) / (len(variances) - count)
        smallest = float(descending[count - 1])
        if 0 < OUTLYING**2 * level < smallest:
            return torch.where(variances >= smallest, level / variances, 1.0).sqrt()
    return torch.ones_like(variances)


def _centre(linearity: Linearity | None, times: Sequence[float], config: NormalizationConfig) -> Centre:
    """Choose between centres: one keeps a map the same at all depths, and so do several, if the map is affine."""
    if config.centre != "auto":
        return config.centre
    gaps = {later - earlier for earlier, later in itertools.pairwise(times)}
    if linearity is None or len(gaps) > 1 or linearity.centred <= AFFINE:
        return "per depth"
    one_map = linearity.affine <= min(ONE_MAP, NO_WORSE * linearity.own)
    return "common" if one_map else "per depth"


def _scale(
    variances: Sequence[float],
    widths: Sequence[int],
    times: Sequence[float],
    linearity: Linearity | None,
    centre: Centre,
    config: NormalizationConfig,
) -> tuple[Scale, float | None, str]:
    """Choose between scales; return the choice, growth by step, and why."""
    logs = [math.log(variance / width) / 2 for variance, width in zip(variances, widths, strict=True)]
    slope, off = _line(times, logs)
    growth: dict[Scale, float | None] = {"common": 1.0, "geometric": math.exp(slope), "per depth": None}
    if config.scale != "auto":
        return config.scale, growth[config.scale], "asked for"
    if centre == "common":
        return "common", 1.0, "the motion is nearly one map at all depths, and stays one so"
    left = math.inf if linearity is None else linearity.centred
    if left <= AFFINE:
        return "common", 1.0, "the motion is one linear operator on the states"
    if off <= UNEVEN:
        return "geometric", math.exp(slope), f"sizes grow evenly with depth, within a factor of {math.exp(off):.2f}"
    if left <= LINEAR:
        return "geometric", math.exp(slope), f"one linear operator on the states leaves {left:.1e} of the motion"
    return "per depth", None, f"sizes grow unevenly with depth, by up to a factor of {math.exp(off):.1f}"


def _line(times: Sequence[float], logs: Sequence[float]) -> tuple[float, float]:
    """Fit a line by least squares; return its slope, and the largest distance from it."""
    middle, level = sum(times) / len(times), sum(logs) / len(logs)
    spread = sum((time - middle) ** 2 for time in times)
    slope = sum((time - middle) * (log - level) for time, log in zip(times, logs, strict=True)) / spread
    return slope, max(abs(log - level - slope * (time - middle)) for time, log in zip(times, logs, strict=True))


def _sizes(
    variances: Sequence[float], widths: Sequence[int], times: Sequence[float], scale: str, growth: float | None
) -> list[float]:
    """Root mean square of a coordinate that each depth is divided by."""
    own = [math.sqrt(variance / width) for variance, width in zip(variances, widths, strict=True)]
    if scale == "common":
        return [math.sqrt(sum(variances) / sum(widths))] * len(own)
    if growth is None:
        return own
    middle = sum(times) / len(times)
    level = math.exp(sum(map(math.log, own)) / len(own))
    return [level * growth ** (time - middle) for time in times]


def _variances(
    moments: StateMoments, depth: int, centre: Float[Tensor, " width"] | None = None
) -> Float[Tensor, " width"]:
    """Return the variance of each coordinate, or its mean square about a centre."""
    variances = moments.variances(depth)
    if centre is not None:
        variances = variances + (moments.mean(depth) - centre).square()
    if not variances.any():
        raise InputError(
            f"The state at depth {depth} is the same for all {moments.count} samples, so it cannot be normalised. "
            "Leave that site out, or observe varied inputs."
        )
    return variances


def _kept(values: Float[Tensor, " component"], share: float, widths: Sequence[int], tolerance: float) -> int:
    """Components that hold a share of the variance, at least as many as are kept whole, and none that is null."""
    values = values.clamp_min(0)
    enough = int((values.cumsum(0) < share * values.sum()).sum()) + 1
    real = int((values > values[0] * tolerance).sum())
    return max(2, min(max(enough, FEWEST_CUT), real, MOST_COMPONENTS, *widths))


def _require_rows(count: int, dimension: int) -> None:
    if count <= dimension:
        raise InputError(
            f"{dimension} principal components need more than {dimension} samples; got {count}. Observe more, ten "
            "times as many at best, or keep fewer components: FitConfig(normalization=NormalizationConfig(dimension="
            f"{max(1, count // 4)}))."
        )


def _procrustes(cross: Float[Tensor, "dimension dimension"]) -> Float[Tensor, "dimension dimension"]:
    """Return the orthogonal R that minimises ‖Y_l R − Y_L‖, from `Y_lᵀ Y_L` (Schönemann 1966)."""
    left, _, right = torch.linalg.svd(cross)
    return left @ right
