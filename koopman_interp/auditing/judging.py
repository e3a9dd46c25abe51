"""The rows that an audit is made on, and the judge of every way of forgetting: the same passes and measures for each.

Costs a pass a way over the rows, and what the reader's probes cost. Knows nothing of edits or of how a way works.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from koopman_interp.auditing.baselines import Way, leace, logit_mask, mean_difference, why_no_leace
from koopman_interp.auditing.intervals import Z95, wilson
from koopman_interp.auditing.membership import membership
from koopman_interp.auditing.passes import Batches, Seen, drawn, gather_batches
from koopman_interp.auditing.probe_scores import SHOTS, Reader
from koopman_interp.auditing.relearning import Lesson, Relearning, shares
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.divergence import jensen_shannon, kullback_leibler
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED, whole_numbers

_LEAST_ROWS = 2 * max(SHOTS)

Labelled = tuple[Any, Any] | Iterable[Any]
"""Inputs and labels, or several batches of them, in the forms that `Tap.observe` takes."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Batches of the forgotten class and of the others."""

    label: int
    gone: Batches
    kept: Batches

    @classmethod
    def of(cls, host: Host, gone: Labelled | None, kept: Labelled | None, what: str, label: int | None = None) -> Rows:
        """Gather them, and check that they are of the class and not."""
        forgotten = gather_batches(host, gone) if gone is not None else []
        others = gather_batches(host, kept) if kept is not None else []
        labels = torch.cat([torch.empty(0, dtype=torch.long), *(whole_numbers(y) for _, y in forgotten)])
        classes = torch.unique(labels[labels != IGNORED]).tolist()
        if len(classes) != 1 and (classes or label is None):
            found = f"they are of {classes}" if classes else "there are none"
            raise InputError(f"The {what} rows to forget should be of one class; {found}.")
        own = classes[0] if classes else label
        assert own is not None
        if label is not None and own != label:
            raise InputError(f"The {what} rows to forget are of class {own}, the held-out ones of class {label}.")
        if any(bool((whole_numbers(y) == own).any()) for _, y in others):
            raise InputError(f"The {what} rows to retain hold rows of class {own}, the one to forget. Take them out.")
        return cls(own, forgotten, others)

    @property
    def all(self) -> Batches:
        """Forgotten ones first."""
        return [*self.gone, *self.kept]


@dataclass(eq=False)
class Judge:
    """What all ways are judged by.

    Attributes:
        host: the host, unpatched.
        held_out: rows that figures are of.
        training: rows that the host was trained on; they may be missing.
        sites: what is read; the last is where mean difference and LEACE act.
        reader: of the states.
        skip: leading positions to leave out.
        retrained: the yardstick, or None.
        plain: what came out of the host for the held-out rows.
        plain_training: the same for the training rows, or None.
        yardstick: what came out of the retrained model for the held-out rows, or None.
    """

    host: Host
    held_out: Rows
    training: Rows
    sites: Sequence[str]
    reader: Reader
    skip: int
    retrained: nn.Module | None
    plain: Seen = field(init=False)
    plain_training: Seen | None = field(init=False)
    yardstick: Seen | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        unpatched = Way("host", self.host)
        self.plain = unpatched.seen(self.held_out.all, self.sites, self.skip)
        _require_rows(self.plain, self.held_out.label)
        self.plain_training = self._trained(unpatched)

    def baselines(self) -> list[Way]:
        """List what stands beside an edit, the host first and the retrained model last."""
        site, label = self.sites[-1], self.held_out.label
        if self.training.gone and self.training.kept:
            assert self.plain_training is not None
            fitted, labels = self.plain_training.states[site], self.plain_training.labels
        else:
            fitted, labels = self.plain.states[site][::2], self.plain.labels[::2]
        ways = [
            Way("host", self.host, learns=False),
            logit_mask(self.host, label),
            mean_difference(self.host, site, fitted, labels == label),
        ]
        if why_no_leace(fitted.shape[1]) is None:
            ways.append(leace(self.host, site, fitted, labels == label))
        if self.retrained is not None:
            yardstick = Way("retrained", host_for(self.retrained))
            self.yardstick = yardstick.seen(self.held_out.all, self.sites, self.skip)
            ways.append(yardstick)
        return ways

    def row(self, way: Way) -> AuditRow:
        """Judge one way."""
        # A mask needs no pass of its own.
        own = way.host is not self.host or way.patch is not None
        seen = way.seen(self.held_out.all, self.sites, self.skip) if own else way.answered(self.plain)
        readings = self.reader.depths(seen)
        last, gone = readings[-1], seen.labels == self.held_out.label
        figures: dict[str, Any] = {f"{kernel}_probe": share for kernel, share in last.probes.items()}
        intervals = {f"{kernel}_probe": ends for kernel, ends in last.intervals.items()}
        forgotten, retained = shares(seen, self.held_out.label)
        intervals["forgotten"] = wilson(forgotten, int(gone.sum()))
        intervals["retained"] = wilson(retained, int((~gone).sum()))
        for name, rows in self._divergences(seen, gone).items():
            figures[name] = float(rows.mean())
            intervals[name] = _around_mean(rows)
        if way.host is self.host:
            figures["drift"] = _drift(seen.states[last.site], self.plain.states[last.site], gone)
        self._judge_training(way, seen, figures, intervals)
        return AuditRow(
            name=way.name,
            forgotten=forgotten,
            retained=retained,
            linear_probe=figures.pop("linear_probe", None),
            rbf_probe=figures.pop("rbf_probe", None),
            one_shot=last.prototypes[1],
            five_shot=last.prototypes[5],
            prototype=last.prototypes[10],
            depths=readings if len(self.sites) > 1 else (),
            intervals=intervals,
            **figures,
        )

    def lesson(self, settings: Relearning, seed: int) -> Lesson:
        """Draw the rows for relearning."""
        rows = drawn(self.training.gone, settings.rows, seed) + drawn(self.training.kept, settings.beside, seed)
        return Lesson(rows, self.held_out.all, self.held_out.label, self.sites[-1], self.skip)

    def counts(self, seen: Seen | None) -> tuple[int, int]:
        """Count rows of the class and of the others."""
        if seen is None:
            return 0, 0
        gone = int((seen.labels == self.held_out.label).sum())
        return gone, len(seen.labels) - gone

    def _divergences(self, seen: Seen, gone: Bool[Tensor, " row"]) -> dict[str, Tensor]:
        """Divergence of each row: of the others to the host, of the forgotten class to the yardstick."""
        ours, host = seen.logp[~gone], self.plain.logp[~gone]
        found = {"kl": kullback_leibler(ours, host), "js": jensen_shannon(ours, host) / math.log(2)}
        if self.yardstick is not None:
            ours, theirs = seen.logp[gone], self.yardstick.logp[gone]
            found["retrained_kl"] = kullback_leibler(ours, theirs)
            found["retrained_js"] = jensen_shannon(ours, theirs) / math.log(2)
        return found

    def _judge_training(
        self, way: Way, seen: Seen, figures: dict[str, Any], intervals: dict[str, tuple[float, float]]
    ) -> None:
        """Add what training rows say: accuracy, and whether they are told from the held-out ones."""
        training = self._trained(way)
        if training is None:
            return
        label, gone = self.held_out.label, training.labels == self.held_out.label
        for name, rows, share in zip(("forgotten", "retained"), (gone, ~gone), shares(training, label), strict=True):
            if rows.any():
                figures[f"{name}_training"] = share
                intervals[f"{name}_training"] = wilson(share, int(rows.sum()))
        if gone.any():
            figures["membership"] = membership(training.logp[gone], seen.logp[seen.labels == label], label)

    def _trained(self, way: Way) -> Seen | None:
        return way.seen(self.training.all, self.sites[-1:], self.skip) if self.training.all else None


def _drift(moved: Float[Tensor, "row width"], host: Float[Tensor, "row width"], gone: Bool[Tensor, " row"]) -> float:
    """Root mean square move of the retained rows, over the root mean square spread of all."""
    spread = (host - host.mean(0)).square().sum(1).mean().sqrt()
    return float((moved - host)[~gone].square().sum(1).mean().sqrt() / spread)


def _around_mean(rows: Float[Tensor, " row"]) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by its standard error."""
    mean, reach = float(rows.mean()), Z95 * float(rows.std()) / math.sqrt(len(rows))
    return mean - reach, mean + reach


def _require_rows(plain: Seen, label: int) -> None:
    if not 0 <= label < plain.logp.shape[1]:
        raise InputError(f"Class {label} is not among the host's {plain.logp.shape[1]} outputs.")
    for c in torch.unique(plain.labels).tolist():
        count = int((plain.labels == c).sum())
        if count < _LEAST_ROWS:
            raise InputError(
                f"Class {c} has {count} held-out rows; probes and {max(SHOTS)}-shot prototypes need {_LEAST_ROWS} "
                "or more."
            )
    if len(torch.unique(plain.labels)) < 2:
        raise InputError(f"All held-out rows are of class {label}; an audit needs retained rows too.")
