"""Models at hand for the tests of hosts, and tokens to call them with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

Made = TypeVar("Made", bound=nn.Module)


def seeded(build: Callable[..., Made], *args: Any, seed: int = 3, **kwargs: Any) -> Made:
    """Make a model with the same weights each time, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **kwargs).eval()


def shared_models() -> Path:
    """Folder of trained models: KOOPMAN_INTERP_MODELS, or `models` beside the data, or beside the checkout."""
    if named := os.environ.get("KOOPMAN_INTERP_MODELS"):
        return Path(named)
    if data := os.environ.get("KOOPMAN_INTERP_DATA"):
        return Path(data).parent / "models"
    return Path(__file__).parents[3] / "shared" / "models"


def stories() -> Path:
    """Folder of stories260K, a Llama of 260,000 weights trained on children's stories."""
    folder = shared_models() / "stories260K"
    if not folder.exists():
        pytest.skip(f"there is no {folder}")
    return folder


def padded_tokens(count: int) -> dict[str, Tensor]:
    """Sequences of 5 to 9 tokens under 90, padded on the right; the first two are of full length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (64, 9), generator=generator)
    lengths = torch.randint(5, 10, (64, 1), generator=generator)
    lengths[:2] = 9
    mask = (torch.arange(9) < lengths).long()
    return {"input_ids": torch.where(mask.bool(), ids, 2)[:count], "attention_mask": mask[:count]}
