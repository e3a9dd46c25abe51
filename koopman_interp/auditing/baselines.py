"""The methods of forgetting that an edit is shown beside, each as something to run a model in.

A logit mask is free and keeps the others as well as anything; mean difference and LEACE project the last site; a model
trained without the classes is the reference. Each is fitted in closed form on the states of one pass. Knows nothing of
how a method is judged.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from koopman_interp.auditing.labelled import Batch
from koopman_interp.auditing.passes import LabelledPass
from koopman_interp.errors import InputError
from koopman_interp.hosts.layouts import from_rows, to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.patching.patch import Patch

BASE, MASK, MEAN_DIFFERENCE, LEACE, RETRAINED = (
    "base model",
    "logit mask",
    "mean difference",
    "LEACE",
    "retrained reference",
)
"""The methods' names in an audit."""

WIDEST = 4096
"""Width of states up to which LEACE is fitted: its cost grows with the cube of it."""

_SAME_MEAN = 1e-9
"""Distance between two means, relative to the spread of the rows, below which there is nothing to project out."""

RowMap = Callable[[Float[Tensor, "row width"]], Float[Tensor, "row width"]]
"""From rows of states to rows of states."""


@dataclass(frozen=True, eq=False)
class Method:
    """One method of forgetting.

    Attributes:
        name: as it stands in the audit.
        host: what runs.
        patch: makes the context in which it runs, for this host or a copy of it; None leaves the model alone.
        answers: from the log-probabilities that come out to those that are given; None leaves them.
        learns: whether relearning it says anything: a mask stays one, and the base model has forgotten nothing.
        without: sites where it has no states to read.
    """

    name: str
    host: Host
    patch: Callable[[Host], AbstractContextManager[object]] | None = None
    answers: Callable[[Tensor], Tensor] | None = None
    learns: bool = True
    without: Sequence[str] = ()

    def running(self, host: Host | None = None) -> AbstractContextManager[object]:
        """Return the context in which its model, or a copy of it, runs."""
        return nullcontext() if self.patch is None else self.patch(host or self.host)

    def passed(self, batch: Batch, sites: Sequence[str], skip: int) -> LabelledPass:
        """Call its model on a batch, and read the sites where it has states."""
        sites = [site for site in sites if site not in self.without]
        with self.running():
            return self.answered(LabelledPass.of(self.host, batch, sites, skip))

    def answered(self, own: LabelledPass) -> LabelledPass:
        """Put the answers that it gives in the place of those of a pass."""
        return own if self.answers is None else replace(own, logp=self.answers(own.logp))


def edited(patch: Patch) -> Method:
    """Run a patch, itself and no copy of it; in a copy of its model, the same patch of that.

    Raises:
        InputError: it is installed, so that there is no base model to measure beside it.
    """
    with patch:
        pass  # which refuses what is installed
    options = patch.options
    name = f"edit ({options.mode if options.at == 'target' else options.at})"
    return Method(name, patch.host, lambda host: patch if host is patch.host else patch.on(host), without=patch.without)


def logit_mask(host: Host, labels: Sequence[int]) -> Method:
    """Forbid the classes at the output; the representation stays the base model's."""

    def masked(logp: Tensor) -> Tensor:
        return log_softmax(logp.index_fill(1, torch.tensor(labels), -torch.inf), dim=1)

    return Method(MASK, host, answers=masked, learns=False)


def mean_difference(
    host: Host, site: str, states: Float[Tensor, "row width"], labels: Int[Tensor, " row"], forget: Sequence[int]
) -> Method:
    """Project out, at a site, the differences between the means of some classes and the mean of the other rows.

    Args:
        host: the base model.
        site: where.
        states: float64 rows of that site to fit on.
        labels: class of each.
        forget: the classes; of several, the span of their differences is projected out.

    Returns:
        The method.
    """
    centre = states[~torch.isin(labels, torch.tensor(forget))].mean(0)
    differences = torch.stack([states[labels == label].mean(0) - centre for label in forget], 1)
    directions, lengths, _ = torch.linalg.svd(differences, full_matrices=False)
    spread = (states - states.mean(0)).square().sum(1).mean().sqrt()
    basis = directions[:, lengths > _SAME_MEAN * spread]

    def project(rows: Tensor) -> Tensor:
        B, c = basis.to(rows), centre.to(rows)
        return rows - (rows - c) @ B @ B.T

    return Method(MEAN_DIFFERENCE, host, _rewriting(site, project))


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


def leace(
    host: Host, site: str, states: Float[Tensor, "row width"], labels: Int[Tensor, " row"], forget: Sequence[int]
) -> Method:
    """Erase classes at a site by LEACE (Belrose et al., arXiv 2306.03819), with concept-erasure's own defaults.

    Args:
        host: the base model.
        site: where.
        states: float64 rows of that site to fit on.
        labels: class of each.
        forget: the classes; the concept has a column for each, 1 for its rows.

    Returns:
        The method.

    Raises:
        InputError: concept-erasure is not installed.
    """
    if not has_leace():
        raise InputError('LEACE needs the package concept-erasure: pip install "koopman-interp[leace]".')
    concept = (labels[:, None] == torch.tensor(forget)).to(states)
    eraser = importlib.import_module("concept_erasure").LeaceEraser.fit(states, concept)

    def erase(rows: Tensor) -> Tensor:
        left, right, bias = (part.to(rows) for part in (eraser.proj_left, eraser.proj_right, eraser.bias))
        return rows - (rows - bias) @ right.T @ left.T

    return Method(LEACE, host, _rewriting(site, erase))


def _rewriting(site: str, change: RowMap) -> Callable[[Host], AbstractContextManager[None]]:
    """Make the context in which each state of a site is rewritten row by row."""

    def rewrite(state: Tensor) -> Tensor:
        return from_rows(change(to_rows(state)), tuple(state.shape))

    return lambda host: host.hooked({site: rewrite})
