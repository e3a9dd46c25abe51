"""Transfer modes: what K carries from one depth to another, where the two are different spaces.

An eigenmode is one function, read at both depths. Where these differ, as the states before and after an MLP do, no
function need be carried to a multiple of itself, and pairs of functions take its place: f at the source and g at the
target, both of variance 1 on the rows fitted, of which `Kⁿ` says that g is σ f. They are singular vectors of `Kⁿ` from
the white source. With C the covariances of the rows fitted, in the row convention,

    by variance:     C_s^½ (Kⁿ)ᵀ = U S Vᵀ,           f = (z_s − μ_s) C_s^-½ U,   g = (z_t − μ_t) V / τ,   σ = S / τ
    by correlation:  C_s^½ (Kⁿ)ᵀ C_t^-½ = U S Vᵀ,    f the same,   g = (z_t − μ_t) C_t^-½ V,               σ = S

with τ the standard deviation at the target along V. The first are principal components of what K predicts, that which
carries most of the variance first. The second are canonical variables, the modes of VAMP (Wu & Noé, arXiv 1707.04659),
for motions with noise: of a network, whose states follow from one another, nearly all σ are 1 and their order says
nothing. Costs two eigendecompositions and one singular value decomposition of observables³, and one pass over the rows
that pairs are judged on. Knows nothing of eigenvalues.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from koopman_interp.analysis.encoding import encoded
from koopman_interp.analysis.spectra.eigen import PRINTED
from koopman_interp.annotations import as_annotated
from koopman_interp.depths import span
from koopman_interp.errors import InputError
from koopman_interp.files import Json, jsonable, read_tensors, rebuilding, write_tensors
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import Result
from koopman_interp.sources.opening import Rows
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits, in_percent, percents
from koopman_interp.trajectories import Trajectories

By = Literal["variance", "correlation"]

TOLERANCE = 0.3
"""Pairs whose residual is larger are not trusted."""
FEWEST_ROWS = 100
"""Rows that pairs are judged on, at least: a residual of so many is known to within a tenth."""
_RANK = 1e-8
"""Variance of a direction, relative to the largest, below which it counts as none."""


@dataclass(frozen=True, eq=False, repr=False)
class TransferModes(Result):
    """Pairs of functions, f at the source and g at the target, of which K says that g is σ f.

    Attributes:
        source: site of f.
        target: site of g.
        steps: operator steps between the two.
        singular_values: σ, `[pair]`; at most 1 where K is what least squares gives, more where K promises too much.
        source_readers: `[observable, pair]`: `f(x) = (E(x) − source_mean) · reader`, of variance 1 on the rows fitted.
        target_readers: `[observable, pair]`: g, likewise.
        source_modes: `[observable, pair]`: how observables at the source move with f, their covariance with it.
        target_modes: `[observable, pair]`: by what those at the target move for each unit of g; `Kⁿ` moves them by σ f
            times that.
        source_mean: `[observable]`, of the rows fitted.
        target_mean: `[observable]`.
        correlations: of f and g on the rows given, `[pair]`: what σ is there.
        residuals: `‖g − σ f‖ / ‖g‖` about the means of the rows given, `[pair]`; √(1 − σ²) at best.
        share: of the variance of the observables at the target, on the rows fitted, `[pair]`; that of all pairs is that
            of the whole.
        samples: rows given.
        tolerance: residual up to which a pair is trusted.
        by: what they are in order of, `variance` carried or `correlation`.
    """

    source: str
    target: str
    steps: float
    singular_values: Float[ndarray, " pair"]
    source_readers: Float[ndarray, "observable pair"]
    target_readers: Float[ndarray, "observable pair"]
    source_modes: Float[ndarray, "observable pair"]
    target_modes: Float[ndarray, "observable pair"]
    source_mean: Float[ndarray, " observable"]
    target_mean: Float[ndarray, " observable"]
    correlations: Float[ndarray, " pair"]
    residuals: Float[ndarray, " pair"]
    share: Float[ndarray, " pair"]
    samples: int
    tolerance: float = TOLERANCE
    by: By = "variance"

    def __len__(self) -> int:
        return len(self.singular_values)

    def __repr__(self) -> str:
        return (
            f"TransferModes({len(self)} pairs from {self.source!r} to {self.target!r}, {int(self.trusted.sum())} "
            f"trusted at residual ≤ {self.tolerance:g} on {self.samples:,} samples, which hold "
            f"{in_percent(self.share[self.trusted].sum(), 0)} of the variance there)"
        )

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One word on each pair: *trusted* within the tolerance, *spurious* past it, *unknown* on too few rows.

        Pairs that K hardly carries are spurious by this: of a small σ there is nothing to predict.
        """
        if self.samples < FEWEST_ROWS:
            return ("unknown",) * len(self)
        return tuple("trusted" if residual <= self.tolerance else "spurious" for residual in self.residuals)

    @property
    def trusted(self) -> ndarray:
        """Which pairs are trusted."""
        return np.array([verdict == "trusted" for verdict in self.verdicts], dtype=bool)

    def at_source(self, koopman: KoopmanAutoencoder, trajectories: Trajectories) -> Float[ndarray, "sample pair"]:
        """Evaluate each f on samples."""
        return _read(koopman, trajectories, self.source, self.source_mean, self.source_readers)

    def at_target(self, koopman: KoopmanAutoencoder, trajectories: Trajectories) -> Float[ndarray, "sample pair"]:
        """Evaluate each g on samples."""
        return _read(koopman, trajectories, self.target, self.target_mean, self.target_readers)

    def tables(self, most: int | None = PRINTED) -> tuple[Table]:
        """Return the pairs as a table, in order of what K carries.

        Args:
            most: lines to show; None shows all.
        """
        columns = (
            Column("pair", tuple(range(len(self)))),
            Column("σ", tuple(self.singular_values.tolist()), digits(4)),
            Column("σ on data", tuple(self.correlations.tolist()), digits(4)),
            Column("residual", tuple(self.residuals.tolist()), digits(3)),
            Column("variance at target %", tuple(self.share.tolist()), percents(1)),
            Column("verdict", self.verdicts, left=True),
        )
        where = f"{self.source!r} to {self.target!r}, {self.steps:g} operator step{'' if self.steps == 1 else 's'}"
        first = "most variance first" if self.by == "variance" else "largest σ first"
        return (Table(columns, f"What K carries from {where}; {first}.", most=most),)

    def as_dict(self) -> dict[str, object]:
        """Return the figures as plain values for JSON, None for those not finite; vectors go to files with `save`."""
        vectors = ("singular_values", "correlations", "residuals", "share")
        plain = {name: getattr(self, name) for name in ("source", "target", "steps", "samples", "tolerance", "by")}
        figures = {name: getattr(self, name).tolist() for name in vectors}
        values: dict[str, object] = jsonable(plain | figures | {"verdicts": list(self.verdicts)})
        return values

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, ndarray)}
        header = {name: value for name, value in values.items() if name not in arrays}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        write_tensors(path, tensors, kind="transfer modes", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransferModes:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="transfer modes")
        with rebuilding(path, "transfer modes"):
            values: dict[str, Json] = {name: tensor.numpy() for name, tensor in tensors.items()}
            values |= header
            return as_annotated(cls(**{field.name: values[field.name] for field in fields(cls)}))


@own_kinds
@torch.no_grad()
def transfer_modes(
    koopman: KoopmanAutoencoder,
    trajectories: Rows | Iterable[Trajectories],
    *,
    source: str | int | None = None,
    target: str | int | None = None,
    by: By = "variance",
    tolerance: float = TOLERANCE,
) -> TransferModes:
    """Find what K carries from one depth to another, and judge each pair on data in one pass.

    Args:
        koopman: the fitted surrogate.
        trajectories: rows to judge on, best those that it was not fitted on; in memory, or parts that are read once.
        source: site or depth; None is the first.
        target: site or depth; None is the last.
        by: `variance`, what carries most of the target's variance first, or `correlation`, for motions with noise.
        tolerance: residual up to which a pair is trusted.

    Returns:
        The pairs; as many as source and target both have directions that vary.

    Raises:
        InputError: the target does not lie after the source, the surrogate keeps no moments of a fit, the rows are
            fewer than two or of other sites, or the order or the tolerance is none.
    """
    if not tolerance >= 0:
        raise InputError(f"The tolerance is the largest residual of a trusted pair, 0 or more; got {tolerance}.")
    if by not in get_args(By):
        raise InputError(f"Pairs are in order of {' or '.join(get_args(By))}; got by={by!r}.")
    first, last = span(koopman.sites, source, target)
    if koopman.moments.rows < 2:
        raise InputError("This surrogate keeps no covariances: it was not fitted. Fit it: ki.fit(trajectories).")
    here, there = (koopman.moments.covariance[depth].cpu().numpy() for depth in (first, last))
    means = [koopman.moments.total_mean(depth).cpu().numpy() for depth in (first, last)]
    eye = torch.eye(koopman.config.observables, dtype=torch.float64)
    # Rows of the identity, carried on, are the rows of (Kⁿ)ᵀ.
    power = koopman.operator.advance(eye.to(koopman.K), koopman.steps(first, last)).double().cpu().numpy()
    root, white = _roots(here)
    if by == "correlation":
        U, sizes, Vt = np.linalg.svd(root.T @ power @ _roots(there)[1], full_matrices=False)
        reading = _roots(there)[1] @ Vt.T
        moving = there @ reading
    else:
        U, carried, Vt = np.linalg.svd(root.T @ power, full_matrices=False)
        spread = np.sqrt(np.einsum("pi,ij,pj->p", Vt, there, Vt).clip(0))
        kept = spread > np.sqrt(_RANK) * spread.max()
        U, spread, sizes = U[:, kept], spread[kept], carried[kept] / spread[kept]
        reading, moving = Vt[kept].T / spread, Vt[kept].T * spread
    readers = white @ U, reading
    modes = here @ readers[0], moving
    correlations, residuals, samples = _judged(koopman, trajectories, (first, last), readers, sizes)
    return TransferModes(
        source=koopman.sites[first],
        target=koopman.sites[last],
        steps=koopman.steps(first, last),
        singular_values=sizes,
        source_readers=readers[0],
        target_readers=readers[1],
        source_modes=modes[0],
        target_modes=modes[1],
        source_mean=means[0],
        target_mean=means[1],
        correlations=correlations,
        residuals=residuals,
        share=(modes[1] ** 2).sum(0) / np.trace(there),
        samples=samples,
        tolerance=tolerance,
        by=by,
    )


def _roots(covariance: Float[ndarray, "n n"]) -> tuple[Float[ndarray, "n r"], Float[ndarray, "n r"]]:
    """Return `V √λ` and `V / √λ` of a covariance, without the directions that do not vary."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > _RANK * values[-1]
    if not values[-1] > 0:
        raise InputError("All observables are the same for all samples, so there is nothing that is carried.")
    root = np.sqrt(values[kept])
    return vectors[:, kept] * root, vectors[:, kept] / root


def _judged(
    koopman: KoopmanAutoencoder,
    trajectories: Rows | Iterable[Trajectories],
    depths: tuple[int, int],
    readers: tuple[ndarray, ndarray],
    sizes: Float[ndarray, " pair"],
) -> tuple[Float[ndarray, " pair"], Float[ndarray, " pair"], int]:
    """Return the correlation of f and g on rows, the residual `‖g − σ f‖ / ‖g‖`, and how many rows there were."""
    W = [torch.from_numpy(np.ascontiguousarray(part)) for part in readers]
    count, sums, products = 0, np.zeros((2, len(sizes))), np.zeros((3, len(sizes)))
    for chunk in encoded(koopman, trajectories):
        f, g = ((chunk.z[depth] @ part.to(chunk.z)).cpu().numpy() for depth, part in zip(depths, W, strict=True))
        count += len(f)
        sums += np.stack([f.sum(0), g.sum(0)])
        products += np.stack([(f * f).sum(0), (f * g).sum(0), (g * g).sum(0)])
    if count < 2:
        raise InputError("Pairs are judged on 2 samples or more; got 1. Observe more inputs.")
    outer = np.stack([sums[0] ** 2, sums[0] * sums[1], sums[1] ** 2]) / count
    ff, fg, gg = products - outer
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = fg / np.sqrt(ff * gg)
        residual = np.sqrt(np.maximum(gg - 2 * sizes * fg + sizes**2 * ff, 0) / gg)
    return correlation, residual, count


@torch.no_grad()
def _read(
    koopman: KoopmanAutoencoder, trajectories: Trajectories, site: str, mean: ndarray, readers: ndarray
) -> Float[ndarray, "sample pair"]:
    depth = koopman.sites.index(site)
    z = torch.cat([chunk.z[depth].cpu() for chunk in encoded(koopman, trajectories)])
    return (z.numpy() - mean) @ readers
