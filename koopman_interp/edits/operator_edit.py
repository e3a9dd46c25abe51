"""OperatorEdit: a low-rank change of the operator, as a value with its own certificate.

The edit is the affine map `P: z → z − s ((z − μ) W) Aᵀ` on rows of observables at one depth; the edited operator
is `K' = K P` for the step that leaves that depth. On observables with a constant coordinate beside them it is
linear. Knows nothing of hosts or of how the factors were found.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.errors import FileFormatError, HostMismatchError, InputError
from koopman_interp.files import read_tensors, write_tensors
from koopman_interp.hosts import HostFingerprint


@dataclass(frozen=True)
class Certificate:
    """What can be said of an edit without running the host.

    Attributes:
        rank: of the change of the operator.
        noise: standard deviation of the reading within classes on held-out rows, where the class to forget reads 1
            and the retained mean 0: how sharply the edit tells the class from the rest.
        retained_drift: root mean square by which retained rows are moved, relative to the root mean square
            spread of all rows. Measured on rows when trajectories were given, else a bound from held-out moments.
        drift_rows: how many rows it was measured on; 0 where it is the bound.
        class_mean_drift: farthest that the edit moves the mean of a retained class on held-out rows, relative to
            the same spread.
        undo_error: `‖undo(K') − K‖ / ‖K‖` in float64.
    """

    rank: int
    noise: float
    retained_drift: float
    drift_rows: int
    class_mean_drift: float
    undo_error: float

    def __str__(self) -> str:
        source = f"{self.drift_rows:,} rows" if self.drift_rows else "at most, from held-out moments"
        return (
            f"rank {self.rank}, reading noise {self.noise:.2f}, "
            f"retained rows drift {self.retained_drift:.2%} ({source}), "
            f"retained class means {self.class_mean_drift:.2%}, undo error {self.undo_error:.1e}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class OperatorEdit:
    """A low-rank edit `K → K' = K P` with `P: z → z − ((z − μ) W) Aᵀ`.

    Attributes:
        description: what the edit does, in words.
        site: site at whose depth P acts.
        depth: that depth.
        directions: A, `[observable, rank]`, along which rows are moved; the strength is in them.
        readers: W, `[observable, rank]`, by which rows are read.
        offset: `μ W`, `[rank]`, what the readers give where nothing is to be moved.
        moved: `K A`, `[observable, rank]`, so that the edit can be undone without K.
        host: fingerprint of the host.
        operator: digest of the K it was made for.
        certificate: what can be said of it; None for a composition that has not been certified.
    """

    description: str
    site: str
    depth: int
    directions: Float[Tensor, "observable rank"]
    readers: Float[Tensor, "observable rank"]
    offset: Float[Tensor, " rank"]
    moved: Float[Tensor, "observable rank"]
    host: HostFingerprint
    operator: str
    certificate: Certificate | None = None

    def __repr__(self) -> str:
        known = "not certified" if self.certificate is None else str(self.certificate)
        return f"OperatorEdit({self.description}, at {self.site!r}: {known})"

    @property
    def rank(self) -> int:
        """Rank of the change."""
        return self.directions.shape[1]

    def __call__(self, z: Float[Tensor, "*batch observable"]) -> Float[Tensor, "*batch observable"]:
        """Apply P to rows of observables at the edit's depth."""
        directions, readers, offset = (part.to(z) for part in (self.directions, self.readers, self.offset))
        return z - (z @ readers - offset) @ directions.T

    def apply(self, K: Float[Tensor, "observable observable"]) -> Float[Tensor, "observable observable"]:
        """Return the linear part of `K' = K P` in float64."""
        return K.double() - self.moved @ self.readers.T

    def undo(self, edited: Float[Tensor, "observable observable"]) -> Float[Tensor, "observable observable"]:
        """Return K from K', without K."""
        return edited.double() + self.moved @ self.readers.T

    def __matmul__(self, first: OperatorEdit) -> OperatorEdit:
        """Compose: `second @ first` applies `first`, then `second`. The order matters, and the ranks add up.

        Raises:
            InputError: the two act at different depths.
            HostMismatchError: they were made for different hosts or operators.
        """
        if self.depth != first.depth:
            raise InputError(
                f"Edits compose at one depth; these act at {first.site!r} and {self.site!r}. Patch with both instead."
            )
        self.host.require(first.host, "edit")
        if self.operator != first.operator:
            raise HostMismatchError("These edits were made for different operators, so they do not compose.")
        # P₂P₁z = z − A₁(W₁ᵀz − c₁) − A₂(W₂ᵀz − W₂ᵀA₁(W₁ᵀz − c₁) − c₂)
        mixed = self.readers.T @ first.directions
        return replace(
            self,
            description=f"{first.description}, then {self.description}",
            directions=torch.cat([first.directions, self.directions], 1),
            readers=torch.cat([first.readers, self.readers - first.readers @ mixed.T], 1),
            offset=torch.cat([first.offset, self.offset - mixed @ first.offset]),
            moved=torch.cat([first.moved, self.moved], 1),
            certificate=None,
        )

    def scaled(self, strength: float) -> OperatorEdit:
        """Return the edit with its displacement multiplied; 0 changes nothing."""
        return replace(
            self,
            description=f"{self.description} × {strength:g}",
            directions=self.directions * strength,
            moved=self.moved * strength,
            certificate=None,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors = {name: getattr(self, name) for name in ("directions", "readers", "offset", "moved")}
        header: dict[str, Any] = {
            "description": self.description,
            "site": self.site,
            "depth": self.depth,
            "host": asdict(self.host),
            "operator": self.operator,
            "certificate": None if self.certificate is None else asdict(self.certificate),
        }
        write_tensors(path, tensors, kind="edit", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OperatorEdit:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="edit")
        try:
            known = header["certificate"]
            return cls(
                **tensors,
                description=header["description"],
                site=header["site"],
                depth=header["depth"],
                host=HostFingerprint(**header["host"]),
                operator=header["operator"],
                certificate=None if known is None else Certificate(**known),
            )
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"{path} lacks parts of an edit. Write it again from its source.") from error
