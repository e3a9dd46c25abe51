"""The demo writes a whole run, and its null edit changes no bit."""

import pytest

import koopman_interp as ki
from koopman_interp import demo


@pytest.mark.tutorial
def test_the_demo_writes_a_run_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_FIT", ki.FitConfig(observables=16, hidden=(16,), steps=40))
    monkeypatch.setattr(demo, "_EPOCHS", 8)
    monkeypatch.setattr(demo, "_POINTS", 900)
    monkeypatch.setattr(demo, "_HELD_OUT", 300)
    monkeypatch.setattr(demo, "_POINTS_A_RUN", 40)
    said = []
    page = demo.run_demo(tmp_path / "run", label=1, say=said.append)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "bit-identical" in "".join(map(str, said))
    assert "NOT bit-identical" not in "".join(map(str, said))
    koopman = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "run" / "koopman")
    assert ki.OperatorEdit.load(tmp_path / "run" / "edit.safetensors").operator == koopman.digest()
    assert len(ki.Trajectories.load(tmp_path / "run" / "trajectories.safetensors")) == 300
    assert len(ki.TopologyBands.load(tmp_path / "run" / "topology-1.safetensors").runs) == 5
    assert {path.suffix for path in (tmp_path / "run" / "figures").iterdir()} == {".png", ".svg"}
