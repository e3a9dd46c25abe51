"""A run's folder holds what the run made; its page shows the numbers and nothing that was not escaped."""

import json
import re
from dataclasses import asdict, replace
from html import escape, unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis.spectra.eigen import PRINTED
from koopman_interp.files import read_json, write_json
from koopman_interp.report.folder import read_run
from koopman_interp.report.page import build_page
from koopman_interp.testing import yin_yang
from tests.report.conftest import EVIL, SPOKEN

PARTS = ("trajectories", "spectrum", "modes", "topologies", "fidelity", "edit", "audits", "language")


@pytest.fixture(scope="module")
def page(run):
    return (run[0] / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags close in order."""

    VOID = ("meta", "img")

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.closed_well = [], [], "", True
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.closed_well &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_surrogate_edit_and_trajectories_load_as_they_were_given(run):
    folder, values = run
    koopman = ki.KoopmanAutoencoder.from_pretrained(folder / "koopman")
    given = values["koopman"]
    assert koopman.config == given.config
    assert all(torch.equal(given.state_dict()[name], tensor) for name, tensor in koopman.state_dict().items())
    edit, was = ki.OperatorEdit.load(folder / "edit.safetensors"), values["edit"]
    assert (edit.description, edit.site, edit.depth, edit.certificate) == (
        was.description,
        was.site,
        was.depth,
        was.certificate,
    )
    for name in ("directions", "readers", "offset", "moved"):
        assert torch.equal(getattr(edit, name), getattr(was, name))
    assert str(ki.Spectrum.load(folder / "spectrum.safetensors")) == str(values["spectrum"])
    (topology,) = values["topologies"].values()
    assert str(ki.Topology.load(folder / "topology-0.safetensors")) == str(topology)
    states, were = ki.Trajectories.load(folder / "trajectories.safetensors"), values["trajectories"]
    assert all(torch.equal(*pair) for pair in zip(states.states, were.states, strict=True))
    assert torch.equal(states.labels, were.labels)


def test_the_numbers_are_those_of_the_values_and_are_finite(run):
    folder, values = run

    def refuse(name):
        raise AssertionError(name)

    found = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    assert found["audits"][0]["rows"][0] == json.loads(json.dumps(asdict(values["audits"][0].rows[0])))
    assert found["audits"][0]["rows"][-1]["kl"] is None
    assert [one["certificate"] for one in found["edits"]] == [asdict(values["edit"].certificate)]
    assert found["spectrum"]["condition"] is None
    assert found["spectrum"]["residuals"] == pytest.approx(values["spectrum"].residuals.tolist(), rel=1e-12)
    assert found["topologies"][EVIL] == values["topologies"][EVIL].as_dict()
    assert found["fidelity"]["rows"] == 1234
    assert found["surrogate"]["history"] == list(values["koopman"].record.history)


def shown(page, audit, name, caption="At the output, then what the last states still hold"):
    """The cells of a method in a table of an audit, by heading."""
    rows = f"{audit['forget_rows' if caption.startswith('At') else 'forget_training_rows']:,}"
    body = next(part for part in page.split("<caption>") if part.startswith(caption) and rows in part.split("<")[0])
    header, *lines = body.split("</table>")[0].split("<tr")[1:]
    (line,) = (line for line in lines if f">{escape(name)}</th>" in line.split("<td")[0])
    headings = re.findall(r"<th[^>]*>(.*?)</th>", header)[1:]
    return dict(zip(headings, re.findall(r"<td>(.*?)</td>", line), strict=True))


def test_the_page_shows_every_number_of_the_audit(run, page):
    audit = read_json(run[0] / "metrics.json")["audits"][0]
    for row in audit["rows"]:
        assert shown(page, audit, row["name"]) == {
            "forget accuracy ↓": f"{100 * row['forget_accuracy']:.2f}",
            "retain accuracy ↑": f"{100 * row['retain_accuracy']:.2f}",
            "KL to base model": "–" if row["kl"] is None else f"{row['kl']:.4f}",
            "linear probe": f"{100 * row['linear_probe']:.1f}",
            "RBF probe": f"{100 * row['rbf_probe']:.1f}",
            "10-shot": f"{100 * row['prototype']:.1f}",
        }
    assert "Reversible suppression; a probe still finds d$t (class 2) at 93.9 %" in page


def test_the_page_shows_what_else_was_measured(run, page):
    audit = read_json(run[0] / "metrics.json")["audits"][1]
    output = ["1.23", "0.2 … 5.5", "96.45", "0.0345", "3.3", "43.2"]
    states = ["71.7", "93.9", "82.2", "11.1", "22.2", "40.1", "8.8"]
    assert list(shown(page, audit, EVIL).values()) == output + states
    training = "On rows that were trained on"
    assert list(shown(page, audit, EVIL, training).values()) == ["0.62", "98.76", "43.2 ± 4.2", "49.9 ± 4.0"]
    assert list(shown(page, audit, "base model", training).values())[-1] == "52.1 ± –"
    assert "<td>1 / 96</td><td>66 / 93</td>" in page
    assert "<td>72.2 / 40.0</td><td>72.2 / 40.0</td>" in page
    assert "<td>90.0</td><td>80.0</td><td>3.457</td>" in page
    for name in ("audit-1-depths", "audit-1-relearning"):
        assert f'aria-label="Figure: {name}"' in page


def test_only_the_edit_is_highlighted_in_the_audit(page):
    marked = re.findall(r'<tr class="marked"><th scope="row">(.*?)</th>', page)
    assert marked == ["edit (delta)", *[escape(EVIL)] * 4, "edit (delta)", "surrogate"]


def test_the_page_shows_fidelity_beside_what_is_free(page):
    for number in ("0.0123", "0.0789", "1.5321", "1.0001", "0.3456", "91.23", "0.0712"):
        assert f">{number}</td>" in page


def test_the_page_shows_the_tables_that_results_print(run, page):
    _, values = run
    (topology,) = values["topologies"].values()
    results = (values["spectrum"], "spectrum"), (topology, "topology-0"), (values["modes"], "modes")
    for result, name in (*results, (values["language"][0], "language-0")):
        for table in result.tables():
            header, *rows = cells(page.split(f'<h2 id="{name}"')[1], escape(table.caption))
            assert header == [escape(column.name) for column in table.columns]
            texts = list(zip(*(map(escape, column.cells()) for column in table.columns), strict=True))[: table.most]
            assert [tuple(row) for row in rows[: len(texts)]] == texts


def test_what_is_said_before_and_under_an_edit_stands_side_by_side(page):
    for name in ("language-0", "language-1"):
        (body,) = re.findall(rf'<section aria-labelledby="{name}">(.*?)</section>', page, re.DOTALL)
        pairs = [re.findall(r"<figcaption>(.*?)</figcaption><blockquote>(.*?)</blockquote>", each, re.DOTALL)
                 for each in body.split('class="pair texts"')[1:]]  # fmt: skip
        texts = [[unescape(re.sub("<.*?>", "", text)) for _, text in pair] for pair in pairs]
        assert texts == [[row.samples[place] for row in SPOKEN.rows.values()] for place in range(2)]
        assert [unescape(method) for method, _ in pairs[0]] == [*SPOKEN.rows]
        same = [method for method, _ in pairs[1][1:]]
        assert same == [f"{escape(each)}, word for word the same" for each in [*SPOKEN.rows][1:]]
        marked = [re.findall("<mark>(.*?)</mark>", text, re.DOTALL) for _, text in pairs[0]]
        assert marked == [[], ["no one."], [escape(f"slept {EVIL}.")]]


def test_a_language_audit_leads_a_run_without_another(tmp_path):
    page = ki.write_run(tmp_path / "run", language=[SPOKEN]).read_text(encoding="utf-8")
    lead = re.sub(r"<.*?>", "", re.search(r'<p class="result">(.*?)</p>', page)[1])
    assert "follows on 87.6 % of the prompts that it is about, where the base model has 12.3 %." in lead
    assert "takes the perplexity of other texts from 3.46 to 3.57." in lead


def test_a_run_of_an_older_version_has_a_page(tmp_path, run):
    ki.write_run(tmp_path / "run", edit=run[1]["edit"])
    values = read_json(tmp_path / "run" / "metrics.json")
    write_json(tmp_path / "run" / "metrics.json", {k: v for k, v in values.items() if k not in ("modes", "language")})
    page = (tmp_path / "run" / "report.html").read_bytes()
    assert build_page(tmp_path / "run").read_bytes() == page


def test_language_and_modes_come_back_from_a_folder_as_they_were_given(run):
    folder, values = run
    there = read_run(folder)
    assert there.language == tuple(values["language"])
    assert there.modes == values["modes"]


def test_a_run_may_have_a_surrogate_alone(tmp_path, surrogate):
    page = ki.write_run(tmp_path / "run", surrogate).read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(.*?)">', page) == ["primer", "fit", "glossary", "files", "provenance"]
    assert Reader(page).closed_well
    assert "This run holds no audit, no fidelity and no spectrum." in page
    before = (tmp_path / "run" / "report.html").read_bytes()
    assert build_page(tmp_path / "run").read_bytes() == before


@pytest.mark.parametrize("part", [*PARTS, None])
def test_a_run_may_have_any_part_alone(tmp_path, run, part):
    given = {} if part is None else {part: run[1][part]}
    page = ki.write_run(tmp_path / "run", **given).read_text(encoding="utf-8")
    assert Reader(page).closed_well
    assert not (tmp_path / "run" / "koopman").exists()
    sections = re.findall(r'<h2 id="([a-z]+)', page)
    assert len(sections) > 4 or part is None
    assert build_page(tmp_path / "run").read_text(encoding="utf-8") == page


def test_sections_come_in_the_order_of_trust(page):
    order = ["trajectories", "audit-0", "audit-1", "language-0", "language-1", "edit", "fidelity", "spectrum", "modes"]
    order += ["topology-0", "fit", "glossary", "files", "provenance"]
    assert re.findall(r'<h2 id="(.*?)">', page) == ["primer", *order]
    assert re.findall(r'<li><a href="#(.*?)">', page) == order


def test_text_that_means_harm_stays_text(page):
    assert "<script" not in page.lower()
    assert escape(EVIL) in page
    reader = Reader(page)
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert reader.text.count(EVIL) >= 6


def test_the_page_is_well_formed_and_needs_nothing_from_outside(run, page):
    reader = Reader(page)
    assert reader.closed_well
    assert not reader.open
    identities = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(set(identities)) == len(identities)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
    assert "http://" not in page
    assert "https://" not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert all(attributes["href"].startswith("#") for _, attributes in reader.tags if "href" in attributes)
    figures = [attributes for tag, attributes in reader.tags if tag == "svg"]
    assert len(figures) == len(list((run[0] / "figures").glob("*.svg")))
    assert all(figure["aria-label"] for figure in figures)
    assert len(page) < 3e6


def test_every_reference_in_a_figure_leads_to_one_of_its_own(page):
    for figure in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        inside = set(re.findall(r' id="(.*?)"', figure))
        assert set(re.findall(r'(?:href="#|url\(#)(.*?)[")]', figure)) <= inside


def test_a_mark_tells_its_mode_to_a_pointer(run, page):
    titles = re.findall(r"<title>(mode \d+: \|λ\| .*?)</title>", page)
    assert len(titles) == len(run[1]["spectrum"].eigenvalues)
    for title, trusted in zip(
        sorted(titles, key=lambda one: int(one.split()[1][:-1])), run[1]["spectrum"].trusted, strict=True
    ):
        assert title.endswith("not trusted") != trusted


def test_tables_have_captions_and_headers_with_scope(page):
    assert page.count("<table>") == page.count("<caption>") >= 6
    assert "<th>" not in page


def test_the_lead_is_three_sentences_with_the_numbers_of_the_first_audit(run, page):
    rows = read_json(run[0] / "metrics.json")["audits"][0]["rows"]
    before, after = rows[0], rows[-1]
    lead = re.sub(r"<.*?>", "", re.search(r'<p class="result">(.*?)</p>', page)[1])
    for row, name in ((before, "forget"), (after, "forget"), (before, "retain"), (after, "retain")):
        assert f"{100 * row[f'{name}_accuracy']:.1f}" in lead
    assert f"d$t (class 2) in the last states at {100 * max(after['linear_probe'], after['rbf_probe']):.1f} %" in lead


def test_the_page_says_where_the_run_comes_from(run, page):
    made = read_json(run[0] / "metrics.json")["made"]
    koopman = run[1]["koopman"]
    assert made["torch"] == torch.__version__
    assert (made["digest of the model"], made["digest of the surrogate"]) == (
        koopman.config.host.weights,
        koopman.digest(),
    )
    for name, value in made.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page


def test_edits_on_the_same_rows_stand_in_one_table(tmp_path, run):
    first = run[1]["audits"][0]
    own = replace(first.rows[-1], name="edit (replace)", forget_accuracy=0.25)
    second = replace(first, rows=(*first.rows[:-1], own))
    other = replace(first, edit="another", rows=(*first.rows[:-1], replace(first.rows[-1], retain_accuracy=0.5)))
    page = ki.write_run(tmp_path / "run", audits=[first, second, other]).read_text(encoding="utf-8")
    assert page.count("At the output, then") == 2  # the table, and its name for those who cannot see
    names = [row[0] for row in cells(page, "At the output, then")[1:]]
    assert len(names) == len(first.rows) + 2
    assert names[-1] == "another, edit (delta)"
    marked = page.split('class="marked"')[1:]
    assert ["25.00" in part.split("</tr>")[0] for part in marked[:3]] == [False, True, False]


def test_a_rebuilt_page_is_the_same_bytes(run):
    folder, _ = run
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert build_page(folder).read_bytes() == before


def test_the_slowest_modes_are_listed_with_their_residuals(run, page):
    spectrum = run[1]["spectrum"]
    listed = page.split("Slowest modes first")[-1].split("</table>")[0]
    upper = [index for index, value in enumerate(spectrum.eigenvalues) if value.imag >= 0][:PRINTED]
    shown = [
        (int(i), float(size), float(residual))
        for i, size, residual in re.findall(
            r'row">(\d+)</th><td>([\d.]+)</td>(?:<td>[^<]*</td>){3}<td>([\d.]+)</td>', listed
        )
    ]
    assert [i for i, _, _ in shown] == upper
    assert np.allclose([size for _, size, _ in shown], spectrum.decay[upper], atol=1e-4)
    assert np.allclose([residual for _, _, residual in shown], spectrum.residuals[upper], atol=1e-3)


@pytest.fixture(scope="module")
def longer(tmp_path_factory, run, trained):
    """A run with spans, a lens and an edit at several sites, on a host that is there."""
    _, values = run
    model, koopman, fitted = trained
    x, y = yin_yang(40, seed=5)
    faith = ki.fidelity(model, koopman, held_out=(x, y), fitted=fitted, spans="to_target")
    lens = ki.koopman_lens(model, koopman, x, names=["yin", EVIL, "dot"])
    edits = ki.each_site(koopman, lambda depth: ki.erase_class(koopman, label=2, site=depth), [1, 2])
    own = {**values, "koopman": koopman, "fidelity": faith, "edit": edits, "lens": lens, "audits": values["audits"][:1]}
    own["topologies"] = {}  # drawing is slow, and what the other run shows is shown there
    folder = tmp_path_factory.mktemp("longer") / "run"
    ki.write_run(folder, title="", command="", **own)
    return folder, own


def cells(page, caption):
    """The cells of the table whose caption starts so, one list a row."""
    body = next(part for part in page.split("<caption>") if part.startswith(caption)).split("</table>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in body.split("<tr")[1:]]


def test_the_page_shows_spans_a_lens_and_an_edit_at_several_sites(longer):
    folder, values = longer
    page = (folder / "report.html").read_text(encoding="utf-8")
    faith, lens, edits = values["fidelity"], values["lens"], values["edit"]
    for result in (faith, lens):
        for table in result.tables():
            header, *rows = cells(page, escape(table.caption))
            assert header == [escape(column.name) for column in table.columns]
            assert rows == [
                [escape(cell) for cell in row] for row in zip(*(c.cells() for c in table.columns), strict=True)
            ]
    _, *rows = cells(page, "KL to the model, nats, with each substitute for a span")
    assert len(rows) == len(faith.spans)
    for row, span in zip(rows, faith.spans, strict=True):
        assert row[0] == f"{span.source} → {span.target}"
        assert row[1:] == [f"{output.kl:,.3f}" for output in span.outputs[1:]]
    _, *depths = cells(page, "Mean over")
    agreeing = (lens.top[:, :, 0] == lens.top[-1, :, 0]).double().mean(1).tolist()
    for row, site, kl, share in zip(depths, lens.sites, lens.kl.double().mean(1).tolist(), agreeing, strict=True):
        assert row == [site, f"{kl:.3f}", f"{100 * share:.1f}"]
    _, *samples = cells(page, "Likeliest output and its probability")
    for number, row in enumerate(samples):
        outputs = [f"{lens.said(d, number)} {lens.probability[d, number, 0]:.2f}" for d in range(len(lens.sites))]
        assert row == [lens.inputs[number], *map(escape, outputs)]
    header, *rows = cells(page, "What can be said of the edit")
    assert [row[0] for row in rows] == [edit.site for edit in edits]
    drifts = [f"{100 * edit.certificate.retained_drift:.2f}" for edit in edits]
    assert [row[header.index("retained drift %")] for row in rows] == drifts
    assert "at 2 sites</h2>" in page
    assert {path.stem for path in (folder / "figures").glob("*.svg")} >= {"spans", "lens"}
    sections = re.findall(r'<h2 id="(.*?)">', page)
    assert sections.index("lens") == sections.index("fidelity") + 1
    kept = ki.EditSet.load(folder / "edit.safetensors")
    assert all(torch.equal(one.directions, was.directions) for one, was in zip(kept, edits, strict=True))
    assert torch.equal(ki.LensReading.load(folder / "lens.safetensors").top, lens.top)
    assert "<script" not in page.lower()
