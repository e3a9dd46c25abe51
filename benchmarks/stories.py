"""Fidelity at the output and the Koopman lens on stories260K, each beside its baselines.

A Llama of five blocks and width 64, through TransformerLens; fitted on 435 stories and judged on 77 others, all of
which the model has told itself. The first position, an attention sink, is left out. One fit by the states
alone (FitConfig), the same distilled on the output's divergence (`ki.distil`), and for comparison an affine lens by
least squares and one trained on the divergence for more steps than the distillation (`ki.tune_lens`). Cost:
some ten minutes on one core, most of it to train the affine lens. With `--context` the encoder looks back on earlier
tokens (`FitConfig(context="causal")`): some eight minutes more for the second line below.

    python benchmarks/stories.py --models ../shared/models --data ../shared/datasets
    python benchmarks/stories.py --context --steps 300 --distil-steps 1200 --rate 3e-3 --states 0.3
    python benchmarks/stories.py --slice 24 --steps 20 --distil-steps 10 --tune-steps 10        # smoke
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from common import machine, peak_memory_gb
from datasets import load_dataset
from transformer_lens.model_bridge import TransformerBridge

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.analysis.substitutes.stand_ins import ENDPOINT, SURROGATE
from koopman_interp.files import write_json

ROOT = Path(__file__).resolve().parents[2] / "shared"
DISTILLED, TUNED = "Koopman lens, distilled", "affine lens, tuned"


def main() -> None:
    """Run and print."""
    given = arguments()
    started = time.perf_counter()
    model = TransformerBridge.boot_transformers(str(given.models / "stories260K")).eval()
    stories = load_dataset(str(given.data / "stories-sampled"))
    train, test = (tokens(model, stories[split]["text"], given.slice) for split in ("train", "test"))
    trajectories = ki.attach(model, skip=1).observe(train, batch_size=16, progress=False)
    print(f"{trajectories}\n", flush=True)
    sizes = {"observables": given.observables, "hidden": (given.hidden,), "steps": given.steps}
    if given.context:
        config = ki.FitConfig(context="causal", batch_size=512, **sizes)
    else:
        config = ki.FitConfig(pairs="all", **sizes)
    koopman, fit_minutes = timed(lambda: ki.fit(trajectories, config, progress=False))
    print(f"{koopman}, {given.steps} steps: {fit_minutes:.1f} minutes", flush=True)
    further = ki.DistilConfig(
        steps=given.distil_steps, states=given.states, seed=given.seed, batch_size=2, learning_rate=given.rate
    )
    distilled, distil_minutes = timed(
        lambda: ki.distil(model, koopman, train, further, fitted=trajectories, progress=False)
    )
    print(f"distilled, {given.distil_steps} steps of 2 stories: {distil_minutes:.1f} minutes", flush=True)
    longer = ki.DistilConfig(steps=given.tune_steps, seed=given.seed, batch_size=2)
    tuned, tune_minutes = timed(
        lambda: ki.tune_lens(model, ki.AffineLens.fit(trajectories), train, longer, progress=False)
    )
    print(f"affine lens tuned, {given.tune_steps} steps of 2 stories: {tune_minutes:.1f} minutes\n", flush=True)
    faith = {
        name: ki.fidelity(
            model, one, held_out=test, fitted=trajectories, spans="to_target", next_token=True, batch_size=16
        )
        for name, one in (("fitted", koopman), ("distilled", distilled))
    }
    for name, found in faith.items():
        print(f"Substituted for a span, {name}:\n\n{found}\n", flush=True)
    lenses = ki.compare_lenses(
        model,
        koopman,
        held_out=test,
        fitted=trajectories,
        others=[ki.KoopmanLens(distilled, DISTILLED), tuned],
        next_token=True,
        batch_size=16,
    )
    print(f"{lenses}\n\n{verdict(faith, lenses)}", flush=True)
    if given.keep:
        koopman.save_pretrained(given.keep / "fitted")
        distilled.save_pretrained(given.keep / "distilled")
        figures(model, koopman, distilled, faith["distilled"], lenses, test[0][:18], given.keep)
    minutes = (time.perf_counter() - started) / 60
    print(f"\nAll of it: {minutes:.1f} minutes, peak memory {peak_memory_gb():.2f} GB")
    write_json(
        given.out,
        {
            "machine": machine(),
            "rows": {"train": len(trajectories), "test": faith["fitted"].rows},
            "config": config.as_dict(),
            "distil": further.as_dict(),
            "minutes": {"fit": fit_minutes, "distil": distil_minutes, "tune": tune_minutes, "all": minutes},
            "history": {"fit": koopman.record.history, "distil": distilled.record.distilled},
            "fidelity": {name: found.as_dict() for name, found in faith.items()},
            "lenses": lenses.as_dict(),
        },
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="folder that holds stories260K")
    parser.add_argument("--data", type=Path, default=ROOT / "datasets", help="folder that holds stories-sampled")
    parser.add_argument("--slice", type=int, metavar="N", help="use N training stories: a smoke run")
    parser.add_argument("--observables", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=256, help="width of the encoder's hidden layer")
    parser.add_argument("--steps", type=int, default=800, help="of the fit")
    parser.add_argument("--distil-steps", type=int, default=300)
    parser.add_argument("--context", action="store_true", help="let the encoder look back on earlier tokens")
    parser.add_argument("--rate", type=float, default=ki.DistilConfig().learning_rate, help="of the distillation")
    parser.add_argument("--states", type=float, default=ki.DistilConfig().states, help="weight of states in distilling")
    parser.add_argument("--tune-steps", type=int, default=1500, help="of the affine lens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for both surrogates and the figures")
    out = Path(__file__).resolve().parent / "results" / "stories.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")
    return parser.parse_args()


def tokens(model: Any, texts: list[str], most: int | None) -> list[list[int]]:
    """Tokenise stories as the model does, its beginning-of-sequence token included."""
    return [model.to_tokens(text)[0].tolist() for text in texts[:most]]


def timed(do: Any) -> tuple[Any, float]:
    """Return what a function returns, and the minutes it took."""
    start = time.perf_counter()
    return do(), (time.perf_counter() - start) / 60


def verdict(faith: dict[str, ki.Fidelity], lenses: ki.LensComparison) -> str:
    """Say what is asked for and what came: replacement against endpoint maps, lenses against each other."""
    lines: list[str] = []
    for name, found in faith.items():
        kl = [{row.name: row.kl for row in one.outputs} for one in found.spans]
        below = [one[SURROGATE] < one[ENDPOINT] for one in kl]
        lines.append(f"{name}: below the endpoint linear map at {sum(below)} of {len(below)} spans to the last depth")
    logit, affine = lenses.kl("logit lens"), lenses.kl(TUNED)
    for name in ("Koopman lens", DISTILLED):
        ours = lenses.kl(name)
        below = [a < b for a, b in zip(ours, logit, strict=True) if a is not None and b is not None]
        ratios = [f"{a / b:.2f}" for a, b in zip(ours, affine, strict=True) if a is not None and b]
        lines.append(
            f"{name}: below the logit lens at {sum(below)} of {len(below)} depths; KL over that of the tuned affine "
            f"lens, by depth: {', '.join(ratios)}"
        )
    return "\n".join(lines)


def figures(
    model: Any,
    koopman: ki.KoopmanAutoencoder,
    distilled: ki.KoopmanAutoencoder,
    faith: ki.Fidelity,
    lenses: ki.LensComparison,
    story: list[int],
    folder: Path,
) -> None:
    """Draw both tables, and what each lens reads in the beginning of one story."""
    plotting.save_figure(plotting.plot_span_fidelity(faith), folder, "spans")
    plotting.save_figure(plotting.plot_lens_comparison(lenses), folder, "lenses")
    through = {
        "fitted": (koopman, None),
        "distilled": (distilled, ki.KoopmanLens(distilled, DISTILLED)),
        "logit": (koopman, ki.LogitLens(koopman.config.widths)),
    }
    for name, (one, lens) in through.items():
        reading = ki.koopman_lens(model, one, [story], lens=lens)
        plotting.save_figure(plotting.plot_lens(reading), folder, f"lens-{name}")


if __name__ == "__main__":
    main()
