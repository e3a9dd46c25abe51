"""Each tutorial runs as a script on a small slice, leaves what it names, and its null edit changes no bit."""

import re
import subprocess
import sys

import pytest

import koopman_interp as ki
from tests.notebooks import SLICES, TUTORIALS, builder, environment, missing, supply

pytestmark = pytest.mark.tutorial


def run(name, folder):
    """Run a trial of a tutorial as a script in a folder of its own, and return what it printed."""
    if reason := missing(name):
        pytest.skip(reason)
    supply(name, folder)
    found = started(name, folder)
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stdout


def started(name, folder):
    """Run a trial of a tutorial with what is in its folder."""
    text = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8")
    (folder / "tutorial.py").write_text(builder().sliced(text, SLICES[name]), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "tutorial.py"],
        cwd=folder,
        env=environment(folder) | {"MPLBACKEND": "Agg"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def require_figures(folder, names):
    """Check that figures stand in a folder, in both formats and not empty."""
    for name in names:
        for suffix in ("png", "svg"):
            assert (folder / f"{name}.{suffix}").stat().st_size > 1000, name


def test_ten_minutes(tmp_path):
    printed = run("00_ten_minutes", tmp_path)
    assert (tmp_path / "runs" / "00_ten_minutes" / "report.html").stat().st_size > 1000
    shares = dict(
        re.findall(r"^(before|under the patch|after it): (\d+\.\d) % of the 4s are called 4", printed, re.MULTILINE)
    )
    assert float(shares["under the patch"]) < float(shares["before"]) / 2
    assert shares["after it"] == shares["before"]
    for name in ("base model", "logit mask", "retrained reference", r"edit \(delta\)"):
        assert re.search(rf"^{name} +\d", printed, re.MULTILINE), name
    assert "strength 2: named" in printed


def test_observe_and_fit(tmp_path):
    printed = run("01_observe_and_fit", tmp_path)
    out = tmp_path / "runs" / "01_observe_and_fit"
    require_figures(out / "figures", ["trajectories", "fit", "fidelity", "output", "spectrum"])
    require_figures(out / "figures", [f"topology-{name}-{k}" for name in ("host", "iterates") for k in (0, 1)])
    koopman = ki.KoopmanAutoencoder.from_pretrained(out / "koopman")
    assert ki.Trajectories.load(out / "trajectories.safetensors").sites == koopman.sites
    assert "The two recordings are bit-identical." in printed
    assert "the loaded surrogate predicts the same bits" in printed
    assert "HostMismatchError" in printed
    kinds = ("dense", "generator", "low_rank", "identity_plus_low_rank", "blocks")
    for name in (*kinds, "endpoint linear", "mean", "identity"):
        assert re.search(rf"^{name} +\d", printed, re.MULTILINE), name


def test_unlearn_a_class(tmp_path):
    printed = run("02_unlearn_a_class", tmp_path)
    out = tmp_path / "runs" / "02_unlearn_a_class"
    null = next(line for line in printed.splitlines() if line.startswith("Null edit"))
    assert "bit-identical to the host's" in null
    assert "Outside of the context the host predicts exactly as before" in printed
    classes = printed.split("== All ten classes")[1].split("\n\n")[0]
    assert re.findall(r"^(\d) +\d", classes, re.MULTILINE) == [str(label) for label in range(10)]
    together = printed.split("== Classes 4, 7, 2 at once")[1].split("\n\n")[0]
    assert [len(line.split()) for line in together.splitlines()[2:]] == [5] * 4
    methods = ("base model", "logit mask", "mean difference", "retrained reference")
    for name in (*methods, r"edit \(delta\)", r"edit \(replace\)"):
        assert re.search(rf"^{name} +\d", printed, re.MULTILINE), name
    edit = ki.OperatorEdit.load(out / "edit.safetensors")
    assert edit.description.startswith("erase class 4")
    assert edit.operator == ki.KoopmanAutoencoder.from_pretrained(out / "koopman").digest()
    for path in (out / "report.html", out / "metrics.json", out / "host-2000-rows.safetensors"):
        assert path.stat().st_size > 1000
    require_figures(out / "figures", ["output", "fit", "spectrum", "trajectories", "audit-0"])


def test_transformer_lens(tmp_path):
    printed = run("03_transformer_lens", tmp_path)
    assert "What the tap records is what run_with_cache gives: bit-identical." in printed
    assert "An edit of strength 0 leaves the logits bit-identical." in printed
    assert "gives the same: True" in printed
    assert "He swapped with himself leaves the logits bit-identical." in printed
    lens = printed.split("== The lens ==")[1].split("swapped:")[0]
    assert len(re.findall(r"^(?:steer to He|swap) +[0-4] +-?\d+\.\d\d +-?\d", lens, re.MULTILINE)) == 10
    assert "Outside of the context the model goes on as before: True" in printed
    told = {line.split(":")[0]: line for line in printed.splitlines() if line.startswith(("host: ", "patched"))}
    assert len(told) == 3
    for name in ("base model", "surrogate", "identity", "mean", "endpoint linear"):
        assert len(re.findall(rf"^{name} +\d", printed, re.MULTILINE)) >= 3, name


def test_is_it_really_gone(tmp_path):
    printed = run("07_is_it_really_gone", tmp_path)
    out = tmp_path / "runs" / "07_is_it_really_gone"
    require_figures(out / "figures", ["audit", "depth", "relearning"])
    audit = ki.Audit.load(out / "audit.json")
    assert audit.verdict in printed
    methods = ("base model", "logit mask", "mean difference", "retrained reference")
    for name in (*methods, "erase_class × 1", "erase_class × 2"):
        assert re.search(rf"^{name} +\d", printed, re.MULTILINE), name
    assert "Outside of the patch the logits are bit-identical." in printed
    for moved in ("all parameters", "K alone"):
        assert f"edit (delta), {moved}: half of the base model's forget accuracy is back" in printed


def test_modes(tmp_path):
    printed = run("04_modes", tmp_path)
    known = printed.split("== Known modes ==")[1].split("With noise")[0]
    assert [f"{float(row[1]):.2f}" for row in map(str.split, known.splitlines()[5:8])] == ["0.95", "0.80", "0.40"]
    assert "spurious" not in known
    few = printed.split("With six samples:")[1].split("==")[0]
    assert len(re.findall(r"unknown +unknown$", few, re.MULTILINE)) == 3  # intervals and verdicts
    for name in ("the same model, fitted again", "another seed of the model", "an untrained model"):
        assert re.search(rf"^{name} +\d", printed, re.MULTILINE), name
    names = ["spectrum", "residuals", "growth", "classes", "stories-spectrum", "stories-growth"]
    require_figures(tmp_path / "runs" / "04_modes" / "figures", names)


def test_topology(tmp_path):
    printed = run("05_topology", tmp_path)
    figures = ["diagram-last", "betti-0", "betti-1", "bands-0", "summary-0", "summary-1", "distances-0"]
    require_figures(tmp_path / "runs" / "05_topology" / "figures", figures)
    assert len(re.findall(r"^with(?:out)? skips +(?:own|first) +0\.\d+ +\d+ +\d+", printed, re.MULTILINE)) == 12
    assert len(re.findall(r" [01]\.\d{4} +\d+$", printed.split("== What differs ==")[1], re.MULTILINE)) == 7
    for name in ("MLP, isometry 1", "MLP, isometry 0.001", "MLP, isometry 0", "default", "no features"):
        assert re.search(rf"^{name} +0\.\d", printed, re.MULTILINE), name
    assert "Intrinsic dimension" in printed
    assert "Loaded, it reads the same." in printed
    assert ki.Topology.load(tmp_path / "runs" / "05_topology" / "topology.safetensors").points == 80


def test_concepts_in_a_language_model(tmp_path):
    printed = run("06_concepts_in_a_language_model", tmp_path)
    out = tmp_path / "runs" / "06_concepts_in_a_language_model"
    require_figures(out / "figures", ["frontier"])
    assert ki.EditSet.load(out / "gender.safetensors").description.startswith("redirect gender")
    assert "Chosen on teaching data alone" in printed
    assert "An edit of strength 0 leaves the logits bit-identical." in printed
    assert "Outside of the context the model goes on as before: True" in printed
    for way in (
        "operator",
        "random features",
        "states",
        "mean difference",
        "LEACE",
        "LEACE, corpus covariance",
        "two logits tied",
    ):
        assert len(re.findall(rf"^{way}  +[12] +\d", printed, re.MULTILINE)) == 2, way
    # What two tied logits leave is nothing, and what they cost is small: the row that no edit can beat.
    assert re.search(r"^two logits tied +1 +0\.00", printed, re.MULTILINE)
    assert re.search(r"Linear probe on held-out sentences: host \d", printed)


def test_modular_addition(tmp_path):
    printed = run("08_modular_addition", tmp_path)
    require_figures(tmp_path / "runs" / "08_modular_addition" / "figures", ["clock"])
    assert "6 ticks of 'block', period 13" in printed
    assert "turns a period" in printed.split("== The input as clock ==")[1].split("==")[0]
    for name in ("base model", "surrogate", "endpoint linear"):
        assert re.search(rf"^{name} +\d", printed, re.MULTILINE), name
    assert "most variance first" in printed
    erased = printed.split(" at once, % ==")[1]
    for way in ("theory", "carried by K, trained", "carried by K, random features", "LEACE, raw, after"):
        assert re.search(rf"^{way} +\d", erased, re.MULTILINE), way
    # What theory takes off is taken off whole, and nothing else is.
    assert re.search(r"^theory +0\.0 +100\.0 +100\.0", erased, re.MULTILINE)
    assert "Outside of the patches the logits are bit-identical: True" in printed
    assert "no forward pass holds two ticks" in printed


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("02_unlearn_a_class", "ylecun/mnist"),
        ("03_transformer_lens", "EleutherAI/pythia-14m"),
        ("06_concepts_in_a_language_model", "stanfordnlp/sst2"),
    ],
)
def test_without_models_and_data_the_first_cell_says_what_is_missing(tmp_path, name, hub):
    if name == "03_transformer_lens":
        pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
    found = started(name, tmp_path)
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: There is no folder")
    assert hub in last
    assert "Connect, or copy" in last
