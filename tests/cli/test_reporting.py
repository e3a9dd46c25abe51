"""Pages of runs from the command line."""

import koopman_interp as ki
from koopman_interp.files import read_json
from tests.plotting.test_plotting import FIDELITY, TOPOLOGY


def test_a_page_is_built_anew_and_two_runs_are_compared(run, tmp_path):
    ki.write_run("a", fidelity=FIDELITY, title="first")
    ki.write_run("b", topologies={"model": TOPOLOGY}, title="second")
    (tmp_path / "a" / "report.html").unlink()
    assert run("report", "a")[:2] == (0, "Report: a/report.html\n")
    assert "first" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    code, printed, complaints = run("compare", "a", "b", "--out", "page.html")
    assert (code, printed, complaints) == (0, "Report: page.html\n", "")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    agreement = read_json("a/metrics.json")["fidelity"]["outputs"][1]["agreement"]
    assert f"{100 * agreement:.2f}" in page
    assert "second" in page


def test_what_is_no_run_is_refused_with_a_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments in (("report", "empty"), ("compare", "empty", "empty", "--out", "page.html")):
        code, _, complaint = run(*arguments)
        assert code == 1
        assert "There is no file" in complaint
    code, _, complaint = run("compare", "empty", "empty")
    assert code == 2
    assert "--out" in complaint
