"""forget(): try the edits that forget a class on a held-out split, and keep the one nearest to what was asked.

Each candidate costs one pass of the model over the split; the closed forms themselves cost milliseconds. What is chosen
on a split looks better there than elsewhere: report figures from other rows (`audit`). Knows the model by its patch and
its output only, so it cannot tell suppression from removal: a logit mask, which does no removing, stands in the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from koopman_interp.divergence import kullback_leibler
from koopman_interp.edits.edit_set import EditSet, each_site
from koopman_interp.edits.erase import erase_class
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.edits.redirect import EQUALITY, redirect
from koopman_interp.errors import InputError
from koopman_interp.files import write_json
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.outputs import Output
from koopman_interp.own_kinds import own_kinds
from koopman_interp.patching.motion import Mode
from koopman_interp.patching.options import At
from koopman_interp.patching.patch import patched
from koopman_interp.results import Result
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits, in_percent, percents
from koopman_interp.trajectories import Trajectories

Edit = OperatorEdit | EditSet
Candidates = Iterable[Edit | Callable[[], Edit]]

STRENGTHS = (1.0, 1.25, 1.5)
STRENGTHS_EACH = (0.75, 1.0, 1.25)
"""At each of several sites: what one leaves, the next takes."""
WEIGHTS = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Trial:
    """What the model predicts under one candidate, on the held-out split.

    Attributes:
        name: what the edit does, in words, or the name of a baseline.
        site: where it acts, in words; empty for the base model and the mask.
        at: where it is written; see `patched`.
        forget_accuracy: share of the class's rows that are still predicted as it, between 0 and 1; the lower the
            better.
        retain_accuracy: share of the other rows that are predicted right, between 0 and 1; the higher the better.
        kl: mean `KL(this ‖ base model)` on the other rows, in nats.
    """

    name: str
    site: str
    at: At
    forget_accuracy: float
    retain_accuracy: float
    kl: float


@dataclass(frozen=True, repr=False)
class Forgetting(Result):
    """What `forget` chose, and what it passed over.

    Attributes:
        label: the class.
        edit: the edit.
        chosen: its trial.
        trials: all of them: the base model, the logit mask, then the candidates in the order they were tried.
        refused: names of candidates that make no edit, each with the reason.
        asked: the trade-off, in words.
        met: whether the edit keeps what was asked.
        forget_rows: rows of the class in the split.
        retain_rows: rows of the others.
    """

    label: int
    edit: Edit = field(compare=False)
    chosen: Trial
    trials: tuple[Trial, ...]
    refused: tuple[tuple[str, str], ...]
    asked: str
    met: bool
    forget_rows: int
    retain_rows: int

    @property
    def at(self) -> At:
        """How the edit is to be patched: `patched(model, koopman, forgetting.edit, at=forgetting.at)`."""
        return self.chosen.at

    def __repr__(self) -> str:
        missed = "" if self.met else "; what was asked was NOT reached"
        return (
            f"Forgetting({self.chosen.name}: forget accuracy {in_percent(self.chosen.forget_accuracy, 1)} on class "
            f"{self.label}, retain accuracy {in_percent(self.chosen.retain_accuracy)}{missed})"
        )

    def tables(self) -> tuple[Table]:
        """Return the trials, with the chosen one marked."""
        trials = self.trials
        columns = (
            Column("edit", tuple(trial.name for trial in trials)),
            Column("site", tuple(trial.site for trial in trials), left=True),
            Column("forget accuracy ↓ %", tuple(trial.forget_accuracy for trial in trials), percents()),
            Column("retain accuracy ↑ %", tuple(trial.retain_accuracy for trial in trials), percents()),
            Column("KL to base model", tuple(trial.kl for trial in trials), digits(4)),
            Column("chosen", tuple(trial is self.chosen for trial in trials), lambda chosen: "yes" if chosen else ""),
        )
        return (Table(columns, marked=columns[-1].values.index(True)),)

    def notes(self) -> tuple[str, ...]:
        """Say what was asked, of which rows, and what could not be tried."""
        met = "reached" if self.met else "NOT reached: the nearest is shown"
        asked = (
            f"Asked: {self.asked}: {met}. On {self.forget_rows:,} rows of class {self.label} and "
            f"{self.retain_rows:,} others, by which the edit was picked: report it on other rows."
        )
        return (asked, *(f"Not tried: {name}. {reason}" for name, reason in self.refused))

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON; the edit's own file is written by `edit.save`."""
        names = ("label", "asked", "met", "forget_rows", "retain_rows")
        return {
            **{name: getattr(self, name) for name in names},
            "chosen": asdict(self.chosen),
            "trials": [asdict(trial) for trial in self.trials],
            "refused": [{"name": name, "reason": reason} for name, reason in self.refused],
            "edit": self.edit.as_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON."""
        write_json(path, self.as_dict())


@own_kinds
@torch.no_grad()
def forget(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    *,
    fitted: Rows,
    held_out: object,
    label: int,
    most: float = 0.01,
    weight: float | None = None,
    candidates: Candidates | None = None,
    mode: Mode = "delta",
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Forgetting:
    """Choose the edit that forgets a class.

    Args:
        model: the model.
        koopman: the surrogate, fitted with labels.
        fitted: labelled rows that the surrogate was fitted on, on which redirections are solved.
        held_out: inputs and labels of all classes to choose on, `(x, y)` or batches of such pairs, as `Tap.observe`
            takes them; neither the rows fitted nor those to be reported. Positions that the surrogate was not fitted
            on are neither patched nor judged.
        label: the class to forget, an output of the model.
        most: the highest forget accuracy, a share; among edits that keep it, the one of the highest retain accuracy is
            chosen, and among equals the one nearest to the base model.
        weight: instead of `most`, what a share of retain accuracy is worth in shares of forget accuracy: the least
            `forget accuracy + weight · (base model's retain accuracy − retain accuracy)` is chosen.
        candidates: edits, or functions that make them; None tries erasers of three strengths at two sites and at each
            site past the first, redirections of three weights, the equality form, other targets, and the combination.
        mode: how edits are patched. In `delta` a set of edits is tried carried by K and applied at each of its sites.
        batch_size: for inputs that come uncut.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        The edit and the table.

    Raises:
        InputError: the split lacks the class or the others, or no candidate exists.
    """
    fitted = in_memory(fitted)
    split = _Split.of(host_for(model, koopman.config.layout), held_out, label, koopman.config.skip, batch_size)
    baselines = split.baselines()
    tried: list[tuple[Edit, Trial]] = []
    refused: list[tuple[str, str]] = []
    asked_for = [*_default(koopman, fitted, label)] if candidates is None else candidates
    for make in tqdm(asked_for, desc="forget", unit="edit", disable=None if progress is None else not progress):
        try:
            edit = make() if callable(make) and not isinstance(make, OperatorEdit | EditSet) else make
        except InputError as error:
            refused.append((getattr(make, "__name__", "") or repr(make), str(error)))
            continue
        if not isinstance(edit, OperatorEdit | EditSet):
            raise InputError(f"A candidate is an edit, or a function that makes one; got {type(edit).__name__}.")
        for at, site in _placements(edit, mode):
            logp = split.outputs(patched(split.host, koopman, edit, mode=mode, at=at))
            tried.append((edit, split.trial(edit.description, site, at, logp)))
    if not tried:
        reasons = "; ".join(reason for _, reason in refused) or "there were none"
        raise InputError(f"No candidate makes an edit: {reasons}.")
    edit, chosen, asked, met = _nearest(tried, most, weight)
    trials = (*baselines, *(trial for _, trial in tried))
    gone = int((split.labels == label).sum())
    return Forgetting(label, edit, chosen, trials, tuple(refused), asked, met, gone, len(split.labels) - gone)


@dataclass(frozen=True, eq=False)
class _Split:
    """Held-out rows, and what the base model says of them.

    Attributes:
        host: the base model.
        batches: what it is called with, and labels.
        label: the class to forget.
        skip: leading positions of each sequence that are not judged.
        logp: log-probabilities of the base model.
        labels: class of each judged row.
    """

    host: Host
    batches: tuple[tuple[Any, Any], ...]
    label: int
    skip: int
    logp: Float[Tensor, "sample class"]
    labels: Int[Tensor, " sample"]

    @classmethod
    def of(cls, host: Host, held_out: object, label: int, skip: int, batch_size: int) -> _Split:
        """Run the base model.

        Raises:
            InputError: there are no labels, or none of the class or of others, or the model has no such output.
        """
        batches = tuple(calls(host, _cut(held_out, batch_size), batch_size=batch_size))
        if any(y is None for _, y in batches):
            raise InputError("forget() chooses on pairs of inputs and labels: held_out=(x, y), or batches of them.")
        logp, labels = _outputs(host, batches, skip, nullcontext())
        _require_classes(labels, logp.shape[1], label)
        return cls(host, batches, label, skip, logp, labels)

    def outputs(self, patch: AbstractContextManager[object]) -> Float[Tensor, "sample class"]:
        """Return the log-probabilities of the patched model."""
        return _outputs(self.host, self.batches, self.skip, patch)[0]

    def baselines(self) -> tuple[Trial, Trial]:
        """Judge the base model itself, and with the class's logit masked."""
        mask = self.logp.clone()
        mask[:, self.label] = -torch.inf
        return (
            self.trial("base model", "", "target", self.logp),
            self.trial("logit mask", "", "target", mask.log_softmax(1)),
        )

    def trial(self, name: str, site: str, at: At, logp: Float[Tensor, "sample class"]) -> Trial:
        """Judge log-probabilities of the same rows."""
        gone, guess = self.labels == self.label, logp.argmax(1)
        return Trial(
            name=name,
            site=site,
            at=at,
            forget_accuracy=float((guess[gone] == self.label).double().mean()),
            retain_accuracy=float((guess[~gone] == self.labels[~gone]).double().mean()),
            kl=float(kullback_leibler(logp[~gone], self.logp[~gone]).mean()),
        )


def _outputs(
    host: Host, batches: Sequence[tuple[object, object]], skip: int, patch: AbstractContextManager[object]
) -> tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]:
    """Return log-probabilities and labels of all judged rows."""
    logp, labels = [], []
    with patch:
        for x, y in batches:
            output = Output.of(host, x, skip)
            own = output.samples.labels(y)
            logp.append(output.logp[own != IGNORED])
            labels.append(own[own != IGNORED])
    return torch.cat(logp), torch.cat(labels)


def _default(koopman: KoopmanAutoencoder, fitted: Trajectories, label: int) -> Iterator[Callable[[], Edit]]:
    """Make the candidates, each when its turn comes."""
    erase = partial(erase_class, koopman, label=label)
    quietest, last = erase().depth, len(koopman.sites) - 1
    for depth in (quietest, last):
        for strength in STRENGTHS:
            yield partial(erase, site=depth, strength=strength)
    for strength in STRENGTHS_EACH:
        yield partial(each_site, koopman, partial(_erased_at, erase, strength))
    solve = partial(redirect, koopman, fitted=fitted, label=label)
    for depth in (quietest, last):
        for weight in WEIGHTS:
            yield partial(solve, weight=weight, site=depth)
    yield partial(solve, weight=EQUALITY, site=last)
    yield partial(solve, targets="similar", site=last)
    yield partial(solve, targets="retained_mean", site=last)
    for depth in (quietest, last):
        yield partial(_erased_then_redirected, erase, solve, depth)


def _erased_at(erase: Callable[..., OperatorEdit], strength: float, depth: int) -> OperatorEdit:
    return erase(site=depth, strength=strength)


def _erased_then_redirected(
    erase: Callable[..., OperatorEdit], solve: Callable[..., OperatorEdit], depth: int
) -> OperatorEdit:
    return solve(after=erase(site=depth))


def _placements(edit: Edit, mode: Mode) -> list[tuple[At, str]]:
    """Say how an edit is tried, and what to call its sites then."""
    if isinstance(edit, OperatorEdit):
        return [("target", edit.site)]
    carried: list[tuple[At, str]] = [("target", f"{len(edit)} sites, carried on")]
    return carried if mode == "replace" else [*carried, ("each site", f"{len(edit)} sites, applied at each")]


def _nearest(tried: Sequence[tuple[Edit, Trial]], most: float, weight: float | None) -> tuple[Edit, Trial, str, bool]:
    """Choose among trials; return the edit, its trial, what was asked in words, and whether it was reached."""
    if weight is not None:
        edit, trial = min(
            tried, key=lambda pair: (pair[1].forget_accuracy - weight * pair[1].retain_accuracy, pair[1].kl)
        )
        return edit, trial, f"least forget accuracy + {weight:g} × retain accuracy lost", True
    asked = f"forget accuracy of at most {in_percent(most)}, the highest retain accuracy"
    keeping = [pair for pair in tried if pair[1].forget_accuracy <= most]
    if keeping:
        edit, trial = min(keeping, key=lambda pair: (-pair[1].retain_accuracy, pair[1].kl))
        return edit, trial, asked, True
    edit, trial = min(tried, key=lambda pair: (pair[1].forget_accuracy, -pair[1].retain_accuracy))
    return edit, trial, asked, False


def _cut(held_out: object, batch_size: int) -> Any:
    """Cut one pair of inputs and labels into batches; what is no such pair is passed on.

    A mapping, and labels of another length than the inputs, one a token say, stay whole.
    """
    if not (isinstance(held_out, tuple) and len(held_out) == 2 and not isinstance(held_out[0], tuple)):
        return held_out
    x, y = held_out
    if isinstance(x, Mapping) or batch_size < 1 or len(x) != len(y):
        return [held_out]
    return [(x[start : start + batch_size], y[start : start + batch_size]) for start in range(0, len(x), batch_size)]


def _require_classes(labels: Int[Tensor, " sample"], outputs: int, label: int) -> None:
    if not 0 <= label < outputs:
        raise InputError(f"Class {label} is not among the model's {outputs} outputs.")
    gone = int((labels == label).sum())
    if not 0 < gone < len(labels):
        raise InputError(
            f"The held-out split needs rows of class {label} and of others; it has {gone} and {len(labels) - gone}."
        )
