"""reach(): how much of what edits change at their sites arrives at the target, and at the model's output.

An edit that K carries to the target changes the states there and nowhere else. Where a model moves what is edited
along other ways as well (attention brings a concept in again from other tokens, a later block computes it anew), that
leaves at the output what the same edit, written in place, would have taken. So both ways are run and stand side by
side. Costs one pass a batch for the base model, one for each way, and one for each depth that is edited; holds one
batch. Knows nothing of what the edits are for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.auditing.baselines import edited
from koopman_interp.divergence import kullback_leibler
from koopman_interp.errors import InputError, UnsupportedHostError
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.outputs import Output
from koopman_interp.observing.pass_record import PassRecord, recorded
from koopman_interp.observing.samples import Samples
from koopman_interp.own_kinds import own_kinds
from koopman_interp.patching.options import IN_PLACE, PatchOptions
from koopman_interp.patching.patch import Patch
from koopman_interp.results import PlainResult
from koopman_interp.tables import Column, Table, digits, in_percent, percents

NOTHING = 0.01
"""Share of the change at the site, at the target, below which it counts as not having arrived."""

LITTLE = 0.1
"""Share of what the edits do at the output written in place, below which carrying them counts as doing nothing."""

_NO_DIVERGENCE = 1e-6
"""Divergence in nats, in place, below which there is nothing to compare with."""


@dataclass(frozen=True)
class Arrival:
    """What arrives of edits that are written one way.

    Attributes:
        way: how they are written, in words.
        target: root mean square change of the patched model's states at the target, over their spread there (root
            mean square distance from their mean).
        share: `target` over the change at the sites; 1 is all of it. None where the sites are not changed at all.
        output: mean `KL(base model ‖ patched)` over rows, in nats; None where the model returns no logits.
    """

    way: str
    target: float
    share: float | None
    output: float | None


@dataclass(frozen=True, repr=False)
class Reach(PlainResult):
    """What `reach` found.

    Attributes:
        edit: description of the edits.
        sites: where they act.
        changes: root mean square change that they make at each site, each alone, over the spread of the states there.
        target: site where the arrival is read.
        carried: whether the patch carries them; otherwise it writes them in place.
        patched: what arrives of them as the patch writes them.
        otherwise: what arrives of the same edits the other way.
        agreement: how much of what the edits change at the target written in place they change there carried by K,
            `Σ⟨carried, in place⟩ / Σ‖in place‖²`: 1 where K does what the model does, 0 where what it carries has
            nothing to do with it. None where the edits in place change nothing there.
        rows: how many rows of states were read.
    """

    edit: str
    sites: tuple[str, ...]
    changes: tuple[float, ...]
    target: str
    carried: bool
    patched: Arrival
    otherwise: Arrival
    agreement: float | None
    rows: int

    def __repr__(self) -> str:
        share = in_percent(self.patched.share, 1)
        nats = "" if self.patched.output is None else f", {self.patched.output:.3g} nats at the output"
        return f"Reach({self.edit}, {self.patched.way}: {share} arrives at {self.target!r}{nats})"

    @property
    def sentence(self) -> str:
        """Say which way the edits are written, and what arrives of them."""
        ours, theirs = self.patched, self.otherwise
        share = "none of it" if ours.share is None else f"{in_percent(ours.share, 0)} of the change at its site"
        nats = "" if ours.output is None else f", {ours.output:.3g} nats at the output"
        other = "" if theirs.output is None else f" ({theirs.way}: {theirs.output:.3g} nats)"
        return f"The edit is {ours.way}: {share} arrives at {self.target!r}{nats}{other}, on {self.rows:,} rows."

    @property
    def change(self) -> float:
        """What the edits change at their sites, all together: the root of the sum of squares."""
        return math.sqrt(sum(change**2 for change in self.changes))

    @property
    def of_in_place(self) -> float | None:
        """Divergence at the output as patched, over that of the same edits written in place; None without either."""
        ours, theirs = self.patched.output, self.otherwise.output
        if not self.carried:
            return None if ours is None else 1.0
        return None if ours is None or not theirs or theirs < _NO_DIVERGENCE else ours / theirs

    @property
    def warning(self) -> str | None:
        """Say that what is edited arrives nowhere, and what to do; None where it does arrive."""
        where = ", ".join(map(repr, self.sites))
        share = self.patched.share
        if share is not None and share < NOTHING:
            why = "K takes it to nothing on the way" if self.carried else "the model undoes it on the way"
            remedy = (
                "Write it in place, patched(model, koopman, edit, at='each site'), or edit nearer to the target."
                if self.carried
                else "Edit at more sites, or nearer to the target."
            )
            arrives = f"{in_percent(share)} arrives at {self.target!r}"
            return f"Of what {self.edit!r} changes at {where}, {arrives}: {why}. {remedy}"
        if self.carried and (least := self._least_of_in_place()) is not None and least[0] < LITTLE:
            return (
                f"Carried by K to {self.target!r}, {self.edit!r} does {in_percent(least[0], 1)} of what it does "
                f"written in place ({least[1]}): what it is to take is brought in on the way, by attention from other "
                "tokens, say. Write it in place: patched(model, koopman, edit, at='each site')."
            )
        return None

    def _least_of_in_place(self) -> tuple[float, str] | None:
        """Return the smaller of the two shares of what the edits do in place, and where it is so."""
        known = [(self.agreement, f"to the states at {self.target!r}"), (self.of_in_place, "at the output")]
        return min(((share, where) for share, where in known if share is not None), default=None)

    def tables(self) -> Sequence[Table]:
        """Return what arrives, a row a way; then the change at each site."""
        ways = (self.patched, self.otherwise)
        columns = (
            Column("edits", tuple(way.way for way in ways)),
            Column("changed at the sites, σ", (self.change,) * 2, digits(3)),
            Column("at the target, σ", tuple(way.target for way in ways), digits(3)),
            Column("arrives %", tuple(way.share for way in ways), percents(1)),
            Column("KL at the output, nats", tuple(way.output for way in ways), digits(4)),
        )
        caption = (
            f"What arrives of {self.edit!r} at {self.target!r}; the patch is the first row. σ is the spread of the "
            "states of the base model at that site."
        )
        by_site = (Column("site", self.sites), Column("changed there, σ", self.changes, digits(3)))
        return (Table(columns, caption, 0), Table(by_site))

    def notes(self) -> Sequence[str]:
        """Say what was read, what K and the model agree on, and where nothing arrives."""
        agreed = in_percent(self.agreement, 1)
        return (
            f"On {self.rows:,} rows. Of the change that the edits in place make at {self.target!r}, K makes {agreed}.",
            *([] if self.warning is None else [self.warning]),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the warning among them."""
        return {**super().as_dict(), "warning": self.warning}


@own_kinds
def reach(patch: Patch, *, held_out: Any, last: bool = False, batch_size: int = BATCH_SIZE) -> Reach:
    """Measure how much of what a patch's edits change at their sites arrives at the target and at the output.

    With `x_d` the states at an edit's site and `x_T` those at the target, both of the base model, δ the change that the
    edit makes at its site (`D(P E x_d) − D(E x_d)`), and δ_T the change of the states at the target under the patch,

        reach = (rms ‖δ_T‖ / rms ‖x_T − mean‖) / (rms ‖δ‖ / rms ‖x_d − mean‖)

    Of an edit that K carries, δ_T is `D(Kⁿ P E x_d) − D(Kⁿ E x_d)`. Of edits in place it is what the model itself makes
    of them. It is 1 where all of the change arrives, and may be more. Beside it stands the divergence at the output;
    and both are measured of the same edits written the other way, with how much the two changes at the target have in
    common (`agreement`). Give rows on which the edits have something to do: prompts that vary in a concept to be taken,
    say, and not any text. In `replace` mode a change is one against the
    unedited surrogate in the same place.

    Args:
        patch: as it is deployed, not installed.
        held_out: inputs, in the forms that `Tap.observe` takes; labels are passed over. Positions that the surrogate
            was not fitted on are left out.
        last: read the last row of each input alone: of prompts, the token after which the model is to speak.
        batch_size: for inputs that come uncut.

    Returns:
        What arrives. Where that is nothing it warns, and says what to do.

    Raises:
        InputError: the patch has no edit, or is installed.
    """
    edited(patch)
    inputs = [x for x, _ in calls(patch.host, held_out, batch_size=batch_size)]
    found = measured_reach(patch, inputs, last=last)
    if found.warning is not None:
        warnings.warn(found.warning, stacklevel=2)
    return found


@torch.no_grad()
def measured_reach(patch: Patch, inputs: Iterable[Any], *, last: bool = False) -> Reach:
    """Measure as `reach` does, of inputs that the model is called with as they are, and without a warning.

    Raises:
        InputError: the patch has no edit.
    """
    if not patch.edits:
        raise InputError("This patch has no edit whose reach could be measured. Make one: patched(model, koopman, …).")
    koopman, options, skip = patch.koopman, patch.options, patch.koopman.config.skip
    carried = options.at == "target"
    target = patch.target if carried else koopman.sites[-1]
    depths = sorted({edit.depth for edit in patch.edits})
    sites = [koopman.sites[depth] for depth in depths]
    in_place = PatchOptions(at=IN_PLACE, positions=options.positions, check_weights=options.check_weights)
    on_way = replace(in_place, at="target", target=target)
    alone = {
        koopman.sites[depth]: Patch(
            patch.host, koopman, [edit for edit in patch.edits if edit.depth == depth], in_place
        )
        for depth in depths
    }
    other = Patch(patch.host, koopman, patch.edits, in_place if carried else on_way)
    unedited = Patch(patch.host, koopman, (), options) if patch.mode == "replace" else None
    sums = _Sums()
    for x in inputs:
        base = _Seen.of(None, patch.host, x, [*sites, target], skip, last)
        sums.add_spread(base.states)
        for site, one in alone.items():
            own = _Seen.of(one, patch.host, x, [site], skip, last)
            sums.add(f"at {site}", own.states[site] - base.states[site])
        plain = base if unedited is None else _Seen.of(unedited, patch.host, x, [target], skip, last)
        moved = []
        for name, one, against in (("patched", patch, plain), ("otherwise", other, base)):
            own = _Seen.of(one, patch.host, x, [target], skip, last)
            moved.append(own.states[target] - against.states[target])
            sums.add(name, moved[-1])
            sums.add_divergence(name, against.logp, own.logp)
        sums.add_common(moved[0], moved[1])
    changes = tuple(sums.change(f"at {site}", site) for site in sites)
    total = math.sqrt(sum(change**2 for change in changes))

    def arrival(name: str, way: str) -> Arrival:
        there = sums.change(name, target)
        return Arrival(way, there, there / total if total > 0 else None, sums.divergence(name))

    return Reach(
        edit=", then ".join(dict.fromkeys(edit.description for edit in patch.edits)),
        sites=tuple(sites),
        changes=changes,
        target=target,
        carried=carried,
        patched=arrival("patched", patch.way),
        otherwise=arrival("otherwise", other.way),
        agreement=sums.agreement("otherwise" if carried else "patched"),
        rows=sums.rows,
    )


@dataclass(frozen=True, eq=False)
class _Seen:
    """States at some sites, and what the model said, in one pass."""

    states: Mapping[str, Float[Tensor, "row width"]]
    logp: Float[Tensor, "said class"] | None

    @classmethod
    def of(cls, patch: Patch | None, host: Host, x: Any, sites: Sequence[str], skip: int, last: bool) -> _Seen:
        """Call the model, patched or not; hooks that come last see what a patch has written."""
        records: list[PassRecord] = []
        output: Output | None = None
        with nullcontext() if patch is None else patch, recorded(host, sites, skip, records.append, rows_alone=True):
            try:
                output = Output.of(host, x, skip)
            except UnsupportedHostError:
                if not records:
                    raise
        record = records[-1]
        record.require(sites)
        states = {site: _chosen(rows.double(), record.samples(site), last) for site, rows in record.states.items()}
        return cls(states, None if output is None else _chosen(output.logp, output.samples, last))


def _chosen(rows: Tensor, samples: Samples, last: bool) -> Tensor:
    """Take all rows, or the last of each input."""
    if not last:
        return rows
    ends = torch.ones(len(rows), dtype=torch.bool)
    ends[:-1] = samples.entry[1:] != samples.entry[:-1]
    return rows[ends]


class _Sums:
    """Running sums over batches, in float64."""

    def __init__(self) -> None:
        self.rows = 0
        self._spread: dict[str, tuple[int, Tensor, float]] = {}
        self._squared: dict[str, tuple[int, float]] = {}
        self._nats: dict[str, tuple[int, float]] = {}
        self._common = 0.0

    def add_spread(self, states: Mapping[str, Tensor]) -> None:
        """Add rows to each site's count, mean and scatter (Chan, Golub & LeVeque 1983)."""
        for site, rows in states.items():
            count, mean, scatter = self._spread.get(site, (0, torch.zeros(rows.shape[1]).double(), 0.0))
            if not len(rows):
                continue
            own, total = rows.mean(0), count + len(rows)
            scatter += float((rows - own).square().sum() + (own - mean).square().sum() * count * len(rows) / total)
            self._spread[site] = (total, mean + (own - mean) * len(rows) / total, scatter)
            self.rows = total

    def add(self, name: str, change: Tensor) -> None:
        """Add the squares of changes."""
        count, total = self._squared.get(name, (0, 0.0))
        self._squared[name] = (count + len(change), total + float(change.square().sum()))

    def add_common(self, one: Tensor, other: Tensor) -> None:
        """Add inner products of the changes of the two ways."""
        self._common += float((one * other).sum())

    def agreement(self, in_place: str) -> float | None:
        """Return the share of the changes in place that the carried ones make up."""
        _, total = self._squared[in_place]
        return self._common / total if total > 0 else None

    def add_divergence(self, name: str, logp: Tensor | None, logq: Tensor | None) -> None:
        """Add divergences of rows."""
        if logp is not None and logq is not None:
            count, total = self._nats.get(name, (0, 0.0))
            self._nats[name] = (count + len(logp), total + float(kullback_leibler(logp, logq).sum()))

    def change(self, name: str, site: str) -> float:
        """Return the root mean square change, over the spread of a site."""
        (count, total), (rows, _, scatter) = self._squared[name], self._spread[site]
        spread = math.sqrt(scatter / max(1, rows))
        moved = math.sqrt(total / max(1, count))
        return moved / spread if spread > 0 else math.nan if moved == 0 else math.inf

    def divergence(self, name: str) -> float | None:
        """Return the mean divergence."""
        count, total = self._nats.get(name, (0, 0.0))
        return total / count if count else None
