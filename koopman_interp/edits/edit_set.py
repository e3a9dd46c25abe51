"""EditSet: edits of one operator at several depths, as one value.

It is a sequence of `OperatorEdit`s, which is what `patched` takes, in order of depth and one a depth. Two readings:
through the operator, `K' = K P_d` at each step of a span; or, in a model with attention, written in place at each site
(`patched(…, at="each site")`), where the model carries on from the edited state. Costs what its parts cost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, overload

from koopman_interp.annotations import as_annotated
from koopman_interp.depths import depth_of
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.files import read_tensors, rebuilding, write_tensors
from koopman_interp.hub import OnHub
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import Result
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits, percents


@dataclass(frozen=True, eq=False, repr=False)
class EditSet(Sequence[OperatorEdit], Result, OnHub):
    """Edits at several depths, one a depth; `each_site` makes one.

    Args:
        edits: the parts; they are put in order of depth.
        description: what they do together, in words.

    Raises:
        InputError: there are none, or two at one depth.
        HostMismatchError: they were made for different hosts or operators.
    """

    edits: tuple[OperatorEdit, ...]
    description: str

    hub_file: ClassVar[str] = "edits.safetensors"

    def __post_init__(self) -> None:
        if not self.edits:
            raise InputError("A set of edits needs one or more.")
        depths = [edit.depth for edit in self.edits]
        if len(set(depths)) != len(depths):
            raise InputError(
                f"A set has one edit a depth; got depths {depths}. Compose those at one depth with @ first."
            )
        for edit in self.edits:
            self.edits[0].host.require(edit.host, "edit")
            if edit.operator != self.edits[0].operator:
                raise HostMismatchError("These edits were made for different operators, so they make no set.")
        object.__setattr__(self, "edits", tuple(sorted(self.edits, key=lambda edit: edit.depth)))

    def __len__(self) -> int:
        return len(self.edits)

    @overload
    def __getitem__(self, index: int) -> OperatorEdit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[OperatorEdit, ...]: ...
    def __getitem__(self, index: int | slice) -> OperatorEdit | tuple[OperatorEdit, ...]:
        """Return the edits at places of the set, in order of depth."""
        return self.edits[index]

    def __iter__(self) -> Iterator[OperatorEdit]:
        return iter(self.edits)

    def __repr__(self) -> str:
        sites = ", ".join(repr(edit.site) for edit in self.edits)
        return f"EditSet({self.description}, at {len(self)} sites: {sites})"

    def tables(self) -> tuple[Table]:
        """Return what the certificates say, a row a site; a dash where there is none."""

        def known(name: str) -> tuple[float | None, ...]:
            return tuple(getattr(edit.certificate, name, None) for edit in self.edits)

        columns = (
            Column("site", tuple(edit.site for edit in self.edits)),
            Column("rank", tuple(edit.rank for edit in self.edits)),
            Column("retained drift %", known("retained_drift"), percents()),
            Column("class mean drift %", known("class_mean_drift"), percents()),
            Column("feasibility", known("feasibility"), digits(3)),
            Column("undo error", known("undo_error"), digits(1, "e")),
        )
        return (Table(columns),)

    @property
    def operator(self) -> str:
        """Digest of the K that the edits were made for."""
        return self.edits[0].operator

    @property
    def labels(self) -> tuple[int, ...]:
        """The classes that the edits forget between them."""
        return tuple(dict.fromkeys(label for edit in self.edits for label in edit.labels))

    @property
    def inverse(self) -> EditSet:
        """The set that takes each P back on rows.

        Raises:
            InputError: one of them projects.
        """
        return self._each(lambda edit: edit.inverse, f"inverse of {self.description}")

    def scaled(self, strength: float) -> EditSet:
        """Return the edits with their displacements multiplied; 0 changes nothing."""
        return self._each(lambda edit: edit.scaled(strength), f"{self.description} × {strength:g}")

    def __matmul__(self, first: EditSet) -> EditSet:
        """Compose: `second @ first` applies, at each depth, `first`'s edit and then `second`'s."""
        ours, theirs = ({edit.depth: edit for edit in edits} for edits in (self, first))
        both = [
            ours[depth] @ theirs[depth] if depth in ours and depth in theirs else ours.get(depth) or theirs[depth]
            for depth in ours | theirs
        ]
        return EditSet(tuple(both), f"{first.description}, then {self.description}")

    def as_dict(self) -> dict[str, object]:
        """Return what is known of the edits as plain values for JSON."""
        return {"description": self.description, "edits": [edit.as_dict() for edit in self.edits]}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors = {f"{place}.{name}": t for place, edit in enumerate(self.edits) for name, t in edit.factors.items()}
        header = {"description": self.description, "edits": [edit.facts() for edit in self.edits]}
        write_tensors(path, tensors, kind="edits", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EditSet:
        """Read what `save` wrote, or the file of one edit, as a set of one.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind=("edits", "edit"))
        if header["kind"] == "edit":
            edit = OperatorEdit.load(path)
            return cls((edit,), edit.description)
        with rebuilding(path, "a set of edits"):
            edits = []
            for place, facts in enumerate(header["edits"]):
                start = f"{place}."
                own = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
                edits.append(OperatorEdit.of_parts(own, facts))
            return as_annotated(cls(tuple(edits), header["description"]))

    def _each(self, change: Callable[[OperatorEdit], OperatorEdit], description: str) -> EditSet:
        return replace(self, edits=tuple(change(edit) for edit in self.edits), description=description)


@own_kinds
def each_site(
    koopman: KoopmanAutoencoder,
    make: Callable[[int], OperatorEdit],
    sites: Sequence[str | int] | None = None,
) -> EditSet:
    """Make an edit at each of several sites.

    `each_site(koopman, lambda site: erase_class(koopman, label=4, site=site))` erases at all past the first.

    Args:
        koopman: the surrogate.
        make: takes a depth, and returns the edit there.
        sites: sites or depths; None is all past the first, so that P acts after each step of the operator.

    Returns:
        Their set, described as the first of them.

    Raises:
        InputError: a site is unknown, or there is none.
    """
    every = range(1, len(koopman.sites))
    depths = every if sites is None else sorted({depth_of(koopman.sites, site) for site in sites})
    edits = tuple(make(depth) for depth in depths)
    return EditSet(edits, edits[0].description if edits else "nothing")
