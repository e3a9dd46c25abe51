"""Where a model computes, and how batches get there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def moved_to(device: torch.device, batch: Any) -> Any:
    """Return a batch with its tensors on a device: a tensor, or a mapping that holds some."""
    if isinstance(batch, Mapping):
        return {name: moved_to(device, value) for name, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's first parameter that has one of its own; the CPU without any."""
    return next((parameter.device for parameter in model.parameters() if not parameter.is_meta), torch.device("cpu"))
