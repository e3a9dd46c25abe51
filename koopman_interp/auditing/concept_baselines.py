"""The ways of erasing a concept that an edit is shown beside: on the model's own states, in place, in closed form.

Mean difference projects the concept's directions out at right angles; LEACE (Belrose et al., arXiv 2306.03819) reads
them the cheapest way in the covariance of the rows that teach, or in that of a corpus, which a handful of prompts
cannot stand for. Neither lifts a state nor knows an operator. One covariance and one factorisation a site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from koopman_interp.auditing.baselines import LEACE, MEAN_DIFFERENCE
from koopman_interp.edits.concept import columns_of, cross_covariance
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.oblique import oblique
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.layouts import from_rows, to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.own_kinds import own_kinds
from koopman_interp.trajectories import Trajectories

LEACE_OF_CORPUS = "LEACE, corpus covariance"

InPlace = Callable[[float], AbstractContextManager[None]]
"""From a strength, 1 being the projection, to the context in which a model runs with it."""


@own_kinds
def concept_baselines(
    model: nn.Module | Host,
    taught: Trajectories,
    attribute: Any,
    *,
    sites: Sequence[str],
    corpus: Trajectories | None = None,
) -> dict[str, InPlace]:
    """Fit the baselines of erasing a concept, each at several sites at once.

    Args:
        model: the base model.
        taught: rows that vary in the attribute, at all of the sites.
        attribute: of each row, or of each input; see `erase_concept`.
        sites: where they act.
        corpus: rows of other text at the same sites, for the covariance; None leaves that row out.

    Returns:
        Each baseline by its name: a function that takes a strength, and gives the context in which the model runs so.

    Raises:
        InputError: the attribute does not fit the rows, or the rows lack a site.
    """
    host = host_for(model)
    columns = columns_of(attribute, taught.sequence, "attribute")
    fitted = dict[str, dict[str, LowRankMap]]()
    for site in sites:
        x = _states(taught, site)
        A = cross_covariance(x - x.mean(0), columns)
        covariances = {MEAN_DIFFERENCE: torch.eye(x.shape[1]).to(x), LEACE: torch.cov(x.T, correction=0)}
        if corpus is not None:
            covariances[LEACE_OF_CORPUS] = torch.cov(_states(corpus, site).T, correction=0)
        for name, covariance in covariances.items():
            projection = oblique(A, A[:, :0], covariance, x.mean(0))
            assert projection is not None, "nothing is to be kept, so nothing stands in the way"
            fitted.setdefault(name, {})[site] = projection.map
    return {name: partial(_in_place, host, maps) for name, maps in fitted.items()}


def _in_place(host: Host, maps: Mapping[str, LowRankMap], strength: float) -> AbstractContextManager[None]:
    return host.hooked({site: partial(_mapped, one.scaled(strength)) for site, one in maps.items()}, first=True)


def _mapped(change: LowRankMap, state: Tensor) -> Tensor:
    rows = to_rows(state)
    return from_rows(change(rows.double()).to(rows), tuple(state.shape))


def _states(trajectories: Trajectories, site: str) -> Float[Tensor, "sample width"]:
    """Return rows at a site, in float64."""
    if site not in trajectories.sites:
        raise InputError(f"These trajectories have no site {site!r}; they have {', '.join(trajectories.sites)}.")
    return trajectories.states[trajectories.sites.index(site)].double()
