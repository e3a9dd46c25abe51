"""Callbacks hear of each look once, whatever interrupts and resumes the descent."""

import json
import logging
import sys
from dataclasses import replace

import pytest

import koopman_interp as ki
from koopman_interp.errors import FitInterrupted, InputError, NonFiniteError, StorageError
from koopman_interp.fitting.descent import Descent
from tests.interrupting import interrupted_at


class Heard(ki.Callback):
    def __init__(self):
        self.starts, self.looks, self.ends = [], [], []

    def on_start(self, looks, /):
        self.starts.append(looks)

    def on_look(self, step, figures, /):
        self.looks.append((step, figures))

    def on_end(self, why, /):
        self.ends.append(why)


def test_a_callback_hears_of_each_look_and_changes_nothing(trajectories, quick_config, surrogate):
    heard = Heard()
    fitted = ki.fit(trajectories, quick_config, progress=False, callbacks=[heard])
    assert fitted.record.history == surrogate.record.history
    assert heard.starts == [()]
    assert tuple(figures for _, figures in heard.looks) == surrogate.record.history
    assert [step for step, _ in heard.looks] == [0, 20, 40, 60]
    assert heard.ends == ["as many as were allowed"]


def test_lines_of_a_fit_that_was_killed_and_resumed_are_those_of_one_that_was_not(
    trajectories, quick_config, tmp_path, monkeypatch
):
    whole, broken, path = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl", tmp_path / "kept.safetensors"
    fitted = ki.fit(trajectories, quick_config, progress=False, callbacks=[ki.JSONLines(whole)])
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    assert tuple(lines) == fitted.record.history
    for stop in (25, 45):
        mend = interrupted_at(monkeypatch, stop)
        with pytest.raises(FitInterrupted):
            ki.fit(
                trajectories,
                quick_config,
                checkpoint=path,
                resume="auto",
                progress=False,
                callbacks=[ki.JSONLines(broken)],
            )
        mend()
    # A look that the kill took from the checkpoint, and one that it cut short.
    broken.write_text(broken.read_text() + whole.read_text().splitlines()[-1] + '\n{"st')
    again = ki.JSONLines(broken)
    ki.fit(trajectories, quick_config, checkpoint=path, resume=True, progress=False, callbacks=[again])
    assert broken.read_bytes() == whole.read_bytes()


def test_a_new_fit_replaces_the_lines_of_an_earlier_one(trajectories, quick_config, tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        fitted = ki.fit(trajectories, quick_config, progress=False, callbacks=[ki.JSONLines(path)])
    assert len(path.read_text().splitlines()) == len(fitted.record.history)


def test_a_fit_without_steps_is_told_too(trajectories, quick_config):
    heard = Heard()
    fitted = ki.fit(trajectories, quick_config, method="least_squares", callbacks=[heard])
    assert tuple(figures for _, figures in heard.looks) == fitted.record.history
    assert len(heard.ends) == 1


def test_an_end_by_an_exception_is_told(trajectories, quick_config, monkeypatch):
    heard = Heard()
    interrupted_at(monkeypatch, 25)
    with pytest.raises(FitInterrupted):
        ki.fit(trajectories, quick_config, progress=False, callbacks=[heard])
    monkeypatch.setattr(Descent, "_descend", lambda *_: (_ for _ in ()).throw(NonFiniteError("no number")))
    with pytest.raises(NonFiniteError):
        ki.fit(trajectories, quick_config, progress=False, callbacks=[heard])
    assert heard.ends == ["FitInterrupted", "NonFiniteError"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", ["gradient", "least_squares"])
def test_what_is_no_callback_is_refused(trajectories, quick_config, method):
    with pytest.raises(InputError, match=r"instances of ki\.Callback"):
        ki.fit(trajectories, quick_config, method=method, progress=False, callbacks=[print])


def test_lines_that_cannot_be_written_are_told_with_the_path(trajectories, quick_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"m\.jsonl could not be written"):
        ki.fit(trajectories, quick_config, progress=False, callbacks=[ki.JSONLines(tmp_path / "file" / "m.jsonl")])


@pytest.mark.parametrize(("name", "package"), [("TensorBoard", "tensorboard"), ("WeightsAndBiases", "wandb")])
def test_a_package_that_is_missing_is_named_with_what_installs_it(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    kind = getattr(ki, name)
    with pytest.raises(InputError, match=rf"pip install 'koopman-interp\[{package}\]'"):
        kind(tmp_path) if package == "tensorboard" else kind()


def test_tensorboard_shows_each_look_once(trajectories, quick_config, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, folder = tmp_path / "kept.safetensors", tmp_path / "events"
    mend = interrupted_at(monkeypatch, 45)
    with pytest.raises(FitInterrupted):
        ki.fit(trajectories, quick_config, checkpoint=path, progress=False, callbacks=[ki.TensorBoard(folder)])
    mend()
    config, boards = replace(quick_config), [ki.TensorBoard(folder)]
    fitted = ki.fit(trajectories, config, checkpoint=path, resume=True, progress=False, callbacks=boards)
    events = EventAccumulator(str(folder))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("held-out/loss")]
    assert [step for step, _ in shown] == [0, 20, 40, 60]
    assert [value for _, value in shown] == pytest.approx([look["loss"] for look in fitted.record.history])


class Run:
    """What a run of Weights & Biases does with steps."""

    def __init__(self):
        self.step, self.rows, self.finished = 0, {}, False

    def log(self, figures, step):
        assert step >= self.step
        self.step = step
        self.rows[step] = figures

    def finish(self):
        self.finished = True


@pytest.mark.parametrize("is_open", [True, False])
def test_weights_and_biases_logs_each_look_once_into_one_run(
    trajectories, quick_config, tmp_path, monkeypatch, is_open
):
    run, asked = Run(), []
    module = type(sys)("wandb")
    module.run, module.init = run if is_open else None, lambda **init: asked.append(init) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    path, arguments = tmp_path / "kept.safetensors", {"project": "p", "id": "x", "resume": "allow"}
    for stop, resume in ((45, False), (None, True)):
        mend = interrupted_at(monkeypatch, stop)
        try:
            callbacks = [ki.WeightsAndBiases(**arguments)]
            ki.fit(trajectories, quick_config, checkpoint=path, resume=resume, progress=False, callbacks=callbacks)
        except FitInterrupted:
            assert stop is not None
        mend()
    assert list(run.rows) == [0, 20, 40, 60]
    assert run.rows[0].keys() == {"held-out/loss", "held-out/fvu", "held-out/stress"}
    assert asked == ([] if is_open else [arguments] * 2)
    assert run.finished is not is_open


def test_looks_are_logged_and_nothing_is_printed(trajectories, quick_config, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="koopman_interp"):
        ki.fit(trajectories, quick_config, progress=False)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        f"fit: step {step}" for step in (0, 20, 40, 60)
    ]
    assert capsys.readouterr() == ("", "")
