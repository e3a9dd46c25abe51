"""What a fit was trained on is never passed off as held out: its surrogate knows its inputs, and figures say so."""

from dataclasses import replace

import pytest
import torch

import koopman_interp as ki
from koopman_interp.fitting import data as fitting_data
from koopman_interp.surrogates.record import FitRecord

SAID = r"rows are of inputs that the surrogate was fitted on"


@pytest.fixture(scope="module")
def observed(trajectories):
    return trajectories[:300]


@pytest.fixture(scope="module")
def koopman(observed):
    return ki.fit(observed, ki.FitConfig(steps=2, seed=3), progress=False)


def test_every_input_is_fitted_on_or_held_out_and_none_is_both(koopman, observed):
    assert torch.equal(koopman.is_fitted_on(observed), ~koopman.is_held_out(observed))
    assert bool(koopman.is_fitted_on(observed).any())


def test_other_inputs_are_neither(koopman, trajectories):
    others = trajectories[300:]
    others = others[~torch.isin(others.digests, trajectories[:300].digests)]
    assert not koopman.is_fitted_on(others).any()
    assert not koopman.is_held_out(others).any()


@pytest.mark.parametrize("small", [True, False], ids=["taken into memory", "window by window"])
def test_a_source_is_known_as_trajectories_are(small, observed, tmp_path, model, yin_yang_data, monkeypatch):
    x, y = yin_yang_data
    store = ki.attach(model).observe((x[:300], y[:300]), store=tmp_path / "states", progress=False)
    if not small:
        monkeypatch.setattr(fitting_data, "HELD_BYTES", 1000)
    koopman = ki.fit(store, ki.FitConfig(steps=2, seed=3), progress=False)
    assert torch.equal(koopman.is_fitted_on(observed), ~koopman.is_held_out(observed))


def test_of_more_inputs_than_are_counted_none_is_named(observed, monkeypatch):
    monkeypatch.setattr(fitting_data, "MOST_COUNTED", 100)
    koopman = ki.fit(observed, ki.FitConfig(steps=2), progress=False)
    assert len(koopman.record.fitted) == 0


def test_it_is_saved_and_a_surrogate_of_before_loads(koopman, observed, tmp_path):
    koopman.save_pretrained(tmp_path / "koopman")
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "koopman")
    assert torch.equal(loaded.is_fitted_on(observed), koopman.is_fitted_on(observed))
    before = {name: value for name, value in koopman.record.as_dict().items() if name != "fitted"}
    assert not FitRecord.from_dict(before).is_fitted_on(observed.digests).any()


def test_fidelity_says_how_many_rows_were_fitted_on(koopman, model, yin_yang_data):
    x, y = yin_yang_data
    known = koopman.is_fitted_on(ki.attach(model).observe(x[:300], progress=False))
    labels = torch.where(torch.arange(300) % 3 == 0, -100, y[:300])
    for given, judged in ((x[:300], known), ((x[:300], labels), known[labels != -100])):
        found = ki.fidelity(model, koopman, held_out=given, progress=False)
        assert (found.fitted, found.rows) == (int(judged.sum()), len(judged))
        assert any(f"{found.fitted} of {found.rows} {SAID}" in note for note in found.notes())
        assert found.judged_on == f"{found.rows} rows, {found.fitted} of them fitted on"
    honest = ki.fidelity(model, koopman, held_out=x[:300][~known], progress=False)
    assert honest.fitted == 0
    assert honest.judged_on == f"{honest.rows} held-out rows"
    assert not any(SAID in note for note in honest.notes())


def test_a_spectrum_and_a_comparison_of_lenses_say_it_too(koopman, model, observed, yin_yang_data, tmp_path):
    fitted, held_out = (observed[koopman.is_fitted_on(observed) == side] for side in (True, False))
    found = ki.spectrum(koopman, fitted)
    assert f"All {SAID}" in str(found)
    found.save(tmp_path / "spectrum.safetensors")
    assert ki.Spectrum.load(tmp_path / "spectrum.safetensors").fitted == len(fitted)
    assert SAID not in str(ki.spectrum(koopman, held_out))
    lenses = ki.compare_lenses(model, koopman, held_out=yin_yang_data[0][:300], fitted=observed)
    assert (lenses.fitted, lenses.rows) == (len(fitted), 300)
    assert f"{len(fitted)} of 300 {SAID}" in str(lenses)


def test_a_fidelity_of_before_loads(koopman, model, yin_yang_data):
    found = ki.fidelity(model, koopman, held_out=yin_yang_data[0][:300], progress=False)
    before = {name: value for name, value in found.as_dict().items() if name != "fitted"}
    assert ki.Fidelity.from_dict(before).as_dict() == replace(found, fitted=0).as_dict()
