"""OperatorEdit: a low-rank change of the operator, as a value with its own certificate.

The edit is a `LowRankMap` P of rows of observables at one depth; the edited operator is `K' = K P` for the step that
leaves that depth. On observables with a constant coordinate beside them it is linear. All products cost observables ×
rank; only `apply` and `undo` touch a dense K. Knows nothing of hosts or of how the factors are solved for.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.annotations import as_annotated
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.files import Json, read_tensors, rebuilding, write_tensors
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hub import OnHub
from koopman_interp.results import Result
from koopman_interp.tables import Column, Table, in_percent


@dataclass(frozen=True)
class Certificate:
    """What can be said of an edit without running the model.

    Attributes:
        rank: of the change of the operator.
        noise: of the eraser of one class, the standard deviation of its reading within classes on held-out rows, where
            the class to forget reads 1 and the retained mean 0: how sharply the edit tells the class from the rest.
            None for other edits.
        retained_drift: root mean square by which retained rows are moved, relative to the root mean square
            spread of all rows. Measured on rows when trajectories were given, else a bound from held-out moments.
        drift_rows: how many rows it was measured on; 0 where it is the bound.
        class_mean_drift: farthest that the edit moves the mean of a retained class on held-out rows, relative to
            the same spread.
        undo_error: `‖undo(K') − K‖ / ‖K‖` in float64.
        null_dimension: observables less the numerical rank of the covariance of the rows fitted at this depth: how
            many directions no fitted row reaches.
        feasibility: share of what was asked that what is to be retained leaves possible: 1 where nothing stands in the
            way, 0 where the edit does not exist. Each method says how it measures it. None where nothing constrains.
        strength: multiplier of the displacement.
        operator: digest of the K that the edit was made for.
        reach: share of what the edit changes at its site that K carries to the last depth, both as root mean squares of
            observables over held-out rows, relative to the spread of all rows at that depth. It says what carrying
            would bring there, not what the model does with it: `ki.reach` measures that. None where nothing is changed.
    """

    rank: int
    noise: float | None
    retained_drift: float
    drift_rows: int
    class_mean_drift: float
    undo_error: float
    null_dimension: int | None = None
    feasibility: float | None = None
    strength: float = 1.0
    operator: str = ""
    reach: float | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.in_words())

    def in_words(self) -> list[tuple[str, str]]:
        """Name what is known, in words for a line or a table."""
        source = f"{self.drift_rows:,} rows" if self.drift_rows else "at most, from held-out moments"
        facts = [("rank", f"{self.rank}")]
        if self.noise is not None:
            facts.append(("reading noise", f"{self.noise:.2f}"))
        facts.append(("retained rows drift", f"{in_percent(self.retained_drift)} ({source})"))
        facts.append(("retained class means", in_percent(self.class_mean_drift)))
        if self.feasibility is not None:
            facts.append(("feasibility", f"{self.feasibility:.3f}"))
        if self.null_dimension is not None:
            facts.append(("null space", f"{self.null_dimension} dimensions"))
        if self.reach is not None:
            facts.append(("carried by K to the last depth", f"{in_percent(self.reach, 1)} of the change"))
        facts.append(("undo error", f"{self.undo_error:.1e}"))
        if self.strength > 1:
            facts.append(("strength", f"{self.strength:g}, past 1: over-erased, no guardedness"))
        return facts


@dataclass(frozen=True, eq=False, repr=False)
class OperatorEdit(Result, OnHub):
    """A low-rank edit `K → K' = K P` with `P: z → z − (z W − o) Aᵀ`.

    Attributes:
        description: what the edit does, in words.
        site: site at whose depth P acts.
        depth: that depth.
        map: P.
        moved: `K A`, `[observable, rank]`, so that the edit can be undone without K.
        host: fingerprint of the model.
        operator: digest of the K it was made for.
        labels: the classes that it forgets; empty where it is made for none.
        certificate: what can be said of it; None for a composition that has not been certified.
    """

    description: str
    site: str
    depth: int
    map: LowRankMap
    moved: Float[Tensor, "observable rank"]
    host: HostFingerprint
    operator: str
    labels: tuple[int, ...] = ()
    certificate: Certificate | None = None

    hub_file: ClassVar[str] = "edit.safetensors"

    def __repr__(self) -> str:
        known = "not certified" if self.certificate is None else str(self.certificate)
        return f"OperatorEdit({self.description}, at {self.site!r}: {known})"

    def __str__(self) -> str:
        return self.tables()[0].text()

    def tables(self) -> tuple[Table]:
        """Return what is known of the edit, a row a fact."""
        names, values = zip(*self._in_words(), strict=True)
        return (Table((Column("fact", names), Column("value", values, left=True))),)

    def _in_words(self) -> list[tuple[str, str]]:
        known = [("", "not certified")] if self.certificate is None else self.certificate.in_words()
        return [("edit", self.description), ("site", self.site), *known, ("K", self.operator[:12])]

    def as_dict(self) -> dict[str, Json]:
        """Return what is known of the edit as plain values for JSON; the factors go to files with `save`."""
        return {**self.facts(), "rank": self.rank}

    @property
    def directions(self) -> Float[Tensor, "observable rank"]:
        """A, along which rows are moved."""
        return self.map.directions

    @property
    def readers(self) -> Float[Tensor, "observable rank"]:
        """W, by which rows are read."""
        return self.map.readers

    @property
    def offset(self) -> Float[Tensor, " rank"]:
        """What the readers give where nothing is to be moved."""
        return self.map.offset

    @property
    def rank(self) -> int:
        """Rank of the change."""
        return self.map.rank

    @property
    def inverse(self) -> OperatorEdit:
        """The edit that takes P back on rows, and forgets nothing: `edit.inverse @ edit` changes nothing.

        Raises:
            InputError: P is singular, as each eraser of strength 1 is: rows that it has projected cannot be told
                apart again. The operator can: `undo` needs no inverse.
        """
        try:
            reversal = self.map.reversal
        except InputError as error:
            raise InputError(
                f"The edit {self.description!r} projects, so rows have no way back: it has no inverse. To take the "
                "edit off the operator use undo(K'); to have an inverse choose a strength other than 1."
            ) from error
        return replace(
            self,
            description=f"inverse of {self.description}",
            map=replace(self.map, directions=self.directions @ reversal),
            moved=self.moved @ reversal,
            labels=(),
            certificate=None,
        )

    def __call__(self, z: Float[Tensor, "*batch observable"]) -> Float[Tensor, "*batch observable"]:
        """Apply P to rows of observables at the edit's depth.

        Raises:
            InputError: the rows are of another width, as the model's own states are.
        """
        if z.shape[-1] != len(self.directions):
            raise InputError(
                f"An edit acts on {len(self.directions)} observables; got rows of width {z.shape[-1]}. Lift states "
                f"first: edit(koopman.encode(states, {self.site!r})). In a model: patched(model, koopman, edit)."
            )
        return self.map(z)

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
        return replace(
            self,
            description=f"{first.description}, then {self.description}",
            map=first.map.then(self.map),
            moved=torch.cat([first.moved, self.moved], 1),
            labels=tuple(dict.fromkeys(first.labels + self.labels)),
            certificate=None,
        )

    def scaled(self, strength: float) -> OperatorEdit:
        """Return the edit with its displacement multiplied; 0 changes nothing."""
        return replace(
            self,
            description=f"{self.description} × {strength:g}",
            map=self.map.scaled(strength),
            moved=self.moved * strength,
            certificate=None,
        )

    @property
    def factors(self) -> dict[str, Tensor]:
        """The tensors of the edit by name, as a file holds them."""
        return {name: getattr(self, name) for name in ("directions", "readers", "offset", "moved")}

    def facts(self) -> dict[str, Json]:
        """What a file holds beside the factors, as plain values."""
        return {
            "description": self.description,
            "site": self.site,
            "depth": self.depth,
            "host": asdict(self.host),
            "operator": self.operator,
            "labels": list(self.labels),
            "certificate": None if self.certificate is None else asdict(self.certificate),
        }

    @classmethod
    def of_parts(cls, factors: dict[str, Tensor], facts: dict[str, Json]) -> OperatorEdit:
        """Rebuild from `factors` and `facts`; what is missing or too much raises KeyError or TypeError."""
        known = facts["certificate"]
        own = dict(factors)
        moved = own.pop("moved")
        return cls(
            map=LowRankMap(**own),
            moved=moved,
            description=facts["description"],
            site=facts["site"],
            depth=facts["depth"],
            host=HostFingerprint(**facts["host"]),
            operator=facts["operator"],
            labels=tuple(facts.get("labels", ())),
            certificate=None if known is None else Certificate(**known),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        write_tensors(path, self.factors, kind="edit", header=self.facts())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OperatorEdit:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="edit")
        with rebuilding(path, "an edit"):
            return as_annotated(cls.of_parts(tensors, header))
