"""Gender of a name in stories260K: how far each way suppresses it, what that costs, and what the model then tells.

After "There was a girl named Lily. Lily was very happy." the host prefers She to He by some 5 nats. Each way is taught
by contrasting prompts of other names and other templates and acts in place, at every position. Sites, λ and strength
are chosen on templates and names of their own, and their cost on stories of their own; the prompts and the stories that
judge are seen by nothing before. Beside the choice stands the whole curve over strengths: mean |log She − log He| on
the prompts held out, against more cross-entropy on those tokens of held-out stories whose sentence has no word of
gender. "Inside" is |log she − log he| after "… One day,": what was not taught.

Neighbours: the same formula on the host's own states (a surrogate without features), on random features with one solve
(`method="least_squares"`), mean difference and LEACE on the states (LEACE with the prompts' covariance, and with the
corpus's), and the trivial row, which ties two logits and nothing else. At the end, samples: how likely the host itself
finds what is told, all tokens and those that are no word of gender; and how much of the edit arrives, carried by K and
in place (`ki.reach`). Takes some ten minutes on an idle core.

    python benchmarks/concepts.py
    python benchmarks/concepts.py --slice 24 --told 1        # smoke
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import default_data, default_model, machine
from concept_prompts import (
    CHOOSING,
    CHOOSING_MIDDLES,
    CHOOSING_OPENINGS,
    GENDERED,
    MIDDLES,
    NAMES,
    OPENINGS,
    TAUGHT,
    TEMPLATES,
    Stories,
    prompts,
    sentences,
)
from datasets import load_dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import koopman_interp as ki
from koopman_interp.auditing.concept_baselines import concept_baselines
from koopman_interp.files import write_json
from koopman_interp.forgetting.suppression import cross_entropy, host_odds
from koopman_interp.tables import table

STRENGTHS = (0.75, 1.0, 1.125, 1.25, 1.375, 1.5, 1.75, 2.0)
WEIGHTS = (0.02, 0.03, 0.05, 0.1)
MOST, BUDGET = 0.5, 1.0
"""What is asked: nats left at most, per cent of cross-entropy more at most."""
TOLD, NEW_TOKENS = 40, 40
"""Samples a prompt, and tokens of each."""

ENDS = (0, 1, 2)
"""Padding, the beginning of another story, and the end of this one."""

Way = Callable[[float], AbstractContextManager[Any]]
"""A patch of the model at a strength."""


@dataclass(frozen=True)
class Judge:
    """What is measured of a model, patched or not."""

    host: ki.Host
    stories: Stories
    ends: ki.Contrast
    inside: ki.Contrast
    pronouns: dict[str, tuple[list[int], list[int]]]

    def __call__(self, patch: AbstractContextManager[Any]) -> dict[str, float]:
        """Measure: odds at the end of a sentence and inside the next, and cross-entropy of free tokens and of all."""
        with patch:
            odds = host_odds(self.host, self.ends, self.pronouns["He/She"])
            inside = host_odds(self.host, self.inside, self.pronouns["he/she"])
            return {
                "signed": float((odds * (2 * self.ends.value - 1)).mean()),
                "absolute": float(odds.abs().mean()),
                "inside": float(inside.abs().mean()),
                "free": cross_entropy(self.host, self.stories.ids, self.stories.free),
                "all": cross_entropy(self.host, self.stories.ids),
            }


@dataclass(frozen=True)
class Setting:
    """The model, what teaches, what chooses, and what judges."""

    model: nn.Module
    tokenizer: Any
    corpus: ki.Trajectories
    taught: ki.Contrast
    choosing: ki.Contrast
    text: Stories
    judge: Judge
    weights: tuple[float, ...]
    strengths: tuple[float, ...]

    def suppression(self, koopman: ki.KoopmanAutoencoder) -> ki.Suppression:
        """Choose sites, λ and strength by what teaches alone."""
        return ki.suppress_concept(
            self.model,
            koopman,
            taught=self.taught,
            choosing=self.choosing,
            words=self.judge.pronouns["He/She"],
            text=self.text.ids,
            judged=self.text.free,
            budget=BUDGET / 100,
            weights=self.weights,
            strengths=self.strengths,
            name="gender",
        )

    def chosen(self, ways: dict[tuple[str, ...], Way]) -> tuple[Way, float]:
        """Choose sites and strength of a baseline by the same rule."""
        host, found = self.judge.host, []
        plain = cross_entropy(host, self.text.ids, self.text.free)
        for way, strength in product(ways.values(), self.strengths):
            with way(strength):
                left = float(host_odds(host, self.choosing, self.judge.pronouns["He/She"]).abs().mean())
                cost = cross_entropy(host, self.text.ids, self.text.free) / plain - 1
            found.append((cost > BUDGET / 100, left if cost <= BUDGET / 100 else cost, way, strength))
        _, _, way, strength = min(found, key=lambda one: one[:2])
        return way, strength


def main() -> None:
    """Run, and print each table as soon as it is there."""
    told = arguments()
    setting = made(told)
    koopman = surrogate(told, setting.corpus)
    few = ki.FitConfig(hidden=())
    surrogates = {
        "redirect (operator)": koopman,
        "redirect (random features)": ki.fit(setting.corpus, method="least_squares", progress=False),
        "redirect (states)": ki.fit(setting.corpus, few, method="least_squares", progress=False),
    }
    ways, strengths, found = dict[str, Way](), dict[str, float](), dict[str, ki.Suppression]()
    for name, one in surrogates.items():
        found[name] = setting.suppression(one)
        print(f"== {name}: {one}\n{found[name]}\n", flush=True)
        strengths[name] = found[name].chosen.strength
        ways[name] = partial(patch_at, setting.model, one, found[name])
    for name, choices in baselines(setting, found["redirect (operator)"]).items():
        ways[name], strengths[name] = setting.chosen(choices)
    ways["two logits tied"], strengths["two logits tied"] = tied(setting), 1.0
    rows = [row for name, way in ways.items() for row in points(name, way, strengths[name], setting)]
    host = setting.judge(nullcontext())
    summary = report(rows, host)
    ours = ways["redirect (operator)"](strengths["redirect (operator)"])
    told_by = {name: ways[name](strengths[name]) for name in ("redirect (states)", "two logits tied")}
    spoken = samples(setting, {"host": nullcontext(), "redirect (operator)": ours, **told_by}, told.told)
    reached = ki.reach(ours, held_out=setting.judge.ends.ids, last=True)
    print(f"\n{reached}")
    write_json(
        told.out,
        {
            "machine": machine(),
            "host": host,
            "rows": rows,
            "chosen": {name: one.as_dict() | {"edits": None} for name, one in found.items()},
            "summary": summary,
            "samples": spoken,
            "reach": reached.as_dict(),
        },
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(default_model("stories260K")))
    parser.add_argument("--stories", default=str(default_data("stories-sampled")))
    parser.add_argument("--koopman", type=Path, help="folder of the surrogate, to read or to write")
    parser.add_argument("--slice", type=int, help="stories to fit and to judge on: a smoke run")
    parser.add_argument("--told", type=int, default=TOLD, help="samples a prompt (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=here / "results" / "concepts.json")
    return parser.parse_args()


def made(told: argparse.Namespace) -> Setting:
    """Load the model and the stories, and fill in the prompts."""
    model = AutoModelForCausalLM.from_pretrained(told.model).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(told.model)
    data, few = load_dataset(told.stories), told.slice
    fitted = [tokenizer(text)["input_ids"] for text in data["train"][: few or 260]["text"]]
    corpus = ki.attach(model, skip=1).observe(fitted, batch_size=16, progress=False)
    vocabulary = tokenizer.get_vocab()
    pairs = {"He/She": ("▁He", "▁She"), "he/she": ("▁he", "▁she")}
    pronouns = {name: ([vocabulary[zero]], [vocabulary[one]]) for name, (zero, one) in pairs.items()}
    # Neither the stories that were fitted nor those that judge.
    paying = Stories.of(tokenizer, data["train"][260 : 260 + (few or 60)]["text"])
    judge = Judge(
        ki.host_for(model),
        Stories.of(tokenizer, data["test"][: few or len(data["test"])]["text"]),
        prompts(tokenizer, TEMPLATES, NAMES),
        prompts(tokenizer, [f"{template} One day," for template in TEMPLATES], NAMES),
        pronouns,
    )
    openings, middles = (OPENINGS[:2], MIDDLES[:2]) if few else (OPENINGS, MIDDLES)
    return Setting(
        model=model,
        tokenizer=tokenizer,
        corpus=corpus,
        taught=prompts(tokenizer, sentences(openings, middles), TAUGHT),
        choosing=prompts(tokenizer, sentences(CHOOSING_OPENINGS, CHOOSING_MIDDLES), CHOOSING),
        text=paying,
        judge=judge,
        weights=WEIGHTS[1::2] if few else WEIGHTS,
        strengths=STRENGTHS[2::3] if few else STRENGTHS,
    )


def surrogate(told: argparse.Namespace, corpus: ki.Trajectories) -> ki.KoopmanAutoencoder:
    """Load the surrogate, or fit it."""
    if told.koopman is not None and told.koopman.is_dir():
        return ki.KoopmanAutoencoder.from_pretrained(told.koopman)
    steps = 60 if told.slice else 800
    config = ki.FitConfig(observables=128, pairs="all", steps=steps, evaluate_every=min(200, steps))
    koopman = ki.fit(corpus, config, progress=False)
    if told.koopman is not None:
        koopman.save_pretrained(told.koopman)
    return koopman


def patch_at(model: nn.Module, koopman: ki.KoopmanAutoencoder, found: ki.Suppression, strength: float) -> ki.Patch:
    """Patch what was chosen, in place, at another strength."""
    own = strength == found.chosen.strength
    edits = found.edits if own else found.edits.scaled(strength / found.chosen.strength)
    return ki.patched(model, koopman, edits, at=found.at)


def baselines(setting: Setting, found: ki.Suppression) -> dict[str, dict[tuple[str, ...], Way]]:
    """Fit mean difference and LEACE, by name and choice of sites: those that the edit chose among."""
    host, rows = setting.judge.host, setting.taught.rows(ki.attach(setting.model, skip=1))
    choices = dict.fromkeys(trial.sites for trial in found.trials)
    fitted = dict[str, dict[tuple[str, ...], Way]]()
    for sites in choices:
        own = concept_baselines(host, rows.trajectories, rows.value, sites=sites, corpus=setting.corpus)
        for name, way in own.items():
            fitted.setdefault(name, {})[sites] = way
    return fitted


def tied(setting: Setting) -> Way:
    """The trivial way: bring two logits together, and touch nothing else."""
    pair = [own[0] for own in setting.judge.pronouns["He/She"]]

    def hook(strength: float, logits: Tensor) -> Tensor:
        own = logits[..., pair]
        new = logits.clone()
        new[..., pair] = own + strength * (own.mean(-1, keepdim=True) - own)
        return new

    return lambda strength: setting.judge.host.hooked({"lm_head": partial(hook, strength)}, first=True)


def points(name: str, way: Way, chosen: float, setting: Setting) -> Iterator[dict[str, Any]]:
    """Measure a way at each strength, that which was chosen among them."""
    for strength in sorted({*setting.strengths, chosen}):
        yield {"way": name, "strength": strength, "chosen": strength == chosen, **setting.judge(way(strength))}


def report(rows: list[dict[str, Any]], host: dict[str, float]) -> list[dict[str, Any]]:
    """Print the curves, what they come to, and what was chosen without them; return the last."""
    for row in (host, *rows):
        for kind in ("free", "all"):
            row[f"{kind}, %"] = 100 * (row[kind] / host[kind] - 1)
    print(
        f"host: |log-odds| {host['absolute']:.2f}, inside a sentence {host['inside']:.2f}; cross-entropy "
        f"{host['free']:.4f} on sentences without words of gender, {host['all']:.4f} on all"
    )
    columns = ("signed", "absolute", "inside", "free, %", "all, %")
    body = [
        [row["way"], f"{row['strength']:g}" + "*" * row["chosen"], *(f"{row[name]:+.2f}" for name in columns)]
        for row in rows
    ]
    print(table(["way", "strength (* chosen)", *columns], body))
    frontier = ki.Frontier(
        "mean |log She − log He|, nats",
        "more cross-entropy, %",
        host["absolute"],
        tuple(ki.FrontierPoint(row["way"], row["strength"], row["absolute"], row["free, %"]) for row in rows),
    )
    print(f"\nRead off the curves, which flatters: at most {MOST:g} nats, at most {BUDGET:g} % dearer.")
    print(frontier.summary(MOST, BUDGET))
    print(f"\nChosen on teaching data alone. Asked: ≤ {MOST:g} nats at ≤ {BUDGET:g} %.")
    ours = [row for row in rows if row["chosen"]]
    shown = [[row["way"], f"{row['strength']:g}", *(f"{row[name]:+.2f}" for name in columns)] for row in ours]
    print(table(["way", "strength", *columns], shown), flush=True)
    return ours


@torch.no_grad()
def samples(setting: Setting, ways: dict[str, AbstractContextManager[Any]], times: int) -> list[dict[str, Any]]:
    """Sample after each prompt that judges, and ask the host itself how likely it finds what was told.

    Of all tokens told, and of those that are no word of gender: a name of one gender and a word of the other is what
    was asked for, and the host, which was not edited, finds it unlikely.
    """
    host, tokenizer, rows = setting.judge.host, setting.tokenizer, list[dict[str, Any]]()
    apart = [number for token, number in tokenizer.get_vocab().items() if token.strip("▁").lower() in GENDERED]
    for name, way in ways.items():
        stories, told, she, he = list[list[int]](), list[list[bool]](), 0, 0
        pair = [own[0] for own in setting.judge.pronouns["He/She"]]
        with way:
            for number, ids in enumerate(setting.judge.ends.ids):
                torch.manual_seed(number)
                given = torch.tensor([ids]).expand(times, -1)
                settings = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "top_k": 0, "pad_token_id": 0}
                sampled = setting.model.generate(given, attention_mask=torch.ones_like(given), **settings)
                he, she = (
                    count + int((sampled[:, len(ids)] == own).sum()) for count, own in ((he, pair[0]), (she, pair[1]))
                )
                for own in sampled.tolist():
                    end = next((place for place in range(len(ids), len(own)) if own[place] in ENDS), len(own))
                    stories.append(own[:end])
                    told.append([place >= len(ids) for place in range(end)])
        plain = [
            [mark and token not in apart for mark, token in zip(marks, ids, strict=True)]
            for marks, ids in zip(told, stories, strict=True)
        ]
        losses = cross_entropy(host, stories, told), cross_entropy(host, stories, plain)
        rows.append(
            {
                "way": name,
                "She": she,
                "He": he,
                "all": losses[0],
                "free": losses[1],
                "first": [tokenizer.decode(one, skip_special_tokens=True) for one in stories[:: 8 * times]],
            }
        )
    print(f"\nWhat is told: {times} samples of {NEW_TOKENS} tokens after each of {len(setting.judge.ends)} prompts.")
    body = [[row["way"], str(row["She"]), str(row["He"]), *_beside_the_host(row, rows[0])] for row in rows]
    header = ["way", "She first", "He first", "NLL under the host", "%", "NLL but words of gender", "%"]
    print(table(header, body))
    for row in rows:
        print("\n".join(f"{row['way']}: {text}" for text in row["first"]))
    return rows


def _beside_the_host(row: dict[str, Any], host: dict[str, Any]) -> list[str]:
    """Show likelihoods, each with how far it is from that of the host's own samples, in per cent."""
    shares = {kind: 100 * (row[kind] / host[kind] - 1) for kind in ("all", "free")}
    return [part for kind, share in shares.items() for part in (f"{row[kind]:.3f}", f"{share:+.1f}")]


if __name__ == "__main__":
    main()
