"""What the benchmarks share: MNIST, the hosts trained on it, and how a machine is described.

Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from koopman_interp.testing import ResidualMLP, train_classifier

HUB_MNIST = "ylecun/mnist"
MNIST_BLOCKS = {256: 4, 784: 6}
"""Blocks of the hosts on MNIST by their width."""
MNIST_PIXELS: dict[int, dict[str, float]] = {256: {}, 784: {"mean": 0.1307, "spread": 0.3081}}
"""What is taken off pixels, and divides them, by the width of the host: the paper standardises them."""


@dataclass(frozen=True)
class Data:
    """Training and test rows with their classes."""

    x: Float[Tensor, "sample input"]
    y: Int[Tensor, " sample"]
    x_test: Float[Tensor, "test input"]
    y_test: Int[Tensor, " test"]


def default_data(name: str) -> Path:
    """Name a folder below KOOPMAN_INTERP_DATA, or beside the checkout."""
    return _root("KOOPMAN_INTERP_DATA", "datasets") / name


def default_model(name: str) -> Path:
    """Name a folder below KOOPMAN_INTERP_MODELS, or beside the checkout."""
    return _root("KOOPMAN_INTERP_MODELS", "models") / name


def _root(variable: str, beside: str) -> Path:
    given = os.environ.get(variable)
    return Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / beside


def default_mnist() -> str:
    """Find MNIST: below KOOPMAN_INTERP_DATA, beside the checkout, else its name on the Hub."""
    folder = default_data("mnist")
    return str(folder) if folder.is_dir() else HUB_MNIST


def mnist(name: str, rows: int | None, *, mean: float = 0.0, spread: float = 1.0) -> Data:
    """Load MNIST as flat rows.

    Args:
        name: folder, or name on the Hub.
        rows: training rows to keep, and a quarter as many test rows; None keeps all.
        mean: taken off each pixel, whose range is 0 to 1.
        spread: divides what is left.

    Returns:
        Rows of 784 pixels.
    """
    splits = datasets.load_dataset(name)
    train = _pixels(splits["train"], rows)
    test = _pixels(splits["test"], None if rows is None else max(500, rows // 4))
    return Data((train[0] - mean) / spread, train[1], (test[0] - mean) / spread, test[1])


def _pixels(split: Any, rows: int | None) -> tuple[Tensor, Tensor]:
    kept = split.with_format("numpy")[: len(split) if rows is None else min(rows, len(split))]
    images = np.stack(list(kept["image"])).reshape(len(kept["label"]), -1)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(np.asarray(kept["label"])).long()


def host_from(model: nn.Module, path: Path | None, train: Callable[[], nn.Module]) -> nn.Module:
    """Load a host's weights from a safetensors file, or train it, and keep it there if a path is given."""
    if path is not None and path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    train()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return model.eval()


def shifted(batch: Float[Tensor, "sample 784"], generator: torch.Generator) -> Float[Tensor, "sample 784"]:
    """Move a batch of 28×28 images by up to a pixel either way."""
    by = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return batch.view(-1, 28, 28).roll(by, (1, 2)).flatten(1)


def mnist_host(
    data: Data, path: Path | None, *, epochs: int, seed: int, width: int = 256, skip: bool = True
) -> nn.Module:
    """Load or train a residual MLP, by AdamW with one cycle and one-pixel shifts.

    Args:
        data: rows, standardised for width 784.
        path: of its weights, to read or to write.
        epochs: of the training.
        seed: of weights and batches.
        width: 256, with 4 blocks, or 784, the paper's, with 6.
        skip: whether blocks add to the stream or take its place.
    """
    torch.manual_seed(seed)
    model = ResidualMLP(inputs=784, width=width, blocks=MNIST_BLOCKS[width], outputs=10, skip=skip)
    return host_from(
        model, path, lambda: train_classifier(model, data.x, data.y, epochs=epochs, augment=shifted, seed=seed)
    )


@torch.no_grad()
def predictions(model: nn.Module, x: Float[Tensor, "sample input"]) -> Int[Tensor, " sample"]:
    """Name the class of each row, in one pass: in `replace` mode every pass prepares K^n anew."""
    return model(x).argmax(1)


def share(right: Tensor) -> float:
    """Return the share of True, or of no rows 0."""
    return float(right.double().mean()) if len(right) else 0.0


def add_data_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options that every benchmark on MNIST has."""
    parser.add_argument("--mnist", default=default_mnist(), help="folder or Hub name (default: %(default)s)")
    parser.add_argument("--slice", type=int, metavar="N", help="use N training rows: a smoke run")
    parser.add_argument("--host", type=Path, help="safetensors of the MNIST host, to read or to write")
    parser.add_argument("--seed", type=int, default=0, help="of host, batches and fits")
    out = Path(__file__).resolve().parent / "results" / f"{name}.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")


def machine() -> dict[str, Any]:
    """Describe where this ran."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_gb() -> float:
    """Return the largest resident size of this process so far, in GB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Of this program alone: what getrusage gives holds the size of the parent that it was forked from.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def percent(value: float | None) -> str:
    """Show a share in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.2f}"
