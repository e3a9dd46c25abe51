"""How the adapter for a model is found: by entry point, none imported by name."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast

from torch import nn

from koopman_interp.errors import UnsupportedHostError
from koopman_interp.hosts.laid_out import LaidOut
from koopman_interp.hosts.protocol import Host

ENTRY_POINT_GROUP = "koopman_interp.hosts"


def host_for(model: nn.Module | Host, layout: str | None = None) -> Host:
    """Wrap a model in the adapter made for it; a host is returned as it is.

    Args:
        model: the model of the user, or a host.
        layout: names of the axes of its states, where they are not in the package's own order; see `Layout`.

    Returns:
        The host of the registered adapter with the highest priority that accepts the model.

    Raises:
        UnsupportedHostError: no adapter accepts the object.
    """
    if layout is not None and not isinstance(model, LaidOut):
        return cast(Host, LaidOut(host_for(model), layout))
    if isinstance(model, Host) and not isinstance(model, nn.Module):
        return model
    for adapter in adapters():
        if adapter.accepts(model):
            return adapter(model)
    remedy = ""
    if isinstance(model, str):
        remedy = f" Load it: transformers.AutoModelForCausalLM.from_pretrained({model!r})."
    elif isinstance(model, type):
        remedy = f" Build one: {model.__name__}(…)."
    raise UnsupportedHostError(
        f"Expected a torch.nn.Module or a model of a known host framework, got {type(model).__name__}.{remedy} "
        f"Registered adapters: {', '.join(adapter.adapter for adapter in adapters()) or 'none'}."
    )


@cache
def adapters() -> list[Any]:
    """Load the registered host adapters, those of highest priority first."""
    loaded: list[Any] = [point.load() for point in entry_points(group=ENTRY_POINT_GROUP)]
    return sorted(loaded, key=lambda adapter: -adapter.priority)
