"""The record of a fit says what came of it, is kept with the surrogate, and is enough to fit again."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import read_json, read_tensors, write_tensors
from koopman_interp.surrogates.folder import CONFIG_FILE, WEIGHTS_FILE

RECORD = ki.FitRecord(
    history=(
        {"fvu": 0.9, "stress": 0.1, "loss": 3.0, "step": 0},
        {"fvu": 0.2, "stress": 0.05, "loss": 1.0, "step": 20},
        {"fvu": 0.3, "stress": 0.0, "loss": 2.0, "step": 40},
    ),
    distilled=({"kl": 0.5, "step": 0}, {"kl": 0.25, "step": 10}),
    held_out=torch.tensor([-(2**62), -1, 0, 2**62 + 1]),
    method="gradient",
    seed=3,
    validation=0.2,
    settings=ki.FitConfig(hidden=(3, 4), seed=3, validation=0.2).as_dict(),
    versions={"torch": "2.9"},
    seconds=1.5,
)


def same(first, second):
    assert json.dumps(first.as_dict()) == json.dumps(second.as_dict())
    assert first.held_out.dtype == second.held_out.dtype == torch.int64
    return True


def test_a_record_goes_through_json_unchanged():
    assert same(ki.FitRecord.from_dict(json.loads(json.dumps(RECORD.as_dict()))), RECORD)
    assert same(ki.FitRecord.from_dict(ki.FitRecord().as_dict()), ki.FitRecord())
    with pytest.raises(FrozenInstanceError):
        RECORD.seed = 4


def test_a_record_is_kept_with_its_surrogate(surrogate, tmp_path):
    surrogate.save_pretrained(tmp_path)
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    assert same(loaded.record, surrogate.record)
    assert len(loaded.record.held_out) == 60
    assert read_json(tmp_path / CONFIG_FILE)["record"]["history"] == list(surrogate.record.history)
    # What there is one of an input stands in no header.
    assert "held_out" not in read_json(tmp_path / CONFIG_FILE)["record"]
    assert "held_out" not in read_tensors(tmp_path / WEIGHTS_FILE, kind="surrogate")[1]["record"]


@pytest.mark.parametrize("lost", ["record", "record.held_out"])
def test_weights_without_their_record_are_refused(surrogate, tmp_path, lost):
    surrogate.save_pretrained(tmp_path)
    tensors, header = read_tensors(tmp_path / WEIGHTS_FILE, kind="surrogate")
    parts = [{name: value for name, value in each.items() if name != lost} for each in (tensors, header)]
    write_tensors(tmp_path / WEIGHTS_FILE, parts[0], kind="surrogate", header=parts[1])
    with pytest.raises(FileFormatError, match="does not hold the surrogate"):
        ki.KoopmanAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("method", ["gradient", "least_squares"])
def test_a_fit_can_be_done_again_from_its_record(trajectories, quick_config, tmp_path, method):
    first = ki.fit(trajectories, quick_config, method=method, progress=False)
    first.save_pretrained(tmp_path)
    record = ki.KoopmanAutoencoder.from_pretrained(tmp_path).record
    again = ki.fit(trajectories, ki.FitConfig.from_dict(record.settings), method=record.method, progress=False)
    assert again.digest() == first.digest()
    assert again.record.history == first.record.history
    assert torch.equal(again.record.held_out, first.record.held_out)
    assert (record.seed, record.validation) == (quick_config.seed, quick_config.validation)
    assert set(record.versions) == {"koopman-interp", "torch"}
    assert 0 < record.seconds < 60


def test_a_surrogate_built_by_hand_has_an_empty_record(surrogate, trajectories):
    by_hand = ki.KoopmanAutoencoder(surrogate.config)
    assert by_hand.record.history == ()
    assert not by_hand.is_held_out(trajectories).any()
    assert str(by_hand.record).startswith("FitRecord(of no fit)")
    assert len(by_hand.record.to_frame()) == 0
    with pytest.raises(InputError, match="built by hand"):
        _ = by_hand.record.kept


def test_the_kept_figures_are_those_of_the_smallest_loss():
    assert RECORD.kept["step"] == 20
    assert ki.FitRecord(history=({"fvu": 0.4, "stress": 0.0},)).kept["fvu"] == 0.4


def test_its_tables_are_the_figures_by_step():
    fit, distilled = RECORD.tables()
    assert [(column.name, column.values) for column in fit.columns] == [
        ("step", (0, 20, 40)),
        ("loss", (3.0, 1.0, 2.0)),
        ("FVU", (0.9, 0.2, 0.3)),
        ("stress", (0.1, 0.05, 0.0)),
    ]
    assert (fit.marked, distilled.marked) == (1, 1)
    assert [(column.name, column.values) for column in distilled.columns] == [("step", (0, 10)), ("KL", (0.5, 0.25))]
    assert list(RECORD.to_frame()["FVU"]) == [0.9, 0.2, 0.3]
    assert "20    1.0000  0.2000  0.0500" in str(RECORD)
    assert "4 inputs were held out, 20 % of all (seed 3). Fitted in 1.5 s with torch 2.9." in str(RECORD)
    assert repr(RECORD) == ("FitRecord(gradient, step 20, held-out FVU 0.2, held-out stress 0.05, 4 inputs held out)")


def test_membership_is_exact():
    digests = torch.tensor([0, 1, 2**62, 2**62 + 1, -1, -(2**62), 7])
    assert RECORD.is_held_out(digests).tolist() == [True, False, False, True, True, True, False]
