"""What modes mean, as values: printable, drawable, and kept as JSON. Knows nothing of how it was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from koopman_interp.analysis.spectra.eigen import turned
from koopman_interp.results import PlainResult
from koopman_interp.tables import Column, Table, digits, in_percent, percents


@dataclass(frozen=True)
class Example:
    """A sample that has much of a mode.

    Attributes:
        row: of the trajectories.
        amplitude: its φ less the mean, along the mode's axis, in standard deviations.
        text: the token in its text, or the class; empty where neither is known.
    """

    row: int
    amplitude: float
    text: str


@dataclass(frozen=True, repr=False)
class ModeMeaning(PlainResult):
    """What is known of one mode.

    Attributes:
        mode: its index in the spectrum.
        eigenvalue: λ of the spectrum, real and imaginary part.
        residual: of the spectrum; None where it certifies nothing.
        verdict: of the spectrum.
        varying: share of the mean of |φ|² that differs between samples at the site.
        high: the samples farthest up the mode's axis, farthest first.
        low: the samples farthest down.
        tokens: token, mean amplitude in standard deviations and count, of the tokens where the mode is largest.
        up: output and change of its log-probability in nats, for a step of one standard deviation up the axis: those
            that gain most.
        down: those that lose most.
        growth: standard deviation of φ at each depth, relative to the first.
        expected: `|λ|^t` at the time of each depth, counted from the first, with λ of K itself, which φ goes by.
    """

    mode: int
    eigenvalue: tuple[float, float]
    residual: float | None
    verdict: str
    varying: float
    high: tuple[Example, ...]
    low: tuple[Example, ...]
    tokens: tuple[tuple[str, float, int], ...]
    up: tuple[tuple[str, float], ...]
    down: tuple[tuple[str, float], ...]
    growth: tuple[float, ...]
    expected: tuple[float, ...]

    def __repr__(self) -> str:
        known = "–" if self.residual is None else f"{self.residual:.3f}"
        return (
            f"ModeMeaning(mode {self.mode}, λ = {complex(*self.eigenvalue):.4f}, residual {known}, {self.verdict}, "
            f"{in_percent(self.varying, 0)} of it differs between samples)"
        )

    def tables(self) -> tuple[Table, ...]:
        """Return its figures, what it says at the output, its samples, and its growth by depth."""
        return _tables([self], [str(depth) for depth in range(len(self.growth))])


@dataclass(frozen=True, repr=False)
class ModeMeanings(PlainResult):
    """What several modes mean.

    Attributes:
        modes: one entry a mode.
        sites: of the surrogate, in order of depth.
        site: where the modes were read and stepped along.
    """

    modes: tuple[ModeMeaning, ...]
    sites: tuple[str, ...]
    site: str

    def __repr__(self) -> str:
        return f"ModeMeanings({len(self.modes)} modes at {self.site!r})"

    def tables(self) -> tuple[Table, ...]:
        """Return the modes' figures, what they say at the output, their samples, and their growth by depth."""
        return _tables(self.modes, self.sites)

    def __iter__(self) -> Iterator[ModeMeaning]:
        return iter(self.modes)

    def __getitem__(self, index: int) -> ModeMeaning:
        return self.modes[index]

    def __len__(self) -> int:
        return len(self.modes)


def _tables(modes: Sequence[ModeMeaning], depths: Sequence[str]) -> tuple[Table, ...]:
    """Return what is known of modes; tables of what was not asked for are left out."""
    tables = [_figures(modes)]
    if any(mode.up or mode.down for mode in modes):
        tables.append(_outputs(modes))
    if any(mode.tokens for mode in modes):
        tables.append(_tokens(modes))
    return (*tables, _samples(modes), _growth(modes, depths))


def _figures(modes: Sequence[ModeMeaning]) -> Table:
    values = [complex(*mode.eigenvalue) for mode in modes]
    columns = (
        Column("mode", tuple(mode.mode for mode in modes)),
        Column("|λ|", tuple(map(abs, values)), digits(4)),
        Column("turn, °", tuple(float(np.degrees(np.angle(value))) for value in values), turned),
        Column("residual", tuple(mode.residual for mode in modes), digits(3)),
        Column("differs %", tuple(mode.varying for mode in modes), percents(0)),
        Column("growth", tuple(mode.growth[-1] for mode in modes), digits(3)),
        Column("expected", tuple(mode.expected[-1] for mode in modes), digits(3)),
        Column("verdict", tuple(mode.verdict for mode in modes), left=True),
    )
    return Table(columns, "How much of a mode differs between samples, and how far it grows from first to last depth.")


def _outputs(modes: Sequence[ModeMeaning]) -> Table:
    columns = (
        Column("mode", tuple(mode.mode for mode in modes)),
        Column("says more", tuple(mode.up or None for mode in modes), _changes, left=True),
        Column("says less", tuple(mode.down or None for mode in modes), _changes, left=True),
    )
    return Table(columns, "At the model's output, nats for a step of one standard deviation up the mode.")


def _tokens(modes: Sequence[ModeMeaning]) -> Table:
    rows = [(mode.mode, *entry) for mode in modes for entry in mode.tokens]
    mode, token, amplitude, count = (tuple(entries) for entries in zip(*rows, strict=True))
    columns = (
        Column("mode", mode),
        Column("token", token, repr, left=True),
        Column("mean amplitude", amplitude, "{:+.2f}".format),
        Column("count", count, "{:,}".format),
    )
    return Table(columns, "The tokens where a mode is largest, in standard deviations.")


def _samples(modes: Sequence[ModeMeaning]) -> Table:
    rows = [(mode.mode, example) for mode in modes for example in (*mode.high, *mode.low)]
    columns = (
        Column("mode", tuple(mode for mode, _ in rows)),
        Column("amplitude", tuple(example.amplitude for _, example in rows), "{:+.2f}".format),
        Column("row", tuple(example.row for _, example in rows)),
        Column("sample", tuple(example.text for _, example in rows), left=True),
    )
    return Table(columns, "The samples farthest up and down each mode, in standard deviations.").without_empty()


def _growth(modes: Sequence[ModeMeaning], depths: Sequence[str]) -> Table:
    lines = [(f"{mode.mode}{what}", sizes) for mode in modes for what, sizes in _sizes(mode)]
    names = tuple(name for name, _ in lines)
    at_depths = (tuple(sizes[depth] for _, sizes in lines) for depth in range(len(depths)))
    columns = (
        Column("mode", names),
        *(Column(name, sizes, digits(3)) for name, sizes in zip(depths, at_depths, strict=True)),
    )
    return Table(columns, "Growth by depth: standard deviation relative to the first depth, and what K makes of it.")


def _sizes(mode: ModeMeaning) -> tuple[tuple[str, tuple[float, ...]], ...]:
    return (", measured", mode.growth), (", expected", mode.expected)


def _changes(outputs: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {change:+.3f}" for name, change in outputs)
