"""What hooks, stand-ins and edits could leave behind on a model, so that before and after can be compared."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from koopman_interp.hosts.fingerprint import weight_digest


def traces(model: nn.Module) -> dict[str, object]:
    """Take down all that hooks, stand-ins and edits could leave on a model.

    Returns:
        By name: hooks of each module in order, torch's and TransformerLens's; the names set on each instance; a
        `forward` of its own; its training mode; and the digest of all weights.
    """
    found: dict[str, object] = {"weights": weight_digest(model)}
    for name, module in model.named_modules():
        own = vars(module)
        found[f"{name}: set"] = sorted(own)
        found[f"{name}: training"] = module.training
        found[f"{name}: forward"] = own.get("forward")
        for key, value in own.items():
            if key.endswith("_hooks") or key in ("fwd_hooks", "bwd_hooks"):
                entries = value.values() if isinstance(value, dict) else value or ()
                found[f"{name}: {key}"] = [id(entry) for entry in entries]
    return found


def differences(after: Mapping[str, object], before: Mapping[str, object]) -> list[str]:
    """Say in words what differs between two sets of traces."""
    names = sorted(after.keys() | before.keys())
    return [
        f"{name}: {before.get(name)} became {after.get(name)}" for name in names if after.get(name) != before.get(name)
    ]
