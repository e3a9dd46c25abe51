"""What attaching, observing and patching cost a TransformerLens host.

A native bridge of 8 blocks and width 512, on batches of 16 × 128 random tokens. The ways are timed in turn, round
after round, and compared by the median of the rounds' own ratios, so that what else the machine does meets all of them
alike. Peak memory is that of a process of its own each: over several batches, the growth of its resident size past that
of plain forward passes. Imports and `--help` are timed as whole processes. Cost: five minutes on one core.

    OMP_NUM_THREADS=1 python benchmarks/host_overhead.py
    python benchmarks/host_overhead.py --rounds 2 --batches 2 --width 64        # smoke
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import machine, peak_memory_gb
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.files import write_json
from koopman_interp.tables import table

BLOCKS, BATCH, POSITIONS, VOCABULARY = 8, 16, 128, 1000
SPAN = (1, 7)
"""Depths of the replaced span: from the input of block 1 to the output of block 6."""

ROWS_TO_FIT = 4


def bridge(width: int) -> nn.Module:
    """Build the host, untrained: what it costs does not depend on what it has learnt."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = TransformerBridgeConfig(
        d_model=width,
        d_head=width // 8,
        n_heads=8,
        n_layers=BLOCKS,
        n_ctx=POSITIONS,
        d_vocab=VOCABULARY,
        act_fn="gelu",
        normalization_type="LN",
        seed=0,
    )
    return TransformerBridge.boot_native(config).eval()


def batches(count: int) -> list[Tensor]:
    """Draw batches of tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (BATCH, POSITIONS), generator=generator) for _ in range(count)]


def surrogate(model: nn.Module, width: int) -> tuple[ki.KoopmanAutoencoder, ki.OperatorEdit]:
    """Fit, in closed form, twice as many observables as the width, and make an edit where the span begins."""
    tokens = torch.cat(batches(ROWS_TO_FIT))
    labels = torch.arange(len(tokens)) % 2
    trajectories = ki.attach(model).observe(tokens, labels, batch_size=BATCH, progress=False)
    koopman = ki.fit(trajectories, ki.FitConfig(observables=2 * width), method="least_squares")
    return koopman, ki.erase_class(koopman, label=1, site=SPAN[0])


@torch.no_grad()
def paces(model: nn.Module, width: int, rounds: int) -> dict[str, list[float]]:
    """Time each way in turn; seconds by way, one a round."""
    (tokens,) = batches(1)
    koopman, edit = surrogate(model, width)
    tap = ki.attach(model)
    ends = {"source": SPAN[0], "target": SPAN[1]}
    ways: dict[str, Callable[[], Any]] = {
        "plain forward": lambda: model(tokens),
        "observed (stream)": lambda: list(tap.stream([tokens], progress=False)),
        "run_with_cache": lambda: model.run_with_cache(tokens, names_filter=list(tap.sites)),
    }
    found: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> None:
        started = time.perf_counter()
        run()
        found.setdefault(name, []).append(time.perf_counter() - started)

    replaced = ki.patched(model, koopman, mode="replace", **ends)
    shifted = ki.patched(model, koopman, edit, **ends)
    for turn in range(rounds + 1):
        for name, run in ways.items():
            timed(name, run)
        for name, patch in (("delta", shifted), ("replace", replaced)):
            with patch:
                model(tokens)  # the first pass of a replaced span learns what its blocks return
                timed(name, lambda: model(tokens))
        if turn == 0:
            found.clear()  # a warm-up
    return found


def grown(way: str, width: int, count: int) -> float:
    """Observe batches in this process; return by how many MB its peak grew past that of plain passes."""
    model = bridge(width)
    tokens = batches(count)
    tap = ki.attach(model)
    with torch.no_grad():
        for batch in tokens[:2]:
            model(batch)
        before = peak_memory_gb()
        if way == "stream":
            seen = sum(len(part) for part in tap.stream(tokens, progress=False))
        elif way == "observe":
            seen = len(tap.observe(tokens, progress=False))
        else:
            names = list(tap.sites)
            caches = [model.run_with_cache(batch, names_filter=names)[1] for batch in tokens]
            seen = sum(cache[names[-1]].shape[:2].numel() for cache in caches)
    assert seen == count * BATCH * POSITIONS
    return 1000 * (peak_memory_gb() - before)


def in_a_process(way: str, width: int, count: int) -> float:
    """Measure `grown` in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", way, "--width", str(width), "--batches", str(count)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["MB"])


def process_seconds(*command: str, runs: int) -> float:
    """Time whole processes; the median."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def starts(runs: int) -> dict[str, float]:
    """Time imports and `--help`, and require that no framework comes along."""
    python = sys.executable
    loads = "import sys, torch, koopman_interp; assert not {'transformers', 'transformer_lens'} & set(sys.modules)"
    torch_alone = process_seconds(python, "-c", "import torch", runs=runs)
    return {
        "import torch": torch_alone,
        "import koopman_interp beyond it": process_seconds(python, "-c", loads, runs=runs) - torch_alone,
        "koopman-interp --help": process_seconds(python, "-m", "koopman_interp.cli", "--help", runs=runs),
    }


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--batches", type=int, default=12, help="for the memory figures (default: %(default)s)")
    parser.add_argument("--width", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--memory-of", choices=["stream", "observe", "run_with_cache"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "host_overhead.json")
    given = parser.parse_args()
    if given.memory_of:
        print(json.dumps({"MB": grown(given.memory_of, given.width, given.batches)}))
        return
    # First, while this process is small: a child's peak counts from its parent's size at the fork.
    memory = {way: in_a_process(way, given.width, given.batches) for way in ("stream", "observe", "run_with_cache")}
    seconds = paces(bridge(given.width), given.width, given.rounds)
    plain = seconds["plain forward"]
    ratios = {name: median(a / b for a, b in zip(own, plain, strict=True)) for name, own in seconds.items()}
    processes = starts(max(3, given.rounds // 3))
    print(table(["way", "ms a pass", "ratio to plain"], [
        [name, f"{1000 * median(own):.0f}", f"{ratios[name]:.2f}"] for name, own in seconds.items()
    ]))  # fmt: skip
    print(f"\nreplace: {1 / ratios['replace']:.2f} times as fast as the full model")
    print(f"observed against run_with_cache: {ratios['observed (stream)'] / ratios['run_with_cache']:.2f}")
    print(
        f"\nPeak memory over {given.batches} batches: " + ", ".join(f"{way} {mb:.0f} MB" for way, mb in memory.items())
    )
    print("\n".join(f"{name}: {value:.2f} s" for name, value in processes.items()))
    write_json(
        given.out,
        {"machine": machine(), "seconds": seconds, "ratios": ratios, "peak_mb": memory, "processes": processes},
    )


if __name__ == "__main__":
    main()
