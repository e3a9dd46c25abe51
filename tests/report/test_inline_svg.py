"""A figure in a page can neither run, nor load, nor reach another figure, whatever its file holds."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koopman_interp.errors import FileFormatError
from koopman_interp.report.inline_svg import inline

FRAME = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">{}</svg>'
HARM = [
    "<script>alert(1)</script>",
    '<g onload="alert(1)"/>',
    '<foreignObject><img xmlns="http://www.w3.org/1999/xhtml" src="x" onerror="alert(1)"/></foreignObject>',
    '<image xlink:href="http://example.org/x.png"/>',
    '<a xlink:href="javascript:alert(1)"><path d="M 0 0"/></a>',
    '<use xlink:href="other.svg#x"/>',
    '<use xlink:href="data:image/svg+xml,x"/>',
    '<path style="fill: url(http://example.org/x)"/>',
    '<path style="fill:red;background:url(//example.org)"/>',
    '<path clip-path="url(http://example.org/x)"/>',
    '<style>* { background: url(http://example.org/) }</style>',
    '<animate attributeName="href" to="javascript:alert(1)"/>',
    '<set attributeName="onload" to="alert(1)"/>',
    '<path d="M 0 0&quot; onload=&quot;alert(1)"/>',
    '<path id="a&quot; onload=&quot;b" transform="x&quot;&gt;&lt;script&gt;"/>',
    "<title>&lt;script&gt;alert(1)&lt;/script&gt;</title>",
    "<iframe src='http://example.org'/>",
]  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def harmless(text):
    tags = Tags(text).tags
    assert {tag for tag, _ in tags} <= {"svg", "g", "defs", "path", "use", "clippath", "rect", "circle", "title"}
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert not re.search(r"url\((?!#figure-)", " ".join(filter(None, attributes.values())))


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_dropped_and_the_drawing_stays(harm):
    made = inline(FRAME.format(f'{harm}<path id="p" d="M 0 0 L 1 1"/>').encode(), "figure", 'a "label" <b>')
    harmless(made)
    assert "example.org" not in made
    assert '<path id="figure-p" d="M 0 0 L 1 1"/>' in made
    assert 'aria-label="a &quot;label&quot; &lt;b&gt;"' in made


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(["id", "d", "style", "onload"]))
def test_no_attribute_gets_out_of_its_quotes(value, name):
    quoted = "".join(f"&#{ord(each)};" if ord(each) >= 32 else "" for each in value)
    try:
        made = inline(FRAME.format(f'<path {name}="{quoted}"/>').encode(), "figure", "label")
    except FileFormatError:
        return  # no XML
    harmless(made)
    assert [tag for tag, _ in Tags(made).tags] == ["svg", "path"]


def test_ids_and_references_carry_the_name_of_the_figure():
    body = '<defs><clipPath id="c"><rect x="0"/></clipPath></defs><use xlink:href="#m" clip-path="url(#c)"/>'
    made = inline(FRAME.format(body).encode(), "figure", "label")
    assert ('id="figure-c"' in made, 'href="#figure-m"' in made, "url(#figure-c)" in made) == (True,) * 3


def test_colours_are_variables_of_the_page():
    made = inline(FRAME.format('<path style="fill: #0072b2; stroke-width: 2"/>').encode(), "figure", "label")
    assert 'style="fill:var(--c0072b2,#0072b2);stroke-width:2"' in made


@pytest.mark.parametrize("text", ["", "<svg", "<html/>", FRAME.format("&nothing;"), "\0"])
def test_what_is_no_svg_is_refused(text):
    with pytest.raises(FileFormatError, match="figure"):
        inline(text.encode(), "figure", "label")


def test_a_deep_file_costs_no_stack():
    deep = FRAME.format("<g>" * 3000 + "</g>" * 3000)
    assert inline(deep.encode(), "figure", "label").count("<g") < 200
