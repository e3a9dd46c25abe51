"""The ways of forgetting that an edit is shown beside, each as something to run a host in.

A logit mask is free and keeps the others as well as anything; mean difference and LEACE project the last site; a model
trained without the class is the yardstick. Each is fitted in closed form on the states of one pass. Knows nothing of
how a way is judged.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from koopman_interp.auditing.passes import Batches, Seen
from koopman_interp.errors import InputError
from koopman_interp.hosts.layouts import from_rows, to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.patching.motion import Mode
from koopman_interp.patching.options import At

WIDEST = 4096
"""Width of states up to which LEACE is fitted: its cost grows with the cube of it."""

Rows = Callable[[Float[Tensor, "row width"]], Float[Tensor, "row width"]]
"""From rows of states to rows of states."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way of forgetting.

    Attributes:
        name: as it stands in the audit.
        host: what runs.
        patch: makes the context in which it runs, for this host or a copy of it; None leaves the host alone.
        answers: from the log-probabilities that come out to those that are given; None leaves them.
        learns: whether relearning it says anything: a mask stays one, and the host has forgotten nothing.
        without: sites where it has no states to read.
    """

    name: str
    host: Host
    patch: Callable[[Host], AbstractContextManager[Any]] | None = None
    answers: Callable[[Tensor], Tensor] | None = None
    learns: bool = True
    without: Sequence[str] = ()

    def running(self, host: Host | None = None) -> AbstractContextManager[Any]:
        """Return the context in which its host, or a copy of it, runs."""
        return nullcontext() if self.patch is None else self.patch(host or self.host)

    def seen(self, batches: Batches, sites: Sequence[str], skip: int) -> Seen:
        """Call its host on all batches, and read the sites where it has states."""
        sites = [site for site in sites if site not in self.without]
        return self.answered(Seen.of(self.host, batches, sites, skip=skip, patch=self.running()))

    def answered(self, seen: Seen) -> Seen:
        """Put the answers that are given in the place of those that came out."""
        return seen if self.answers is None else replace(seen, logp=self.answers(seen.logp))


def named(mode: Mode, at: At) -> str:
    """Name the edit's own row by how it is patched."""
    return f"edit ({mode if at == 'target' else at})"


def logit_mask(host: Host, label: int) -> Way:
    """Forbid the class at the output; the representation stays the host's."""

    def masked(logp: Tensor) -> Tensor:
        return log_softmax(logp.index_fill(1, torch.tensor([label]), -torch.inf), dim=1)

    return Way("logit mask", host, answers=masked, learns=False)


def mean_difference(host: Host, site: str, states: Float[Tensor, "row width"], forgotten: Bool[Tensor, " row"]) -> Way:
    """Project out the difference of the two means at a site."""
    centre = states[~forgotten].mean(0)
    direction = normalize(states[forgotten].mean(0) - centre, dim=0)

    def project(rows: Tensor) -> Tensor:
        d, c = direction.to(rows), centre.to(rows)
        return rows - ((rows - c) @ d)[:, None] * d

    return Way("mean difference", host, _rewriting(site, project))


def has_leace() -> bool:
    """Whether the package concept-erasure is installed."""
    return importlib.util.find_spec("concept_erasure") is not None


def why_no_leace(width: int) -> str | None:
    """Say why there is no row for LEACE at a site of this width; None where there is one."""
    if not has_leace():
        return 'No row for LEACE: concept-erasure is not installed (pip install "koopman-interp[leace]").'
    if width > WIDEST:
        return f"No row for LEACE: it decomposes a matrix as wide as the states, {width:,}; the limit is {WIDEST:,}."
    return None


def leace(host: Host, site: str, states: Float[Tensor, "row width"], forgotten: Bool[Tensor, " row"]) -> Way:
    """Erase the class at a site by LEACE (Belrose et al., arXiv 2306.03819), with concept-erasure's own defaults.

    Raises:
        InputError: concept-erasure is not installed.
    """
    if not has_leace():
        raise InputError('LEACE needs the package concept-erasure: pip install "koopman-interp[leace]".')
    eraser = importlib.import_module("concept_erasure").LeaceEraser.fit(states, forgotten.to(states)[:, None])

    def erase(rows: Tensor) -> Tensor:
        left, right, bias = (part.to(rows) for part in (eraser.proj_left, eraser.proj_right, eraser.bias))
        return rows - (rows - bias) @ right.T @ left.T

    return Way("LEACE", host, _rewriting(site, erase))


def _rewriting(site: str, change: Rows) -> Callable[[Host], AbstractContextManager[Any]]:
    """Make the context in which each state of a site is rewritten row by row."""

    def rewrite(state: Tensor) -> Tensor:
        return from_rows(change(to_rows(state)), tuple(state.shape))

    return lambda host: host.hooked({site: rewrite})
