"""Every public result prints, shows itself in a notebook, becomes a data frame and draws, from the same columns."""

import json
import re
import sys
from dataclasses import dataclass
from html import unescape

import numpy as np
import pytest
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy import ndarray

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.auditing.language import LanguageScores
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import json_digest
from koopman_interp.forgetting.choice import Choice
from koopman_interp.forgetting.suppression import SuppressionTrial
from koopman_interp.results import PlainResult, Result
from koopman_interp.tables import Column, Table
from koopman_interp.testing import yin_yang

NOT_DRAWN = {
    "EditSet": "figures of certificates, a site a row",
    "Forgetting": "a table of what was tried",
    "LanguageAudit": "a few shares",
    "ModeMeaning": "several modes are drawn together, as ModeMeanings",
    "OperatorEdit": "facts of a certificate",
    "Reach": "two rows of shares",
    "Suppression": "a table of what was tried",
    "PermutationTest": "one difference and its p-value",
    "SchurForm": "a list of blocks",
    "VampScores": "a score by the number of modes",
    "SiteTable": "a list of names",
    "SpectralDistance": "two numbers",
}
"""Results without a figure of their own, and why."""


@pytest.fixture(scope="module")
def results(trained, trajectories, surrogate):
    """A real instance of every public result."""
    model, koopman, fitted = trained
    x, y = yin_yang(120, seed=5)
    spectrum = ki.spectrum(koopman, fitted)
    topology = ki.topology(fitted, points=40)
    bands = ki.topology_bands(fitted, subsets=2, points=20)
    meanings = ki.describe_modes(koopman, spectrum, fitted, model=model, batches=x, modes=2)
    edit = ki.erase_class(koopman, label=2)
    options = {"held_out": (x, y), "label": 2, "candidates": [edit]}
    scores = LanguageScores(0.9, None, 0.8, 3.5, ("once upon",), {"reliability": (0.7, 0.95)})
    made = [
        fitted,
        ki.audit(ki.patched(model, koopman, edit), held_out=(x, y)),
        ki.LanguageAudit("erase", {"base model": scores, "edit": scores}),
        koopman.record,
        edit,
        ki.each_site(koopman, lambda depth: ki.erase_class(koopman, label=2, site=depth), [1, 2]),
        ki.forget(model, koopman, fitted=fitted, **options),
        ki.reach(ki.patched(model, koopman, edit), held_out=x),
        suppressed(koopman),
        ki.Frontier("left, %", "cost, %", 97.0, (ki.FrontierPoint("mask", 1.0, 0.5, 0.25),)),
        ki.sites(model),
        ki.fidelity(model, koopman, held_out=(x, y), fitted=fitted, spans="to_target"),
        ki.koopman_lens(model, koopman, x[:5]),
        ki.compare_lenses(model, koopman, held_out=x, fitted=fitted),
        directions(koopman),
        spectrum,
        ki.spectral_distance(spectrum, ki.spectrum(surrogate, trajectories), starts=1),
        ki.pseudospectra(spectrum, points=6),
        ki.vamp_score(koopman, fitted),
        ki.schur_form(koopman),
        ki.transfer_modes(koopman, fitted),
        meanings,
        meanings[0],
        topology,
        ki.topology_distances(topology[:-1], topology[1:]),
        bands,
        ki.permutation_test(bands, bands),
        ki.IntrinsicDimension(
            ("a", "b"), ("TwoNN",), np.array([[[1.5], [np.nan]]]), (3, 3), 30, np.array([[30, 30]]), {"b, TwoNN": "–"}
        ),
    ]
    return {type(result).__name__: result for result in made}


def directions(koopman):
    """What `lens_vectors` returns, of a model without tokens."""
    vectors = tuple(torch.eye(2, width, dtype=torch.float64) for width in koopman.config.widths[-2:])
    figures = (torch.full((2, 2), 0.5), torch.ones(2), koopman.sites[-2:])
    return ki.LensVectors(vectors, *figures, (3, 4), ("a", "b"), (" a", " b"), 7, "Koopman lens", koopman.config.host)


def suppressed(koopman):
    """What `suppress_concept` returns, of trials that were never made: it needs a language model."""
    tried = (
        SuppressionTrial(koopman.sites[-1:], 0.1, 1.0, 0.5, -0.2, 0.01),
        SuppressionTrial(koopman.sites[1:], 0.4, 1.5, 0.9, 0.8),
    )
    edits = ki.each_site(koopman, lambda depth: ki.erase_class(koopman, label=2, site=depth), [-1])
    return ki.Suppression("concept", edits, tried[0], tried, 3.0, 2.9, 0.95, 0.9, 0.02, True, 40)


def public_results():
    """Names of the results that the package exports."""
    exported = {name: getattr(ki, name) for name in ki.__all__}
    return {name for name, kind in exported.items() if isinstance(kind, type) and issubclass(kind, Result)}


def test_every_public_result_is_looked_at_here(results):
    assert public_results() == set(results)
    assert set(results) >= set(NOT_DRAWN)


def shown(result):
    """All cells of a result's HTML, with headings and captions."""
    return [unescape(cell) for cell in re.findall(r"<(?:td|th|caption)\b[^>]*>(.*?)</", result._repr_html_())]


def test_text_html_and_frames_hold_the_same(results):
    for name, result in results.items():
        text, cells = str(result), shown(result)
        for table in result.tables():
            lines = table.text().split("\n")
            assert table.text() in text
            for column in table.columns:
                assert column.name in cells
                for cell in column.cells()[: table.most]:
                    assert cell in cells
                    assert any(cell in line for line in lines)
        frame = result.to_frame()
        assert len(frame) == len(result.tables()[0].columns[0].values) > 0, name
        json.dumps(result.as_dict(), allow_nan=False)
        for note in result.notes():
            assert note in text


def test_every_public_result_draws_or_has_a_reason_not_to(results, trajectories):
    for name, result in results.items():
        if name in NOT_DRAWN:
            with pytest.raises(
                InputError, match=f"no figure of a value of the kind {name}; .* Audit, .*, Trajectories"
            ):
                result.plot()
            continue
        drawn = result.plot()
        axes = drawn.ravel().tolist() if isinstance(drawn, np.ndarray) else [drawn]
        assert all(isinstance(ax, Axes) for ax in axes), name
    assert len(trajectories.plot()) == trajectories.depths
    with pytest.raises(InputError, match="of the kind str"):
        plotting.plot("topology")


def test_options_of_a_figure_are_those_of_its_function(results):
    ax = plotting.plot_spectrum(results["Spectrum"])
    given = ax.figure.add_subplot()
    assert results["Topology"].plot(dimension=1, axes=given).tolist() == [given]
    assert given.get_ylabel().startswith("β1")


def test_every_public_result_that_is_kept_comes_back_from_its_file(results, tmp_path):
    kept = {name: result for name, result in results.items() if hasattr(result, "load")}
    assert set(results) - set(kept) == {"FitRecord"}
    for name, result in kept.items():
        result.save(tmp_path / name)
        beside = [getattr(result, type(result).edit_field)] if isinstance(result, Choice) else []
        assert str(type(result).load(tmp_path / name, *beside)) == str(result), name
        with pytest.raises((FileFormatError, FileNotFoundError)):
            type(result).load(tmp_path / "nothing", *beside)


def test_without_pandas_a_frame_is_refused_with_a_sentence(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for result in results.values():
        with pytest.raises(InputError, match="pip install pandas"):
            result.to_frame()


def test_what_cannot_be_seen_is_written_out():
    table = Table((Column("a\u202eb", ("\0",)),), "c\u200f", marked=(0,))
    assert all(f"⟨U+{code}⟩" in table.html() for code in ("202E", "0000", "200F"))
    assert '<tr class="marked">' in table.html()


@dataclass(frozen=True)
class Part:
    sites: dict[int, float]


@dataclass(frozen=True, eq=False)
class Everything(PlainResult):
    parts: tuple[Part, ...]
    pair: tuple[str, int]
    figure: float
    known: float | None
    array: Float[ndarray, "row column"]
    counts: ndarray
    either: str | int = "a"
    nested: Part | None = None
    most: int = 3

    def tables(self):
        return (Table((Column("part", tuple(range(len(self.parts)))),)),)


GIVEN = Everything(
    (Part({1: 0.5}), Part({})),
    ("x", 2),
    float("inf"),
    None,
    np.array([[1.0, np.nan]]),
    np.array([3, 4]),
    nested=Part({10: 1.0}),
)


def test_plain_results_come_back_from_json_as_they_were(tmp_path):
    values = json.loads(json.dumps(GIVEN.as_dict(), allow_nan=False))
    back = Everything.from_dict(values | {"derived": 1})
    assert (back.parts, back.pair, back.known, back.nested) == (GIVEN.parts, GIVEN.pair, None, GIVEN.nested)
    assert np.isnan(back.figure)  # what is not finite has no number in JSON
    np.testing.assert_array_equal(back.array, GIVEN.array)
    np.testing.assert_array_equal(back.counts, GIVEN.counts)
    assert back.counts.dtype.kind == "i"


def test_files_that_hold_something_else_or_lack_a_part_are_told(tmp_path):
    path = tmp_path / "result.json"
    GIVEN.save(path)
    values = json.loads(path.read_text())
    for spoilt in (
        [1],
        values | {"kind": "Other"},
    ):
        path.write_text(json.dumps(spoilt))
        with pytest.raises(FileFormatError, match="does not hold a value of the kind Everything"):
            Everything.load(path)
    kept = {name: each for name, each in values.items() if name not in ("kind", "digest")}

    def signed(changed):
        return json.dumps({"kind": "Everything", "digest": json_digest(changed), **changed})

    for name, wrong in (("pair", ["x"]), ("parts", 3), ("figure", "much")):
        path.write_text(json.dumps(values | {name: wrong}))
        with pytest.raises(FileFormatError, match="does not hold what was written to it"):
            Everything.load(path)
        path.write_text(signed(kept | {name: wrong}))
        with pytest.raises(FileFormatError, match="lacks parts of the Everything"):
            Everything.load(path)
    for name in ("figure", "most"):
        path.write_text(signed({key: each for key, each in kept.items() if key != name}))
        with pytest.raises(FileFormatError, match=f"KeyError '{name}'"):
            Everything.load(path)


def test_a_notebook_sees_escaped_text_and_a_style_of_its_own():
    @dataclass(frozen=True)
    class Harmful(Result):
        def tables(self):
            return (Table((Column("<b>", ("<script>",)),), "<i>"),)

        def notes(self):
            return ("<u>",)

    page = Harmful()._repr_html_()
    assert not re.search(r"<(script|b|i|u)>", page)
    assert page.startswith('<div class="koopman-interp">')
    # Nothing outside of the result is styled.
    rules = page.split("<style>")[1].split("</style>")[0].strip().split("\n")
    assert all(
        selector.strip().startswith(".koopman-interp") for rule in rules for selector in rule.split("{")[0].split(",")
    )
