"""ResNet-20 for CIFAR-10 (He et al. 2015, arXiv 1512.03385), with shortcuts that have no parameters, and its data.

Knows nothing of what is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from common import Data
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours, as the weights expect them."""

SITES = ("layer3.1", "layer3.2", "linear:input")
"""The last two blocks, and what the head reads: the mean over places of the last block's channels."""


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, which takes every `stride`-th place and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Float[Tensor, "batch inputs high wide"]) -> Float[Tensor, "batch outputs _ _"]:
        """Add the branch to the shortcut."""
        branch = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return relu(branch + pad(shortcut, (0, 0, 0, 0, self.padding, self.padding)))


class ResNet20(nn.Module):
    """Three stages of three blocks, at 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1)
        self.layer2 = _stage(16, 32, 2)
        self.layer3 = _stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, "batch 3 high wide"]) -> Float[Tensor, "batch 10"]:
        """Return logits."""
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.linear(avg_pool2d(x, x.shape[3]).flatten(1))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1), Block(outputs, outputs, 1))


def trained_resnet20(folder: Path) -> ResNet20:
    """Load the weights from `model.safetensors` of a folder."""
    model = ResNet20()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def cifar(name: str, rows: int | None) -> Data:
    """Load CIFAR-10, or a sample of it, as normalised images.

    Args:
        name: folder, or name on the Hub.
        rows: training rows to keep, and half as many test rows; None keeps all.
    """
    splits = datasets.load_dataset(name)
    return Data(*_images(splits["train"], rows), *_images(splits["test"], None if rows is None else rows // 2))


def _images(split: Any, rows: int | None) -> tuple[Tensor, Tensor]:
    kept = split.with_format("numpy")[: len(split) if rows is None else min(rows, len(split))]
    image, label = ("image" if "image" in kept else "img"), "label"
    pixels = torch.from_numpy(np.stack(list(kept[image]))).permute(0, 3, 1, 2).float() / 255
    mean, spread = (torch.tensor(one)[:, None, None] for one in (MEAN, SPREAD))
    return (pixels - mean) / spread, torch.from_numpy(np.asarray(kept[label])).long()
