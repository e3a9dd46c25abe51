"""The situations that tests hold hosts to: the table of docs/hosts.md, which is made of it and of nothing else.

A test says with `right` or `refused` what it shows; a row exists as long as its test does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])


@dataclass(frozen=True)
class Situation:
    """What a host or a call may be like.

    Attributes:
        kind: what it is a case of.
        what: the situation, in words.
        refused: why it is refused; empty where it is right.
        test: the test that shows it.
    """

    kind: str
    what: str
    refused: str
    test: str


SITUATIONS: list[Situation] = []
MODULES = (
    "tests.hosts.test_odd_hosts",
    "tests.hosts.test_order_of_axes",
    "tests.hosts.test_other_callers",
    "tests.observing.test_batches",
)
"""Where tests say what they show, in the order of the page."""


def right(kind: str, what: str) -> Callable[[Test], Test]:
    """Say that a test shows a situation to be right."""
    return _said(kind, what, "")


def refused(kind: str, what: str, why: str) -> Callable[[Test], Test]:
    """Say that a test shows a situation to be refused, and why it is."""
    return _said(kind, what, why)


def _said(kind: str, what: str, why: str) -> Callable[[Test], Test]:
    def note(test: Test) -> Test:
        place = f"{test.__module__.replace('.', '/')}.py"
        SITUATIONS.append(Situation(kind, what, why, f"{place}::{test.__name__}"))
        return test

    return note


def page() -> str:
    """Write the page."""
    lines = [
        "# Hosts",
        "",
        "What a model or a call may be like: what is right, and what is refused and why. Each row is shown by the test",
        "named in it, and the page is made of the tests' own table (`python docs/hosts.py`), so that it cannot promise",
        "what is not held. Beside these, models drawn at random are held to hooks by hand",
        "(`tests/hosts/test_zoo.py`), and every adapter to the laws of `koopman_interp.testing.HostContract`.",
        "",
    ]
    # In the order of the modules, whichever of them was imported first.
    modules = [f"{name.replace('.', '/')}.py" for name in MODULES]
    known = sorted(set(SITUATIONS), key=lambda each: (modules.index(each.test.split("::")[0]), SITUATIONS.index(each)))
    for kind in dict.fromkeys(situation.kind for situation in known):
        lines += [f"## {kind}", "", "| situation | | why, and what to do | test |", "|---|---|---|---|"]
        for situation in (each for each in known if each.kind == kind):
            mark = "refused" if situation.refused else "right"
            name = situation.test.split("::")[1]
            link = f"[`{name}`](../{situation.test.split('::')[0]})"
            lines.append(f"| {situation.what} | {mark} | {situation.refused} | {link} |")
        lines.append("")
    return "\n".join(lines)
