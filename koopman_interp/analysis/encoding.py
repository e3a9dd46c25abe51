"""Trajectories as chunks of observables: what every streamed pass over data goes through.

Holds one chunk at a time, so that token counts past memory are no matter; costs one encoding of each state. Knows
nothing of what is gathered from the chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.sequences import Sequences
from koopman_interp.sources.opening import Rows, parts_of
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

_CHUNK_NUMBERS = 2**23
"""Observables of a chunk, over all its rows and depths: 64 MiB in float64."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A chunk of rows as observables.

    Attributes:
        z: `[depth, sample, observable]`, float64, on the surrogate's device.
        digests: `[sample]`, of the input that each row belongs to; equal inputs have equal ones.
        labels: `[sample]`, or None.
        growing: derivative of the first rows' observables for a growth of all normalised states,
            `d E(e^s y) / ds` at 0; None unless asked for.
    """

    z: Float[Tensor, "depth sample observable"]
    digests: Int[Tensor, " sample"]
    labels: Int[Tensor, " sample"] | None
    growing: Float[Tensor, "depth some observable"] | None = None

    def projected(self, basis: Float[Tensor, "observable coordinate"]) -> Encoded:
        """Return the rows in the coordinates that orthonormal columns give, without their growth."""
        return replace(self, z=self.z @ basis.to(self.z), growing=None)


@torch.no_grad()
def encoded(
    koopman: KoopmanAutoencoder, trajectories: Rows | Iterable[Trajectories], *, growing: int = 0
) -> Iterator[Encoded]:
    """Go through trajectories as chunks of observables, in order.

    Args:
        koopman: the surrogate.
        trajectories: rows in memory, or parts that come one after the other, as `Tap.stream` gives them; read once.
        growing: of how many rows to give the derivative for a growth of their states, from the first on.

    Yields:
        Chunks whose size keeps memory bounded at any width and depth.

    Raises:
        InputError: other sites than the surrogate's, or no samples at all.
        NonFiniteError: a state, or what the encoder makes of it, is NaN or infinite.
    """
    rows = max(64, _CHUNK_NUMBERS // (len(koopman.sites) * koopman.config.observables))
    none = True
    for part in parts_of(trajectories):
        require_sites(koopman, part)
        for piece in part.pieces(rows, whole=koopman.looks_back):
            none = False
            chunk = _chunk(koopman, piece, growing)
            growing -= 0 if chunk.growing is None else chunk.growing.shape[1]
            yield chunk
    if none:
        raise InputError("There are no samples to read the operator on. Observe some inputs.")


def _chunk(koopman: KoopmanAutoencoder, part: Trajectories, growing: int) -> Encoded:
    device = koopman.normalization.maps(0)[0].device
    z = torch.empty(part.depths, len(part), koopman.config.observables, dtype=torch.float64, device=device)
    sequences = part.in_sequence().to(device) if koopman.looks_back else None
    for depth, state in enumerate(part.states):
        z[depth] = koopman.encode(state.to(device), depth, sequences)
    # One sum shows what is not finite at a fraction of the cost of looking at each number.
    if not bool(torch.isfinite(z.sum())):
        part.require_finite()
        raise NonFiniteError("The encoder made NaN or infinity of finite states. Fit again, in a wider dtype.")
    if not growing:
        return Encoded(z, part.digests, part.labels)
    grows = [_growing(koopman, state.to(device), depth, growing, sequences) for depth, state in enumerate(part.states)]
    return Encoded(z, part.digests, part.labels, torch.stack(grows).double())


def _growing(
    koopman: KoopmanAutoencoder,
    states: Float[Tensor, "sample width"],
    depth: int,
    first: int,
    sequences: Sequences | None,
) -> Float[Tensor, "some observable"]:
    """Return `DE(y) y` at the first normalised states y; where the encoder looks back, all that it sees grows."""
    if sequences is None:
        states = states[:first]
    y = koopman.normalization.normalize(states, depth)
    with sdpa_kernel(SDPBackend.MATH):  # the only attention with a derivative forward
        derivative: Tensor = jvp(lambda y: koopman.lift(y, sequences), (y,), (y,))[1]
    return derivative[:first]


def require_sites(koopman: KoopmanAutoencoder, trajectories: Trajectories) -> None:
    """Check that trajectories have the surrogate's sites.

    Raises:
        InputError: they have others.
    """
    if trajectories.sites != koopman.sites:
        raise InputError(
            f"The trajectories have the sites {', '.join(trajectories.sites)}; "
            f"the surrogate has {', '.join(koopman.sites)}."
        )
