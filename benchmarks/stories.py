"""Fidelity at the output and the Koopman lens on stories260K, beside their baselines and the token-wise floor.

A Llama of five blocks and width 64, through TransformerLens; fitted on 435 stories and judged on 77 others, all of
which the model has told itself. The first position, an attention sink, is left out. Four surrogates: by the default
call with the model, `ki.fit(trajectories, model=…, batches=…)`; a larger one; one of no more parameters than the affine
lens; and one of the states alone. Beside them an affine lens by least squares, and one trained on the divergence
(`ki.tune_lens`). Cost: some quarter of an hour on one idle core.

    python benchmarks/stories.py
    python benchmarks/stories.py --rows default affine --keep runs/stories       # some of it, kept to be gone on with
    python benchmarks/stories.py --slice 24 --steps 20 --tune-steps 20                # smoke
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import default_data, default_model, machine, peak_memory_gb
from datasets import load_dataset
from transformer_lens.model_bridge import TransformerBridge

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.files import write_json
from koopman_interp.tables import number, table

TUNED = "affine lens, tuned"
CONFIGS = {
    "default": ki.FitConfig(),
    "large": ki.FitConfig(observables=192, hidden=(512,), divergence=4.0, steps=2500, patience=None),
    # A K of 2×2 blocks, which the linear parts of encoder and decoder turn, leaves more of the few to the rest.
    "small": ki.FitConfig(
        observables=64, hidden=(30,), operator="blocks", divergence=20.0, depths=None, steps=4000, patience=None
    ),
    "context": ki.FitConfig(context="causal", steps=1200, patience=None),
    "states": ki.FitConfig(),
}
"""Settings of each surrogate; all but the last are given the model."""
NAMES = {
    "default": "Koopman lens",
    "large": "Koopman lens, larger",
    "small": "Koopman lens, few parameters",
    "context": "Koopman lens, looking back",
    "states": "Koopman lens, states alone",
    "affine": TUNED,
}
ASKED = {"default": (1.75, 1.25, 0.95, 0.68, 0.44), "context": (1.35, 1.10, 0.85, 0.62, 0.42)}


@dataclass(frozen=True)
class Known:
    """The model, what it was observed on, and what it is judged on."""

    model: Any
    train: list[list[int]]
    test: list[list[int]]
    trajectories: ki.Trajectories


def main() -> None:
    """Run and print."""
    given = arguments()
    started = time.perf_counter()
    model = TransformerBridge.boot_transformers(str(given.model)).eval()
    stories = load_dataset(str(given.stories))
    train, test = (tokens(model, stories[split]["text"], given.slice) for split in ("train", "test"))
    trajectories = ki.attach(model, skip=1).observe(train, batch_size=16, progress=False)
    print(f"{trajectories}\n", flush=True)
    known = Known(model, train, test, trajectories)
    lenses = {row: lens_of(row, known, given) for row in given.rows}
    first, *others = (row for row in given.rows if row != "affine")
    koopman = lenses[first].koopman
    judged = ki.compare_lenses(
        model,
        koopman,
        held_out=test,
        fitted=trajectories,
        others=[
            replace(lenses[row], name=NAMES[row]) for row in (*others, *(["affine"] if "affine" in lenses else []))
        ],
        next_token=True,
        batch_size=16,
    )
    print(f"\n{judged}\n\n{by_depth(judged)}\n\n{verdict(judged, given.rows)}", flush=True)
    faith = ki.fidelity(
        model, koopman, held_out=test, fitted=trajectories, spans="to_target", next_token=True, batch_size=16
    )
    print(f"\nSubstituted for a span, {NAMES[first]}:\n\n{faith}", flush=True)
    if given.keep:
        figures(model, koopman, faith, judged, test[0][:18], given.keep)
    minutes = (time.perf_counter() - started) / 60
    print(f"\nAll of it: {minutes:.1f} minutes, peak memory {peak_memory_gb():.2f} GB")
    write_json(
        given.out,
        {
            "machine": machine(),
            "rows": {"train": len(trajectories), "test": faith.rows},
            "configs": {row: config.as_dict() for row, config in CONFIGS.items()},
            "records": {row: lens.koopman.record.as_dict() for row, lens in lenses.items() if row != "affine"},
            "minutes": minutes,
            "fidelity": faith.as_dict(),
            "lenses": judged.as_dict(),
        },
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=default_model("stories260K"))
    parser.add_argument("--stories", type=Path, default=default_data("stories-sampled"))
    parser.add_argument("--slice", type=int, metavar="N", help="use N training stories: a smoke run")
    parser.add_argument("--rows", nargs="+", choices=list(NAMES), default=list(NAMES), help="what to fit; default: all")
    parser.add_argument("--steps", type=int, help="at most, in place of each row's own: a smoke run")
    parser.add_argument("--tune-steps", type=int, default=1500, help="of the affine lens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, help="folder to keep surrogates, lens and figures in, or to read them from"
    )
    out = Path(__file__).resolve().parent / "results" / "stories.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")
    given = parser.parse_args()
    if set(given.rows) <= {"affine"}:
        parser.error("--rows needs a surrogate beside the affine lens")
    return given


def tokens(model: Any, texts: list[str], most: int | None) -> list[list[int]]:
    """Tokenise stories as the model does, its beginning-of-sequence token included."""
    return [model.to_tokens(text)[0].tolist() for text in texts[:most]]


def lens_of(row: str, known: Known, given: argparse.Namespace) -> Any:
    """Fit what a row is of, or read what was kept, and say how long it took."""
    kept = None if given.keep is None else given.keep / (f"{row}.safetensors" if row == "affine" else row)
    if row == "affine":
        return told(row, lambda: tuned(known, given), kept, ki.AffineLens.load, lambda lens: lens.save(kept))
    koopman = told(
        row,
        lambda: fitted(row, known, given),
        kept,
        ki.KoopmanAutoencoder.from_pretrained,
        lambda koopman: koopman.save_pretrained(kept),
    )
    return ki.KoopmanLens(koopman)


def told(row: str, fit: Callable[[], Any], kept: Path | None, load: Callable[[Path], Any], save: Any) -> Any:
    """Load or fit, save, and print."""
    if kept is not None and kept.exists():
        print(f"{NAMES[row]}: from {kept}", flush=True)
        return load(kept)
    wall, core = time.perf_counter(), time.process_time()
    found = fit()
    spent = (time.perf_counter() - wall) / 60, (time.process_time() - core) / 60
    print(f"{NAMES[row]}: {found!r}, {spent[0]:.1f} minutes, {spent[1]:.1f} of the processor", flush=True)
    for choice in found.record.choices if row != "affine" else ():
        print(f"    {choice}", flush=True)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save(found)
    return found


def fitted(row: str, known: Known, given: argparse.Namespace) -> ki.KoopmanAutoencoder:
    """Fit a surrogate."""
    config = replace(CONFIGS[row], seed=given.seed, steps=min(given.steps or CONFIGS[row].steps, CONFIGS[row].steps))
    model = {} if row == "states" else {"model": known.model, "batches": known.train}
    return ki.fit(known.trajectories, config, **model, progress=False)


def tuned(known: Known, given: argparse.Namespace) -> ki.AffineLens:
    """Train the affine lens on the divergence, from every depth at once."""
    steps = min(given.steps or given.tune_steps, given.tune_steps)
    config = ki.DistilConfig(steps=steps, seed=given.seed, batch_size=2)
    lens = ki.AffineLens.fit(known.trajectories)
    return ki.tune_lens(known.model, lens, known.train, config, progress=False)


def by_depth(judged: ki.LensComparison) -> str:
    """Tabulate the divergence, one line a lens, one column a depth."""
    shown: Sequence[str] = ("lens", *(f"from {depth}" for depth in range(len(judged.sites))), "parameters")
    rows = [
        (name, *(number(kl, 2) for kl in judged.kl(name)), f"{count:,}") for name, count in judged.parameters.items()
    ]
    return f"KL to the model, nats\n\n{table(shown, rows)}"


def verdict(judged: ki.LensComparison, rows: Sequence[str]) -> str:
    """Say what is asked for and what came."""
    first = next(row for row in rows if row != "affine")
    named = {row: "Koopman lens" if row == first else NAMES[row] for row in rows}
    lines = []
    for row, asked in ASKED.items():
        if row in named:
            reached = [kl is not None and kl <= most for kl, most in zip(judged.kl(named[row]), asked, strict=True)]
            lines.append(f"{named[row]}: asked for ≤ {asked}; reached from {sum(reached)} of {len(reached)} depths")
    if "affine" in named:
        for row in (row for row in named if row != "affine"):
            pairs = zip(judged.kl(named[row]), judged.kl(TUNED), strict=True)
            ratios = ", ".join(f"{ours / theirs:.2f}" for ours, theirs in pairs if ours is not None and theirs)
            lines.append(f"{named[row]} over the tuned affine lens, by depth: {ratios}")
    return "\n".join(lines)


def figures(
    model: Any,
    koopman: ki.KoopmanAutoencoder,
    faith: ki.Fidelity,
    judged: ki.LensComparison,
    story: list[int],
    folder: Path,
) -> None:
    """Draw both tables, and what the lens and the logit lens read in the beginning of one story."""
    plotting.save_figure(plotting.plot_span_fidelity(faith), folder, "spans")
    plotting.save_figure(plotting.plot_lens_comparison(judged), folder, "lenses")
    for name, lens in {"fitted": None, "logit": ki.LogitLens(koopman.config.widths)}.items():
        reading = ki.koopman_lens(model, koopman, [story], lens=lens)
        plotting.save_figure(plotting.plot_lens(reading), folder, f"lens-{name}")


if __name__ == "__main__":
    main()
