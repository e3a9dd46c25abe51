"""What an edit does to a language model: perplexity on other text, samples, reliability, generality and locality.

The last three are those of the model-editing literature (Meng et al., arXiv 2202.05262; Yao et al., arXiv 2305.13172),
for an edit whose aim is that some tokens no longer follow: whether they do on the prompts the edit is about, on
others that mean the same, and whether the answers to unrelated prompts stay. Each is one forward pass a batch, and
each sample one pass a token, without a cache. Knows nothing of labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from koopman_interp.auditing.baselines import BASE, edited
from koopman_interp.auditing.concept_baselines import concept_baselines
from koopman_interp.auditing.intervals import between, wilson
from koopman_interp.errors import InputError
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.outputs import Output
from koopman_interp.own_kinds import own_kinds
from koopman_interp.patching.patch import Patch
from koopman_interp.results import PlainResult
from koopman_interp.tables import Column, Table, columns_of, digits, in_percent, number, percents
from koopman_interp.trajectories import Trajectories

_SHARES = {"reliability": "reliable", "generality": "general", "locality": "local"}
"""Names of the shares, and what the columns of their intervals are called for short."""


@dataclass(frozen=True)
class LanguageChecks:
    """What a language model is asked before and after an edit. What is left empty is not asked.

    Attributes:
        unwanted: token ids that should no longer follow.
        edited: prompts that the edit is about, which such a token is to follow no more.
        rephrased: others that ask for the same.
        unrelated: prompts whose answers should stay what they are.
        text: unrelated texts, for the perplexity.
        samples: prompts to go on from, greedily.
        new_tokens: length of each sample.
        tokenizer: of Hugging Face's kind; None is the model's own.
    """

    unwanted: tuple[int, ...] = ()
    edited: tuple[str, ...] = ()
    rephrased: tuple[str, ...] = ()
    unrelated: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    new_tokens: int = 24
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if (self.edited or self.rephrased) and not self.unwanted:
            raise InputError(
                "Prompts that an edit is about need the token ids that should no longer follow: unwanted=."
            )
        if not any((self.edited, self.rephrased, self.unrelated, self.text, self.samples)):
            raise InputError("There is nothing to ask: give prompts, texts or both.")


@dataclass(frozen=True)
class LanguageScores:
    """What a language model did. Shares lie between 0 and 1; None where nothing was asked.

    Attributes:
        reliability: share of the edited prompts after which no unwanted token is the likeliest.
        generality: the same of the rephrased ones.
        locality: share of the unrelated prompts whose likeliest next token is the base model's.
        perplexity: `exp` of the mean negative log-likelihood of the next token on the unrelated texts.
        samples: how each prompt goes on, prompt included.
        intervals: 95 % intervals of the shares by Wilson's score, by name.
    """

    reliability: float | None
    generality: float | None
    locality: float | None
    perplexity: float | None
    samples: tuple[str, ...]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True, repr=False)
class LanguageAudit(PlainResult):
    """What `audit_language` found.

    Attributes:
        edit: description of the edit.
        rows: scores by name, the base model's first and the edit's last.
        way: how it is written, in words: carried by K to the target, or in place at its sites.
    """

    edit: str
    rows: dict[str, LanguageScores]
    way: str = ""

    def __repr__(self) -> str:
        before, *_, after = self.rows.values()
        said = [f"{name} {in_percent(getattr(after, name), 1)}" for name in _SHARES if getattr(after, name) is not None]
        if after.perplexity is not None:
            said.append(f"perplexity {number(before.perplexity, 2)} → {number(after.perplexity, 2)}")
        return f"LanguageAudit({self.edit}: {', '.join(said) or f'{len(after.samples):,} texts'})"

    @property
    def scored(self) -> bool:
        """Whether more was asked for than texts."""
        return any(getattr(row, name) is not None for row in self.rows.values() for name in (*_SHARES, "perplexity"))

    def tables(self) -> Sequence[Table]:
        """Return the scores as one table, or the texts where nothing else was asked for."""
        return [language_table(self.rows) if self.scored else texts_table(self.rows)]

    def notes(self) -> Sequence[str]:
        """Return the samples below the scores, each behind the name of its row, and how the edit is written."""
        samples = language_samples(self.rows) if self.scored else []
        return [*samples, *([f"The edit is {self.way}."] if self.way else [])]


@own_kinds
@torch.no_grad()
def audit_language(
    patch: Patch,
    checks: LanguageChecks,
    *,
    taught: Trajectories | None = None,
    attribute: Any = None,
    corpus: Trajectories | None = None,
    beside: Mapping[str, Patch] | None = None,
    batch_size: int = BATCH_SIZE,
) -> LanguageAudit:
    """Ask a language model the same before and under an edit, and under what it is to be compared with; no labels.

    Leading positions that the surrogate was not fitted on do not count in the perplexity.

    Args:
        patch: the edit, as it is deployed.
        checks: what is asked.
        taught: rows that teach the concept that the edit erases. With them, mean difference and LEACE are asked too, in
            place on the model's own states, at the sites of the edit.
        attribute: of each of those rows, or of each input; None takes their labels.
        corpus: rows of other text. With it, LEACE with the covariance of these is asked too.
        beside: other patches by name, each a row: the same formula on the states themselves, say, which is the same
            edit made of `ki.fit(trajectories, FitConfig(hidden=()), method="least_squares")`, or on random features,
            which is that without `hidden`.
        batch_size: prompts and texts that the model is called with at once.

    Returns:
        The scores of the base model, of what is beside, and of the patched one.

    Raises:
        InputError: the model is not called with tokens, there is no tokenizer, a patch is installed or is of another
            model, or the rows do not fit.
    """
    method = edited(patch)
    host, skip = patch.host, patch.koopman.config.skip
    others = dict[str, AbstractContextManager[object]]()
    if taught is not None:
        given = taught.labels if attribute is None else attribute
        if given is None:
            raise InputError("There is no attribute to erase: give attribute=…, or taught trajectories with labels.")
        sites = list(dict.fromkeys(edit.site for edit in patch.edits))
        made = concept_baselines(host, taught, given, sites=sites, corpus=corpus)
        others |= {name: make(1.0) for name, make in made.items()}
    for name, other in (beside or {}).items():
        if other.host.model is not host.model:
            raise InputError(f"The patch {name!r} is of another model. Make all patches of the one that is audited.")
        edited(other)
        others[name] = other
    before, answers = language_scores(host, checks, None, skip, batch_size)
    rows = {BASE: before}
    for name, running in (*others.items(), (method.name, method.running())):
        if name in rows:
            raise InputError(f"Two rows would be called {name!r}. Name those beside the edit otherwise.")
        with running:
            rows[name], _ = language_scores(host, checks, answers, skip, batch_size)
    described = ", then ".join(dict.fromkeys(edit.description for edit in patch.edits))
    return LanguageAudit(described, rows, patch.way)


def language_scores(
    host: Host, checks: LanguageChecks, answers: Int[Tensor, " prompt"] | None, skip: int, batch_size: int
) -> tuple[LanguageScores, Int[Tensor, " prompt"]]:
    """Ask a model.

    Args:
        host: the model; a patch of it that is installed is heard.
        checks: what is asked.
        answers: the base model's likeliest next tokens after the unrelated prompts; None of the base model itself.
        skip: leading positions whose tokens do not count in the perplexity.
        batch_size: prompts and texts at once.

    Returns:
        Its scores, and its likeliest next tokens after the unrelated prompts.
    """
    unwanted = torch.tensor(checks.unwanted)
    hits = {
        name: ~torch.isin(next_tokens(host, prompts, checks, batch_size), unwanted)
        for name, prompts in (("reliability", checks.edited), ("generality", checks.rephrased))
        if prompts
    }
    unrelated = next_tokens(host, checks.unrelated, checks, batch_size)
    if checks.unrelated:
        hits["locality"] = unrelated == (unrelated if answers is None else answers)
    shares = {name: float(hit.double().mean()) for name, hit in hits.items()}
    scores = LanguageScores(
        reliability=shares.get("reliability"),
        generality=shares.get("generality"),
        locality=shares.get("locality"),
        perplexity=_perplexity(host, checks, skip, batch_size) if checks.text else None,
        samples=tuple(_continued(host, prompt, checks) for prompt in checks.samples),
        intervals={name: wilson(share, len(hits[name])) for name, share in shares.items()},
    )
    return scores, unrelated


def next_tokens(host: Host, prompts: Sequence[str], checks: LanguageChecks, batch_size: int) -> Int[Tensor, " prompt"]:
    """Return the likeliest next token after each prompt."""
    likeliest = [torch.empty(0, dtype=torch.long)]
    for x, _ in calls(host, list(prompts), batch_size=batch_size, tokenizer=checks.tokenizer) if prompts else ():
        output = Output.of(host, x)
        _, counts = output.samples.entry.unique_consecutive(return_counts=True)
        likeliest.append(output.logp[counts.cumsum(0) - 1].argmax(1))
    return torch.cat(likeliest)


def _perplexity(host: Host, checks: LanguageChecks, skip: int, batch_size: int) -> float:
    losses = []
    for x, _ in calls(host, list(checks.text), batch_size=batch_size, tokenizer=checks.tokenizer):
        output = Output.of(host, x, skip)
        if output.samples.ids is None or len(output.samples) != len(output.logp):
            raise InputError("Perplexity needs a model that is called with token ids and gives logits for each.")
        follows = output.following()
        judged = (follows != IGNORED).nonzero().flatten()
        losses.append(-output.logp[judged, follows[judged]])
    return math.exp(float(torch.cat(losses).mean()))


def _continued(host: Host, prompt: str, checks: LanguageChecks) -> str:
    """Go on greedily from a prompt; every pass sees the whole sequence, so that a patch needs no cache."""
    tokenizer = checks.tokenizer or host.tokenizer
    if tokenizer is None:
        raise InputError("Samples are shown as text, for which the tokenizer is needed: LanguageChecks(tokenizer=…).")
    ((x, _),) = calls(host, [prompt], tokenizer=checks.tokenizer)
    ids = x["input_ids"] if isinstance(x, Mapping) else x
    assert isinstance(ids, torch.Tensor)  # which is what calls() makes of a text
    for _ in range(checks.new_tokens):
        ids = torch.cat([ids, Output.of(host, ids).logp[-1:].argmax(1, keepdim=True).to(ids)], 1)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def language_table(rows: Mapping[str, LanguageScores]) -> Table:
    """Tabulate scores by the name of their method, each share beside its interval; what was not asked is left out."""
    scores = [*rows.values()]
    columns = [Column("method", tuple(rows))]
    for name, short in _SHARES.items():
        ends = tuple(each.intervals.get(name) for each in scores)
        columns += columns_of(scores, **{name: percents(1)})
        columns.append(Column(f"{short}, 95 %", ends, partial(between, digits=0), parts=("low", "high")))
    columns += columns_of(scores, perplexity=digits(3))
    caption = "What the language model does: shares in %, with 95 % intervals."
    return Table(tuple(columns), caption, len(rows) - 1).without_empty()


def texts_table(rows: Mapping[str, LanguageScores]) -> Table:
    """Tabulate the samples, a row each, beside one another by method, on one line."""
    texts = {name: row.samples for name, row in rows.items() if row.samples}
    count = max(map(len, texts.values()), default=0)
    numbers = Column("text", tuple(range(1, count + 1)))
    columns = (Column(name, own, lambda text: " ".join(text.split()), left=True) for name, own in texts.items())
    return Table((numbers, *columns), "How the model goes on, without the edit and under it.")


def language_samples(rows: Mapping[str, LanguageScores]) -> list[str]:
    """List the samples, each behind the name of its method."""
    return [f"{name}: {sample}" for name, row in rows.items() for sample in row.samples]
