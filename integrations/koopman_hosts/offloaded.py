"""Weights that accelerate keeps on the CPU or on disk, and brings in for the time of a call."""

from __future__ import annotations

from torch import Tensor, nn


def offloaded_weights(model: nn.Module) -> dict[int, Tensor]:
    """Find the weights behind their stand-ins on the meta device, by the id of the stand-in."""
    weights: dict[int, Tensor] = {}
    for module in model.modules():
        own = [*module._parameters.items(), *module._buffers.items()]
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            kept = getattr(part, "weights_map", None)
            if kept is not None:
                weights |= {id(tensor): kept[name] for name, tensor in own if tensor is not None and tensor.is_meta}
    return weights
