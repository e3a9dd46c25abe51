"""suppress_concept(): take a concept that prompts teach out of a language model, in place at each of some sites.

Which sites, which λ and which strength is chosen on prompts of templates of their own, and what it costs on text that
is given for it; nothing else is seen, so that figures on other prompts and other texts are honest. Where teaching
failed, the result says so. Costs one pass over the choosing prompts for each trial, and passes over the text until one
that can be afforded is found.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from koopman_interp.depths import depth_of
from koopman_interp.edits.concept import pooled_rows
from koopman_interp.edits.edit_set import EditSet, each_site
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.edits.redirect import redirect
from koopman_interp.edits.targets import Targets, counterfactual
from koopman_interp.errors import InputError
from koopman_interp.files import write_json
from koopman_interp.forgetting.contrast import Contrast, ContrastRows
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import right_padded
from koopman_interp.observing.attaching import attach
from koopman_interp.observing.outputs import Output
from koopman_interp.own_kinds import own_kinds
from koopman_interp.patching.options import IN_PLACE, At
from koopman_interp.patching.patch import patched
from koopman_interp.results import Result
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits, in_percent, percents
from koopman_interp.trajectories import Trajectories

WEIGHTS = (0.005, 0.02, 0.1, 0.4)
STRENGTHS = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
FAILED = 0.5
"""Share of the model's own preference left, past which teaching failed."""

_BATCH = 32
_SHRINKAGE = 1e-3
_SURE = 2.0
"""Standard deviations above one half that a reader's share of right prompts must lie."""


@dataclass(frozen=True)
class SuppressionTrial:
    """What one choice leaves of the concept, on the prompts to choose by.

    Attributes:
        sites: where it is written.
        weight: λ of the redirection.
        strength: multiplier of its displacement.
        left: mean absolute log-odds between the words of the two values, in nats; 0 is none.
        signed: the same with signs aligned, so that what a template says by itself cancels; below 0 the preference is
            turned round.
        cost: more cross-entropy on the text, as a share; None where it was not measured, since another trial that
            leaves less was affordable.
    """

    sites: tuple[str, ...]
    weight: float
    strength: float
    left: float
    signed: float
    cost: float | None = None


@dataclass(frozen=True, repr=False)
class Suppression(Result):
    """What `suppress_concept` chose, and what it passed over.

    Attributes:
        name: of the concept.
        edits: to be patched in place: `patched(model, koopman, found.edits, at=found.at)`.
        chosen: its trial.
        trials: all of them.
        host: mean absolute log-odds of the model itself on the prompts to choose by, in nats.
        signed: the same with signs aligned.
        right: share of those prompts on which the model itself prefers the words of their own value.
        read: share of those prompts whose value a linear reader tells, taught on the pooled states of the prompts that
            teach, each less the mean of its group, at the chosen site where it does best.
        budget: what it was allowed to cost.
        met: whether it costs no more.
        prompts: how many prompts it was chosen on.
    """

    name: str
    edits: EditSet = field(compare=False)
    chosen: SuppressionTrial
    trials: tuple[SuppressionTrial, ...]
    host: float
    signed: float
    right: float
    read: float
    budget: float
    met: bool
    prompts: int

    @property
    def at(self) -> At:
        """How the edits are to be patched."""
        return IN_PLACE

    @property
    def failed(self) -> bool:
        """Whether teaching failed: prompts that it was not taught on keep half or more of their preference."""
        return bool(self.failure)

    @property
    def failure(self) -> str:
        """Say why teaching failed; empty where it did not."""
        doubt = 0.5 + _SURE * 0.5 / math.sqrt(self.prompts)
        if self.right < doubt:
            return (
                f"Teaching failed: the model itself prefers the right words on {in_percent(self.right, 0)} of "
                f"{self.prompts} prompts, so there is no preference to take. Give other words, or prompts that it "
                "understands."
            )
        if not abs(self.chosen.signed) < FAILED * abs(self.signed):
            return (
                f"Teaching failed: of {self.signed:.2f} nats the best choice leaves {self.chosen.signed:.2f} on "
                "prompts of templates that it was not taught on, and a reader taught on the same rows tells "
                f"{self.name!r} on {in_percent(self.read, 0)} of them (chance is up to {in_percent(doubt, 0)}). Teach "
                "with more templates and fillings, or at sites where the concept has arrived."
            )
        return ""

    def __repr__(self) -> str:
        one = self.chosen
        cost = "" if one.cost is None else f" at {in_percent(one.cost, sign='+')} cross-entropy"
        missed = " TEACHING FAILED" if self.failed else "" if self.met else f"; NOT within {in_percent(self.budget, 1)}"
        return (
            f"Suppression({self.name}, λ = {one.weight:g}, strength {one.strength:g}, in place at "
            f"{len(one.sites)} sites: {self.host:.2f} → {one.left:.2f} nats{cost}{missed})"
        )

    def tables(self) -> tuple[Table]:
        """Return the best strength of each λ at each choice of sites, with the chosen one marked."""
        best = dict[tuple[tuple[str, ...], float], SuppressionTrial]()
        for trial in sorted(self.trials, key=lambda trial: (trial is not self.chosen, trial.left)):
            best.setdefault((trial.sites, trial.weight), trial)
        rows = [best[key] for key in dict.fromkeys((trial.sites, trial.weight) for trial in self.trials)]
        columns = (
            Column("in place at", tuple(", ".join(row.sites) for row in rows)),
            Column("λ", tuple(row.weight for row in rows), "{:g}".format),
            Column("strength", tuple(row.strength for row in rows), "{:g}".format),
            Column("left, nats", tuple(row.left for row in rows), digits(2)),
            Column("signed", tuple(row.signed for row in rows), digits(2)),
            Column("cost %", tuple(row.cost for row in rows), percents()),
            Column("chosen", tuple(row is self.chosen for row in rows), lambda chosen: "yes" if chosen else ""),
        )
        caption = f"What is left of {self.name!r} on the prompts to choose by, at the best strength of each λ."
        return (Table(columns, caption, rows.index(self.chosen)),)

    def notes(self) -> tuple[str, ...]:
        """Say what it was chosen on, and whether teaching failed."""
        chosen = (
            f"Chosen on {self.prompts} prompts of templates of their own (the model: {self.host:.2f} nats, the right "
            f"words on {in_percent(self.right, 0)}; a reader of pooled states tells {in_percent(self.read, 0)}), "
            f"within {in_percent(self.budget, 1)} cross-entropy: "
            f"{'reached' if self.met else 'NOT reached: the cheapest is shown'}. Report it on others."
        )
        return (chosen, self.failure) if self.failed else (chosen,)

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON; the edits' own file is written by `edits.save`."""
        names = ("name", "host", "signed", "right", "read", "budget", "met", "prompts", "failed", "failure")
        return {
            **{name: getattr(self, name) for name in names},
            "chosen": asdict(self.chosen),
            "trials": [asdict(trial) for trial in self.trials],
            "edits": self.edits.as_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON."""
        write_json(path, self.as_dict())


@own_kinds
@torch.no_grad()
def suppress_concept(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    *,
    taught: Contrast,
    choosing: Contrast,
    words: tuple[Sequence[int], Sequence[int]],
    text: Sequence[Sequence[int]],
    judged: Sequence[Sequence[bool]] | None = None,
    budget: float = 0.01,
    sites: Sequence[Sequence[str | int]] | None = None,
    weights: Sequence[float] = WEIGHTS,
    strengths: Sequence[float] = STRENGTHS,
    name: str = "concept",
) -> Suppression:
    """Choose edits, in place, that take a model's preference between the words of two values.

    Each is a `redirect` to counterfactual means, taught on the last tokens of contrasting prompts. Chosen is the one
    that leaves least of the preference on prompts of other templates, among those within the budget.

    Args:
        model: the model.
        koopman: its surrogate.
        taught: prompts that teach.
        choosing: prompts of other templates, to choose by. Neither is to judge the result.
        words: token ids that speak of the value 0, and of the value 1, after a prompt.
        text: token ids of texts, to measure the cost on; not those that are to judge it.
        judged: which tokens of each text count, by what they are: those that have nothing to do with the concept. None
            counts all but the first.
        budget: more cross-entropy on them, at most, as a share.
        sites: choices of sites, each several; None is the last alone, and the last three.
        weights: λ's to try; see `redirect`.
        strengths: to try.
        name: of the concept.

    Returns:
        The edits, and the table of trials.

    Raises:
        InputError: a prompt that teaches is also to choose by, or there is nothing to try or to measure the cost on.
    """
    if shared := set(taught.ids) & set(choosing.ids):
        raise InputError(
            f"{len(shared)} of the prompts to choose by are also taught, so that they flatter what was learnt by "
            "heart. Choose on templates of their own."
        )
    if not text or not weights or not strengths:
        raise InputError("Give a text to measure the cost on, and a λ and a strength or more to try.")
    host = host_for(model, koopman.config.layout)
    tap = attach(host, koopman.sites, skip=koopman.config.skip, layout=koopman.config.layout)
    rows, others = taught.rows(tap), choosing.rows(tap)
    targets = counterfactual(rows.value, rows.group)
    every = sites or ((-1,), tuple(range(-min(3, len(koopman.sites) - 1), 0)))
    own = host_odds(host, choosing, words)
    solve = partial(_taught_at, koopman, rows.trajectories, targets)
    made = dict[tuple[tuple[str, ...], float], EditSet]()
    trials = list[SuppressionTrial]()
    for some in every:
        depths = sorted({depth_of(koopman.sites, site) for site in some})
        for weight in weights:
            edits = each_site(koopman, partial(solve, weight, 1.0, name), depths)
            key = tuple(koopman.sites[depth] for depth in depths), weight
            made[key] = edits
            for strength in strengths:
                with patched(host, koopman, edits.scaled(strength), at=IN_PLACE):
                    odds = host_odds(host, choosing, words)
                trials.append(SuppressionTrial(*key, strength, float(odds.abs().mean()), _aligned(odds, choosing)))
    trials, chosen = _affordable(host, koopman, made, trials, text, judged, budget)
    depths = [depth_of(koopman.sites, site) for site in chosen.sites]
    return Suppression(
        name=name,
        # Solved at its strength, so that each has its certificate.
        edits=each_site(koopman, partial(solve, chosen.weight, chosen.strength, name), depths),
        chosen=chosen,
        trials=tuple(trials),
        host=float(own.abs().mean()),
        signed=_aligned(own, choosing),
        right=float(((own > 0) == (choosing.value == 1)).double().mean()),
        read=max(_read(koopman, rows, others, depth) for depth in depths),
        budget=budget,
        met=chosen.cost is not None and chosen.cost <= budget,
        prompts=len(choosing),
    )


def _taught_at(
    koopman: KoopmanAutoencoder,
    fitted: Trajectories,
    targets: Targets,
    weight: float,
    strength: float,
    name: str,
    depth: int,
) -> OperatorEdit:
    return redirect(koopman, fitted=fitted, targets=targets, weight=weight, strength=strength, site=depth, name=name)


@torch.no_grad()
def host_odds(host: Host, prompts: Contrast, words: tuple[Sequence[int], Sequence[int]]) -> Float[Tensor, " prompt"]:
    """Return `log P(words of 1) − log P(words of 0)` after each prompt, in nats; an installed patch is heard."""
    found = []
    for start in range(0, len(prompts), _BATCH):
        part = prompts.ids[start : start + _BATCH]
        output = Output.of(host, right_padded(part, 0))
        ends = torch.tensor([len(ids) for ids in part]).cumsum(0) - 1
        zero, one = (output.logp[ends][:, list(own)].logsumexp(1) for own in words)
        found.append(one - zero)
    return torch.cat(found)


@torch.no_grad()
def cross_entropy(
    host: Host,
    text: Sequence[Sequence[int]],
    judged: Sequence[Sequence[bool]] | None = None,
    patch: AbstractContextManager[Any] | None = None,
) -> float:
    """Return the mean negative log-likelihood of the judged tokens of texts, in nats; None judges all but the first.

    Raises:
        InputError: no token is judged.
    """
    total, count = 0.0, 0
    with nullcontext() if patch is None else patch:
        for start in range(0, len(text), _BATCH):
            part = [list(ids) for ids in text[start : start + _BATCH]]
            output = Output.of(host, right_padded(part, 0))
            following = output.following()
            counted = following >= 0
            if judged is not None:
                counted &= _marked(judged[start : start + _BATCH], part)
            missed = -output.logp[counted].gather(1, following[counted, None])
            total, count = total + float(missed.sum()), count + int(counted.sum())
    if not count:
        raise InputError("No token of the text is judged. Give other texts, or judge more of their tokens.")
    return total / count


def _marked(judged: Sequence[Sequence[bool]], part: Sequence[Sequence[int]]) -> Bool[Tensor, " row"]:
    """Mark each row whose next token is judged."""
    rows = []
    for marks, ids in zip(judged, part, strict=True):
        if len(marks) != len(ids):
            raise InputError(f"Expected a mark a token; got {len(marks)} of a text of {len(ids)} tokens.")
        rows.append(torch.as_tensor([*marks[1:], False], dtype=torch.bool))
    return torch.cat(rows)


def _aligned(odds: Float[Tensor, " prompt"], prompts: Contrast) -> float:
    return float((odds * (2 * prompts.value - 1)).mean())


def _affordable(
    host: Host,
    koopman: KoopmanAutoencoder,
    made: dict[tuple[tuple[str, ...], float], EditSet],
    trials: list[SuppressionTrial],
    text: Sequence[Sequence[int]],
    judged: Sequence[Sequence[bool]] | None,
    budget: float,
) -> tuple[list[SuppressionTrial], SuppressionTrial]:
    """Measure the cost of trials, that which leaves least first, until one is within the budget; else the cheapest."""
    plain = cross_entropy(host, text, judged)
    for place in sorted(range(len(trials)), key=lambda place: trials[place].left):
        trial = trials[place]
        edits = made[trial.sites, trial.weight].scaled(trial.strength)
        loss = cross_entropy(host, text, judged, patched(host, koopman, edits, at=IN_PLACE))
        trials[place] = replace(trial, cost=loss / plain - 1)
        if loss / plain - 1 <= budget:
            return trials, trials[place]
    return trials, min(trials, key=lambda trial: math.inf if trial.cost is None else trial.cost)


def _read(koopman: KoopmanAutoencoder, taught: ContrastRows, others: ContrastRows, depth: int) -> float:
    """Return the share of other prompts whose value a linear discriminant tells from their pooled observables."""
    z, value = _pooled(koopman, taught, depth)
    one, zero = z[value == 1].mean(0), z[value == 0].mean(0)
    if not bool((one != zero).any()):  # where nothing of the attribute has arrived yet
        return 0.5
    within = torch.cov((z - torch.where(value[:, None] == 1, one, zero)).T, correction=0)
    scale = within.diagonal().mean() * torch.eye(len(within)).double()
    reader = torch.linalg.solve(within + _SHRINKAGE * scale, one - zero)
    z, value = _pooled(koopman, others, depth)
    return float((((z - (one + zero) / 2) @ reader > 0) == (value == 1)).double().mean())


def _pooled(koopman: KoopmanAutoencoder, rows: ContrastRows, depth: int) -> tuple[Tensor, Tensor]:
    """Return each prompt's mean observables less those of its groups, and its value."""
    z = koopman.encode(rows.trajectories.states[depth], depth).double()
    return rows.pooled(z - pooled_rows(z, rows.group)[rows.group.unique(return_inverse=True)[1]])
