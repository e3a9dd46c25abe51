"""Dotted site names and the globs that choose among them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence


def matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Match the components of a dotted name: `*` stays within one, `**` takes any number of them.

    >>> matches("blocks.0.fc".split("."), "blocks.*.fc".split("."))
    True
    >>> matches("blocks.0.fc".split("."), "blocks.*".split("."))
    False
    """
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(matches(name[skip:], pattern[1:]) for skip in range(len(name) + 1))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and matches(name[1:], pattern[1:])
