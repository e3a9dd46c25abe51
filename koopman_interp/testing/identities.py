"""An identity for a surrogate and an edit that moves every row, built by hand: what a patch must write is known."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder, SurrogateConfig
from koopman_interp.surrogates.networks import LinearPlusNonlinear


def identity(model: nn.Module | Host, sites: tuple[str, str], shape: tuple[int, ...]) -> KoopmanAutoencoder:
    """Build a surrogate that changes nothing between two sites.

    Args:
        model: the host.
        sites: source and target.
        shape: of one sample's state at both.
    """
    width = torch.Size(shape).numel()
    config = SurrogateConfig(
        sites=sites,
        times=(0.0, 1.0),
        widths=(width, width),
        shapes=(shape, shape),
        dimension=width,
        observables=width,
        architecture="linear_plus_nonlinear",
        hidden=(1,),
        operator="dense",
        rank=None,
        classes=(),
        host=HostFingerprint.of(host_for(model)),
    )
    koopman = KoopmanAutoencoder(config).requires_grad_(False)
    for part in (koopman.encoder, koopman.decoder):
        assert isinstance(part, LinearPlusNonlinear)
        part.layers_out()[1].weight.zero_()
    return koopman


def mover(koopman: KoopmanAutoencoder) -> OperatorEdit:
    """Build an edit at the source of an identity, which moves each row by `change`."""
    directions, readers, offset = _factors(koopman.config.dimension)
    return OperatorEdit(
        description="move every row",
        site=koopman.sites[0],
        depth=0,
        map=LowRankMap(directions, readers, offset),
        moved=directions,
        host=koopman.config.host,
        operator=koopman.digest(),
    )


def change(state: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """Say by how much `mover` moves rows: `−(s W − o) Aᵀ`, in float64."""
    directions, readers, offset = _factors(state.shape[-1])
    return -((state.double() @ readers - offset) @ directions.T).to(state)


def _factors(width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    directions, readers = torch.randn(2, width, 2, generator=generator, dtype=torch.float64) / width**0.5
    return directions, readers, torch.tensor([1.0, -1.0], dtype=torch.float64)
