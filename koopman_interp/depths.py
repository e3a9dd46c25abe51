"""Site arithmetic: from names and depths that may count from the end to depths."""

from __future__ import annotations

from collections.abc import Sequence

from koopman_interp.errors import InputError, nearest


def depth_of(sites: Sequence[str], site: str | int) -> int:
    """Resolve a site name, or a depth that may count from the end, to a depth.

    Raises:
        InputError: it is not among the sites.
    """
    if isinstance(site, str):
        if site not in sites:
            raise InputError(f"{site!r} is not among the fitted sites. {nearest(site, sites)}")
        return list(sites).index(site)
    if not -len(sites) <= site < len(sites):
        raise InputError(f"Depth {site} is outside the {len(sites)} fitted sites (0 to {len(sites) - 1}).")
    return site % len(sites)


def span(sites: Sequence[str], source: str | int | None, target: str | int | None) -> tuple[int, int]:
    """Resolve the two ends of a span to depths.

    Args:
        sites: the sites in order of depth.
        source: site name or depth where the span starts; None for the first.
        target: site name or depth where it ends; None for the last.

    Returns:
        The depths of source and target, as indices into `sites`.

    Raises:
        InputError: an end is unknown, or the target does not lie after the source.
    """
    first = depth_of(sites, 0 if source is None else source)
    last = depth_of(sites, -1 if target is None else target)
    if last <= first:
        raise InputError(f"A span needs its target after its source; got depth {first} to depth {last}.")
    return first, last
