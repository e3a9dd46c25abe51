"""What an edit does to a language model: perplexity on other text, samples, reliability, generality and locality.

The last three are those of the model-editing literature (Meng et al., arXiv 2202.05262; Yao et al., arXiv 2305.13172),
for an edit whose aim is that some tokens no longer follow: whether they do on the prompts the edit is about, on
others that mean the same, and whether the answers to unrelated prompts stay. Each is one forward pass a batch, and
each sample one pass a token, without a cache. Knows nothing of labels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from koopman_interp.auditing.baselines import named
from koopman_interp.auditing.intervals import wilson
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.files import jsonable, write_json
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import calls
from koopman_interp.observing.outputs import Output
from koopman_interp.patching.motion import Mode
from koopman_interp.patching.options import At
from koopman_interp.patching.patch import patched
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import table

_BATCH = 16


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
        tokenizer: of Hugging Face's kind; None is the host's own.
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
class LanguageReading:
    """What a language model did. Shares lie between 0 and 1; None where nothing was asked.

    Attributes:
        reliability: share of the edited prompts after which no unwanted token is the likeliest.
        generality: the same of the rephrased ones.
        locality: share of the unrelated prompts whose likeliest next token is the unedited host's.
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LanguageReading:
        """Rebuild from the plain values of JSON."""
        intervals = {name: (low, high) for name, (low, high) in values["intervals"].items()}
        return cls(**{**values, "samples": tuple(values["samples"]), "intervals": intervals})


@dataclass(frozen=True, repr=False)
class LanguageAudit:
    """What `audit_language` found.

    Attributes:
        edit: description of the edit.
        rows: readings by name, the host's first and the edit's last.
    """

    edit: str
    rows: dict[str, LanguageReading]

    def __repr__(self) -> str:
        before, *_, after = self.rows.values()
        shares = ", ".join(
            f"{name} {getattr(after, name):.1%}"
            for name in ("reliability", "generality", "locality")
            if getattr(after, name) is not None
        )
        moved = "" if after.perplexity is None else f", perplexity {before.perplexity:.2f} → {after.perplexity:.2f}"
        return f"LanguageAudit({self.edit}: {shares}{moved})"

    def __str__(self) -> str:
        return language_table(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        write_json(path, jsonable(self.as_dict()))


@torch.no_grad()
def audit_language(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    edit: OperatorEdit | Sequence[OperatorEdit],
    checks: LanguageChecks,
    *,
    mode: Mode = "delta",
    source: str | int | None = None,
    target: str | int | None = None,
    at: At = "target",
    skip: int = 0,
) -> LanguageAudit:
    """Ask a language model the same before and under an edit; needs no labels.

    Args:
        model: the host.
        koopman: the surrogate.
        edit: the edit, or several.
        checks: what is asked.
        mode: how the edit is patched.
        source: where the patched span starts; see `patched`.
        target: where it ends.
        at: where edits are written; see `patched`.
        skip: leading positions of each sequence that are not patched and whose tokens are not judged.

    Returns:
        One reading of the host and one of the edited host.

    Raises:
        InputError: the host is not called with tokens, or there is no tokenizer.
        HostMismatchError: surrogate or edit belong to another host.
    """
    host = host_for(model)
    edits = (edit,) if isinstance(edit, OperatorEdit) else tuple(edit)
    positions = slice(skip, None) if skip else None
    patch = patched(host, koopman, edits, mode=mode, source=source, target=target, at=at, positions=positions)
    answers = next_tokens(host, checks.unrelated, checks)
    before = read_language(host, checks, answers, skip)
    after = read_language(host, checks, answers, skip, patch)
    return LanguageAudit(", then ".join(one.description for one in edits), {"host": before, named(mode, at): after})


def read_language(
    host: Host,
    checks: LanguageChecks,
    answers: Int[Tensor, " prompt"],
    skip: int = 0,
    patch: AbstractContextManager[Any] | None = None,
) -> LanguageReading:
    """Ask a host.

    Args:
        host: the host.
        checks: what is asked.
        answers: the unedited host's likeliest next tokens after the unrelated prompts.
        skip: leading positions whose tokens do not count in the perplexity.
        patch: in which it answers.

    Returns:
        Its answers.
    """
    if patch is not None:
        with patch:
            return read_language(host, checks, answers, skip)
    shares: dict[str, float | None] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for name, prompts in (
        ("reliability", checks.edited),
        ("generality", checks.rephrased),
        ("locality", checks.unrelated),
    ):
        if not prompts:
            shares[name] = None
            continue
        guess = next_tokens(host, prompts, checks)
        hits = guess == answers if name == "locality" else ~torch.isin(guess, torch.tensor(checks.unwanted))
        shares[name] = share = float(hits.double().mean())
        intervals[name] = wilson(share, len(hits))
    likelihood = _perplexity(host, checks, skip) if checks.text else None
    samples = tuple(_continued(host, prompt, checks) for prompt in checks.samples)
    return LanguageReading(**shares, perplexity=likelihood, samples=samples, intervals=intervals)


def next_tokens(host: Host, prompts: Sequence[str], checks: LanguageChecks) -> Int[Tensor, " prompt"]:
    """Return the likeliest next token after each prompt."""
    found = [torch.empty(0, dtype=torch.long)]
    for x, _ in calls(host, list(prompts), batch_size=_BATCH, tokenizer=checks.tokenizer) if prompts else ():
        output = Output.of(host, x)
        _, counts = output.samples.entry.unique_consecutive(return_counts=True)
        found.append(output.logp[counts.cumsum(0) - 1].argmax(1))
    return torch.cat(found)


def _perplexity(host: Host, checks: LanguageChecks, skip: int) -> float:
    losses = []
    for x, _ in calls(host, list(checks.text), batch_size=_BATCH, tokenizer=checks.tokenizer):
        output = Output.of(host, x, skip)
        samples = output.samples
        if samples.ids is None or len(samples) != len(output.logp):
            raise InputError("Perplexity needs a host that is called with token ids and gives logits for each.")
        follows = samples.entry[1:] == samples.entry[:-1]
        losses.append(-output.logp[:-1].gather(1, samples.ids[1:, None]).squeeze(1)[follows])
    return math.exp(float(torch.cat(losses).mean()))


def _continued(host: Host, prompt: str, checks: LanguageChecks) -> str:
    """Go on greedily from a prompt; every pass sees the whole sequence, so that a patch needs no cache."""
    tokenizer = checks.tokenizer or getattr(host.model, "tokenizer", None)
    if tokenizer is None:
        raise InputError("Samples are shown as text, for which the tokenizer is needed: LanguageChecks(tokenizer=…).")
    ((x, _),) = calls(host, [prompt], tokenizer=checks.tokenizer)
    ids = x["input_ids"] if isinstance(x, Mapping) else x
    for _ in range(checks.new_tokens):
        ids = torch.cat([ids, Output.of(host, ids).logp[-1:].argmax(1, keepdim=True).to(ids)], 1)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def language_table(rows: Mapping[str, LanguageReading]) -> str:
    """Tabulate readings, and their samples below."""
    names = ("reliability", "generality", "locality")
    cells = [
        [
            name,
            *("–" if (share := getattr(row, measure)) is None else f"{100 * share:.1f}" for measure in names),
            "–" if row.perplexity is None else f"{row.perplexity:.3f}",
        ]
        for name, row in rows.items()
    ]
    lines = [table(["%", *names, "perplexity"], cells)]
    for name, row in rows.items():
        lines += [f"{name}: {sample}" for sample in row.samples]
    return "\n".join(lines)
