"""Where passes of a torch model begin and end: the modules that contain all sites of interest.

Each of them gets a stand-in for `forward`, so that a pass is known whoever enters it: the model, a wrapper around it,
`generate`, or the bare trunk. What the innermost of them is called with tells the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import Signature, signature
from typing import Any

import torch
from torch import nn

from koopman_hosts.skipping import overridden
from koopman_interp.errors import UnsupportedHostError
from koopman_interp.hosts.arguments import bound
from koopman_interp.hosts.passes import ArgumentReader, Pass, Passes
from koopman_interp.hosts.tokens import Tokens


def containers(model: nn.Module, modules: Iterable[nn.Module]) -> list[nn.Module]:
    """List the modules, from the model inwards, that contain all given ones; the model alone where it is one of them.

    >>> inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model = nn.Sequential(nn.Sequential(inner), nn.ReLU())
    >>> [module is inner for module in containers(model, [inner[0], inner[1]])]
    [False, False, True]
    """
    wanted = {id(module) for module in modules}
    chain: list[nn.Module] = []
    holding: nn.Module | None = model
    while holding is not None:
        if not isinstance(holding, (nn.ModuleList, nn.ModuleDict)):  # which are never called
            chain.append(holding)
        inner = (child for child in holding.children() if wanted and id(child) not in wanted)
        holding = next((child for child in inner if wanted <= {id(module) for module in child.modules()}), None)
    return chain


@contextmanager
def followed(
    chain: Sequence[nn.Module],
    ended: Callable[[Pass], None] | None = None,
    read: ArgumentReader = Tokens.of_arguments,
) -> Iterator[Passes]:
    """Follow the passes through containers.

    Args:
        chain: the containers, outermost first.
        ended: called with each pass that ends without an exception.
        read: reads the tokens of a container's call.

    Yields:
        The passes under way.
    """
    passes = Passes(ended, read)
    with ExitStack() as stack:
        for level, module in enumerate(chain):
            entry = partial(_entered, passes, level, signature(module.forward))
            stack.enter_context(overridden(module, "forward", entry))
        yield passes


def _entered(
    passes: Passes,
    level: int,
    parameters: Signature,
    original: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Stand in for the `forward` of a container."""
    if torch.compiler.is_compiling():
        raise UnsupportedHostError(
            "The model is being compiled while it is observed or patched, and compiled code would keep what is there "
            "for the moment only. Compile it before, or bake the patch (patch.bake()) and compile the copy."
        )
    with passes.within(level, bound(parameters, args, kwargs)) as running:
        result = original(*args, **kwargs)
        running.result = running.result if running.result is not None else result
        return result
