"""Whether blocks in a row hand their states on: each is given what the one before returned.

Outputs of blocks that stand side by side, or return what is added to a stream, are no states of one stream, and nothing
else tells them from those that are. Looked at in one pass, at the cost of comparing each state once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from koopman_interp.hosts.protocol import Host

Links = Sequence[tuple[str, str]]
"""Sites of outputs, each with the site of the input that it is expected to be."""


@contextmanager
def warned_of_other_inputs(host: Host, first: str, links: Links) -> Iterator[None]:
    """Compare, in the first pass of a context, what blocks return with what the next ones are given; warn at its end.

    Args:
        host: the host.
        first: site of what the first block is given.
        links: what to compare.
    """
    kept: dict[str, Tensor] = {}
    seen = dict[str, bool]()

    def keep(site: str, state: Tensor) -> None:
        if site not in seen:
            kept[site] = state.detach().clone()  # what is written into later is not what was handed on

    def compare(site: str, state: Tensor) -> None:
        if site in kept:
            before = kept.pop(site)
            same = before.shape == state.shape
            seen[site] = same and bool(((before == state) | (before.isnan() & state.isnan())).all())

    hooks = {site: partial(keep, site) for site, _ in links} | {after: partial(compare, site) for site, after in links}
    with host.hooked(hooks):
        yield
    unlike = next((link for link in links if not seen.get(link[0], True)), None)
    if unlike is not None:
        before, after = unlike
        inputs = [first, *(after for _, after in links)]
        warnings.warn(
            f"The module of {after!r} is given something else than what {before!r} returned, so that the outputs of "
            "these blocks may be no states of one stream: they may stand side by side, or return what is added to it. "
            f"Name the sites that are meant: attach(model, {inputs}), say, are what the blocks are given; "
            "attach(model, tap.sites) are these.",
            stacklevel=5,
        )
