"""Figures as parts of a page: SVG that holds drawings and texts and nothing that could run, load or clash.

An SVG file that lies in a folder may be anybody's. What comes into a page is made anew of the elements, attributes and
styles that drawings need; all else is dropped, a reference leads only within the figure, and every id carries the
figure's name. Colours become variables of the page, so that a figure is dark where the page is.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from koopman_interp.errors import FileFormatError
from koopman_interp.tables import escaped

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_ELEMENTS = frozenset({"svg", "g", "defs", "path", "use", "clipPath", "rect", "circle", "title", "pattern"})
_NUMBERS = frozenset({"x", "y", "width", "height", "r", "cx", "cy", "d", "transform", "viewBox", "patternUnits"})
_STYLES = frozenset(
    {
        "fill", "fill-opacity", "opacity", "stroke", "stroke-dasharray", "stroke-dashoffset", "stroke-linecap",
        "stroke-linejoin", "stroke-miterlimit", "stroke-opacity", "stroke-width",
    }
)  # fmt: skip
_PLAIN = re.compile(r"[\w\s.,:%+()#-]*\Z")
"""What an attribute may hold: numbers, names of units and transforms, colours."""
_REFERENCE = re.compile(r"url\(#([\w.-]+)\)\Z")
_NAME = re.compile(r"[\w.-]+\Z")
_COLOUR = re.compile(r"#([0-9a-f]{6})\Z")
_LENGTH = re.compile(r"[\d.]+(pt)?\Z")
_DEEPEST = 100
"""Elements within each other; matplotlib's are some ten deep."""


def inline(svg: bytes, name: str, label: str) -> str:
    """Return a figure as an `<svg>` element of a page.

    Args:
        svg: what an SVG file holds.
        name: of the figure, which its ids begin with.
        label: what it shows, in words, for those who cannot see it.

    Raises:
        FileFormatError: it is not whole, or is no SVG.
    """
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, ValueError) as error:
        raise FileFormatError(f"The figure {name} is not a whole SVG ({error}). Write the run again.") from error
    if root.tag != f"{_SVG}svg":
        raise FileFormatError(f"The figure {name} is no SVG. Write the run again.")
    box = root.get("viewBox", "")
    shape = f' viewBox="{escaped(box)}"' if _PLAIN.match(box) else ""
    for side in ("width", "height"):
        if _LENGTH.match(root.get(side, "")):
            shape += f' {side}="{root.get(side)}"'
    body = "".join(_element(child, name, 1) for child in root)
    return f'<svg role="img" aria-label="{escaped(label)}"{shape}>{body}</svg>'


def _element(element: ElementTree.Element, name: str, depth: int) -> str:
    tag = element.tag.removeprefix(_SVG) if isinstance(element.tag, str) else ""
    if tag not in _ELEMENTS or depth > _DEEPEST:
        return ""
    if tag == "title":
        return f"<title>{escaped(element.text or '')}</title>"
    attributes = "".join(
        f' {known}="{escaped(value)}"'
        for key, given in element.attrib.items()
        for known, value in [_attribute(key, given, name)]
        if known
    )
    inner = "".join(_element(child, name, depth + 1) for child in element)
    return f"<{tag}{attributes}>{inner}</{tag}>" if inner else f"<{tag}{attributes}/>"


def _attribute(key: str, value: str, name: str) -> tuple[str, str]:
    """Return an attribute as the page may hold it; without a name where it may not."""
    if key in _NUMBERS and _PLAIN.match(value):
        return key, " ".join(value.split())
    if key == "id" and _NAME.match(value):
        return key, f"{name}-{value}"
    if key in ("href", f"{_XLINK}href") and value.startswith("#") and _NAME.match(value[1:]):
        return "href", f"#{name}-{value[1:]}"
    if key == "clip-path" and (inside := _REFERENCE.match(value)):
        return key, f"url(#{name}-{inside[1]})"
    if key == "style":
        return key, _style(value, name)
    return "", ""


def _style(style: str, name: str) -> str:
    """Keep the declarations that a drawing needs, its colours as variables."""
    kept = []
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key not in _STYLES:
            continue
        if colour := _COLOUR.match(value):
            kept.append(f"{key}:var(--c{colour[1]},#{colour[1]})")
        elif inside := _REFERENCE.match(value):
            kept.append(f"{key}:url(#{name}-{inside[1]})")
        elif _PLAIN.match(value) and "(" not in value:
            kept.append(f"{key}:{value}")
    return ";".join(kept)
