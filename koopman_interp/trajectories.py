"""Trajectories: how each sample's representation moves through the depth of a model.

A frozen value that holds one tensor of rows per depth, since widths may differ, with the labels and the origin
of each row. With a clock, what is called depth is the ticks of a path of inputs at one site. It knows nothing of
models; what it remembers of its model is a fingerprint.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from koopman_interp.clocks import Clock
from koopman_interp.depths import depth_of, span
from koopman_interp.errors import FileFormatError, InputError, NonFiniteError
from koopman_interp.files import Json, read_tensors, write_tensors
from koopman_interp.growing import GrowingRows
from koopman_interp.hashing import Draw, group_digests, row_digests
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.tokens import Tokenizer, shown_in_text
from koopman_interp.hub import OnHub
from koopman_interp.labels import IGNORED, forms_of, spread_labels
from koopman_interp.results import Result
from koopman_interp.sequences import Sequences, whole_pieces
from koopman_interp.tables import Column, Table, in_percent


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories(Result, OnHub):
    """States of samples over depth.

    Attributes:
        states: one tensor `[sample, width]` per depth; widths may differ.
        sites: the site of each depth.
        times: time of each depth in operator steps, strictly increasing; 1 per layer unless told otherwise.
        host: fingerprint of the model they were observed on.
        sequence: `[sample]`, which of the observed inputs each row belongs to.
        position: `[sample]`, where in that input it stood (0 for inputs without positions); for tokens, counted from
            the first real one.
        labels: `[sample]` class of each row, or None.
        tokens: `[sample]` token id of each row, or None where the model was not called with any.
        shapes: shape of one sample's state in the model, per depth: `(width,)`, or `(channel, height, width)`.
        skip: leading places of each sequence that were left out; the default of all that is made of these.
        layout: names of the axes of the states in the model, where `attach` was told; see `Layout`.
        digests: `[sample]`, 64 bits of the input that each row belongs to: equal inputs have equal ones. Left out, they
            are made from the states at the first depth.
        clock: what time is where it is not depth, as `orbit` makes it; None is depth. Each row is then a path, each
            "site" a tick, and a digest that of all paths that share an input with this one.
    """

    states: tuple[Float[Tensor, "sample _"], ...]
    sites: tuple[str, ...]
    times: tuple[float, ...]
    host: HostFingerprint
    sequence: Int[Tensor, " sample"]
    position: Int[Tensor, " sample"]
    labels: Int[Tensor, " sample"] | None = None
    tokens: Int[Tensor, " sample"] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    skip: int = 0
    layout: str | None = None
    digests: Int[Tensor, " sample"] = None  # type: ignore[assignment]  # left out: made below
    clock: Clock | None = None

    hub_file: ClassVar[str] = "trajectories.safetensors"

    def __post_init__(self) -> None:
        if not self.shapes:
            object.__setattr__(self, "shapes", tuple((width,) for width in self.widths))
        if len(self.states) < 2 or len({len(self.states), len(self.sites), len(self.times)}) != 1:
            raise InputError(
                f"Trajectories need two or more depths, each with a site and a time; got {len(self.states)} states, "
                f"{len(self.sites)} sites and {len(self.times)} times."
            )
        if any(not later > earlier for earlier, later in zip(self.times, self.times[1:], strict=False)):
            raise InputError(f"Times must increase with depth; got {self.times}.")
        if self.clock is not None and len(set(self.widths)) != 1:
            raise InputError(f"All ticks are of one site, so they have one width; got {sorted(set(self.widths))}.")
        lengths = {len(state) for state in (*self.states, self.sequence, self.position)}
        if len(lengths) != 1:
            raise InputError(f"All depths need the same number of samples; got {sorted(lengths)}.")
        if self.digests is None:
            found = group_digests(row_digests(self.states[0]), self.sequence, self.position)
            object.__setattr__(self, "digests", found)
        for name, what in (("labels", "labels"), ("tokens", "token ids"), ("digests", "digests of inputs")):
            given = getattr(self, name)
            if given is not None and len(given) != len(self):
                raise InputError(f"Expected {len(self)} {what}, one a sample; got {len(given)}.")

    def __len__(self) -> int:
        return len(self.states[0])

    def __repr__(self) -> str:
        widths = sorted(set(self.widths))
        shown = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        labelled = "unlabelled" if self.labels is None else f"{len(self.classes)} classes"
        if self.clock is not None:
            return f"Trajectories({len(self):,} paths, {self.depths} ticks of {self.clock}, width {shown}, {labelled})"
        return (
            f"Trajectories({len(self):,} samples, {self.depths} depths from {self.sites[0]!r} to "
            f"{self.sites[-1]!r}, width {shown}, {labelled})"
        )

    def tables(self) -> Sequence[Table]:
        """Return the depths and, where there are labels, how many rows each class has."""
        depths = (
            Column("site", self.sites),
            Column("time", self.times, "{:g}".format),
            Column("width", self.widths),
            Column("shape in the model", self.shapes, lambda shape: " × ".join(map(str, shape))),
        )
        tables = [Table(depths, f"{len(self):,} rows at each depth.")]
        if self.labels is not None:
            classes, counts = torch.unique(self.labels, return_counts=True)
            counted = (Column("class", tuple(classes.tolist())), Column("rows", tuple(counts.tolist()), "{:,}".format))
            tables.append(Table(counted, "Rows of each class."))
        return tables

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: what they are of, without the states."""
        of = {"samples": len(self), "sites": list(self.sites), "times": list(self.times), "widths": list(self.widths)}
        clock = None if self.clock is None else str(self.clock)
        return of | {"classes": list(self.classes), "host": asdict(self.host), "clock": clock}

    @property
    def depths(self) -> int:
        """How many sites each trajectory passes."""
        return len(self.states)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the state at each depth."""
        return tuple(state.shape[1] for state in self.states)

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur, in ascending order; empty without labels."""
        return () if self.labels is None else tuple(torch.unique(self.labels).tolist())

    @overload
    def __getitem__(self, rows: str) -> Float[Tensor, "sample _"]: ...

    @overload
    def __getitem__(self, rows: int | Int[Tensor, " _"] | Bool[Tensor, " _"] | slice) -> Trajectories: ...

    def __getitem__(self, rows: str | int | Int[Tensor, " _"] | Bool[Tensor, " _"] | slice) -> Tensor | Trajectories:
        """Take some of the samples, by index, mask or slice; or, by the name of a site, the states there."""
        if isinstance(rows, str):
            return self.states[depth_of(self.sites, rows)]
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"Sample {rows} is outside the {len(self):,} samples.")
            rows = slice(rows, rows + 1 or None)
        return replace(
            self,
            states=tuple(state[rows] for state in self.states),
            sequence=self.sequence[rows],
            position=self.position[rows],
            labels=None if self.labels is None else self.labels[rows],
            tokens=None if self.tokens is None else self.tokens[rows],
            digests=self.digests[rows],
        )

    def in_sequence(self) -> Sequences:
        """Say how the rows follow each other, for a surrogate whose encoder looks back.

        Raises:
            InputError: rows of a sequence are missing.
        """
        return Sequences.whole(self.sequence, self.position, self.skip)

    def pieces(self, rows: int, *, whole: bool = False) -> Iterator[Trajectories]:
        """Go through the rows in pieces.

        Args:
            rows: of a piece, at most.
            whole: keep the rows of a sequence together, where it takes more rows than that too. Sequences come in the
                order of their numbers.

        Yields:
            The pieces.
        """
        if not whole:
            for start in range(0, len(self), rows):
                yield self[start : start + rows]
            return
        for piece in whole_pieces(self.sequence, rows):
            yield self[piece]

    def with_labels(self, labels: Any) -> Trajectories:
        """Return the same trajectories with labels, one a sample or one an observed input.

        Samples with the label -100, which marks what is to be ignored in the convention of Hugging Face, are
        left out.

        Raises:
            InputError: the number of labels fits neither, or they are not whole numbers.
        """
        found = spread_labels(labels, forms_of(self.sequence))
        labelled = replace(self, labels=found)
        return labelled[found != IGNORED] if bool((found == IGNORED).any()) else labelled

    @classmethod
    def concatenate(
        cls, parts: Iterable[Trajectories], *, same_inputs: bool = False, count: int | None = None
    ) -> Trajectories:
        """Join trajectories of one host, those of `Tap.stream` for instance.

        The parts are read once; beside the result, at most one depth is held twice, and none where their number is
        known and all are as large as the first.

        Args:
            parts: what to join, in order.
            same_inputs: equal numbers in `sequence` mean the same input, as in parts of one whole. Otherwise each
                part holds inputs of its own, and where its numbers do not lie after those before, they are counted on.
            count: how many parts there will be, where that is known.

        Returns:
            All their samples.

        Raises:
            InputError: there are none, or they differ in host, sites, times, widths, or in having labels or tokens.
        """
        first: Trajectories | None = None
        states: list[GrowingRows] = []
        sequences: list[Tensor] = []
        rest: dict[str, list[Tensor]] = {"position": [], "labels": [], "tokens": [], "digests": []}
        following = 0
        for part in parts:
            if first is None:
                # Its rows are not held on to, so that each depth can be freed as it is joined.
                first = replace(part[:0], states=tuple(state[:0].clone() for state in part.states))
                states = [GrowingRows(count) for _ in part.states]
            _require_alike(first, part)
            for depth, state in zip(states, part.states, strict=True):
                depth.add(state)
            sequence = part.sequence
            if len(part):
                if not same_inputs and int(sequence.min()) < following:
                    sequence = sequence + following
                following = max(following, int(sequence.max()) + 1)
            sequences.append(sequence)
            for name, found in rest.items():
                found.extend(tensor for tensor in [getattr(part, name)] if tensor is not None)
            del part
        if first is None:
            raise InputError("There are no trajectories to concatenate.")
        joined: dict[str, Json] = {name: torch.cat(found) if found else None for name, found in rest.items()}
        return replace(first, states=tuple(depth.joined() for depth in states), sequence=torch.cat(sequences), **joined)

    def between(self, source: str | int | None = None, target: str | int | None = None) -> Trajectories:
        """Keep the depths of a span, both ends included; times start where they were."""
        first, last = span(self.sites, source, target)
        kept = slice(first, last + 1)
        return replace(
            self,
            states=self.states[kept],
            sites=self.sites[kept],
            times=self.times[kept],
            shapes=self.shapes[kept],
        )

    def split(self, fraction: float, *, seed: int = 0) -> tuple[Trajectories, Trajectories]:
        """Hold out some of the observed inputs, with all their rows.

        Which ones is drawn by their digests, so that equal inputs are on one side, and that the order of the rows makes
        no difference.

        Args:
            fraction: share of the distinct inputs to hold out, between 0 and 1.
            seed: of the draw.

        Returns:
            The rows of the other inputs, to fit on, and those of the inputs held out.

        Raises:
            InputError: one of the parts would be empty.
        """
        distinct = torch.unique(self.digests)
        inputs = len(distinct)
        if not 0 < round(fraction * inputs) < inputs:
            if self.clock is not None:
                raise InputError(
                    f"Holding out {in_percent(fraction, 0)} of {inputs} orbits leaves one part empty: {len(self):,} "
                    "paths share inputs with one another, and paths that do are held out together. Observe paths that "
                    "never meet (the same walk from other images, say), or choose another fraction."
                )
            raise InputError(
                f"Holding out {in_percent(fraction, 0)} of {inputs} distinct inputs leaves one part empty. "
                "Observe more, or choose another fraction."
            )
        held_out = Draw.of(distinct, fraction, seed)(self.digests)
        return self[~held_out], self[held_out]

    def text(self, row: int, tokenizer: Tokenizer, *, around: int = 16) -> str:
        """Show the token of a row in its text, between ⟦ and ⟧: `Once upon a⟦ time⟧, there was`.

        The text is made of the rows that are here: it ends, with an ellipsis, where the neighbouring token was
        skipped or is not among them.

        Args:
            row: index of the row.
            tokenizer: of Hugging Face's kind; its `decode` turns ids to text.
            around: the most tokens to show on each side.

        Returns:
            The text.

        Raises:
            InputError: the trajectories hold no token ids.
        """
        if self.tokens is None:
            raise InputError(
                "These trajectories hold no token ids: the model was not called with any, or they were written before "
                "ids were kept. Observe anew."
            )
        of_input = (self.sequence == self.sequence[row]).nonzero().squeeze(1)
        at = {int(self.position[other]): int(self.tokens[other]) for other in of_input}
        return shown_in_text(at, int(self.position[row]), tokenizer, around)

    def require_finite(self) -> None:
        """Check that all states are finite.

        Raises:
            NonFiniteError: naming the first site with NaN or infinity.
        """
        for site, state in zip(self.sites, self.states, strict=True):
            bad = ~torch.isfinite(state).all(dim=1)
            if bad.any():
                raise NonFiniteError(
                    f"{int(bad.sum())} of {len(self)} samples are NaN or infinite at site {site!r}, the first in "
                    f"row {int(bad.nonzero()[0])}. Drop them, or observe in a wider dtype."
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors = {f"state.{depth}": state for depth, state in enumerate(self.states)}
        tensors |= {"sequence": self.sequence, "position": self.position, "digests": self.digests}
        if self.labels is not None:
            tensors["labels"] = self.labels
        if self.tokens is not None:
            tensors["tokens"] = self.tokens
        header: dict[str, Json] = {
            "sites": self.sites,
            "times": self.times,
            "shapes": self.shapes,
            "skip": self.skip,
            "layout": self.layout,
            "host": asdict(self.host),
            "clock": None if self.clock is None else self.clock.as_dict(),
        }
        write_tensors(path, tensors, kind="trajectories", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectories:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="trajectories")
        try:
            return cls(
                states=tuple(tensors[f"state.{depth}"] for depth in range(len(header["sites"]))),
                sites=tuple(header["sites"]),
                times=tuple(header["times"]),
                shapes=tuple(map(tuple, header["shapes"])),
                skip=header["skip"],
                layout=header["layout"],
                host=HostFingerprint(**header["host"]),
                sequence=tensors["sequence"],
                position=tensors["position"],
                labels=tensors.get("labels"),
                tokens=tensors.get("tokens"),
                digests=tensors["digests"],
                clock=Clock.from_dict(header.get("clock")),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{path} lacks parts of trajectories. Write it again from its source.") from error


def _require_alike(first: Trajectories, part: Trajectories) -> None:
    first.host.require(part.host, "part of the trajectories")
    for name in ("sites", "times", "shapes", "widths", "clock"):
        ours, theirs = getattr(first, name), getattr(part, name)
        if ours != theirs:
            raise InputError(f"Parts to concatenate need the same {name}; got {ours} and {theirs}.")
    for name in ("labels", "tokens"):
        if (getattr(first, name) is None) != (getattr(part, name) is None):
            raise InputError(f"Some parts have {name} and others have none. Give {name} with all or with none.")
