"""Attaching to a model: which host it is, which sites are recorded, and when each of them comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from koopman_interp.errors import InputError, UnsupportedHostError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.listing import SiteTable
from koopman_interp.hosts.protocol import Host, SiteSelection
from koopman_interp.observing.site_times import site_times
from koopman_interp.observing.tap import Tap


def attach(
    model: nn.Module | Host,
    sites: SiteSelection | nn.Module | Sequence[nn.Module] = None,
    *,
    times: Sequence[float | int] | None = None,
    skip: int = 0,
    layout: str | None = None,
) -> Tap:
    """Attach to a model; nothing is hooked until something is recorded.

    Args:
        model: a torch module, a model of a known framework, or a `Host`.
        sites: which states to record, in order of depth: names, globs or a predicate on names; modules of the model
            stand for their names, and a list of modules for its members. None is the residual stream: the input of
            the first block and the output of each.
        times: time of each site in operator steps. None goes by the block numbers in the names of the sites: the
            outputs of blocks 0, 2 and 5 lie at times 0, 2 and 5. Where names do not tell (stages joined to one
            another, places within a block) it is 0, 1, 2, … Two sites at times 0 and k give the setting of arXiv
            2505.12809.
        skip: leading positions of each sequence to leave out, counted from its first real token. The first tokens of
            language models are often attention sinks, whose states are far from all others.
        layout: names of the axes of the states, where they are not `batch width`, `batch position width` or `batch
            channel height width`: `position batch width`, or `batch position head width`, whose heads are joined.

    Returns:
        A Tap on those sites.

    Raises:
        InputError: fewer than two sites, as many times as sites were not given, or a negative skip.
    """
    if skip < 0:
        raise InputError(f"skip is how many leading positions to leave out, 0 or more; got {skip}.")
    host = host_for(model, layout)
    chosen = host.sites(_by_name(host, sites))
    if len(chosen) < 2:
        raise InputError(f"A trajectory needs two or more sites; {sites!r} chose only {', '.join(chosen)}.")
    if times is not None and len(times) != len(chosen):
        raise InputError(f"Expected {len(chosen)} times, one a site ({', '.join(chosen)}); got {len(times)}.")
    if times is None:
        times = site_times(chosen, {site.name: site.kind for site in host.listed()})
    blocks = host.in_a_row(chosen) if sites is None and hasattr(host, "in_a_row") else ()
    return Tap(host, chosen, tuple(map(float, times)), skip, layout, blocks)


def _by_name(host: Host, sites: SiteSelection | nn.Module | Sequence[nn.Module]) -> SiteSelection:
    """Put names in the place of modules.

    Raises:
        InputError: a site is neither, or is no module of this model.
    """
    if sites is None or isinstance(sites, str) or (callable(sites) and not isinstance(sites, nn.Module)):
        return sites
    alone = isinstance(sites, nn.Module) and not isinstance(sites, (nn.ModuleList, nn.Sequential))
    names = {id(module): name for name, module in host.model.named_modules()}
    chosen: list[str] = []
    for site in [sites] if alone else list(cast(Sequence[object], sites)):
        name = site if isinstance(site, str) else names.get(id(site))
        if name is None:
            raise InputError(
                f"A site is the name of a module, or a module of this model; got {site!r:.60}. "
                "koopman_interp.sites(model) lists the names."
            )
        chosen.append(name)
    return chosen


def sites(model: nn.Module | Host) -> SiteTable:
    """List the sites of a model, with types and widths, and which of them `attach` takes unless told otherwise.

    Args:
        model: as for `attach`.
    """
    host = host_for(model)
    try:
        chosen = host.sites()
    except UnsupportedHostError:  # which `attach` says in full
        chosen = ()
    return SiteTable(type(host.model).__name__, host.listed(), chosen)
