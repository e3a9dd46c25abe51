"""The hosts of the zoo: each with rows to fit on, rows to judge on, and its eigenvalues where they are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from common import MNIST_PIXELS, Data, default_data, mnist, mnist_host
from digits import digits_setting
from jaxtyping import Float, Int
from other_tasks import energy, regressor
from paper_settings import SETTINGS, train_by_sgd
from resnet20 import cifar, trained_resnet20
from sklearn.datasets import load_digits
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.testing import LinearHost, ResidualMLP, train_classifier, yin_yang

STEPS = 6
"""Blocks of the hosts that are dynamical systems."""


@dataclass(frozen=True)
class Known:
    """Eigenvalues of a host that are known.

    Attributes:
        leading: those that a fit has to find.
        every: those that a mode may have; None where any is possible.
    """

    leading: tuple[complex, ...]
    every: tuple[complex, ...] | None


@dataclass(frozen=True, eq=False)
class Case:
    """A host, and rows of it.

    Attributes:
        model: the host.
        fitted: rows to fit on.
        held_out: rows to judge modes on.
        inputs: what gave them, for figures at the output, with labels or without.
        known: its eigenvalues; None where nobody knows them.
        next_token: whether the label of a token is the one that follows it.
    """

    model: nn.Module
    fitted: ki.Trajectories
    held_out: ki.Trajectories
    inputs: Any
    known: Known | None = None
    next_token: bool = False


class Flow(nn.Module):
    """A network whose every block is one step of a map of the plane."""

    class Step(nn.Module):
        """One step."""

        def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.step = step
            self.shift = nn.Parameter(torch.zeros(2))

        def forward(self, x: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
            """Take it."""
            return self.step(x) + self.shift

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Flow.Step(step) for _ in range(STEPS)))

    def forward(self, x: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch 2"]:
        """Take all steps."""
        return self.blocks(x)


def of_inputs(model: nn.Module, x: Any, held_out: Any, sites: Any = None, **further: Any) -> Case:
    """Observe a host on rows to fit on and on others; labels come as pairs."""
    tap = ki.attach(model.eval(), sites)
    pairs = [rows if isinstance(rows, tuple) else (rows, None) for rows in (x, held_out)]
    fitted, judged = (tap.observe(rows, labels, progress=False) for rows, labels in pairs)
    return Case(model, fitted, judged, held_out, **further)


def linear(kind: str) -> Callable[..., Case]:
    """Return the maker of a linear host: its eigenvalues are those of its one matrix."""

    def make(*, seed: int, smoke: bool, **_: Any) -> Case:
        draw = torch.Generator().manual_seed(seed)
        sizes = torch.tensor([0.9, 0.7, 0.5, 0.2])
        turned = torch.linalg.qr(torch.randn(4, 4, generator=draw))[0]
        if kind == "normal":
            A = turned @ torch.diag(sizes) @ turned.T
        elif kind == "crooked":
            V = torch.randn(4, 4, generator=draw)
            A = V @ torch.diag(sizes) @ torch.linalg.inv(V)
        elif kind == "coupled":
            sizes = torch.tensor([0.9, 0.8, 0.7, 0.6])
            A = torch.diag(sizes) + torch.diag(torch.full((3,), 5.0), 1)
        else:
            S = torch.tensor([1e3, 1.0, 1.0, 1e-3])
            A = S[:, None] * (turned @ torch.diag(sizes) @ turned.T) / S
        values = tuple(complex(value) for value in sizes.tolist())
        x, held_out = (torch.randn(rows, 4, generator=draw) for rows in ((300, 200) if smoke else (3000, 1000)))
        return of_inputs(LinearHost(A, STEPS), x, held_out, known=Known(values, (*values, 1)))

    return make


def slow_manifold(*, seed: int, smoke: bool, **_: Any) -> Case:
    """`x' = a x, y' = b y + (a² − b) x²`: eigenvalues a, b and their products.

    And every power between: |x|^s has the eigenvalue a^s, so that no eigenvalue below one is a wrong one.
    """
    a, b = 0.97531, 0.60653

    def step(x: Tensor) -> Tensor:
        return torch.stack([a * x[:, 0], b * x[:, 1] + (a * a - b) * x[:, 0] ** 2], 1)

    known = Known((complex(a), complex(a * a), complex(b)), None)
    return of_inputs(Flow(step), *_in_square(seed, smoke), known=known)


def duffing(*, seed: int, smoke: bool, **_: Any) -> Case:
    """The Duffing oscillator with friction, a quarter of a second a block by four steps of Runge and Kutta."""

    def slope(x: Tensor) -> Tensor:
        return torch.stack([x[:, 1], -0.5 * x[:, 1] + x[:, 0] - x[:, 0] ** 3], 1)

    def step(x: Tensor, by: float = 0.0625) -> Tensor:
        for _ in range(4):
            k1 = slope(x)
            k2 = slope(x + by / 2 * k1)
            k3 = slope(x + by / 2 * k2)
            x = x + by / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + by * k3))
        return x

    return of_inputs(Flow(step), *(2 * rows for rows in _in_square(seed, smoke)))


def _in_square(seed: int, smoke: bool) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rows = (300, 400) if smoke else (4000, 1000)
    first, second = (2 * torch.rand(count, 2, generator=draw) - 1 for count in rows)
    return first, second


def yin_yang_mlp(*, seed: int, smoke: bool, **_: Any) -> Case:
    """The setting of arXiv 2505.12809: width 10, five blocks."""
    rows = 600 if smoke else 5000
    setting, (train, test) = SETTINGS["yin-yang"], (yin_yang(rows, seed=own) for own in (seed, seed + 1000))
    torch.manual_seed(seed)
    model = ResidualMLP(inputs=4, width=setting.width, blocks=setting.blocks, outputs=3)
    train_by_sgd(model, Data(*train, *test), setting, epochs=3 if smoke else setting.host_epochs, seed=seed)
    return of_inputs(model, train, test)


def digits_mlp(*, seed: int, smoke: bool, **_: Any) -> Case:
    """Digits 8×8, five blocks of width 64."""
    setting = digits_setting(seed, epochs=1 if smoke else 10)
    return of_inputs(setting.model, (setting.x, setting.y), (setting.x_test, setting.y_test))


def mnist_mlp(width: int, *, skip: bool = True) -> Callable[..., Case]:
    """Return the maker of the MLP of a width: 256 with 4 blocks, or 784 with 6 in the paper's setting.

    Args:
        width: of the stream.
        skip: whether blocks add to it, at width 256, or take its place.
    """

    def make(*, seed: int, smoke: bool, keep: Path | None, **_: Any) -> Case:
        data = mnist(str(needed(default_data("mnist"))), 1500 if smoke else None, **MNIST_PIXELS[width])
        path = None if keep is None else keep / f"mnist-{width if skip else 'plain'}-{seed}.safetensors"
        # By AdamW with shifts at either width: the paper's own training ends between 97 and 98 %.
        model = mnist_host(data, path, epochs=1 if smoke else 8, seed=seed, width=width, skip=skip)
        return of_inputs(model, (data.x, data.y), (data.x_test, data.y_test))

    return make


def resnet20(*, smoke: bool, models: Path, **_: Any) -> Case:
    """A trained ResNet-20 on CIFAR-10, its last stage."""
    data = cifar(str(needed(default_data("cifar10-4k"))), 400 if smoke else None)
    model = trained_resnet20(needed(models / "resnet20-cifar10"))
    return of_inputs(model, (data.x, data.y), (data.x_test, data.y_test), ["layer3.0", "layer3.1", "layer3.2"])


def uci_energy(*, seed: int, smoke: bool, **_: Any) -> Case:
    """A regression on the measures of a building, which has no logits."""
    x, y, x_test, _ = energy(str(needed(default_data("uci-energy"))), None)
    return of_inputs(regressor(x, y, epochs=2 if smoke else 200, seed=seed), x, x_test)


def stories(*, smoke: bool, models: Path, **_: Any) -> Case:
    """A small language model on stories that it was sampled from."""
    import transformers

    texts = datasets.load_dataset(str(needed(default_data("stories-sampled"))))
    folder = needed(models / "stories260K")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [
        [tokenizer(text)["input_ids"] for text in texts[split]["text"][:most]]
        for split, most in (("train", 12 if smoke else 400), ("test", 40 if smoke else 100))
    ]
    tap = ki.attach(model, skip=1)
    fitted, judged = (tap.observe(part, batch_size=16, progress=False) for part in ids)
    return Case(model, fitted, judged, ids[1], next_token=True)


class ConvBlock(nn.Module):
    """`relu(x + conv(relu(conv x)))` with batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv, norm = nn.Conv2d, nn.BatchNorm2d
        self.first, self.second = (conv(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = norm(channels), norm(channels)

    def forward(self, x: Float[Tensor, "batch channel high wide"]) -> Float[Tensor, "batch channel high wide"]:
        """Add the block's branch to its input."""
        return torch.relu(x + self.norm2(self.second(torch.relu(self.norm1(self.first(x))))))


class ConvNet(nn.Module):
    """Four residual blocks of 12 channels on 8×8 images, halved to 4×4 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 12, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(12) for _ in range(4))
        self.head = nn.Linear(12 * 16, 10)

    def forward(self, x: Float[Tensor, "batch 64"]) -> Float[Tensor, "batch 10"]:
        """Return logits."""
        x = torch.relu(self.embed(x.view(-1, 1, 8, 8)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(1))


class RowTransformer(nn.Module):
    """Four encoder layers of width 32 on the eight rows of an 8×8 image; each row is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(0.02 * torch.randn(8, 32))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(4)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Float[Tensor, "batch 64"]) -> Float[Tensor, "batch 10"]:
        """Return logits."""
        x = self.embed(x.view(-1, 8, 8)) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def on_digits(build: Callable[[], nn.Module]) -> Callable[..., Case]:
    """Return the maker of a host that is trained on half of the digits."""

    def make(*, seed: int, smoke: bool, **_: Any) -> Case:
        x, y = _digits()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        train, test = order[: len(x) // 2], order[len(x) // 2 :]
        torch.manual_seed(seed)
        model = train_classifier(build(), x[train], y[train], epochs=2 if smoke else 40, batch_size=64, seed=seed)
        tap = ki.attach(model)
        fitted, judged = (tap.observe(x[rows], progress=False) for rows in (train, test))
        return Case(model, fitted, judged, (x[test], y[test]))

    return make


def _digits() -> tuple[Float[Tensor, "sample 64"], Int[Tensor, " sample"]]:
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def needed(folder: Path) -> Path:
    """Return a folder that is there.

    Raises:
        FileNotFoundError: it is not.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.name} where KOOPMAN_INTERP_DATA or --models looks")
    return folder


HOSTS: dict[str, Callable[..., Case]] = {
    "linear": linear("normal"),
    "linear-crooked": linear("crooked"),
    "linear-coupled": linear("coupled"),
    "linear-scales": linear("scales"),
    "slow-manifold": slow_manifold,
    "duffing": duffing,
    "yin-yang": yin_yang_mlp,
    "digits": digits_mlp,
    "digits-conv": on_digits(ConvNet),
    "digits-transformer": on_digits(RowTransformer),
    "mnist-256": mnist_mlp(256),
    "mnist-plain": mnist_mlp(256, skip=False),
    "mnist-784": mnist_mlp(784),
    "resnet20": resnet20,
    "uci-energy": uci_energy,
    "stories": stories,
}
