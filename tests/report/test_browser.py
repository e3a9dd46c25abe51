"""A run's page in a browser: a silent console, nothing asked for, nothing cut; wide, narrow, dark and on paper."""

import base64
import re

import pytest

import koopman_interp as ki
from koopman_interp.report.look import DARK
from koopman_interp.testing import yin_yang
from tests.report import browser
from tests.report.conftest import SPOKEN

pytestmark = pytest.mark.skipif(browser.found() is None, reason="there is no Chromium here to show pages in")

CONTRAST = """(() => {
  const light = color => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = color => { const [a, b] = [light(color), paper].sort((x, y) => y - x); return (a + .05) / (b + .05); };
  return [...document.querySelectorAll(SELECTED)].map(each => ratio(getComputedStyle(each)[PROPERTY]));
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.running(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def folders(tmp_path_factory, trained):
    """Two runs, of edits of two classes, with all that a run can hold."""
    model, koopman, fitted = trained
    x, y = yin_yang(120, seed=5)
    spectrum = ki.spectrum(koopman, fitted)
    faith = ki.fidelity(model, koopman, held_out=(x, y), fitted=fitted, spans="to_target")
    folder = tmp_path_factory.mktemp("runs")
    for label in (1, 2):
        edit = ki.erase_class(koopman, label=label)
        patches = [ki.patched(model, koopman, edit, mode=mode) for mode in ("delta", "replace")]
        ki.write_run(
            folder / f"without-{label}", koopman, trajectories=fitted, spectrum=spectrum, fidelity=faith, edit=edit,
            lens=ki.koopman_lens(model, koopman, x[:5]), audits=[ki.audit(patch, held_out=(x, y)) for patch in patches],
            topologies={"model": ki.topology_bands(fitted, subsets=2, points=30)}, class_names=("yin", "yang", "dot"),
            title=f"Without {label}", command="python edit.py",
            modes=ki.describe_modes(koopman, spectrum, fitted, model=model, batches=x), language=[SPOKEN],
        )  # fmt: skip
    return [folder / f"without-{label}" for label in (1, 2)]


@pytest.fixture(scope="module", params=["run", "comparison"])
def page(request, folders, tmp_path_factory):
    if request.param == "run":
        return folders[1] / "report.html"
    return ki.compare_runs(*folders, tmp_path_factory.mktemp("compared") / "compared.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_page_is_silent_asks_for_nothing_and_is_as_wide_as_the_window(tab, page, width, scheme):
    tab.open(page, width, scheme=scheme)
    assert tab.said() == []
    assert tab.asked_for() == [page.resolve().as_uri()]
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("document.scripts.length") == 0


def test_nothing_is_cut_on_a_wide_window(tab, folders):
    tab.open(folders[1] / "report.html", 1280)
    tab.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    cut = "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth)"
    assert tab.value(f"{cut}.map(each => each.ariaLabel)") == []


def test_the_first_column_stays_where_a_table_scrolls(tab, folders):
    tab.open(folders[1] / "report.html", 400)
    table = (
        "[...document.querySelectorAll('.scroll')].find(each => each.querySelector('table') && each.scrollWidth > 600)"
    )
    assert tab.value(f"{table}.ariaLabel").startswith("At the output")
    left = f"{table}.querySelector('tbody th').getBoundingClientRect().left"
    before = tab.value(left)
    assert tab.value(f"{table}.scrollLeft = 200, {table}.scrollLeft") == 200
    assert tab.value(left) == before


def test_figures_are_dark_where_the_page_is(tab, folders):
    for scheme in ("light", "dark"):
        tab.open(folders[1] / "report.html", 1280, scheme=scheme)
        paper = tab.value("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
        background = "getComputedStyle(document.querySelector('svg [id$=figure_1] [id$=patch_1] path')).fill"
        assert tab.value(background) == paper
        texts = CONTRAST.replace("SELECTED", "'p, td, th, dd, dt, figcaption, blockquote, a'").replace(
            "PROPERTY", "'color'"
        )
        assert min(tab.value(texts)) > 4.5
        written = CONTRAST.replace("SELECTED", "'svg [id*=\"-text_\"] use'").replace("PROPERTY", "'fill'")
        ratios = tab.value(written)
        assert len(ratios) > 100
        assert min(ratios) > 4.5


def test_every_colour_of_a_figure_has_a_dark_one(folders):
    page = (folders[1] / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"var\(--c([0-9a-f]{6}),", page)) <= set(DARK)


def test_a_pointer_is_told_of_each_mode(tab, folders):
    tab.open(folders[1] / "report.html", 1280)
    count = tab.value(
        "[...document.querySelectorAll('svg title')].filter(t => /^mode .*: .λ. /.test(t.textContent)).length"
    )
    assert count == len(ki.Spectrum.load(folders[1] / "spectrum.safetensors").eigenvalues)


def test_paper_is_white_and_nothing_is_hidden_behind_an_edge(tab, folders, tmp_path):
    tab.open(folders[1] / "report.html", 720, scheme="dark", media="print")
    assert tab.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    wide = "[...document.querySelectorAll('table, svg')].filter(each => each.getBoundingClientRect().right > 720)"
    assert tab.value(f"{wide}.map(each => each.textContent.slice(0, 60))") == []
    printed = base64.b64decode(tab.call("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF")


def test_every_link_of_the_contents_leads_to_a_section(tab, page):
    tab.open(page, 1280)
    assert tab.value(
        "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash).tagName == 'H2')"
    )
