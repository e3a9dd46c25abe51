"""Gender of a name in stories260K: how far each way suppresses it, and what that costs on text without the words.

After "There was a girl named Lily. Lily was very happy." the host prefers She to He by some 5 nats. Each way is taught
by contrasting prompts with other names and other templates, acts in place at the last three sites at every position,
and is shown as a curve over strengths: mean |log She − log He| on the prompts held out, against more cross-entropy on
those tokens of held-out stories whose sentence has no word of gender. λ of the redirections is chosen on templates of
their own, and so is one strength beside the curve. "Inside" is |log she − log he| after "… One day,": what was not
taught.

Printed beside the edits: mean difference and LEACE on the host's states (LEACE with the prompts' covariance, as it
stands, and with the corpus's), the redirection on the host's states without any lifting, the redirection taught on the
very prompts that it is judged on, and the trivial row, which ties the two logits and nothing else. Takes some five
minutes on an idle core, and two more for the fit.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import machine
from datasets import load_dataset
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import koopman_interp as ki
from koopman_interp.files import write_json
from koopman_interp.hosts.tokens import right_padded
from koopman_interp.tables import table


def words(line: str) -> list[str]:
    """Split a line into words."""
    return line.split()


TAUGHT_TEMPLATES = (
    "One day, a {kind} named {name} went to the park. {name} saw a big dog.",
    "A {kind} called {name} lived in a small house. One day {name} found a red ball.",
    "There once was a small {kind}. The {kind} was called {name}. {name} loved to run and jump.",
    "In the garden there was a {kind} named {name}. {name} wanted to eat a cake.",
    "One morning a {kind} named {name} woke up. {name} looked out of the window.",
    "{name} was a kind {kind}. {name} had a big box of toys.",
    "Once there was a {kind}, and the name of the {kind} was {name}. {name} liked to sing a song.",
    "Mom gave a toy to a {kind} named {name}. {name} smiled and said thank you.",
    "It was a sunny day. A {kind} named {name} was in the yard. {name} saw a bird in the tree.",
)
TEMPLATES = (
    "There was a {kind} named {name}. {name} was very happy.",
    "Once upon a time, there was a little {kind} named {name}. {name} liked to play.",
)
TAUGHT = (
    words("Jane Mary Kate Ella Zoe Rose Lisa Molly Sally Daisy Lola Nina Bella Jenny Nancy Polly Susie Annie"),
    words("Fred Mark Leo Peter Billy Joe Mike Jim Alex Dave Roy Andy Timmy Tommy Johnny Bobby Jimmy Rob"),
)
CHOOSING = (words("Lisa Ella Sally Lola"), words("Mark Peter Jim Roy"))
CHOOSING_TEMPLATES = (
    "There lived a {kind} named {name}. {name} was kind and nice.",
    "One day, there was a {kind} named {name}. {name} had a good friend.",
)
"""λ and a strength are chosen on these, with names among those that the host knows well."""
NAMES = (words("Lily Mia Sue Anna Emma Sara Lucy Amy"), words("Tim Tom Ben Max Jack Sam Bob John"))
GENDERED = {
    *words("she he her him his hers himself herself girl boy girls boys lady man woman men women sir miss mr mrs"),
    *words("mom dad mommy daddy mother father mum mama papa grandma grandpa grandmother grandfather aunt uncle"),
    *words("brother sister brothers sisters son daughter queen king prince princess"),
}
LAST = 4
"""Positions from the end of a prompt, at most, that moments are taken at."""
SITES = (-3, -2, -1)
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75)
WEIGHTS = (0.05, 0.1, 0.2, 0.4)
MOST, BUDGET = 0.5, 2.0
"""What is asked: nats left at most, per cent of cross-entropy more at most."""

Way = Callable[[float], AbstractContextManager[Any]]
"""A patch of the model at a strength."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that differ in the gender of a name."""

    ids: list[list[int]]
    gender: Int[Tensor, " prompt"]
    template: Int[Tensor, " prompt"]

    @classmethod
    def of(cls, tokenizer: Any, templates: Sequence[str], names: tuple[list[str], list[str]]) -> Prompts:
        """Fill in templates; gender is 1 for a girl and 0 for a boy."""
        filled = [
            (tokenizer(template.format(kind=kind, name=name))["input_ids"], gender, index)
            for index, template in enumerate(templates)
            for gender, kind, own in ((1, "girl", names[0]), (0, "boy", names[1]))
            for name in own
        ]
        ids, gender, template = zip(*filled, strict=True)
        return cls(list(ids), torch.tensor(gender), torch.tensor(template))

    def rows(self, tap: ki.Tap) -> tuple[ki.Trajectories, Tensor, Tensor]:
        """Observe the last positions, which are alike in all prompts of a template; also their gender and group."""
        seen = tap.observe(self.ids, progress=False)
        lengths = torch.tensor([len(ids) for ids in self.ids])
        from_end = lengths[seen.sequence] - 1 - seen.position
        shared = torch.zeros(int(self.template.max()) + 1, dtype=torch.long)
        for index in range(len(shared)):
            ends = [ids[::-1] for ids, own in zip(self.ids, self.template.tolist(), strict=True) if own == index]
            alike = [len(set(places)) == 1 for places in zip(*ends, strict=False)]
            shared[index] = min(LAST, alike.index(False) if False in alike else len(alike))
        kept = from_end < shared[self.template[seen.sequence]]
        group = self.template[seen.sequence] * LAST + from_end
        return seen[kept], self.gender[seen.sequence][kept], group[kept]


@dataclass(frozen=True)
class Judge:
    """What is measured of a model, patched or not.

    Attributes:
        stories: held-out ids, with a mask of the tokens whose sentence has no word of gender.
        pronouns: the ids of She and He, and of the same words in the middle of a sentence.
    """

    model: nn.Module
    stories: list[tuple[list[int], Tensor]]
    pronouns: dict[str, tuple[int, int]]

    @torch.no_grad()
    def odds(self, prompts: Prompts, pair: str = "She/He") -> tuple[float, float]:
        """Return the mean of log-odds with signs aligned, and of their absolute values, in nats."""
        batch = right_padded(prompts.ids, 0)
        logits = self.model(**batch).logits[torch.arange(len(prompts.ids)), batch["attention_mask"].sum(1) - 1]
        she, he = self.pronouns[pair]
        odds = (logits[:, she] - logits[:, he]).double()
        return float((odds * (2 * prompts.gender - 1)).mean()), float(odds.abs().mean())

    @torch.no_grad()
    def loss(self) -> tuple[float, float]:
        """Return cross-entropy in nats a token, of sentences without words of gender and of all."""
        sums, counts = torch.zeros(2).double(), torch.zeros(2).double()
        for start in range(0, len(self.stories), 16):
            part = self.stories[start : start + 16]
            batch = right_padded([ids for ids, _ in part], 0)
            logp = self.model(**batch).logits[:, :-1].log_softmax(-1)
            missed = -logp.gather(2, batch["input_ids"][:, 1:, None]).squeeze(2).double()
            real = batch["attention_mask"][:, 1:].bool()
            free = nn.utils.rnn.pad_sequence([mask for _, mask in part], batch_first=True)[:, 1:]
            for index, mask in enumerate((free, real)):
                sums[index] += missed[mask].sum()
                counts[index] += mask.sum()
        return float(sums[0] / counts[0]), float(sums[1] / counts[1])


def free_of_gender(tokenizer: Any, text: str) -> tuple[list[int], Tensor]:
    """Tokenise a story, and mark the tokens that lie in a sentence without a word of `GENDERED`."""
    found = tokenizer(text, return_offsets_mapping=True)
    free = torch.zeros(len(found["input_ids"]), dtype=torch.bool)
    for sentence in re.finditer(r'[^.!?\n]+[.!?\n"]*\s*', text):
        if not GENDERED & set(re.findall(r"[a-z]+", sentence.group().lower())):
            for index, (start, stop) in enumerate(found["offset_mapping"]):
                # A token may begin with the space before its sentence.
                free[index] |= stop > start >= sentence.start() - 1 and stop <= sentence.end()
    return found["input_ids"], free


@dataclass(frozen=True)
class Affine:
    """`x → x + strength · ((x − centre) W) A`, on the host's own states at one site."""

    A: Float[Tensor, "rank width"]
    W: Float[Tensor, "width rank"]
    centre: Float[Tensor, " width"]

    def hook(self, strength: float) -> Callable[[Tensor], Tensor]:
        """Return it as a hook."""
        return lambda x: (x.double() + strength * ((x.double() - self.centre) @ self.W) @ self.A).to(x)


def on_states(
    kind: str, x: Float[Tensor, "row width"], gender: Tensor, group: Tensor, corpus: Float[Tensor, "token width"]
) -> Affine:
    """Solve a baseline on the host's states: no lifting, no operator."""
    she, he = x[gender == 1].mean(0), x[gender == 0].mean(0)
    a, centre, ridge = she - he, (she + he) / 2, 1e-3 * torch.eye(x.shape[1]).double()
    if kind.startswith("redirection"):
        weight = float(kind.rsplit(" ", 1)[1])
        centre = corpus.mean(0)
        z, wanted = x - centre, ki.counterfactual(gender, group)(x, 0) - x
        C = torch.cov(corpus.T, correction=0)
        C = C + 1e-4 * C.diagonal().mean() * torch.eye(len(C))
        change = torch.linalg.solve(z.T @ z / len(z) + weight * C, z.T @ wanted / len(z))
        return Affine(torch.eye(len(C)).double(), change, centre)
    if kind == "mean difference":
        w = a
    else:
        sigma = torch.cov((x if kind == "LEACE" else torch.cat([x, corpus])).T, correction=0)
        w = torch.linalg.solve(sigma + ridge * sigma.diagonal().mean(), a)
    return Affine(-a[None], (w / (a @ w))[:, None], centre)


class Ways:
    """All ways, each a function of its strength."""

    def __init__(
        self,
        model: nn.Module,
        koopman: ki.KoopmanAutoencoder,
        taught: Prompts,
        corpus: ki.Trajectories,
        sites: Sequence[int],
    ) -> None:
        self.model, self.koopman, self.corpus = model, koopman, corpus
        tap = ki.attach(model, skip=1)
        self.rows, self.gender, self.group = taught.rows(tap)
        self.sites = [range(len(koopman.sites))[site] for site in sites]

    def edits(self, make: Callable[[int], ki.OperatorEdit]) -> Way:
        """Patch edits in place at each site."""
        made = ki.each_site(self.koopman, make, self.sites)
        return lambda strength: ki.patched(self.model, self.koopman, made.scaled(strength), at="each site")

    def redirection(self, weight: float) -> Way:
        """The soft redirection to counterfactual means, in observables."""
        targets = ki.counterfactual(self.gender, self.group)
        return self.edits(
            lambda site: ki.redirect(
                self.koopman, fitted=self.rows, targets=targets, weight=weight, site=site, name="gender"
            )
        )

    def eraser(self) -> Way:
        """The oblique eraser at the cost of the fit, in observables."""
        return self.edits(
            lambda site: ki.erase_concept(self.koopman, self.rows, attribute=self.gender, site=site, name="gender")
        )

    def baseline(self, kind: str) -> Way:
        """A way on the host's own states."""
        host = ki.host_for(self.model)
        maps = {
            self.koopman.sites[depth]: on_states(
                kind, self.rows.states[depth].double(), self.gender, self.group, self.corpus.states[depth].double()
            )
            for depth in self.sites
        }
        return lambda strength: host.hooked({site: one.hook(strength) for site, one in maps.items()}, first=True)


def chosen(way: Callable[[float], Way], judge: Judge, choosing: Prompts) -> tuple[float, float]:
    """Choose λ and strength: the largest λ that does what is asked, since it moves the corpus least.

    The strength is the one that leaves least. Without any λ that does what is asked, the two that leave least.
    """
    found: list[tuple[float, float, float]] = []
    for weight in WEIGHTS:
        patch = way(weight)
        left = []
        for strength in STRENGTHS[2:]:
            with patch(strength):
                left.append((judge.odds(choosing)[1], weight, strength))
        found.append(min(left))
    reached = [one for one in found if one[0] <= MOST]
    _, weight, strength = max(reached, key=lambda one: one[1]) if reached else min(found)
    return weight, strength


def measured(judge: Judge, prompts: dict[str, Prompts]) -> dict[str, float]:
    """Measure the model as it is now: odds at the end of a sentence and inside the next, and losses."""
    signed, absolute = judge.odds(prompts["held out"])
    free, whole = judge.loss()
    inside = judge.odds(prompts["inside"], "she/he")[1]
    return {"signed": signed, "absolute": absolute, "inside": inside, "free": free, "all": whole}


def points(name: str, patch: Way, judge: Judge, prompts: dict[str, Prompts]) -> Iterator[dict[str, Any]]:
    """Measure a way at each strength."""
    for strength in STRENGTHS:
        with patch(strength):
            yield {"way": name, "strength": strength, **measured(judge, prompts)}


def report(
    rows: list[dict[str, Any]], host: dict[str, float], settings: dict[str, tuple[float, float]], out: Path
) -> None:
    """Print the curves and what they come to, and write JSON."""
    for row in (host, *rows):
        for kind in ("free", "all"):
            row[f"{kind}, %"] = 100 * (row[kind] / host[kind] - 1)
    print(
        f"host: |log-odds| {host['absolute']:.2f}, inside a sentence {host['inside']:.2f}; cross-entropy "
        f"{host['free']:.4f} on sentences without words of gender, {host['all']:.4f} on all"
    )
    columns = ("signed", "absolute", "inside", "free, %", "all, %")
    body = [[row["way"], f"{row['strength']:g}", *(f"{row[name]:+.2f}" for name in columns)] for row in rows]
    print(table(["way", "strength", *columns], body))
    frontier = ki.Frontier(
        "mean |log She − log He|, nats",
        "more cross-entropy, %",
        host["absolute"],
        tuple(ki.FrontierPoint(row["way"], row["strength"], row["absolute"], row["free, %"]) for row in rows),
    )
    print(f"\nAsked: at most {MOST:g} nats at most {BUDGET:g} % dearer.")
    print(frontier.summary(MOST, BUDGET))
    for name, (weight, strength) in settings.items():
        row = next(one for one in frontier.curve(name) if one.strength == strength)
        print(
            f"{name}: templates of their own chose λ = {weight:g} and strength {strength:g}, "
            f"which leaves {row.left:.2f} nats at {row.cost:+.2f} %."
        )
    write_json(
        out, {"host": host, "rows": rows, "frontier": frontier.as_dict(), "chosen": settings, "machine": machine()}
    )


def main() -> None:
    """Measure, print and write JSON."""
    here = Path(__file__).resolve().parent
    shared = here.parents[1] / "shared"
    models = os.environ.get("KOOPMAN_INTERP_MODELS", str(shared / "models"))
    stories = os.environ.get("KOOPMAN_INTERP_DATA", str(shared / "datasets"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=f"{models}/stories260K")
    parser.add_argument("--stories", default=f"{stories}/stories-sampled")
    parser.add_argument("--koopman", type=Path, help="folder of the surrogate, to read or to write")
    parser.add_argument("--sites", type=int, nargs="+", default=list(SITES), help="default: %(default)s")
    parser.add_argument("--slice", type=int, help="stories to fit and to judge on: a smoke run")
    parser.add_argument("--out", type=Path, default=here / "results" / "concepts.json")
    told = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(told.model).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(told.model)
    data = load_dataset(told.stories)
    ids = [tokenizer(text)["input_ids"] for text in data["train"][: told.slice or 260]["text"]]
    corpus = ki.attach(model, skip=1).observe(ids, batch_size=16, progress=False)
    if told.koopman is not None and told.koopman.is_dir():
        koopman = ki.KoopmanAutoencoder.from_pretrained(told.koopman)
    else:
        steps = 60 if told.slice else 800
        config = ki.FitConfig(observables=128, pairs="all", steps=steps, evaluate_every=min(200, steps))
        koopman = ki.fit(corpus, config)
        if told.koopman is not None:
            koopman.save_pretrained(told.koopman)
    vocabulary = tokenizer.get_vocab()
    pairs = {"She/He": ("▁She", "▁He"), "she/he": ("▁she", "▁he")}
    pronouns = {name: (vocabulary[she], vocabulary[he]) for name, (she, he) in pairs.items()}
    held_out = data["test"][: told.slice or len(data["test"])]["text"]
    judge = Judge(model, [free_of_gender(tokenizer, text) for text in held_out], pronouns)
    taught = Prompts.of(tokenizer, TAUGHT_TEMPLATES, TAUGHT)
    choosing = Prompts.of(tokenizer, CHOOSING_TEMPLATES, CHOOSING)
    held, inside = (Prompts.of(tokenizer, own, NAMES) for own in (TEMPLATES, [one + " One day," for one in TEMPLATES]))
    prompts = {"held out": held, "inside": inside}
    ways, same = (Ways(model, koopman, own, corpus, told.sites) for own in (taught, held))
    lifted, lifted_strength = chosen(ways.redirection, judge, choosing)
    raw, raw_strength = chosen(lambda weight: ways.baseline(f"redirection {weight}"), judge, choosing)
    named: dict[str, Way] = {
        "redirect (operator)": ways.redirection(lifted),
        "erase (operator)": ways.eraser(),
        "mean difference": ways.baseline("mean difference"),
        "LEACE": ways.baseline("LEACE"),
        "LEACE, corpus covariance": ways.baseline("LEACE, corpus"),
        "redirect (states)": ways.baseline(f"redirection {raw}"),
        "redirect (operator), same names": same.redirection(lifted),
        "two logits tied": tied(model, pronouns["She/He"]),
    }
    host = measured(judge, prompts)
    rows = [row for name, patch in named.items() for row in points(name, patch, judge, prompts)]
    settings = {"redirect (operator)": (lifted, lifted_strength), "redirect (states)": (raw, raw_strength)}
    report(rows, host, settings, told.out)


def tied(model: nn.Module, pair: tuple[int, int]) -> Way:
    """The trivial way: bring two logits together, and touch nothing else."""

    def hook(strength: float, logits: Tensor) -> Tensor:
        own = logits[..., list(pair)]
        new = logits.clone()
        new[..., list(pair)] = own + strength * (own.mean(-1, keepdim=True) - own)
        return new

    host = ki.host_for(model)
    return lambda strength: host.hooked({"lm_head": partial(hook, strength)}, first=True)


if __name__ == "__main__":
    main()
