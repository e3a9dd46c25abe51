"""What a shard of the data adds to a fit whose encoder is there already: sums, from which K and the moments follow.

Encoders of their own cannot be averaged: their observables are different functions, and no mean of weights is the
encoder of anything. With one encoder for all shards, K and the moments that edits need depend on the rows through
sums over rows alone, so that shards gathered apart, on machines of their own, are worth all rows at once. Costs one
encoding of each state and a product of the observables a depth; keeps two matrices a depth and a number an input.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from koopman_interp.annotations import as_annotated
from koopman_interp.errors import InputError
from koopman_interp.files import read_tensors, rebuilding, write_tensors
from koopman_interp.fitting.config import FitConfig
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.moments import Moments
from koopman_interp.trajectories import Trajectories

KIND = "shard statistics"
_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class RowSums:
    """Sums over some rows, in float64.

    Attributes:
        moments: of the observables.
        cross: `Z_dᵀ Z_{d+1}` for each step from a depth to the next.
    """

    moments: Moments
    cross: Float[Tensor, "step observable observable"]

    def second(self, depth: int) -> Float[Tensor, "observable observable"]:
        """Return `Z_dᵀ Z_d`."""
        mean = self.moments.total_mean(depth)
        return self.moments.rows * (self.moments.covariance[depth] + torch.outer(mean, mean))

    def turned(self, Q: Float[Tensor, "observable _"]) -> RowSums:
        """Return the sums of observables that are turned, `z → z Q`."""
        Q = Q.to(self.cross)
        return RowSums(self.moments.turned(Q), Q.T @ self.cross @ Q)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return what is kept in a file, by name."""
        return {f"{prefix}.{name}": value for name, value in self.moments.named_buffers()} | {
            f"{prefix}.cross": self.cross
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], prefix: str, classes: tuple[int, ...]) -> RowSums:
        """Rebuild from what `tensors` gave."""
        mean, cross = tensors[f"{prefix}.mean"], tensors[f"{prefix}.cross"]
        moments = Moments(mean.shape[0], classes, mean.shape[2])
        for name, buffer in moments.named_buffers():
            buffer.copy_(tensors[f"{prefix}.{name}"])
        return cls(moments, cross)


@dataclass(frozen=True, eq=False, repr=False)
class ShardStatistics:
    """What a shard adds to a fit, as `gather_shard` finds it; `merge` adds shards up.

    Attributes:
        fitted: sums over the rows to fit on.
        held_out: the same over rows of the inputs held out.
        inputs: digests of all its inputs, ascending.
        held_out_inputs: digests of those held out, ascending.
        surrogate: digest of the surrogate whose observables these are.
    """

    fitted: RowSums
    held_out: RowSums
    inputs: Int[Tensor, " input"]
    held_out_inputs: Int[Tensor, " _"]
    surrogate: str

    def __repr__(self) -> str:
        return (
            f"ShardStatistics({self.fitted.moments.rows:,} rows fitted and {self.held_out.moments.rows:,} held out, of "
            f"{len(self.inputs):,} inputs)"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors = self.fitted.tensors("fitted") | self.held_out.tensors("held_out")
        tensors |= {"inputs": self.inputs, "held_out_inputs": self.held_out_inputs}
        header = {"classes": self.fitted.moments.classes, "surrogate": self.surrogate}
        write_tensors(path, tensors, kind=KIND, header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShardStatistics:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind=KIND)
        with rebuilding(path, "a shard's statistics"):
            classes = tuple(header["classes"])
            fitted, held_out = (RowSums.of_tensors(tensors, side, classes) for side in ("fitted", "held_out"))
            own = cls(fitted, held_out, tensors["inputs"], tensors["held_out_inputs"], header["surrogate"])
            return as_annotated(own)


@own_kinds
@torch.no_grad()
def gather_shard(koopman: KoopmanAutoencoder, trajectories: Rows) -> ShardStatistics:
    """Gather what a shard of the data adds to a fit with this surrogate's encoder.

    Inputs that its fit held out stay held out. A shard without any of them, one that the encoder has not seen, has the
    fit's share of its own inputs held out, drawn as a fit draws them.

    Args:
        koopman: the surrogate, the same for all shards.
        trajectories: of the shard, with the labels if the surrogate was fitted with labels.

    Returns:
        Its sums, on the CPU; as large for a million rows as for a thousand.

    Raises:
        HostMismatchError: the trajectories are of another model.
        InputError: of other sites, without the labels, or with others, or too few to hold any out.
        NonFiniteError: a state is NaN or infinite.
    """
    trajectories = in_memory(trajectories)
    _require_alike(koopman, trajectories)
    trajectories.require_finite()
    held_out = koopman.is_held_out(trajectories)
    if not bool(held_out.any()):
        record, usual = koopman.record, FitConfig()
        share = usual.validation if record.validation is None else record.validation
        _, apart = trajectories.split(share, seed=usual.seed if record.seed is None else record.seed)
        held_out = torch.isin(trajectories.digests, apart.digests)
    return ShardStatistics(
        _sums(koopman, trajectories, ~held_out),
        _sums(koopman, trajectories, held_out),
        torch.unique(trajectories.digests),
        torch.unique(trajectories.digests[held_out]),
        koopman.digest(),
    )


def added_up(parts: Sequence[RowSums]) -> RowSums:
    """Add sums over rows of several shards."""
    depths, _, observables = parts[0].moments.mean.shape
    moments = Moments(depths, parts[0].moments.classes, observables)
    for part in parts:
        moments.add(part.moments)
    return RowSums(moments, torch.stack([part.cross for part in parts]).sum(0))


def _sums(koopman: KoopmanAutoencoder, trajectories: Trajectories, kept: Bool[Tensor, " sample"]) -> RowSums:
    rows = trajectories[kept]
    device, size = koopman.normalization.maps(0)[0].device, koopman.config.observables
    moments = Moments(rows.depths, koopman.config.classes, size).to(device)
    cross = torch.zeros(rows.depths - 1, size, size, dtype=torch.float64, device=device)
    for chunk in rows.pieces(_CHUNK, whole=koopman.looks_back):
        order = chunk.in_sequence() if koopman.looks_back else None
        z = torch.stack([koopman.encode(state.to(device), depth, order) for depth, state in enumerate(chunk.states)])
        z = z.double()
        moments.update(z, chunk.labels)
        cross += z[:-1].mT @ z[1:]
    return RowSums(moments.cpu(), cross.cpu())


def _require_alike(koopman: KoopmanAutoencoder, trajectories: Trajectories) -> None:
    c = koopman.config
    c.host.require(trajectories.host, "surrogate")
    if trajectories.sites != c.sites or trajectories.times != c.times:
        raise InputError(
            f"The shard has the sites {', '.join(trajectories.sites)}, and the surrogate {', '.join(c.sites)}, or "
            "their times differ. Attach to the same ones."
        )
    if trajectories.skip != c.skip:
        raise InputError(
            f"The shard leaves out the first {trajectories.skip} positions, and the surrogate was fitted without the "
            f"first {c.skip}. Observe with skip={c.skip}."
        )
    if bool(c.classes) != (trajectories.labels is not None):
        have = "with labels, whose means it keeps. Give them" if c.classes else "without labels. Leave them out"
        raise InputError(f"The surrogate was fitted {have} with each shard.")
    if foreign := sorted({*trajectories.classes} - {*c.classes}):
        raise InputError(
            f"The shard has the label {foreign[0]}, and the surrogate was fitted with {list(c.classes)}. Fit the "
            "encoder on a shard that has all labels."
        )
