"""Times of sites by the block numbers in their names, so that sites which leave blocks out lie as many steps apart.

Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])")
"""A number that stands for itself between dots: that of `blocks.2`, not that of `layer2`."""

_BEFORE, _WITHIN, _AFTER = 0.0, 0.5, 1.0
_PLACES = {":input": _BEFORE, ".hook_resid_pre": _BEFORE, ".hook_resid_mid": _WITHIN, ".hook_resid_post": _AFTER}
"""How far into its block a site lies, by what its name ends with: from 0 before it to 1 after it."""


def site_times(sites: Sequence[str], kinds: Mapping[str, str] | None = None) -> tuple[float, ...]:
    """Return the time of each site in operator steps, relative to the first.

    The state after block i is at time i + 1 and the state before it at time i, where all names are alike but for one
    number, times rise and are whole, and all blocks on the way are of one type. Elsewhere times are 0, 1, 2, …

    Args:
        sites: names in order of depth.
        kinds: types of the host's modules by name, as far as they are known.

    Returns:
        One time a site.

    Examples:
        >>> site_times(["blocks.0:input", "blocks.0", "blocks.3"])
        (0.0, 1.0, 4.0)
        >>> site_times(["layer1.0", "layer1.1", "layer2.0"])
        (0.0, 1.0, 2.0)
    """
    in_order = tuple(map(float, range(len(sites))))
    stems, places = zip(*map(_placed, sites), strict=True)
    if len({_NUMBER.sub("{}", stem) for stem in stems}) != 1:
        return in_order
    columns = zip(*(map(int, _NUMBER.findall(stem)) for stem in stems), strict=True)
    varying = [(at, numbers) for at, numbers in enumerate(columns) if len(set(numbers)) > 1]
    if len(varying) != 1:
        return in_order
    at, numbers = varying[0]
    times = [number + place - numbers[0] - places[0] for number, place in zip(numbers, places, strict=True)]
    rising = all(later > earlier for earlier, later in pairwise(times))
    whole = all(time.is_integer() for time in times)
    alike = len(_kinds_between(stems[0], at, range(numbers[0], numbers[-1] + 1), kinds or {})) <= 1
    return tuple(times) if rising and whole and alike else in_order


def block_outputs(sites: Sequence[str]) -> tuple[int | None, ...]:
    """Return the number of the block whose output each site is, by its name; None where names do not tell.

    Examples:
        >>> block_outputs(["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"])
        (None, 0, 2)
        >>> block_outputs(["stem", "head"])
        (None, None)
    """
    stems, places = zip(*map(_placed, sites), strict=True)
    columns = list(zip(*(map(int, _NUMBER.findall(stem)) for stem in stems), strict=False))
    varying = columns if len(columns) == 1 else [numbers for numbers in columns if len(set(numbers)) > 1]
    if len({_NUMBER.sub("{}", stem) for stem in stems}) != 1 or len(varying) != 1:
        return (None,) * len(sites)
    after = [int(number + place - _AFTER) for number, place in zip(varying[0], places, strict=True)]
    return tuple(
        number if number >= 0 and place != _WITHIN else None for number, place in zip(after, places, strict=True)
    )


def _placed(site: str) -> tuple[str, float]:
    """Return the name of a site without what says where in its block it lies, and where that is."""
    for ending, place in _PLACES.items():
        if site.endswith(ending):
            return site.removesuffix(ending), place
    return site, _AFTER


def _kinds_between(stem: str, at: int, numbers: range, kinds: Mapping[str, str]) -> set[str]:
    """Types of the modules whose names differ from a stem in one number alone, for each of some numbers."""
    place = list(_NUMBER.finditer(stem))[at]
    named = (f"{stem[: place.start()]}{number}{stem[place.end() :]}" for number in numbers)
    return {kinds[name] for name in named if name in kinds}
