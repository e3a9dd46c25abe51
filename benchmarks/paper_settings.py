"""The data sets and hosts of arXiv 2505.12809, and what it reports of them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from common import MNIST_PIXELS, Data, host_from, mnist
from paper_recipe import PaperRecipe
from torch import nn
from torch.nn.functional import cross_entropy

import koopman_interp as ki
from koopman_interp.testing import ResidualMLP, yin_yang


@dataclass(frozen=True)
class Figures:
    """One row of the table; shares lie between 0 and 1, None is not known."""

    name: str
    epochs: str
    host: float | None = None
    host_class: float | None = None
    in_place: float | None = None
    in_place_class: float | None = None
    forgotten: float | None = None
    retained: float | None = None
    host_retained: float | None = None
    seconds: float | None = None
    stress: float | None = None
    fvu: float | None = None


@dataclass(frozen=True)
class Setting:
    """One data set of the paper.

    Attributes:
        name: of the data set.
        inputs: width of the input.
        outputs: number of classes.
        width: of the host.
        blocks: of the host.
        learning_rate: of the host's SGD.
        batch_size: of the host's training.
        host_epochs: of the host's training here.
        recipe: of the paper's surrogate.
        ours: our own fits, by name.
        forget: classes that are forgotten, in turn.
        published: what the paper reports.
    """

    name: str
    inputs: int
    outputs: int
    width: int
    blocks: int
    learning_rate: float
    batch_size: int
    host_epochs: int
    recipe: PaperRecipe
    ours: dict[str, ki.FitConfig]
    forget: tuple[int, ...]
    published: Figures | None


SETTINGS = {
    "yin-yang": Setting(
        "Yin-Yang",
        inputs=4,
        outputs=3,
        width=10,
        blocks=5,
        learning_rate=1e-2,
        batch_size=512,
        host_epochs=2000,
        recipe=PaperRecipe(
            dimension=10,
            hidden=(30,),
            observables=20,
            k=100,
            isometry=1.0,
            learning_rate=1e-1,
            epochs=1000,
            batch_size=1024,
        ),
        ours={
            "ours": ki.FitConfig(),
            "ours, 64 observables": ki.FitConfig(observables=64, hidden=(128,), pairs="all", steps=1000),
        },
        forget=(0, 1, 2),
        published=None,
    ),
    "mnist": Setting(
        "MNIST",
        inputs=784,
        outputs=10,
        width=784,
        blocks=6,
        learning_rate=1e-1,
        batch_size=128,
        host_epochs=10,
        recipe=PaperRecipe(
            dimension=784,
            hidden=(1000,),
            observables=800,
            k=10,
            isometry=1e-3,
            learning_rate=5e-3,
            epochs=100,
            batch_size=512,
        ),
        ours={"ours": ki.FitConfig()},
        forget=(4,),
        # As arXiv 2505.12809 reports them; the surrogate's accuracy in place is given there for class 4 only.
        published=Figures(
            "paper, as published (arXiv 2505.12809)",
            "100 of 100",
            host=0.986,
            host_class=0.9857,
            in_place_class=0.9829,
            forgotten=0.0,
            retained=0.9853,
        ),
    ),
}


def load(setting: Setting, arguments: argparse.Namespace) -> Data:
    """Draw Yin-Yang, or load MNIST with the paper's standardised pixels."""
    if setting.name == "MNIST":
        return mnist(arguments.mnist, arguments.slice, **MNIST_PIXELS[784])
    samples = min(5000, arguments.slice or 5000)
    return Data(*yin_yang(samples, seed=arguments.seed), *yin_yang(samples, seed=arguments.seed + 1))


def build_host(setting: Setting, data: Data, arguments: argparse.Namespace) -> nn.Module:
    """Load or train the host of a data set."""
    torch.manual_seed(arguments.seed)
    model = ResidualMLP(setting.inputs, setting.width, setting.blocks, setting.outputs)
    epochs = arguments.host_epochs or setting.host_epochs
    path = arguments.host if setting.name == "MNIST" else None
    return host_from(model, path, lambda: train_by_sgd(model, data, setting, epochs=epochs, seed=arguments.seed))


def train_by_sgd(model: nn.Module, data: Data, setting: Setting, *, epochs: int, seed: int) -> nn.Module:
    """Train as the paper's code does: momentum 0.9, decay 5e-4 on matrices only, a cosine to zero."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=setting.learning_rate, momentum=0.9)
    batch_size = min(setting.batch_size, len(data.x))
    per_epoch = len(data.x) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(data.x), generator=generator)
        for rows in order[: per_epoch * batch_size].split(batch_size):
            loss = cross_entropy(model(data.x[rows]), data.y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
