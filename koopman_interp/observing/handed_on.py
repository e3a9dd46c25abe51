"""Whether blocks that are taken to follow each other do: each is given what the one before made of its own input.

Outputs of blocks that stand side by side, all given the same, or whose outputs are added to what they are given, are no
states of one stream, and nothing else tells them from those that are. An activation or a norm between blocks is. Looked
at in one pass, at the cost of comparing each state a few times.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from koopman_interp.hosts.protocol import Host

Blocks = Sequence[tuple[str, str]]
"""Sites of input and output of blocks in a row."""


@contextmanager
def warned_of_no_stream(host: Host, blocks: Blocks) -> Iterator[None]:
    """Compare, in the first pass of a context, what blocks are given and return; warn at its end.

    Args:
        host: the host.
        blocks: what to compare.
    """
    kept: dict[str, Tensor] = {}
    found: list[str] = []

    def keep(site: str, state: Tensor) -> None:
        if site not in kept:
            kept[site] = state.detach().clone()  # what is written into later is not what was there

    def compare(given: str, returned: str, after: str, state: Tensor) -> None:
        if after not in kept and given in kept and returned in kept:
            why = _why_none(kept[given], kept[returned], state)
            if why:
                found.append(f"{after!r} is {why.format(given=repr(given), returned=repr(returned))}")
            kept[returned] = kept[given] = state.new_empty(0)
        keep(after, state)

    hooks = {site: partial(keep, site) for block in blocks for site in block}
    hooks |= {after: partial(compare, *block, after) for block, (after, _) in pairwise(blocks)}
    with host.hooked(hooks):
        yield
    if found:
        warnings.warn(
            f"{found[0]}: so the outputs of these blocks may be no states of one stream. Name the sites that are "
            f"meant: attach(model, {[given for given, _ in blocks]}) are what the blocks are given; "
            "attach(model, tap.sites) are these.",
            stacklevel=5,
        )


def _why_none(given: Tensor, returned: Tensor, after: Tensor) -> str:
    """Say what the next block is given, where it is not made of what this one returned."""
    if not given.shape == returned.shape == after.shape or torch.equal(after, returned):
        return ""
    if torch.equal(after, given):
        return "the same as {given}, and nothing of {returned} is in it"
    if torch.allclose(after, given + returned, rtol=1e-4, atol=1e-6):
        return "the sum of {given} and {returned}"
    return ""
