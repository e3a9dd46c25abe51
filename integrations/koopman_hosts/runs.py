"""Runs of blocks in a torch model: where its residual stream is, and what its sites are.

A run is the children of one container in a row: of one type in a ModuleList or Sequential, of several types in a
ModuleList. Only outermost runs count, so that experts and adapters inside a block are none. Where there is no run, the
states between the layers of a plain Sequential are one, as far as they keep their width. Runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from torch import nn

INPUT = ":input"
_CONTAINERS = (nn.ModuleList, nn.Sequential)
_PARALLEL = ("experts", "adapters", "heads", "branches", "ensemble")
"""Names of lists whose members stand side by side and not in a row."""

Modules = Mapping[str, nn.Module]


def residual_stream(modules: Modules) -> tuple[str, ...]:
    """Name the sites of the longest run, or of the states between plain layers; nothing where there is neither.

    Args:
        modules: all modules of the model, by name.
    """
    run = max(runs(modules), key=lambda names: (len(names), _parameters(modules, names)), default=[])
    return (run[0] + INPUT, *run) if run else _between_layers(modules)


def runs(modules: Modules) -> list[list[str]]:
    """List the outermost runs of blocks; sibling containers of one type join (ResNet stages)."""
    found: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name, module in modules.items():
        inside = any(name.startswith(block + ".") for blocks in found.values() for block in blocks)
        if isinstance(module, _CONTAINERS) and not inside and name.rpartition(".")[2] not in _PARALLEL:
            kind, keys = _in_a_row(module)
            if keys:
                # Containers of one block each are joined too: a stage may hold a single block.
                blocks = [f"{name}.{key}" if name else key for key in keys]
                found.setdefault((name.rpartition(".")[0], kind), []).extend(blocks)
    return [names for names in found.values() if len(names) > 1]


def guessed(modules: Modules) -> str | None:
    """Return a glob of what might be a residual stream: the members of the container that has most of them.

    To be offered, not taken: whether they follow each other is not known. None where no container in it has two.
    """
    members = {
        name: sum(_has_parameters(child) for child in module.children())
        for name, module in modules.items()
        if name and isinstance(module, _CONTAINERS) and name.rpartition(".")[2] not in _PARALLEL
    }
    name = max(members, key=lambda each: members[each], default="")
    return f"{name}.*" if members.get(name, 0) > 1 else None


def _in_a_row(container: nn.ModuleList | nn.Sequential) -> tuple[type[nn.Module], list[str]]:
    """Name the blocks of a container, and their type; none where its children are layers of several kinds."""
    children = list(container.named_children())
    kinds = {type(child) for _, child in children}
    if not children or any(issubclass(kind, _CONTAINERS) for kind in kinds):
        return nn.Module, []
    if len(kinds) == 1:
        return kinds.pop(), [key for key, _ in children] if _has_parameters(container) else []
    if isinstance(container, nn.ModuleList):
        mixed = all(_has_parameters(child) and not _is_plain(child) for _, child in children)
        return nn.Module, [key for key, _ in children] if mixed else []
    # A Sequential may hold a stem before its blocks and a head after them.
    stretches = [(kind, list(group)) for kind, group in groupby(children, key=lambda child: type(child[1]))]
    kind, longest = max(stretches, key=lambda stretch: len(stretch[1]))
    blocks = len(longest) > 1 and not _is_plain(longest[0][1]) and _has_parameters(longest[0][1])
    return kind, [key for key, _ in longest] if blocks else []


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def width_of(module: nn.Module) -> int | None:
    """Width of what a module returns, as far as its own attributes or its last layer's tell."""
    for layer in reversed(list(module.modules())):
        for name in ("out_features", "out_channels", "embedding_dim", "num_features", "hidden_size", "embed_dim"):
            width = getattr(layer, name, None)
            if isinstance(width, int):
                return width
        shape = getattr(layer, "normalized_shape", None)
        if shape:
            return int(shape[-1])
    return None


def _between_layers(modules: Modules) -> tuple[str, ...]:
    """Name the states between the layers of a Sequential, the longest stretch of them that keeps its width."""
    best: list[str] = []
    for name, module in modules.items():
        if isinstance(module, nn.Sequential):
            states = list(_states(name, module))
            stretches = ([site for site, _ in group] for _, group in groupby(states, key=lambda state: state[1]))
            best = max(best, *stretches, [], key=len)
    return tuple(best) if len(best) > 1 else ()


def _states(name: str, container: nn.Sequential) -> Iterator[tuple[str, int | None]]:
    """Go through what enters each layer of a Sequential but the first, with its width, and what leaves the last."""
    before: tuple[str, int | None] | None = None
    width: int | None = None
    for key, child in container.named_children():
        if _has_parameters(child) and not isinstance(child, _NORMS):
            if before is not None:
                yield before
            width = width_of(child)
        if width is not None:
            before = (f"{name}.{key}" if name else key, width)
    if before is not None:
        yield before


_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.RMSNorm)


def _is_plain(block: nn.Module) -> bool:
    """Whether a block is a layer of torch's own, of which a list may hold several that do not follow each other."""
    return type(block).__module__.startswith("torch.nn")


def _parameters(modules: Modules, names: Sequence[str]) -> int:
    return sum(parameter.numel() for name in names for parameter in modules[name].parameters())
