"""The spectrum of K, with a certificate beside each eigenvalue.

K is not normal, so eigenvalues alone mislead. For each pair the residual of a step (residual dynamic mode
decomposition, Colbrook & Townsend, arXiv 2111.14889) and of the span that a mode lives are computed on the given rows
in one streamed pass, with an interval over resampled inputs. Eigenvalues are brought to the host's own units where
there are any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from koopman_interp.analysis.encoding import encoded
from koopman_interp.analysis.spectra.amplitudes import AmplitudePass
from koopman_interp.analysis.spectra.eigen import eigen, real_basis, uncut
from koopman_interp.analysis.spectra.grams import GramPass
from koopman_interp.analysis.spectra.host_units import DegreePass
from koopman_interp.analysis.spectra.intervals import LEADING, intervals, solved_anew
from koopman_interp.analysis.spectra.residuals import CONSTANT, SpanPass, step_residuals
from koopman_interp.analysis.spectra.spaces import APART, shared_spaces
from koopman_interp.analysis.spectra.spectrum import TOLERANCE, Spectrum
from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

SHARDS = 32
"""Parts of the observed inputs that are resampled for intervals."""

_GROWING = 4096
"""Rows on which it is measured how eigenfunctions grow with the state."""


@own_kinds
@torch.no_grad()
def spectrum(
    koopman: KoopmanAutoencoder,
    trajectories: Rows | Iterable[Trajectories],
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
    over_span = SpanPass(pairs.values, W, koopman.config.times)
    coordinates = koopman.config.coordinates
    scaled = coordinates.growth is not None and coordinates.growth != 1
    degrees = DegreePass(W, coordinates.growth if scaled and coordinates.growth else 1.0)
    fitted = 0
    for chunk in encoded(koopman, trajectories, growing=_GROWING if scaled else 0):
        fitted += int(koopman.record.is_fitted_on(chunk.digests).sum())
        whole.update(chunk if basis is None else chunk.projected(basis))
        slow = chunk.projected(few)
        sharded.update(slow)
        sizes.update(slow)
        over_span.update(chunk)
        degrees.update(chunk)
    grams, units = whole.grams(), degrees.units()
    steps, spans = step_residuals(grams, pairs.values, W), over_span.residuals()
    energy = steps.variance * (np.abs(pairs.modes) ** 2).sum(0)
    vague = np.isnan(steps.varying) | (steps.varying < CONSTANT)
    known = [steps.about_zero, steps.about_mean, spans, np.abs(pairs.values) * units.factor * units.error]
    found = Spectrum(
        operator_eigenvalues=pairs.values,
        modes=pairs.modes,
        readers=W,
        residuals=np.where(vague, np.inf, np.maximum.reduce(known)),
        condition=pairs.condition,
        samples=grams.samples,
        fitted=fitted,
        tolerance=tolerance,
        about_zero=steps.about_zero,
        about_mean=steps.about_mean,
        over_span=spans,
        varying=steps.varying,
        energy=energy / energy.sum() if energy.any() else energy,
        sensitivity=pairs.sensitivity,
        solved_anew=solved_anew(grams, pairs.values, W),
        intervals=intervals(sharded.grams(), pairs.values[:lead], W[:, :lead], level=level).times(units.factor[:lead]),
        amplitudes=sizes.amplitudes(),
        coordinates=coordinates,
        unit_factor=units.factor if scaled else None,
        unit_error=units.error if scaled else None,
        grams=grams,
        clock=koopman.config.clock,
        shared=shared_spaces(koopman),
    )
    unlike = found.shared is not None and found.shared.min() < APART
    return replace(found, variance_trusted=found.variance_in()) if unlike else found
