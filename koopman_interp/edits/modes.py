"""Modes: scale, remove or rotate parts of the spectrum, and steer rows along an eigenfunction.

With K v = λ v and the reader w of the same pair, wᵀv = 1, the map `P: z → z + (f − 1)(z·w) v` makes f λ of λ in `K P`
and leaves all other pairs alone; a conjugate pair is changed with its partner, so that all stays real. Eigenvectors of
a K that is far from normal are nearly parallel; there the orthogonal basis of an ordered real Schur form is the stable
one: `P = I + Q(F − I)Qᵀ` on the invariant subspace Q of the chosen pairs. Modes of a shared K belong to no class: an
instrument for looking, not the way to forget. Costs one Schur form, 25 observables³, or nothing beside the spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import schur
from torch import Tensor

from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.edits.certifying import acting_depth, certified, edit_at
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

Basis = Literal["eigenpairs", "schur"]

_REAL = 1e-12
_SAME = 1e-8


@own_kinds
def edit_modes(
    koopman: KoopmanAutoencoder,
    spectrum: Spectrum,
    *,
    modes: Sequence[int],
    scale: float = 0.0,
    rotate: float = 0.0,
    basis: Basis = "eigenpairs",
    site: str | int | None = None,
    uncertified: bool = False,
) -> OperatorEdit:
    """Edit the operator by its modes.

    Args:
        koopman: the surrogate.
        spectrum: of its K, with a residual for each pair.
        modes: indices of pairs, as the spectrum's table names them; a conjugate partner comes along.
        scale: factor on |λ| in the steps edited: 0 removes the modes, 1 leaves their size.
        rotate: angle in radians by which a pair turns more in the steps edited. Give `scale=1` beside it to turn only.
        basis: `eigenpairs`, by which `K P` has the eigenvalues f λ and P commutes with K; or `schur`, orthogonal, which
            changes all of the invariant subspace that the chosen pairs span.
        site: site or depth at which P acts; None is the last but one.
        uncertified: take modes too whose residual is past the spectrum's tolerance.

    Returns:
        The edit, with its certificate; its drift counts all rows as retained.

    Raises:
        InputError: a mode does not exist, is not certified by its residual, or cannot turn; or the spectrum is of
            another K.
    """
    if basis not in ("eigenpairs", "schur"):
        raise InputError(f"basis={basis!r} is neither 'eigenpairs' nor 'schur'.")
    chosen = _chosen(koopman, spectrum, modes, uncertified)
    if rotate and any(abs(spectrum.operator_eigenvalues[index].imag) <= _REAL for index in chosen):
        real = [index for index in chosen if abs(spectrum.operator_eigenvalues[index].imag) <= _REAL]
        raise InputError(f"Modes {real} have real eigenvalues and no plane to turn in. Rotate conjugate pairs only.")
    if basis == "eigenpairs":
        change = _by_pairs(spectrum, chosen, scale, rotate)
    else:
        change = _by_schur(koopman, spectrum, chosen, scale, rotate)
    depth = acting_depth(koopman, site)
    what = (
        "remove"
        if scale == 0
        else f"scale by {scale:g}"
        if not rotate
        else f"scale by {scale:g}, turn by {rotate:g} rad"
    )
    where = "" if basis == "eigenpairs" else " in a Schur basis"
    description = f"{what} modes {', '.join(map(str, chosen))}{where}"
    return certified(edit_at(koopman, depth, description, change), koopman)


@own_kinds
def steer(
    koopman: KoopmanAutoencoder,
    spectrum: Spectrum,
    *,
    mode: int,
    amount: float,
    phase: float = 0.0,
    site: str | int | None = None,
    uncertified: bool = False,
) -> OperatorEdit:
    """Move all rows along an eigenfunction: φ changes by an amount, every other eigenfunction by nothing.

    `z → z + amount · s · v`, for a conjugate pair `z + 2 Re(amount · s · e^{i phase} v)`, with s the standard deviation
    of φ over the rows fitted. K itself stays; the edited step is affine.

    Args:
        koopman: the surrogate.
        spectrum: of its K.
        mode: index of the pair.
        amount: in standard deviations of φ at the site.
        phase: direction in the plane of a conjugate pair, in radians.
        site: site or depth; None is the last but one.
        uncertified: steer along a mode too whose residual is past the spectrum's tolerance.

    Returns:
        The edit, with its certificate.

    Raises:
        InputError: the mode does not exist or is not certified, or the spectrum is of another K.
    """
    index = _chosen(koopman, spectrum, [mode], uncertified)[0]
    depth = acting_depth(koopman, site)
    v, w = _pair(spectrum, index)
    covariance = koopman.moments.covariance[depth].cpu().numpy()
    spread = math.sqrt(max(float((w.conj() @ covariance @ w).real), 0.0))
    twice = 1 if abs(spectrum.operator_eigenvalues[index].imag) <= _REAL else 2
    shift = (amount * spread * np.exp(1j * phase * (twice - 1)) * v * twice).real
    directions = torch.from_numpy(np.ascontiguousarray(shift))[:, None]
    description = f"steer mode {index} by {amount:g} standard deviations"
    # Nothing is read: with W = 0 and an offset of 1 the displacement is A itself.
    change = LowRankMap(directions, torch.zeros_like(directions), torch.ones(1).double())
    return certified(edit_at(koopman, depth, description, change), koopman)


def _chosen(koopman: KoopmanAutoencoder, spectrum: Spectrum, modes: Sequence[int], uncertified: bool) -> list[int]:
    """Check modes, and name each conjugate pair by one member."""
    count = len(spectrum.operator_eigenvalues)
    if count != koopman.config.observables:
        raise InputError(
            f"This spectrum has {count} modes, the surrogate {koopman.config.observables}: it is of another K."
        )
    K = koopman.K.detach().double().cpu().numpy()
    error = np.linalg.norm(K @ spectrum.modes - spectrum.modes * spectrum.operator_eigenvalues) / np.linalg.norm(K)
    if error > _SAME * max(1.0, count):
        raise InputError(
            "The modes of this spectrum are not those of the surrogate's K: take spectrum(koopman, …) anew."
        )
    if not len(modes) or not all(mode in range(count) for mode in modes):
        raise InputError(f"Expected one mode or more between 0 and {count - 1}; got {list(modes)}.")
    members: list[int] = []
    values = spectrum.operator_eigenvalues
    for mode in modes:
        value = values[mode]
        partner = mode if abs(value.imag) <= _REAL else int(np.abs(values - value.conj()).argmin())
        if mode not in members and partner not in members:
            members.append(mode)
    if not uncertified:
        spurious = [mode for mode in members if not spectrum.trusted[mode]]
        if spurious:
            raise InputError(
                f"Modes {spurious} are not trusted at a tolerance of {spectrum.tolerance:g}, so they are not known to "
                "be the model's. Choose among spectrum.trusted, or say uncertified=True."
            )
    return members


def _pair(spectrum: Spectrum, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mode and its reader, scaled so that reader · mode = 1."""
    v, w = spectrum.modes[:, index], spectrum.readers[:, index]
    return v, w / (w @ v)


def _by_pairs(spectrum: Spectrum, chosen: Sequence[int], scale: float, rotate: float) -> LowRankMap:
    """Change each pair by its own mode and reader."""
    directions, readers = list[np.ndarray](), list[np.ndarray]()
    for index in chosen:
        v, w = _pair(spectrum, index)
        if abs(spectrum.operator_eigenvalues[index].imag) <= _REAL:
            directions.append((1 - scale) * v.real)
            readers.append(w.real)
            continue
        # The pair contributes 2 Re((f − 1) c v) with c = z·w; f turns the way that the pair itself turns.
        turn = rotate if spectrum.operator_eigenvalues[index].imag > 0 else -rotate
        moved = 2 * (1 - scale * np.exp(1j * turn)) * v
        directions += [moved.real, -moved.imag]
        readers += [w.real, w.imag]
    return _linear(_columns(directions), _columns(readers))


def _by_schur(
    koopman: KoopmanAutoencoder, spectrum: Spectrum, chosen: Sequence[int], scale: float, rotate: float
) -> LowRankMap:
    """Change the invariant subspace that the chosen pairs span, by an orthogonal basis of it."""
    wanted = spectrum.operator_eigenvalues[list(chosen)]
    near = (
        _SAME
        * math.sqrt(len(spectrum.operator_eigenvalues))
        * max(1.0, float(np.abs(spectrum.operator_eigenvalues).max()))
    )

    # A lambda, since f2py counts the arguments of what it calls back.
    T, Q, size = schur(
        koopman.K.detach().double().cpu().numpy(),
        output="real",
        sort=lambda real, imag: _among(wanted, real, imag, near),
    )
    expected = sum(1 if abs(value.imag) <= _REAL else 2 for value in wanted)
    if size != expected:
        raise InputError(
            f"The chosen modes share eigenvalues with others: the Schur form orders {size} of them, not {expected}. "
            "Choose all modes of that eigenvalue, or edit by eigenpairs."
        )
    F = scale * np.eye(size)
    for start in range(size - 1) if rotate else ():
        if T[start + 1, start] != 0:
            # Which way the block turns is the sign of its lower entry.
            angle = rotate if T[start + 1, start] > 0 else -rotate
            turned = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            F[start : start + 2, start : start + 2] = scale * np.array(turned)
    basis = Q[:, :size]
    readers = torch.from_numpy(np.ascontiguousarray(basis))
    return _linear(torch.from_numpy(basis @ (np.eye(size) - F)), readers)


def _among(wanted: np.ndarray, real: float, imaginary: float, near: float) -> bool:
    """Whether an eigenvalue is one of those wanted, or the conjugate of one."""
    distance = np.hypot(wanted.real - real, np.abs(wanted.imag) - abs(imaginary))
    return bool((distance <= near).any())


def _linear(directions: Float[Tensor, "observable rank"], readers: Float[Tensor, "observable rank"]) -> LowRankMap:
    """Return the linear map `z → z − z W Aᵀ`."""
    return LowRankMap(directions, readers, readers.new_zeros(readers.shape[1]))


def _columns(vectors: Sequence[np.ndarray]) -> Float[Tensor, "observable rank"]:
    return torch.from_numpy(np.stack(vectors, 1))
