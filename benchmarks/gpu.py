"""What an accelerator makes of observing and fitting: tokens a second, and the share of its matrix products' peak.

A random transformer of 4 blocks, in bfloat16, observed on tokens; and fits to random states of widths 768, 2,048 and
4,096, in float32 and in bfloat16. The peak is that of a large product of matrices on the same device in the same run.

    python benchmarks/gpu.py --out runs/gpu.json
    python benchmarks/gpu.py --device cpu --smoke        # smoke
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine
from scale import products_of
from transformers import GPT2Config, GPT2LMHeadModel

import koopman_interp as ki
from koopman_interp.fitting.objective import FitObjective
from koopman_interp.fitting.rows import HeldRows
from koopman_interp.testing import ResidualMLP

WIDTHS = (768, 2048, 4096)


def seconds(task: Callable[[], Any], device: str, turns: int) -> float:
    """Return the median of some turns after one that warms up."""
    found = []
    for _ in range(turns + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        task()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def peak(device: str, dtype: torch.dtype, size: int) -> float:
    """Return the operations a second of a product of two square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, device, 5)


def observing(device: str, width: int, inputs: int) -> dict[str, float]:
    """Observe tokens with a random transformer."""
    torch.manual_seed(0)
    shape = GPT2Config(n_layer=4, n_embd=width, n_head=width // 64, n_positions=256, vocab_size=1000)
    model = GPT2LMHeadModel(shape).to(device, torch.bfloat16).eval()
    ids = torch.randint(0, 1000, (inputs, 256))
    tap = ki.attach(model)
    taken = seconds(lambda: tap.observe(ids, batch_size=16, progress=False), device, 1)
    bare = seconds(lambda: [model(batch.to(device)) for batch in ids.split(16)], device, 1)
    return {"tokens_per_second": ids.numel() / taken, "share_of_the_model_alone": bare / taken}


@torch.no_grad()
def surrogate(device: str, width: int) -> ki.KoopmanAutoencoder:
    """Build a surrogate of a width, of random weights."""
    tap = ki.attach(ResidualMLP(inputs=8, width=width, blocks=5, outputs=4).eval())
    data = tap.observe(torch.randn(1500, 8), progress=False)
    koopman = ki.fit(data, ki.FitConfig(steps=1, device=device), progress=False)
    return koopman.to(device).train().requires_grad_(True)


def fitting(device: str, width: int, precision: str, batch: int) -> dict[str, float]:
    """Take training steps on states that are there."""
    koopman = surrogate(device, width)
    states = HeldRows(torch.randn(6, 4 * batch, koopman.config.dimension, device=device))
    objective = FitObjective(koopman, ki.FitConfig(), states, states, batch)
    parameters = [each for each in koopman.parameters() if each.requires_grad]

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = objective(0, torch.Generator().manual_seed(0))
        torch.autograd.grad(loss, parameters, allow_unused=True)

    operations = sum(2 * m * k * n for m, k, n in products_of(step))
    taken = seconds(step, device, 10)
    return {"rows_per_second": batch / taken, "operations_per_second": operations / taken}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="small and short")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    device, widths = options.device, (128,) if options.smoke else WIDTHS
    found: dict[str, Any] = {"machine": machine(), "device": device}
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
    size = 512 if options.smoke else 8192
    found["peak"] = {str(dtype): peak(device, dtype, size) for dtype in (torch.float32, torch.bfloat16)}
    for width in widths:
        found[f"observe {width}"] = observing(device, width, 16 if options.smoke else 512)
        for precision in ("float32", "bfloat16"):
            figures = fitting(device, width, precision, 256 if options.smoke else 4096)
            figures["share_of_peak"] = figures["operations_per_second"] / found["peak"][f"torch.{precision}"]
            found[f"fit {width} {precision}"] = figures
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
