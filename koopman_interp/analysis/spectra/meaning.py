"""What a mode means: the samples that have most of it, what it says at the model's output, and how it grows.

The output is asked by steps along the mode at a site, through whatever the model computes from there on: so it serves a
head, an unembedding or anything between, and knows none of them by name. Costs two forward passes a mode and batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy import ndarray
from torch import Tensor, nn

from koopman_interp.analysis.spectra.amplitudes import by_group
from koopman_interp.analysis.spectra.mode_meanings import Example, ModeMeaning, ModeMeanings
from koopman_interp.analysis.spectra.modes import eigenfunctions, host_modes
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.depths import depth_of
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import token_names
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.outputs import Output
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

STEP = 0.5
"""Half the step along a mode, in standard deviations of its amplitude."""

_FEWEST_OF_A_TOKEN = 5
"""Samples of a token below which its mean amplitude says little, so that it is not named."""


@own_kinds
@torch.no_grad()
def describe_modes(
    koopman: KoopmanAutoencoder,
    spectrum: Spectrum,
    trajectories: Rows,
    *,
    model: nn.Module | Host | None = None,
    batches: Any = None,
    modes: Sequence[int] | int = 5,
    site: str | int = -1,
    tokenizer: Any = None,
    names: Sequence[str] | None = None,
    examples: int = 4,
    batch_size: int = BATCH_SIZE,
) -> ModeMeanings:
    """Say what modes mean.

    A complex mode is read along one axis of the complex plane, that on which φ varies most; the sign of a mode is
    arbitrary, so high and low can be exchanged, together with up and down. Places of a sequence that the surrogate was
    not fitted on are left out at the output.

    Args:
        koopman: the surrogate.
        spectrum: of it.
        trajectories: samples to look for examples among, in memory.
        model: the model; without it nothing is said of its output.
        batches: inputs over which the change at the output is averaged, as in `Tap.observe`, a few hundred samples.
        modes: which modes by index, or how many: the slowest trusted ones then, filled up with the slowest others that
            differ between samples.
        site: site or depth at which modes are read and stepped along.
        tokenizer: of Hugging Face's kind: names outputs and shows examples in their text; None is the model's own.
        names: of the outputs, in place of a tokenizer.
        examples: samples, tokens and outputs to give for each end of a mode.
        batch_size: for inputs that come uncut.

    Returns:
        One meaning a mode.

    Raises:
        InputError: there is no such mode or site, no samples, a model without inputs, or not a name for each output.
        HostMismatchError: the surrogate belongs to another model.
        UnsupportedHostError: the model returns no logits.
    """
    trajectories = in_memory(trajectories)
    if model is not None and batches is None:
        raise InputError("The change at the output is averaged over inputs: give batches beside the model.")
    if not len(trajectories):
        raise InputError("There are no samples to look for examples among. Observe some inputs.")
    depth = depth_of(koopman.sites, site)
    chosen = _chosen(spectrum, modes)
    phi = [eigenfunctions(koopman, spectrum, trajectories, site=at, modes=chosen) for at in range(len(koopman.sites))]
    axes = _axes(phi[depth])
    changes: Float[ndarray, "mode output"] | None = None
    if model is not None:
        host = host_for(model, koopman.config.layout)
        koopman.config.host.require(HostFingerprint.of(host), "surrogate")
        tokenizer = host.tokenizer if tokenizer is None else tokenizer
        steps = _steps(koopman, spectrum, depth, chosen, axes, phi[depth])
        changes = _at_output(host, koopman, calls(host, batches, batch_size=batch_size), depth, steps)
        if names is not None and len(names) != changes.shape[1]:
            raise InputError(f"The model has {changes.shape[1]} outputs; names were given for {len(names)}.")
    named = _Named(trajectories, tokenizer, names, examples)
    growths = np.array([[_spread(column) for column in at_depth.T] for at_depth in phi])
    elapsed = np.array(koopman.config.times) - koopman.config.times[0]
    meanings = []
    for place, mode in enumerate(chosen):
        along, varying = _along(phi[depth][:, place], axes[place])
        change = None if changes is None else changes[place]
        meanings.append(_meaning(spectrum, mode, along, varying, growths[:, place], elapsed, change, named))
    return ModeMeanings(tuple(meanings), koopman.sites, koopman.sites[depth])


@dataclass(frozen=True)
class _Named:
    """How samples, tokens and outputs are named, and how many of them are given."""

    trajectories: Trajectories
    tokenizer: Any
    names: Sequence[str] | None
    most: int

    def samples(self, along: Float[ndarray, " sample"], sign: int) -> tuple[Example, ...]:
        """The samples farthest along a mode in a direction."""
        rows = np.argsort(-sign * along, kind="stable")[: self.most].tolist()
        return tuple(Example(row, float(along[row]), self._text(row)) for row in rows if sign * along[row] > 0)

    def tokens(self, along: Float[ndarray, " sample"]) -> tuple[tuple[str, float, int], ...]:
        """Tokens whose root mean square amplitude is largest, among those that occur a few times."""
        if self.trajectories.tokens is None:
            return ()
        ids, size, count = by_group(along[:, None].astype(complex), self.trajectories.tokens)
        often = np.flatnonzero(count >= _FEWEST_OF_A_TOKEN)
        best = often[np.argsort(-size[often, 0], kind="stable")[: self.most]]
        of_token, name = self.trajectories.tokens.numpy(), token_names(self.tokenizer)
        return tuple(
            (name(int(ids[place])), float(along[of_token == ids[place]].mean()), int(count[place])) for place in best
        )

    def outputs(self, change: Float[ndarray, " output"] | None, sign: int) -> tuple[tuple[str, float], ...]:
        """The outputs that change most in a direction."""
        if change is None:
            return ()
        order = np.argsort(-sign * change, kind="stable")[: self.most]
        changed = [output for output in order.tolist() if sign * change[output] > 0]
        name = token_names(self.tokenizer) if self.names is None else self.names.__getitem__
        return tuple((name(output), float(change[output])) for output in changed)

    def _text(self, row: int) -> str:
        """A sample's token in its text, or its class."""
        trajectories = self.trajectories
        if self.tokenizer is not None and trajectories.tokens is not None:
            return trajectories.text(row, self.tokenizer, around=8).replace("\n", " ")
        return "" if trajectories.labels is None else f"class {int(trajectories.labels[row])}"


def _meaning(
    spectrum: Spectrum,
    mode: int,
    along: Float[ndarray, " sample"],
    varying: float,
    spread: Float[ndarray, " depth"],
    elapsed: Float[ndarray, " depth"],
    change: Float[ndarray, " output"] | None,
    named: _Named,
) -> ModeMeaning:
    value, residual = complex(spectrum.eigenvalues[mode]), float(spectrum.residuals[mode])
    return ModeMeaning(
        mode=mode,
        eigenvalue=(value.real, value.imag),
        residual=residual if np.isfinite(residual) else None,
        verdict=spectrum.verdicts[mode],
        varying=varying,
        high=named.samples(along, 1),
        low=named.samples(along, -1),
        tokens=named.tokens(along),
        up=named.outputs(change, 1),
        down=named.outputs(change, -1),
        growth=tuple((spread / spread[0] if spread[0] else spread).tolist()),
        expected=tuple((abs(spectrum.operator_eigenvalues[mode]) ** elapsed).tolist()),
    )


def _chosen(spectrum: Spectrum, modes: Sequence[int] | int) -> list[int]:
    """One of each conjugate pair."""
    count = len(spectrum.eigenvalues)
    if isinstance(modes, int):
        if modes < 1:
            raise InputError(f"Ask for 1 mode or more; got {modes}.")
        verdicts = spectrum.verdicts
        upper = [index for index in range(count) if spectrum.eigenvalues[index].imag >= 0]
        trusted = [index for index in upper if verdicts[index] == "trusted"]
        others = [index for index in upper if verdicts[index] not in ("trusted", "constant", "unreached")]
        if not trusted + others:
            raise InputError("No mode differs between samples, so none has two ends to show. Observe varied inputs.")
        return sorted([*trusted, *others][:modes])
    for mode in modes:
        if not 0 <= mode < count:
            raise InputError(f"There is no mode {mode}; the spectrum has 0 to {count - 1}.")
    return list(modes)


def _axes(phi: Complex[ndarray, "sample mode"]) -> Complex[ndarray, " mode"]:
    """Unit numbers along which each φ varies most: `exp(i arg(E (φ − E φ)²) / 2)`."""
    return np.exp(0.5j * np.angle(((phi - phi.mean(0)) ** 2).mean(0)))


def _spread(phi: Complex[ndarray, " sample"]) -> float:
    """Standard deviation, where it is more than rounding."""
    square, whole = float((np.abs(phi - phi.mean()) ** 2).mean()), float((np.abs(phi) ** 2).mean())
    return square**0.5 if square > 1e-12 * whole else 0.0


def _along(phi: Complex[ndarray, " sample"], axis: complex) -> tuple[Float[ndarray, " sample"], float]:
    """Return φ less its mean along an axis, in standard deviations, and the share of |φ|² that differs."""
    whole = float((np.abs(phi) ** 2).mean())
    varying = _spread(phi) ** 2 / whole if whole else 0.0
    along = ((phi - phi.mean()) * np.conj(axis)).real
    spread = along.std()
    return (along / spread if varying and spread else np.zeros(len(phi))), varying


def _steps(
    koopman: KoopmanAutoencoder,
    spectrum: Spectrum,
    depth: int,
    chosen: list[int],
    axes: Complex[ndarray, " mode"],
    phi: Complex[ndarray, "sample mode"],
) -> Float[ndarray, "width mode"]:
    """Displacements of the state that raise each amplitude by one standard deviation along its axis."""
    directions = host_modes(koopman, spectrum, site=depth, modes=chosen)
    spread = ((phi - phi.mean(0)) * axes.conj()).real.std(0)
    members = np.where(spectrum.eigenvalues[chosen].imag != 0, 2, 1)
    return (directions * axes).real * spread * members


def _at_output(
    host: Host,
    koopman: KoopmanAutoencoder,
    called: Iterator[tuple[Any, Any]],
    depth: int,
    steps: Float[ndarray, "width mode"],
) -> Float[ndarray, "mode output"]:
    """Mean change of the log-probabilities for a step along each mode, by central differences."""
    moves = torch.from_numpy(steps.T.copy()).reshape(-1, *koopman.config.shapes[depth])
    clock, skip = koopman.config.clock, koopman.config.skip
    site = koopman.sites[depth] if clock is None else clock.site
    total: Tensor | None = None
    rows = 0
    for x, _ in called:
        ends = [[_logp(host, site, x, sign * move, skip) for sign in (STEP, -STEP)] for move in moves]
        changed = torch.stack([(up - down).sum(0) for up, down in ends])
        total = changed if total is None else total + changed
        rows += len(ends[0][0])
    if total is None or not rows:
        raise InputError("There were no inputs to average the change at the output over.")
    change: ndarray = (total / rows).numpy()
    return change


def _logp(host: Host, site: str, x: Any, shift: Tensor, skip: int) -> Float[Tensor, "sample output"]:
    """Log-probabilities with the state at a site displaced, at every position alike."""

    def displace(state: Tensor) -> Tensor:
        return state + shift.to(state)

    with host.hooked({site: displace}, first=True):
        return Output.of(host, x, skip).logp
