"""The Koopman lens beside TransformerLens's JacobianLens on stories260K: what each reads, and what its directions do.

Both see the same stories, without the first position: the surrogate all tokens of 435, fitted and then distilled; the
JacobianLens 128 tokens of 100 stories, as many as its authors call usable. Read on 77 other stories: divergence from
the model at each depth. Then directions: " She" and " He" are exchanged at the output of one block after 32 sentences
about a girl or a boy, by `swap_hooks` along the directions of each lens and by JacobianLens's own, and the log-odds of
the right pronoun are taken. Cost: some twelve minutes on one core, a third of it to fit the JacobianLens.

    python benchmarks/jacobian_lens.py
    python benchmarks/jacobian_lens.py --slice 12 --steps 20 --distil-steps 10 --prompts 2        # smoke
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from common import default_data, default_model, machine
from datasets import load_dataset
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import JacobianLens

import koopman_interp as ki
from koopman_interp.files import write_json
from koopman_interp.tables import table

Made = TypeVar("Made")
DISTILLED = "Koopman lens, distilled"
OWN = "JacobianLens, its own swap_hooks"
GIRLS = ("Lily", "Lucy", "Mia", "Anna", "Sara", "Emma", "Amy", "Sue")
BOYS = ("Tim", "Tom", "Ben", "Max", "Jack", "Sam", "Bob", "Joe")
TEMPLATES = (
    "There was a {who} named {name}. {name} was very happy.",
    "Once upon a time, there was a {who} named {name}. {name} loved to play.",
)


def main() -> None:
    """Run and print."""
    given = arguments()
    model = TransformerBridge.boot_transformers(str(given.model)).eval()
    stories = load_dataset(str(given.stories))
    train, test = (
        [model.to_tokens(text)[0].tolist() for text in stories[split]["text"][: given.slice]]
        for split in ("train", "test")
    )
    jacobian, jacobian_minutes = timed(lambda: fit_jacobian(model, stories["train"]["text"][: given.prompts]))
    trajectories = ki.attach(model, skip=1).observe(train, batch_size=16, progress=False)
    config = ki.FitConfig(observables=128, hidden=(256,), pairs="all", steps=given.steps)
    koopman, fit_minutes = timed(lambda: ki.fit(trajectories, config, progress=False))
    further = ki.DistilConfig(steps=given.distil_steps, batch_size=2)
    distilled, distil_minutes = timed(
        lambda: ki.distil(model, koopman, train, further, fitted=trajectories, progress=False)
    )
    minutes = {"JacobianLens": jacobian_minutes, "fit": fit_minutes, "distil": distil_minutes}
    print(", ".join(f"{name} {value:.1f} minutes" for name, value in minutes.items()), "\n", flush=True)
    others = [ki.KoopmanLens(distilled, DISTILLED), jacobian]
    read = ki.compare_lenses(
        model, koopman, held_out=test, fitted=trajectories, others=others, next_token=True, batch_size=16
    )
    print(f"{read}\n", flush=True)
    for name in ("Koopman lens", DISTILLED):
        pairs = zip(read.kl("Jacobian lens"), read.kl(name), strict=True)
        ratios = [f"{theirs / ours:.1f}" for theirs, ours in pairs if theirs is not None and ours]
        print(f"KL of the JacobianLens over that of the {name}, from block 0 on: {', '.join(ratios)}")
    swapped = swaps(model, koopman, distilled, trajectories, jacobian, train[:12])
    layers = range(model.cfg.n_layers)
    rows = [
        [name, *(f"{value:.2f}" if value is not None else "–" for value in values)] for name, values in swapped.items()
    ]
    print("\nLog-odds of the right pronoun after a swap at the output of one block, nats\n")
    print(table(["directions of", *(f"block {layer}" for layer in layers)], rows))
    out = {"machine": machine(), "minutes": minutes, "lenses": read.as_dict(), "swaps": swapped}
    write_json(given.out, out)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=default_model("stories260K"))
    parser.add_argument("--stories", type=Path, default=default_data("stories-sampled"))
    parser.add_argument("--slice", type=int, metavar="N", help="use N training stories: a smoke run")
    parser.add_argument("--steps", type=int, default=800, help="of the fit")
    parser.add_argument("--distil-steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=100, help="stories that the JacobianLens is fitted on")
    out = Path(__file__).resolve().parent / "results" / "jacobian_lens.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")
    return parser.parse_args()


def timed(do: Callable[[], Made]) -> tuple[Made, float]:
    """Return what a function returns, and the minutes it took."""
    start = time.perf_counter()
    return do(), (time.perf_counter() - start) / 60


def fit_jacobian(model: Any, texts: Sequence[str]) -> Any:
    """Fit TransformerLens's lens, leaving out the position that the surrogate leaves out too."""
    return JacobianLens.fit(
        model,
        texts,
        corpus="stories-sampled",
        skip_first_positions=1,
        max_seq_len=128,
        dim_batch=32,
        show_progress=False,
    )


def swaps(
    model: Any,
    koopman: ki.KoopmanAutoencoder,
    distilled: ki.KoopmanAutoencoder,
    trajectories: ki.Trajectories,
    jacobian: Any,
    inputs: list[list[int]],
) -> dict[str, list[float | None]]:
    """Exchange the pronouns at each block in turn, by the directions of each lens; mean log-odds of the right one."""
    layers = list(range(model.cfg.n_layers))
    lenses = {
        "logit lens": ki.LogitLens(koopman.config.widths),
        "affine lens, least squares": ki.AffineLens.fit(trajectories),
        "Koopman lens": None,
        DISTILLED: ki.KoopmanLens(distilled, DISTILLED),
        "Jacobian lens": jacobian,
    }
    found: dict[str, list[float | None]] = {"none": [odds(model, ())] * len(layers)}
    for name, lens in lenses.items():
        vectors = ki.lens_vectors(model, koopman, [" She", " He"], inputs, lens=lens, layers=layers)
        hooks = [ki.swap_hooks(model, vectors, " She", " He", layers=[layer]) for layer in layers]
        found[name] = [odds(model, one) for one in hooks]
    she, he = vectors.tokens
    own = [odds(model, jacobian.swap_hooks(model, she, he, [layer])) for layer in jacobian.source_layers]
    found[OWN] = [*own, *[None] * (len(layers) - len(own))]
    return found


@torch.no_grad()
def odds(model: Any, hooks: Any) -> float:
    """Mean log-odds of the right pronoun over all sentences, under hooks."""
    she, he = (model.tokenizer.get_vocab()[name] for name in ("▁She", "▁He"))
    values = []
    for who, names, sign in (("girl", GIRLS, 1), ("boy", BOYS, -1)):
        for text in (template.format(who=who, name=name) for template in TEMPLATES for name in names):
            logits = model.run_with_hooks(model.to_tokens(text), fwd_hooks=hooks)[0, -1]
            values.append(sign * float(logits[she] - logits[he]))
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
