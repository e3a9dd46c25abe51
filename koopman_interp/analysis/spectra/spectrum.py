"""The spectrum of K as a value: eigenpairs, how far the data bear each out, and in which coordinates they hold.

Printable, kept in one file, and ordered by decay or by energy. Knows nothing of how it was found.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy import ndarray
from torch import Tensor

from koopman_interp.analysis.spectra.amplitudes import Amplitudes
from koopman_interp.analysis.spectra.eigen import PRINTED, real_basis, turned
from koopman_interp.analysis.spectra.grams import Grams
from koopman_interp.analysis.spectra.intervals import Intervals
from koopman_interp.analysis.spectra.residuals import ALIVE
from koopman_interp.analysis.spectra.spaces import apart
from koopman_interp.analysis.spectra.verdicts import DRIFT, Verdict, sentences, verdicts
from koopman_interp.annotations import as_annotated
from koopman_interp.clocks import Clock
from koopman_interp.errors import InputError
from koopman_interp.files import Json, read_tensors, rebuilding, write_tensors
from koopman_interp.results import Result
from koopman_interp.surrogates.coordinates import Coordinates
from koopman_interp.tables import Column, Table, digits, in_percent, percents

TOLERANCE = 0.3
"""Modes whose residual is larger are marked spurious."""


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Result):
    """Eigenvalues and eigenvectors of K, slowest decay of K first, and how far the data bear them out.

    Attributes:
        operator_eigenvalues: λ of K itself, `[mode]`: what acts on the eigenfunctions of the surrogate.
        modes: right eigenvectors, `[observable, mode]`: what each mode looks like in observables.
        readers: left eigenvectors, `[observable, mode]`: the eigenfunction of a mode is `φ(x) = E(x) · reader`.
        residuals: the largest of `about_zero`, `about_mean`, `over_span` and `|λ| unit_error`, `[mode]`; infinite where
            φ is constant or zero on the rows given.
        condition: condition number of the eigenvector matrix; large means that eigenvalues move far for small
            changes of K.
        samples: rows that the residuals were measured on.
        tolerance: residual past which a mode is marked spurious.
        about_zero: `‖φ(x_next) − λ φ(x)‖ / ‖φ(x)‖` over the rows given, `[mode]`; a gap of several steps takes λ to
            that power.
        about_mean: the same with each depth's mean of φ taken off, so that an offset common to all samples does not
            pass for a prediction, `[mode]`.
        over_span: `‖φ(x_later) − λ^n φ(x_first)‖ / ‖φ(x_later)‖` for the n steps from the first depth to the last at
            which |λ^n| is a tenth or more, the larger of about zero and about the mean, `[mode]`.
        varying: share of the mean of |φ|² that differs between samples, `[mode]`.
        energy: share of each mode in the sum over modes of `E |φ − mean|² ‖v‖²`, `[mode]`.
        sensitivity: condition number of each eigenvalue, `[mode]`.
        solved_anew: the eigenvalue nearest each of K that least squares on the rows given makes, among all
            eigenfunctions, `[mode]`; NaN where they do not say.
        intervals: over resampled inputs, of the slowest modes.
        amplitudes: of the slowest modes, by class and depth.
        coordinates: those that K acts in.
        unit_factor: by what an eigenvalue of K is multiplied to be in the host's own units, `[mode]`; None where there
            are no such units, or they are those of K.
        unit_error: how far, relative to λ, that factor may be off, `[mode]`.
        grams: what the residuals were computed from; not saved with it.
        clock: what a step is where it is not one of depth, but a tick along an orbit.
        shared: of each step, the share of the variance after it that lies in the space of the depth before, `[step]`;
            see `spaces`.
        variance_trusted: share of the variance of the observables that trusted modes explain; None where no depths are
            apart, so that it was not asked.
    """

    operator_eigenvalues: Complex[ndarray, " mode"]
    modes: Complex[ndarray, "observable mode"]
    readers: Complex[ndarray, "observable mode"]
    residuals: Float[ndarray, " mode"]
    condition: float
    samples: int
    tolerance: float = TOLERANCE
    about_zero: Float[ndarray, " mode"] | None = None
    about_mean: Float[ndarray, " mode"] | None = None
    over_span: Float[ndarray, " mode"] | None = None
    varying: Float[ndarray, " mode"] | None = None
    energy: Float[ndarray, " mode"] | None = None
    sensitivity: Float[ndarray, " mode"] | None = None
    solved_anew: Complex[ndarray, " mode"] | None = None
    intervals: Intervals | None = None
    amplitudes: Amplitudes | None = None
    coordinates: Coordinates = field(default_factory=Coordinates)
    unit_factor: Float[ndarray, " mode"] | None = None
    unit_error: Float[ndarray, " mode"] | None = None
    grams: Grams | None = None
    clock: Clock | None = None
    shared: Float[ndarray, " step"] | None = None
    variance_trusted: float | None = None

    @property
    def eigenvalues(self) -> Complex[ndarray, " mode"]:
        """λ in the host's own units, `[mode]`; where there are none (see `in_host_units`), that of K itself."""
        return self.operator_eigenvalues if self.unit_factor is None else self.operator_eigenvalues * self.unit_factor

    @property
    def in_host_units(self) -> bool:
        """Whether λ is what the host does to its own states, and not to states that were scaled depth by depth."""
        return self.coordinates.growth is not None

    @property
    def decay(self) -> Float[ndarray, " mode"]:
        """|λ|: by what factor a mode's amplitude changes in one step."""
        return np.abs(self.eigenvalues)

    @property
    def rotation(self) -> Float[ndarray, " mode"]:
        """Arg λ: by what angle a mode turns in one step, in radians."""
        return np.angle(self.eigenvalues)

    @property
    def turns(self) -> Float[ndarray, " mode"]:
        """`arg λ / 2π`: turns that a mode makes in one step, from −½ to ½."""
        return self.rotation / (2 * math.pi)

    @property
    def turns_a_period(self) -> Float[ndarray, " mode"] | None:
        """Turns that a mode makes in one period of the clock, its frequency; None where there is no period.

        A frequency past half a period's ticks shows as the period's ticks less itself, since a tick then turns by more
        than a half and is read the other way round.
        """
        return None if self.clock is None or self.clock.period is None else self.turns * self.clock.period

    @property
    def half_life(self) -> Float[ndarray, " mode"]:
        """`ln 2 / −ln |λ|`: steps in which a mode's amplitude halves; infinite where it does not decay.

        A step is a layer where the times of the sites count layers.
        """
        with np.errstate(divide="ignore"):
            return np.where(self.decay < 1, math.log(2) / -np.log(np.minimum(self.decay, 1.0)), np.inf)

    def of_operator(self) -> Spectrum:
        """Return the same with the eigenvalues of K itself, which pseudospectra go with."""
        if self.unit_factor is None:
            return self
        kept = self.intervals
        return replace(
            self,
            unit_factor=None,
            intervals=None if kept is None else kept.times(1 / self.unit_factor[: len(kept.decay)]),
        )

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One word on each mode.

        *trusted*: the residual is within the tolerance; *spurious*: it is not; *contradicted*: it is, but the operator
        solved anew on the data has no eigenvalue within that of λ, nor within 5 %, as happens where K is far from
        normal (asked of modes of which a tenth is left after a step); *constant*: φ is the same for all samples;
        *unreached*: φ is zero on all samples; *defective*: λ has no eigenvector of its own; *unknown*: there are fewer
        than ten samples a mode.
        """
        drift = None
        if self.solved_anew is not None:
            size = np.abs(self.operator_eigenvalues)
            allowed = np.maximum(DRIFT * size, self.residuals)
            # Of what is gone after a step, it does not matter how small it is.
            off = np.where(size < ALIVE, 0.0, np.abs(self.solved_anew - self.operator_eigenvalues))
            with np.errstate(divide="ignore", invalid="ignore"):
                drift = off / allowed
        return verdicts(self.residuals, self.varying, self.sensitivity, drift, self.samples, self.tolerance)

    @property
    def trusted(self) -> ndarray:
        """Which modes keep their residual under the tolerance, and have one."""
        return np.array([verdict == "trusted" for verdict in self.verdicts], dtype=bool)

    def variance_in(self, modes: ndarray | list[int] | None = None) -> float:
        """Return the share of the variance of the observables that the eigenfunctions of some modes explain, linearly.

        Args:
            modes: indices, or a mask; None is the trusted ones. Where only the slowest modes were found, the variance
                is that of the observables' projection on these.

        Raises:
            InputError: the spectrum has no Gram matrices.
        """
        if self.grams is None:
            raise InputError("This spectrum has no Gram matrices. Take one from spectrum(koopman, trajectories).")
        readers = self.grams.coordinates(self.readers[:, self.trusted if modes is None else modes])
        G = self.grams.centred().G.sum((0, 1, 2)).numpy()
        if not readers.shape[1] or not np.trace(G):
            return 0.0
        basis = real_basis(readers)
        across = basis.T @ G
        explained = np.trace(across.T @ np.linalg.pinv(across @ basis, hermitian=True) @ across)
        return float(explained / np.trace(G))

    def __repr__(self) -> str:
        of_all = "" if len(self.eigenvalues) == len(self.modes) else f"of {len(self.modes)} "
        return (
            f"Spectrum({len(self.eigenvalues)} {of_all}modes, {int(self.trusted.sum())} trusted at residual ≤ "
            f"{self.tolerance:g} on {self.samples:,} samples, largest |λ| {self.decay.max():.3f}, eigenvector "
            f"condition {self.condition:.1e})"
        )

    def tables(self, most: int | None = PRINTED) -> tuple[Table]:
        """Return the modes as a table, slowest of K first; a conjugate pair is one line.

        Args:
            most: lines to show; None shows all.
        """
        return (self._table(np.arange(len(self.residuals)), "Slowest modes first", most),)

    def by_energy(self, most: int | None = PRINTED) -> Table:
        """Return the modes as a table, those with most energy on the data first; their numbers stay the same.

        Args:
            most: lines to show; None shows all.

        Raises:
            InputError: the spectrum was made without energy.
        """
        if self.energy is None:
            raise InputError("This spectrum has no energy. Take one from spectrum(koopman, trajectories).")
        return self._table(np.argsort(-self.energy, kind="stable"), "Modes with most energy first", most)

    def _table(self, order: ndarray, first: str, most: int | None) -> Table:
        upper = [index for index in order.tolist() if self.operator_eigenvalues[index].imag >= 0]
        level = in_percent(0.95 if self.intervals is None else self.intervals.level, 0)
        verdicts = self.verdicts
        columns = (
            Column("mode", tuple(upper)),
            Column("|λ|", tuple(self.decay[upper].tolist()), digits(4)),
            *self._turning(upper),
            Column("half-life", tuple(self.half_life[upper].tolist()), digits(1)),
            Column("energy %", tuple(map(self._energy, upper)), percents(1)),
            Column("residual", tuple(self._residual(index) for index in upper), digits(3)),
            Column(f"|λ| on data, {level}", tuple(map(self._on_data, upper)), _ends, parts=("low", "high")),
            Column("verdict", tuple(verdicts[index] for index in upper), left=True),
        )
        units = "the host's own units" if self.in_host_units else "the units of K"
        step = "operator step"
        if self.clock is not None:
            step = f"tick at {self.clock.site!r}"
        caption = f"{first}; a conjugate pair is one line. |λ|, turn and half-life are per {step}, in {units}."
        return Table(columns, caption, most=most)

    def _turning(self, upper: list[int]) -> Iterator[Column]:
        """By what modes turn: degrees a step or, along an orbit, turns a tick, and a period where it has one."""
        if self.clock is None:
            yield Column("turn, °", tuple(np.degrees(self.rotation[upper]).tolist()), turned)
            return
        yield Column("turns a tick", tuple(np.abs(self.turns[upper]).tolist()), digits(4))
        if self.turns_a_period is not None:
            yield Column("turns a period", tuple(np.abs(self.turns_a_period[upper]).tolist()), digits(2))

    def notes(self) -> tuple[str, ...]:
        """Say in which coordinates λ holds, what verdicts judge nothing, and where inputs are few or depths unlike."""
        few = None if self.intervals is None else self.intervals.note()
        unlike = apart(self.shared, self.variance_trusted)
        return (self._coordinates(), *sentences(self.verdicts), *(note for note in (few, unlike) if note))

    def _coordinates(self) -> str:
        where = f"K acts in these coordinates: {self.coordinates}"
        if self.in_host_units:
            return f"{where}. λ is in the host's own units."
        return (
            f"{where}. So there are no host's units: λ, half-life and verdict are those of K in these coordinates. For "
            "λ of the host fit with NormalizationConfig(scale='geometric')."
        )

    def head(self, most: int) -> str:
        """Print the slowest modes, as many as asked for."""
        return "\n\n".join([repr(self), self.tables(most)[0].text(), *self.notes()])

    def _residual(self, index: int) -> float | None:
        residual = float(self.residuals[index])
        return residual if np.isfinite(residual) else None

    def _energy(self, index: int) -> float | None:
        """Return the share of a mode, with its conjugate's."""
        if self.energy is None:
            return None
        return float(self.energy[index]) * (2 if self.operator_eigenvalues[index].imag else 1)

    def _on_data(self, index: int) -> tuple[float, float] | None:
        if self.intervals is None or index >= len(self.intervals.decay):
            return None
        low, high = self.intervals.decay[index].tolist()
        return low, high

    def as_dict(self) -> dict[str, Json]:
        """Return plain values for JSON; a residual is None where it certifies nothing."""
        verdicts = self.verdicts
        judged = zip(verdicts, np.isfinite(self.residuals), strict=True)
        certified = (known and verdict != "defective" for verdict, known in judged)
        residuals = zip(self.residuals.tolist(), certified, strict=True)
        return {
            "eigenvalues": [[value.real, value.imag] for value in self.eigenvalues.tolist()],
            "operator_eigenvalues": [[value.real, value.imag] for value in self.operator_eigenvalues.tolist()],
            "energy": None if self.energy is None else self.energy.tolist(),
            "coordinates": self.coordinates.as_dict(),
            "residuals": [residual if certified else None for residual, certified in residuals],
            "verdicts": list(verdicts),
            "condition": self.condition if np.isfinite(self.condition) else None,
            "samples": self.samples,
            "tolerance": self.tolerance,
            "intervals": None if self.intervals is None else self.intervals.as_dict(),
            "clock": None if self.clock is None else self.clock.as_dict(),
            "turns": self.turns.tolist(),
            "turns_a_period": None if self.turns_a_period is None else self.turns_a_period.tolist(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file, all but the Gram matrices, which have a `save` of their own."""
        parts = {name: getattr(self, name) for name in (*_VECTORS, *_OPTIONAL)}
        header: dict[str, Json] = {name: getattr(self, name) for name in ("condition", "samples", "tolerance")}
        header["coordinates"] = self.coordinates.as_dict()
        header["clock"] = None if self.clock is None else self.clock.as_dict()
        header["variance_trusted"] = self.variance_trusted
        if self.intervals is not None:
            parts |= {f"intervals.{name}": getattr(self.intervals, name) for name in _INTERVALS}
            header["intervals"] = {n: getattr(self.intervals, n) for n in _COUNTS}
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
        with rebuilding(path, "a spectrum"):
            parts = {name: tensors[name].numpy() for name in tensors}
            for name in _COMPLEX & set(parts):
                parts[name] = torch.view_as_complex(tensors[name]).numpy()
            own: dict[str, Json] = {name: parts[name] for name in _VECTORS}
            own |= {name: parts.get(name) for name in _OPTIONAL}
            own["coordinates"] = Coordinates.from_dict(header["coordinates"])
            own["clock"] = Clock.from_dict(header.get("clock"))
            own["variance_trusted"] = header.get("variance_trusted")
            if "intervals" in header:
                kept: dict[str, Json] = {name: parts[f"intervals.{name}"] for name in _INTERVALS}
                own["intervals"] = Intervals(**kept, **header["intervals"])
            if "labels" in header:
                kept = {name: parts[f"amplitudes.{name}"] for name in _AMPLITUDES}
                own["amplitudes"] = Amplitudes(**kept, labels=tuple(header["labels"]))
            return as_annotated(cls(**own, **{name: header[name] for name in ("condition", "samples", "tolerance")}))


_VECTORS = ("operator_eigenvalues", "modes", "readers", "residuals")
_OPTIONAL = (
    "about_zero",
    "about_mean",
    "over_span",
    "varying",
    "energy",
    "sensitivity",
    "solved_anew",
    "unit_factor",
    "unit_error",
    "shared",
)
_INTERVALS = ("estimate", "correlation", "decay", "rotation", "residual")
_COMPLEX = {"operator_eigenvalues", "modes", "readers", "solved_anew", "intervals.estimate", "amplitudes.mean"}
_COUNTS = ("level", "draws", "shards", "samples", "parts")
_AMPLITUDES = ("mean", "square", "count")


def _ends(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:.3f}…{high:.3f}" if np.isfinite(high) else "unknown"


def _as_real(part: ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(part))
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
