"""What a reader of an SVG is told of a mark when the pointer rests on it.

Kept beside the artists while they are drawn, and written into the SVG as `<title>` elements, which need no script: a
text for a whole artist, or one for each of its marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary
from xml.etree import ElementTree

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from koopman_interp.tables import readable

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
"""Namespaces of what matplotlib writes."""

_DEFINED = f"{{{SVG}}}defs"
_TITLES: WeakKeyDictionary[Artist, tuple[str, ...]] = WeakKeyDictionary()


def hovered(artist: Artist, *texts: str) -> None:
    """Say of an artist what it is: one text for all of it, or one for each of its marks, in their order."""
    _TITLES[artist] = texts


def name_hovered(figure: Figure) -> dict[str, tuple[str, ...]]:
    """Give the artists of a figure that have texts an id in its SVG, and return the texts by it."""
    texts = {}
    for number, artist in enumerate(figure.findobj(_TITLES.__contains__)):
        artist.set_gid(f"hover-{number}")
        texts[f"hover-{number}"] = _TITLES[artist]
    return texts


def write_titles(path: Path, texts: dict[str, tuple[str, ...]]) -> None:
    """Write texts into an SVG file, as titles of the elements that have their ids."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    tree = ElementTree.parse(path)
    groups = {group.get("id"): group for group in tree.iter(f"{{{SVG}}}g")}
    for name, told in texts.items():
        if (group := groups.get(name)) is not None:
            _title(group, told)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _title(group: ElementTree.Element, texts: Sequence[str]) -> None:
    """Title a group, or the marks in it; those that lie outside of the axes are not there."""
    if len(texts) == 1:
        group.insert(0, _element(texts[0]))
        return
    # matplotlib writes a mark once and then where it is used, or, if there are few, anew at each place.
    for kind in ("use", "path"):
        marks = [(parent, mark) for parent in group.iter() if parent.tag != _DEFINED for mark in parent]
        marks = [(parent, mark) for parent, mark in marks if mark.tag == f"{{{SVG}}}{kind}"]
        if len(marks) == len(texts):
            for (parent, mark), text in zip(marks, texts, strict=True):
                # Around the mark: some readers pass over the title of a `use`.
                around = ElementTree.Element(f"{{{SVG}}}g")
                parent[list(parent).index(mark)] = around
                around.extend([_element(text), mark])
            return


def _element(text: str) -> ElementTree.Element:
    title = ElementTree.Element(f"{{{SVG}}}title")
    title.text = readable(text)
    return title
