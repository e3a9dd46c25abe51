"""A fit that goes on with more steps is the fit that had them from the start, up to where its rate falls."""

from dataclasses import replace

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import read_tensors, write_tensors
from koopman_interp.fitting.checkpoint import Checkpoint
from koopman_interp.fitting.config import DescentConfig
from koopman_interp.fitting.descent import Descent


def descended(config, path=None, *, resume=False, figures=None):
    """Descend to a target of its own, on gradients that are drawn; return the weights, the looks and the descent."""
    own = torch.ones(3, requires_grad=True)

    def objective(_, generator):
        return (own - torch.randn(3, generator=generator)).square().sum()

    def judge(generator):
        return {
            "loss": float((own - torch.randn(3, generator=generator)).square().sum()) if figures is None else figures()
        }

    identity = {"settings": config.as_dict()}
    descent = Descent([([own], 1.0)], objective, judge, config, Checkpoint(path, identity, "fit"))
    looks = descent.run(resume=resume, progress=False)
    return own.detach(), looks, descent


SCHEDULES = {
    "wsd": DescentConfig(schedule="wsd", steps=400, warm_up=0.25, evaluate_every=50, patience=None),
    "wsd between looks": DescentConfig(schedule="wsd", steps=330, warm_up=0.25, evaluate_every=70, patience=None),
    "constant": DescentConfig(schedule="constant", steps=400, evaluate_every=50, patience=None),
    "cyclic": DescentConfig(schedule="cyclic", cycle=90, steps=400, evaluate_every=50, patience=None),
}


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_a_prolonged_descent_is_the_one_that_had_the_steps_from_the_start(tmp_path, config, averaging):
    config = replace(config, averaging=averaging, learning_rate=0.05)
    path = tmp_path / "kept.safetensors"
    longer = replace(config, steps=2 * config.steps)
    whole, looks, _ = descended(longer)
    short, _, _ = descended(config, path)
    assert not torch.equal(short, whole)
    prolonged, again, descent = descended(longer, path, resume=True)
    assert torch.equal(prolonged, whole)
    assert again == looks
    assert f"with steps={2 * config.steps} for {config.steps}" in descent.why_over()
    # What was prolonged is a checkpoint like any other: of these settings now.
    assert torch.equal(descended(longer, path, resume=True)[0], whole)


def test_one_stopped_by_patience_goes_on_with_more(tmp_path):
    path = tmp_path / "kept.safetensors"
    config = DescentConfig(schedule="wsd", steps=10**4, evaluate_every=10, patience=2)
    _, looks, _ = descended(config, path, figures=lambda: 1.0)
    assert looks[-1]["step"] < 100
    patient = replace(config, patience=6)
    _, again, _ = descended(patient, path, resume="auto", figures=lambda: 1.0)
    assert again == descended(patient, figures=lambda: 1.0)[1]
    assert again[-1]["step"] > looks[-1]["step"]


def test_a_cosine_that_is_bent_says_so(tmp_path):
    path = tmp_path / "kept.safetensors"
    config = DescentConfig(steps=100, patience=None)
    descended(config, path)
    _, looks, descent = descended(replace(config, steps=200), path, resume=True)
    assert [look["step"] for look in looks] == [0, 100, 200]
    assert "bends the cosine" in descent.why_over()


def test_fewer_steps_than_were_taken_are_refused(tmp_path):
    path = tmp_path / "kept.safetensors"
    descended(SCHEDULES["constant"], path)
    with pytest.raises(InputError, match=r"has taken 400 steps, and steps=100 would have ended before"):
        descended(replace(SCHEDULES["constant"], steps=100), path, resume=True)


def test_a_state_of_other_weights_is_refused_with_the_path(tmp_path):
    path = tmp_path / "kept.safetensors"
    descended(SCHEDULES["constant"], path)
    tensors, header = read_tensors(path, kind="checkpoint")
    del header["kind"], header["version"]
    wrong = [
        (tensors | {"now.0": torch.zeros(2)}, header),
        ({name: x for name, x in tensors.items() if name != "best.0"}, header),
        (tensors | {"adam.7.step": torch.zeros(1)}, header),
        (tensors | {"adam": torch.zeros(1)} | {"adam.x.step": torch.zeros(1)}, header),
        (tensors, header | {"progress": header["progress"] | {"more": 1}}),
        (tensors | {"now.0": torch.tensor(3.5)}, header),
        ({name: x for name, x in tensors.items() if name != "adam.0.exp_avg"}, header),
        (tensors, header | {"progress": []}),
        *(
            (tensors, header | {"progress": header["progress"] | {name: value}})
            for name, value in (
                ("halvings", 10**30),
                ("step", -1),
                ("step", True),
                ("stale", "x"),
                ("best", None),
                ("decay_from", 0.5),
                ("decay_from", {}),
                ("history", [{"step": 0, "loss": "x"}]),
                ("history", [1]),
                ("notes", [1]),
                ("notes", "x"),
            )
        ),
        (tensors, header | {"identity": None}),
    ]
    for bad, said in wrong:
        write_tensors(path, bad, kind="checkpoint", header=said)
        with pytest.raises(FileFormatError, match=r"kept\.safetensors does not hold the state of a descent"):
            descended(SCHEDULES["constant"], path, resume=True)


def test_a_fit_of_600_steps_prolonged_to_900_is_the_fit_of_900(trajectories, quick_config, tmp_path):
    path = tmp_path / "kept.safetensors"
    config = replace(quick_config, steps=600, evaluate_every=50, patience=None)
    longer = replace(config, steps=900)
    whole = ki.fit(trajectories, longer, progress=False)
    ki.fit(trajectories, config, checkpoint=path, progress=False)
    prolonged = ki.fit(trajectories, longer, checkpoint=path, resume=True, progress=False)
    ours, theirs = prolonged.state_dict(), whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert prolonged.record.history == whole.record.history
    assert prolonged.record.settings["steps"] == 900
    assert any("went on from step 500 with steps=900 for 600" in choice for choice in prolonged.record.choices)
