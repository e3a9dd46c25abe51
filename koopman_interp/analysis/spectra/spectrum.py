"""The spectrum of K, with a certificate beside each eigenvalue.

K is not normal, so eigenvalues alone mislead. For each pair the residual of residual dynamic mode decomposition
(Colbrook & Townsend, arXiv 2111.14889) is computed on the given rows from the Gram matrices that one streamed pass
gathers, with an interval over resampled inputs. An eigenfunction that is the same for all samples has no residual to
speak of and tells nothing of the samples; it is marked and not trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy import ndarray
from torch import Tensor

from koopman_interp.analysis.encoding import encoded
from koopman_interp.analysis.spectra.amplitudes import AmplitudePass, Amplitudes
from koopman_interp.analysis.spectra.eigen import DEFECTIVE, PRINTED, eigen, real_basis, turned, uncut
from koopman_interp.analysis.spectra.grams import GramPass, Grams
from koopman_interp.analysis.spectra.intervals import LEADING, Intervals, intervals
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import Json, read_tensors, write_tensors
from koopman_interp.results import Result
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits
from koopman_interp.trajectories import Trajectories

TOLERANCE = 0.3
"""Modes whose residual is larger are marked spurious."""

SHARDS = 32
"""Parts of the observed inputs that are resampled for intervals."""

_CONSTANT = 1e-6
_UNREACHED = 1e-14

Verdict = Literal["trusted", "spurious", "constant", "unreached", "defective"]

_SENTENCES = {
    "constant": "the same for all samples, so without a residual to speak of",
    "unreached": "zero on all samples, so not judged",
    "defective": "without an eigenvector of their own to working precision; read the Schur form instead",
}


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Result):
    """Eigenvalues and eigenvectors of K, slowest decay first, and how far the data bear them out.

    Attributes:
        eigenvalues: λ, `[mode]`.
        modes: right eigenvectors, `[observable, mode]`: what each mode looks like in observables.
        readers: left eigenvectors, `[observable, mode]`: the eigenfunction of a mode is `φ(x) = E(x) · reader`.
        residuals: the larger of the next two, `[mode]`; infinite where φ is constant or zero on the rows given.
        condition: condition number of the eigenvector matrix; large means that eigenvalues move far for small
            changes of K.
        samples: rows that the residuals were measured on.
        tolerance: residual past which a mode is marked spurious.
        about_zero: `‖φ(x_next) − λ φ(x)‖ / ‖φ(x)‖` over the rows given, `[mode]`; a gap of several steps takes λ to
            that power.
        about_mean: the same with each depth's mean of φ taken off, so that an offset common to all samples does not
            pass for a prediction, `[mode]`.
        varying: share of the mean of |φ|² that differs between samples, `[mode]`.
        sensitivity: condition number of each eigenvalue, `[mode]`.
        intervals: over resampled inputs, of the slowest modes.
        amplitudes: of the slowest modes, by class and depth.
        grams: what the residuals were computed from; not saved with it.
    """

    eigenvalues: Complex[ndarray, " mode"]
    modes: Complex[ndarray, "observable mode"]
    readers: Complex[ndarray, "observable mode"]
    residuals: Float[ndarray, " mode"]
    condition: float
    samples: int
    tolerance: float = TOLERANCE
    about_zero: Float[ndarray, " mode"] | None = None
    about_mean: Float[ndarray, " mode"] | None = None
    varying: Float[ndarray, " mode"] | None = None
    sensitivity: Float[ndarray, " mode"] | None = None
    intervals: Intervals | None = None
    amplitudes: Amplitudes | None = None
    grams: Grams | None = None

    @property
    def decay(self) -> Float[ndarray, " mode"]:
        """|λ|: by what factor a mode's amplitude changes in one step.

        A growth that all directions share is in the normalisation and not in K, unless it was fitted with `scale=None`.
        """
        return np.abs(self.eigenvalues)

    @property
    def rotation(self) -> Float[ndarray, " mode"]:
        """Arg λ: by what angle a mode turns in one step, in radians.

        A rotation that all samples share is in the normalisation and not in K, unless it was fitted with `align=False`.
        """
        return np.angle(self.eigenvalues)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One word on each mode.

        *trusted*: the residual is within the tolerance; *spurious*: it is not; *constant*: φ is the same for all
        samples; *unreached*: φ is zero on all samples; *defective*: λ has no eigenvector of its own.
        """
        varying = np.ones(len(self.residuals)) if self.varying is None else self.varying
        sensitivity = np.ones(len(self.residuals)) if self.sensitivity is None else self.sensitivity
        return tuple(
            "unreached"
            if np.isnan(varies)
            else "constant"
            if varies < _CONSTANT
            else "defective"
            if sensitive > DEFECTIVE
            else "trusted"
            if residual <= self.tolerance
            else "spurious"
            for residual, varies, sensitive in zip(self.residuals, varying, sensitivity, strict=True)
        )

    @property
    def trusted(self) -> ndarray:
        """Which modes keep their residual under the tolerance, and have one."""
        return np.array([verdict == "trusted" for verdict in self.verdicts], dtype=bool)

    def __repr__(self) -> str:
        of_all = "" if len(self.eigenvalues) == len(self.modes) else f"of {len(self.modes)} "
        return (
            f"Spectrum({len(self.eigenvalues)} {of_all}modes, {int(self.trusted.sum())} with residual ≤ "
            f"{self.tolerance:g} on {self.samples:,} samples, largest |λ| {self.decay[0]:.3f}, eigenvector condition "
            f"{self.condition:.1e})"
        )

    def tables(self, most: int | None = PRINTED) -> tuple[Table]:
        """Return the modes as a table, slowest first; a conjugate pair is one line.

        Args:
            most: lines to show; None shows all.
        """
        upper = [index for index, value in enumerate(self.eigenvalues) if value.imag >= 0]
        level = 0.95 if self.intervals is None else self.intervals.level
        verdicts = self.verdicts
        columns = (
            Column("mode", tuple(upper)),
            Column("|λ|", tuple(self.decay[upper].tolist()), digits(4)),
            Column("turn, °", tuple(np.degrees(self.rotation[upper]).tolist()), turned),
            Column("residual", tuple(self._residual(index) for index in upper), digits(3)),
            Column(f"|λ| on data, {level:.0%}", tuple(map(self._on_data, upper)), _ends, parts=("low", "high")),
            Column("verdict", tuple(verdicts[index] for index in upper), left=True),
        )
        caption = "Slowest modes first; a conjugate pair is one line. |λ| and turn are per operator step."
        return (Table(columns, caption, most=most),)

    def notes(self) -> tuple[str, ...]:
        """Say what the verdicts mean that leave a mode without a residual."""
        counts = {verdict: self.verdicts.count(verdict) for verdict in _SENTENCES}
        return tuple(
            f"{count} {'mode is' if count == 1 else 'modes are'} {verdict}: {_SENTENCES[verdict]}."
            for verdict, count in counts.items()
            if count
        )

    def head(self, most: int) -> str:
        """Print the slowest modes, as many as asked for."""
        return "\n\n".join([repr(self), self.tables(most)[0].text(), *self.notes()])

    def _residual(self, index: int) -> float | None:
        residual = float(self.residuals[index])
        return residual if np.isfinite(residual) else None

    def _on_data(self, index: int) -> tuple[float, float] | None:
        if self.intervals is None or index >= len(self.intervals.decay):
            return None
        low, high = self.intervals.decay[index].tolist()
        return low, high

    def as_dict(self) -> dict[str, Json]:
        """Return plain values for JSON; a residual is None where it certifies nothing."""
        verdicts = self.verdicts
        certified = (verdict in ("trusted", "spurious") for verdict in verdicts)
        residuals = zip(self.residuals.tolist(), certified, strict=True)
        return {
            "eigenvalues": [[value.real, value.imag] for value in self.eigenvalues.tolist()],
            "residuals": [residual if certified else None for residual, certified in residuals],
            "verdicts": list(verdicts),
            "condition": self.condition if np.isfinite(self.condition) else None,
            "samples": self.samples,
            "tolerance": self.tolerance,
            "intervals": None if self.intervals is None else self.intervals.as_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file, all but the Gram matrices, which have a `save` of their own."""
        parts = {name: getattr(self, name) for name in (*_VECTORS, *_OPTIONAL)}
        header: dict[str, Json] = {name: getattr(self, name) for name in ("condition", "samples", "tolerance")}
        if self.intervals is not None:
            parts |= {f"intervals.{name}": getattr(self.intervals, name) for name in _INTERVALS}
            header["intervals"] = {n: getattr(self.intervals, n) for n in ("level", "draws", "shards", "samples")}
        if self.amplitudes is not None:
            parts |= {f"amplitudes.{name}": getattr(self.amplitudes, name) for name in _AMPLITUDES}
            header["labels"] = self.amplitudes.labels
        tensors = {name: _as_real(part) for name, part in parts.items() if part is not None}
        write_tensors(path, tensors, kind="spectrum", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Spectrum:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="spectrum")
        try:
            parts = {name: tensors[name].numpy() for name in tensors}
            for name in {"eigenvalues", "modes", "readers", "intervals.estimate", "amplitudes.mean"} & set(parts):
                parts[name] = torch.view_as_complex(tensors[name]).numpy()
            own: dict[str, Json] = {name: parts[name] for name in _VECTORS}
            own |= {name: parts.get(name) for name in _OPTIONAL}
            if "intervals" in header:
                kept: dict[str, Json] = {name: parts[f"intervals.{name}"] for name in _INTERVALS}
                own["intervals"] = Intervals(**kept, **header["intervals"])
            if "labels" in header:
                kept = {name: parts[f"amplitudes.{name}"] for name in _AMPLITUDES}
                own["amplitudes"] = Amplitudes(**kept, labels=tuple(header["labels"]))
            return cls(**own, **{name: header[name] for name in ("condition", "samples", "tolerance")})
        except (KeyError, TypeError, RuntimeError) as error:
            raise FileFormatError(f"{path} lacks parts of a spectrum. Write it again from its source.") from error


_VECTORS = ("eigenvalues", "modes", "readers", "residuals")
_OPTIONAL = ("about_zero", "about_mean", "varying", "sensitivity")
_INTERVALS = ("estimate", "correlation", "decay", "rotation", "residual")
_AMPLITUDES = ("mean", "square", "count")


def _ends(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:.3f}…{high:.3f}" if np.isfinite(high) else "unknown"


def _as_real(part: ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(part))
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


@torch.no_grad()
def spectrum(
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories | Iterable[Trajectories],
    *,
    tolerance: float = TOLERANCE,
    modes: int | None = None,
    shards: int = SHARDS,
    level: float = 0.95,
) -> Spectrum:
    """Decompose K, and judge each eigenpair on data in one pass.

    Args:
        koopman: the fitted surrogate.
        trajectories: rows to judge on, held-out ones, if the residuals are to mean anything: in memory, or parts that
            are read once, as `Tap.stream` gives them.
        tolerance: residual past which a mode is marked spurious.
        modes: how many of the slowest to find; None is all up to 2,048 observables, and 256 of wider surrogates, whose
            Gram matrices are then those of these modes alone.
        shards: parts of the observed inputs that are resampled for intervals.
        level: of the intervals, as a share.

    Returns:
        The spectrum, slowest decay first.

    Raises:
        InputError: the trajectories have other sites than the surrogate, or no samples; or tolerance or level is none.
        NonFiniteError: a state is NaN or infinite.
    """
    if not tolerance >= 0:
        raise InputError(f"The tolerance is the largest residual of a trusted mode, 0 or more; got {tolerance}.")
    if not 0 < level < 1:
        raise InputError(f"The level of an interval is a share between 0 and 1; got {level}.")
    pairs = eigen(koopman, modes)
    W = pairs.readers
    basis = None if len(pairs.values) == pairs.observables else torch.from_numpy(real_basis(W))
    lead = uncut(pairs.values, LEADING)
    few = torch.from_numpy(real_basis(W[:, :lead]))
    whole, sharded = GramPass(koopman, basis=basis), GramPass(koopman, basis=few, shards=shards)
    sizes = AmplitudePass(few.numpy().T @ W[:, :lead])
    for chunk in encoded(koopman, trajectories):
        whole.update(chunk if basis is None else chunk.projected(basis))
        slow = chunk.projected(few)
        sharded.update(slow)
        sizes.update(slow)
    grams = whole.grams()
    about_zero, about_mean, varying = residuals(grams, pairs.values, W)
    vague = np.isnan(varying) | (varying < _CONSTANT)
    return Spectrum(
        eigenvalues=pairs.values,
        modes=pairs.modes,
        readers=W,
        residuals=np.where(vague, np.inf, np.maximum(about_zero, about_mean)),
        condition=pairs.condition,
        samples=grams.samples,
        tolerance=tolerance,
        about_zero=about_zero,
        about_mean=about_mean,
        varying=varying,
        sensitivity=pairs.sensitivity,
        intervals=intervals(sharded.grams(), pairs.values[:lead], W[:, :lead], level=level),
        amplitudes=sizes.amplitudes(),
        grams=grams,
    )


def residuals(
    grams: Grams, values: Complex[ndarray, " mode"], readers: Complex[ndarray, "observable mode"]
) -> tuple[Float[ndarray, " mode"], Float[ndarray, " mode"], Float[ndarray, " mode"]]:
    """Compute the residuals of eigenpairs from Gram matrices.

    `‖φ⁺ − λ^g φ‖² = w*Lw − 2 Re(λ̄^g w*Aw) + |λ|^2g w*Gw`, added up over spans and divided by the sum of `w*Gw`. In
    float64 the difference leaves nothing below about 1e-8.

    Args:
        grams: of any rows.
        values: λ, `[mode]`.
        readers: left eigenvectors.

    Returns:
        The residual about zero, the residual about each depth's mean, and the share of |φ|² that differs between
        samples; all NaN where φ is zero on the rows to working precision, and the second NaN where φ does not differ.
    """
    W = grams.coordinates(readers)
    pooled = grams.pooled()
    missed, size = _missed(pooled, values, W)
    missed_c, size_c = _missed(pooled.centred(), values, W)
    total = float(torch.einsum("sabii->", pooled.G))
    reached = size > _UNREACHED * total * (np.abs(W) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        varying = np.where(reached, np.maximum(size_c, 0) / size, np.nan)
        about_zero = np.where(reached, np.sqrt(np.maximum(missed, 0) / size), np.nan)
        about_mean = np.sqrt(np.maximum(missed_c, 0) / size_c)
    return about_zero, np.where(varying > _CONSTANT, about_mean, np.nan), varying


def _missed(grams: Grams, values: ndarray, W: ndarray) -> tuple[ndarray, ndarray]:
    real, imag = np.ascontiguousarray(W.real), np.ascontiguousarray(W.imag)
    missed, size = np.zeros(len(values)), np.zeros(len(values))
    for span, G, A, L in zip(grams.spans, grams.G, grams.A, grams.L, strict=True):
        power = values**span.gap
        now, across, after = (_quadratic(gram[0, 0].numpy(), real, imag) for gram in (G, A, L))
        missed += after.real - 2 * (power.conj() * across).real + np.abs(power) ** 2 * now.real
        size += now.real
    return missed, size


def _quadratic(gram: ndarray, real: ndarray, imag: ndarray) -> ndarray:
    """`w* gram w` for each column of `real + i imag`, in real products."""
    of_real, of_imag = gram @ real, gram @ imag
    upright = (real * of_real + imag * of_imag).sum(0)
    return upright + 1j * (real * of_imag - imag * of_real).sum(0)
