"""Observations to write to stores: of several dtypes, widths, shapes, with labels, tokens and a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.sources import shards, writing
from koopman_interp.testing import ResidualMLP
from tests.hosts.lens_models import llama_bridge


class Narrowing(nn.Module):
    """Widths that differ by depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(5, 7)])

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x).tanh()
        return x


class Pictures(nn.Module):
    """States of channels, height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return x.mean((2, 3))


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(dtype: torch.dtype = torch.float32) -> ResidualMLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResidualMLP(4, 8, 3, 3).to(dtype).eval()


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def batched(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.arange(len(part)) % 3) for part in x.split(32)]


OBSERVED: dict[str, Callable[[], tuple[ki.Tap, object]]] = {
    "float32, labelled": lambda: (ki.attach(mlp()), batched(rows(300, 4))),
    "bfloat16": lambda: (ki.attach(mlp(torch.bfloat16)), rows(100, 4).bfloat16()),
    "widths by depth": lambda: (ki.attach(_seeded(Narrowing), ["stages.*"], times=[0, 1, 2.5]), rows(200, 6)),
    "shapes": lambda: (ki.attach(_seeded(Pictures), ["blocks.0", "blocks.1"]), rows(90, 2, 4, 5)),
    "tokens": lambda: (ki.attach(llama_bridge(), skip=1), torch.arange(30 * 7).reshape(30, 7) % 80 + 2),
}


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Blocks of 16 rows or a few more, shards of 64."""
    monkeypatch.setattr(shards, "BLOCK_ROWS", 16)
    monkeypatch.setattr(shards, "BLOCK_BYTES", 1)
    monkeypatch.setattr(writing, "SHARD_ROWS", 64)


@pytest.fixture
def store(tmp_path, small_shards) -> ki.Store:
    """Of 300 labelled points, in ten batches."""
    return ki.attach(mlp()).observe(batched(rows(300, 4)), store=tmp_path / "states", progress=False)


def same(one: ki.Trajectories, other: ki.Trajectories) -> bool:
    """Whether two hold the same to the bit, whatever stands in them."""
    return all(_same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def of_inputs(*counts: int) -> ki.Trajectories:
    """Trajectories of inputs that have so many rows each."""
    sequence = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    position = torch.cat([torch.arange(count) for count in counts])
    one = ki.attach(mlp()).observe(rows(2, 4), progress=False)
    taken = one[torch.zeros(len(sequence), dtype=torch.int64)]
    digests = (sequence + 1) * 7919
    states = tuple(rows(len(sequence), width, seed=width) for width in one.widths)
    return replace(taken, states=states, sequence=sequence, position=position, digests=digests)
