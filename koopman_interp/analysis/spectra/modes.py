"""Modes as directions in the model's own coordinates, and eigenfunctions on data.

A mode v lives in observables; what it looks like in the model is what the decoder makes of a small step along it, the
Jacobian of the decoder applied to v. Costs two Jacobian-vector products a mode and point. Knows nothing of models.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy import ndarray
from torch import Tensor
from torch.func import jvp, vmap

from koopman_interp.analysis.encoding import require_sites
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.depths import depth_of
from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sequences import Sequences
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

_AT_ONCE = 2**22
"""Numbers that the Jacobian-vector products of one batch of modes may hold."""


@own_kinds
@torch.no_grad()
def eigenfunctions(
    koopman: KoopmanAutoencoder,
    spectrum: Spectrum,
    trajectories: Rows,
    *,
    site: str | int = 0,
    modes: slice | list[int] | ndarray | None = None,
) -> Complex[ndarray, "sample mode"]:
    """Evaluate `φ(x) = E(x) · w` on each sample at a site.

    Args:
        koopman: the surrogate.
        spectrum: of it.
        trajectories: the samples.
        site: site or depth.
        modes: which; None is all.

    Returns:
        φ of each sample and mode, in complex128.

    Raises:
        InputError: the site is not among the surrogate's, or the trajectories have others.
    """
    trajectories = in_memory(trajectories)
    _require_own(koopman, spectrum)
    require_sites(koopman, trajectories)
    depth = depth_of(koopman.sites, site)
    device = koopman.normalization.maps(depth)[0].device
    W = torch.from_numpy(np.ascontiguousarray(spectrum.readers[:, slice(None) if modes is None else modes])).to(device)
    z = koopman.observables_of(trajectories, depth).double()
    phi: ndarray = torch.complex(z @ W.real, z @ W.imag).cpu().numpy()
    return phi


@own_kinds
def host_modes(
    koopman: KoopmanAutoencoder,
    spectrum: Spectrum,
    *,
    site: str | int = -1,
    modes: slice | list[int] | ndarray | None = None,
    states: Float[Tensor, "sample width"] | None = None,
    sequences: Sequences | None = None,
) -> Complex[ndarray, "width mode"]:
    """Express modes as directions of the model's state at a site: `J_D v`, the decoder's action on eigenvectors.

    Near the point a state moves by `φ J_D v` when the amplitude of a real mode is φ, and by `2 Re(φ J_D v)` with both
    members of a conjugate pair. A linear decoder has one Jacobian; of any other it depends on the point.

    Args:
        koopman: the surrogate.
        spectrum: of it.
        site: site or depth whose coordinates are wanted.
        modes: which; None is all.
        states: at the site, over which the Jacobian is averaged, a few hundred at most. None takes the Jacobian at
            the mean observables of the rows fitted.
        sequences: how these follow each other, for a surrogate whose encoder looks back.

    Returns:
        Directions in the model's own units, `[width, mode]`, in complex128; v has norm 1, these have not.

    Raises:
        InputError: the site is not among the surrogate's, or no point is given and no rows were fitted.
    """
    _require_own(koopman, spectrum)
    depth = depth_of(koopman.sites, site)
    if states is None and not koopman.moments.count.sum():
        raise InputError("This surrogate was not fitted, so it has no mean to take the Jacobian at. Give states=….")
    mean = koopman.normalization.maps(depth)[0]
    with torch.no_grad():
        if states is None:
            points = koopman.moments.total_mean(depth).to(mean)[None]
        else:
            points = koopman.encode(states.to(mean), depth, sequences)
    V = spectrum.modes[:, slice(None) if modes is None else modes]
    # Real and imaginary parts go through the Jacobian side by side.
    directions = torch.from_numpy(np.concatenate([V.real, V.imag], 1).T.copy()).to(mean)

    def push(v: Tensor) -> Tensor:
        moved: Tensor = jvp(lambda z: koopman.decode(z, depth), (points,), (v.expand_as(points),))[1]
        return moved.mean(0)

    several = max(1, _AT_ONCE // (len(points) * max(koopman.config.observables, len(mean))))
    with torch.no_grad():
        pushed = vmap(push, chunk_size=several)(directions).double().cpu().numpy().T
    count = V.shape[1]
    return pushed[:, :count] + 1j * pushed[:, count:]


def _require_own(koopman: KoopmanAutoencoder, spectrum: Spectrum) -> None:
    if len(spectrum.modes) != koopman.config.observables:
        raise InputError(
            f"This spectrum has modes of {len(spectrum.modes)} observables; the surrogate has "
            f"{koopman.config.observables}. Take the spectrum of this surrogate."
        )
