"""Hosts and data with known answers.

`ResidualMLP` is the host of arXiv 2505.12809; `yin_yang` its data set; `LinearHost` a network whose depth is one
known matrix, so that a fit can be judged against the truth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """`relu(x + fc2(relu(fc1 x)))` with batch norm after each linear layer; without the skip, x is left out."""

    def __init__(self, width: int, *, skip: bool = True) -> None:
        super().__init__()
        self.skip = skip
        self.fc1 = nn.Linear(width, width)
        self.norm1 = nn.BatchNorm1d(width)
        self.fc2 = nn.Linear(width, width)
        self.norm2 = nn.BatchNorm1d(width)

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Add the block's branch to its input."""
        branch = self.norm2(self.fc2(torch.relu(self.norm1(self.fc1(x)))))
        return torch.relu(x + branch if self.skip else branch)


class ResidualMLP(nn.Module):
    """A residual MLP: embedding, blocks of one width, linear head.

    Args:
        inputs: width of the input; longer inputs are flattened.
        width: of the residual stream.
        blocks: how many.
        outputs: number of classes.
        skip: whether blocks add to their input, or replace it.
    """

    def __init__(self, inputs: int, width: int, blocks: int, outputs: int, *, skip: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, skip=skip) for _ in range(blocks))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Float[Tensor, " batch *input"]) -> Float[Tensor, "batch output"]:
        """Return logits."""
        x = torch.relu(self.embed(x.flatten(1)))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class LinearBlock(nn.Module):
    """`x @ K.T` with a given matrix."""

    def __init__(self, K: Float[Tensor, "width width"]) -> None:
        super().__init__()
        self.register_buffer("K", K)
        self.shift = nn.Parameter(torch.zeros(len(K)))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Take one step."""
        return x @ self.get_buffer("K").T + self.shift


class LinearHost(nn.Module):
    """A network whose every block is the same known matrix."""

    def __init__(self, K: Float[Tensor, "width width"], blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(LinearBlock(K) for _ in range(blocks)))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Take all steps."""
        return self.blocks(x)


def train_classifier(
    model: nn.Module,
    x: Float[Tensor, " sample *input"],
    y: Int[Tensor, " sample"],
    *,
    epochs: int,
    batch_size: int = 256,
    peak_rate: float = 4e-3,
    weight_decay: float = 0.05,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Train a classifier in place by AdamW with one cycle of the learning rate, and leave it in eval mode.

    Args:
        model: the classifier.
        x: inputs.
        y: labels.
        epochs: passes over the data; the last, incomplete batch of each is dropped.
        batch_size: rows a step.
        peak_rate: highest learning rate.
        weight_decay: of AdamW.
        augment: applied to each batch of inputs.
        seed: of the batches and the augmentation.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(x))
    per_epoch = len(x) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=epochs * per_epoch)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: per_epoch * batch_size].split(batch_size):
            batch = x[rows] if augment is None else augment(x[rows], generator)
            loss = nn.functional.cross_entropy(model(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def yin_yang(samples: int, *, seed: int = 0) -> tuple[Float[Tensor, "sample 4"], Int[Tensor, " sample"]]:
    """Draw the Yin-Yang data set (Kriener et al., arXiv 2102.08211), balanced over its three classes.

    Points `(x, y)` in the disc of radius 0.5 around (0.5, 0.5), given with `(1 − x, 1 − y)` beside them; the
    classes are yin (0), yang (1) and the two dots of radius 0.1 (2).

    Args:
        samples: how many points.
        seed: of the draw.

    Returns:
        Inputs and labels.
    """
    big, small = 0.5, 0.1
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.arange(samples) % 3
    points = torch.zeros(samples, 2)
    missing = torch.ones(samples, dtype=torch.bool)
    while missing.any():
        drawn = torch.rand(int(missing.sum()), 2, generator=generator) * 2 * big
        x, y = drawn[:, 0], drawn[:, 1]
        to_right = torch.hypot(x - 1.5 * big, y - big)
        to_left = torch.hypot(x - 0.5 * big, y - big)
        yin = ((to_right > small) & (to_right <= 0.5 * big)) | (to_left <= small) | ((y > big) & (to_left > 0.5 * big))
        label = torch.where((to_right <= small) | (to_left <= small), 2, (~yin).long())
        inside = torch.hypot(x - big, y - big) <= big
        places = missing.nonzero().squeeze(1)
        accepted = inside & (label == wanted[places])
        points[places[accepted]] = drawn[accepted]
        missing[places[accepted]] = False
    order = torch.randperm(samples, generator=generator)
    points, labels = points[order], wanted[order]
    return torch.cat([points, 1 - points], 1), labels
