"""A network that adds modulo a prime, whose own frequencies can be read off its logits.

Trained with weight decay it generalises, and computes with a handful of frequencies k of the prime p: its logits are
sums of `cos(2πk(a + b − c)/p)` (Nanda et al., arXiv 2301.05217; Gromov, arXiv 2301.02679). What it uses is then known
by Fourier analysis alone, and what a method finds can be held against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class AddingBlock(nn.Module):
    """`x + fc2(relu(fc1 x))`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Add the block's branch to its input."""
        return x + self.fc2(torch.relu(self.fc1(x)))


class ModularAdder(nn.Module):
    """Embedding of two numbers, their sum, one residual block, unembedding.

    Before the block a state is `e(a) + e(b)`, in which no function of `a + b` alone is linear: all of the addition is
    the block's.

    Args:
        prime: numbers are 0 … prime − 1.
        width: of the residual stream.
        hidden: width of the block's hidden layer.
    """

    def __init__(self, prime: int, width: int = 128, hidden: int = 512) -> None:
        super().__init__()
        self.embed = nn.Embedding(prime, width)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.block = AddingBlock(width, hidden)
        self.unembed = nn.Linear(width, prime, bias=False)

    def forward(self, numbers: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch prime"]:
        """Return logits of the sum."""
        return self.unembed(self.block(self.embed(numbers).sum(1)))


def modular_pairs(prime: int) -> tuple[Int[Tensor, "pair 2"], Int[Tensor, " pair"]]:
    """Return all pairs of numbers, `a` slowest, and their sums modulo the prime."""
    pairs = torch.cartesian_prod(torch.arange(prime), torch.arange(prime))
    return pairs, pairs.sum(1) % prime


def train_modular_adder(
    prime: int,
    *,
    share: float = 0.6,
    steps: int = 1500,
    peak_rate: float = 3e-3,
    weight_decay: float = 1.0,
    seed: int = 0,
) -> tuple[ModularAdder, Bool[Tensor, " pair"]]:
    """Train on a part of all pairs by AdamW on whole batches.

    Args:
        prime: of the numbers.
        share: of the pairs to train on.
        steps: of the descent; on one idle core, 1,500 take half a minute at 59.
        peak_rate: learning rate, after a rise over 50 steps.
        weight_decay: of AdamW; without it the network learns the pairs by heart.
        seed: of the pairs drawn and of the initial weights. The global random state is left as it was.

    Returns:
        The network, in eval mode, and which of `modular_pairs` it was trained on.
    """
    pairs, sums = modular_pairs(prime)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ModularAdder(prime)
        trained = torch.zeros(len(pairs), dtype=torch.bool)
        trained[torch.randperm(len(pairs))[: round(share * len(pairs))]] = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(pairs[trained]), sums[trained])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False), trained


def phases(numbers: Int[Tensor, " sample"], prime: int, frequencies: Sequence[int]) -> Float[Tensor, "sample column"]:
    """Return `cos` and `sin` of `2πk n/p`, two columns a frequency, in float64."""
    angle = 2 * torch.pi * numbers.double()[:, None] * torch.tensor(frequencies) / prime
    return torch.stack([angle.cos(), angle.sin()], 2).flatten(1)


def frequency_powers(logits: Float[Tensor, "pair prime"], prime: int) -> Float[Tensor, " frequency"]:
    """Return the power of each frequency 0 … (p − 1)/2 in the logits of all pairs.

    It is `|Σ_c l(c) e^{2πikc/p}|²` of the logits' mean `l` by how far the output c lies from the sum.
    """
    _, sums = modular_pairs(prime)
    apart = (torch.arange(prime) + sums[:, None]) % prime
    return torch.fft.rfft(logits.double().gather(1, apart).mean(0)).abs().square()


def without_frequencies(
    logits: Float[Tensor, "pair prime"], prime: int, frequencies: Sequence[int]
) -> Float[Tensor, "pair prime"]:
    """Return the logits of all pairs less what is linear in the phases of the sum: what perfect erasure would leave."""
    _, sums = modular_pairs(prime)
    columns = phases(sums, prime, frequencies)
    # Over all pairs phases are orthogonal, have mean 0 and mean square a half.
    return logits.double() - 2 * columns @ (columns.T @ logits.double()) / len(columns)
