"""A page of two runs shows the numbers of both, as the JSON of each has them, and marks those that differ."""

import re
from dataclasses import replace
from html import unescape

import pytest

import koopman_interp as ki
from koopman_interp.files import read_json
from koopman_interp.report.paired_tables import differing, paired
from koopman_interp.tables import Column, Table
from tests.plotting.test_audits import AUDIT
from tests.plotting.test_plotting import FIDELITY, TOPOLOGY
from tests.report.conftest import SPOKEN, texts_alone

OTHERWISE = "Once upon a time nobody sang."
TEXTS = replace(
    SPOKEN, rows={name: replace(texts_alone(row), samples=(OTHERWISE, "A")) for name, row in SPOKEN.rows.items()}
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    ki.write_run(
        folder / "a", audits=[AUDIT], language=[TEXTS], fidelity=FIDELITY, title="<first>", facts={"data": "x"}
    )
    other = replace(AUDIT, rows=(*AUDIT.rows[:-1], replace(AUDIT.rows[-1], retain_accuracy=0.5)))
    shapes = {"model": TOPOLOGY}
    ki.write_run(
        folder / "b", audits=[other], language=[SPOKEN], topologies=shapes, title="second", facts={"data": "y"}
    )
    return folder / "a", folder / "b"


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    return ki.compare_runs(*folders, tmp_path_factory.mktemp("out") / "page.html").read_text(encoding="utf-8")


def rows(page, caption):
    """Cells of a table by row and heading: one value, or those of A and B, and whether they are marked."""
    body = next(part for part in page.split("<caption>")[1:] if caption in part.split("</caption>")[0])
    head, *lines = body.split("</table>")[0].split("<tr>")[1:]
    headings = [unescape(name) for name in re.findall(r"<th[^>]*>(.*?)</th>", head)][1:]
    found = {}
    for line in lines:
        name = unescape(re.search(r'<th scope="row">(.*?)</th>', line)[1])
        cells = re.findall(r"<td(.*?)>(.*?)</td>", line)
        values = [
            (
                tuple(map(unescape, re.findall(r"</b>(.*?)</span>", cell))) or (unescape(cell),) * 2,
                "differs" in look,
            )
            for look, cell in cells
        ]
        found[name] = dict(zip(headings, values, strict=True))
    return found


def test_every_number_of_both_audits_is_there_and_those_that_differ_are_marked(folders, page):
    a, b = (read_json(folder / "metrics.json")["audits"][0]["rows"] for folder in folders)
    found = rows(page, "At the output, then")
    for ours, theirs in zip(a, b, strict=True):
        for heading, name in (("forget accuracy ↓", "forget_accuracy"), ("retain accuracy ↑", "retain_accuracy")):
            values, marked = found[ours["name"]][heading]
            assert values == (f"{100 * ours[name]:.2f}", f"{100 * theirs[name]:.2f}")
            assert marked == (ours[name] != theirs[name])


def test_what_one_run_alone_has_stands_beside_a_dash(folders, page):
    fidelity = read_json(folders[0] / "metrics.json")["fidelity"]
    found = rows(page, "output, substituted for")
    for row in fidelity["outputs"]:
        assert found[row["name"]]["agreement %"] == ((f"{100 * row['agreement']:.2f}", "–"), True)
    ours, theirs = rows(page, "Betti numbers by scale")["first"]["β0 at 0.1"][0]
    assert (ours, theirs) == ("–", str(TOPOLOGY.betti(0.1)[0][0]))
    assert page.count("<figcaption>A</figcaption>") >= 1


def test_texts_stand_beside_texts_whatever_else_a_run_asked(page):
    found = rows(page, "How the model goes on")
    assert found["1"]["edit (delta)"] == ((OTHERWISE, " ".join(SPOKEN.rows["edit (delta)"].samples[0].split())), True)
    assert found["2"]["edit (delta)"] == (("A", "A"), False)
    scores = rows(page.split('<h2 id="language-0"')[1], "What the language model does")
    assert scores["edit (delta)"]["perplexity"] == (("–", "3.568"), True)


def test_facts_are_compared_and_escaped(page):
    found = rows(page, "What was done")
    assert found["data"]["value"] == (("x", "y"), True)
    assert found["torch"]["value"][1] is False
    assert found["title"]["value"][0] == ("<first>", "second")
    assert "<first>" not in page


def test_a_run_beside_itself_differs_in_nothing(folders, tmp_path):
    page = ki.compare_runs(folders[0], folders[0], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "differs" not in page.split("</style>")[1]
    assert "<p>0 of the cells below differ" in page
    assert page.count("The same in A and B.") == page.count("<svg")


def test_pairs_of_tables_keep_rows_columns_and_marks():
    one = Table((Column("row", ("a", "a", "b")), Column("x", (1, 2, 3))), "One.")
    other = Table((Column("row", ("a", "c")), Column("x", (1, 4)), Column("y", (5, 6))), "Other.")
    assert differing(one, one) == 0
    assert differing(one, other) == 5  # a (2), b and c in x; a and c in y
    found = rows(paired(one, other), "A: One. B: Other.")
    assert found["a"]["x"] == (("1", "1"), False)
    assert found["a (2)"]["x"] == (("2", "–"), True)
    assert found["c"]["y"] == (("–", "6"), True)


def test_a_folder_without_a_run_is_told(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ki.compare_runs(folders[0], tmp_path / "nowhere", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
