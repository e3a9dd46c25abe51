"""Ctrl-C anywhere says what was kept; a checkpoint has one writer; want of memory halves the batch, once."""

import logging
import re
from dataclasses import replace

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FitInterrupted, KoopmanInterpError, LockedError, TooLargeError
from koopman_interp.files import read_tensors
from koopman_interp.fitting import fit as fitting
from koopman_interp.fitting.checkpoint import Checkpoint
from koopman_interp.fitting.config import DescentConfig
from koopman_interp.fitting.descent import Descent
from koopman_interp.fitting.objective import FitObjective
from koopman_interp.locks import locked
from koopman_interp.memory import is_out_of_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder


def interrupts(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["fit_normalization", "start_encoder", "start_operator", "linear_maps"])
def test_an_interrupt_of_the_set_up_says_that_nothing_was_kept(
    trajectories, quick_config, tmp_path, monkeypatch, place
):
    monkeypatch.setattr(fitting, place, interrupts)
    with pytest.raises(FitInterrupted, match=r"before the first step or after the last; nothing was kept"):
        ki.fit(trajectories, quick_config, checkpoint=tmp_path / "kept.safetensors", progress=False)
    with pytest.raises(FitInterrupted, match=r"With fit\(…, checkpoint=path\)"):
        ki.fit(trajectories, quick_config, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["solve_operator_anew", "gather_moments"])
def test_an_interrupt_after_the_last_step_says_where_to_go_on(
    trajectories, quick_config, surrogate, tmp_path, monkeypatch, place
):
    path = tmp_path / "kept.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(KoopmanAutoencoder if place == "gather_moments" else fitting, place, interrupts)
        with pytest.raises(FitInterrupted, match=rf"{re.escape(str(path))} holds step 60.*resume=True"):
            ki.fit(trajectories, quick_config, checkpoint=path, progress=False)
    resumed = ki.fit(trajectories, quick_config, checkpoint=path, resume=True, progress=False).state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in surrogate.state_dict().items())


def test_an_interrupt_while_a_checkpoint_is_written_names_the_step_that_the_file_holds(
    trajectories, quick_config, tmp_path, monkeypatch
):
    path, write = tmp_path / "kept.safetensors", Checkpoint.write

    def stops(self, tensors, progress):
        if progress["step"] == 40:
            raise KeyboardInterrupt
        write(self, tensors, progress)

    monkeypatch.setattr(Checkpoint, "write", stops)
    with pytest.raises(FitInterrupted, match=r"at step 40 of 60; .* holds step 20"):
        ki.fit(trajectories, quick_config, checkpoint=path, progress=False)
    assert read_tensors(path, kind="checkpoint")[1]["progress"]["step"] == 20


def test_a_checkpoint_has_one_writer(trajectories, quick_config, tmp_path):
    path = tmp_path / "kept.safetensors"
    with locked(path), pytest.raises(LockedError, match="is being written to by process"):
        ki.fit(trajectories, quick_config, checkpoint=path, resume="auto", progress=False)
    ki.fit(trajectories, quick_config, checkpoint=path, resume="auto", progress=False)
    assert list(tmp_path.iterdir()) == [path]


# --- memory ---------------------------------------------------------------------------------------------------------

SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"),
    MemoryError(),
]


def short_of_memory(monkeypatch, error, at):
    """Let the objective run out of memory at some steps, each time once; return the batches that it takes."""
    call, left, batches = FitObjective.__call__, list(at), []

    def stops(self, step, generator):
        if step in left:
            left.remove(step)
            raise error
        batches.append(self._batches(step)[0].shape[1])
        return call(self, step, generator)

    monkeypatch.setattr(FitObjective, "__call__", stops)
    return batches


@pytest.mark.parametrize("error", SAID, ids=lambda error: type(error).__name__)
def test_a_step_that_memory_does_not_hold_halves_the_batch_and_says_so(
    trajectories, quick_config, monkeypatch, caplog, error
):
    batches = short_of_memory(monkeypatch, error, at=[5])
    with caplog.at_level(logging.WARNING, logger="koopman_interp"):
        fitted = ki.fit(trajectories, quick_config, progress=False)
    assert batches == [64] * 5 + [32] * 55
    assert "memory ran out at step 5; the batch is 32" in caplog.text
    assert any("batch: halved to 32 at step 5" in choice for choice in fitted.record.choices)


@pytest.mark.parametrize("at", [(5, 5), (5, 30)])
def test_a_second_want_of_memory_says_what_to_change(trajectories, quick_config, monkeypatch, at):
    short_of_memory(monkeypatch, SAID[1], at)
    with pytest.raises(TooLargeError, match=rf"step {at[1]} of fit, with half of the batch neither\. Lower batch_size"):
        ki.fit(trajectories, quick_config, progress=False)


def test_a_resumed_fit_keeps_to_the_batch_that_memory_held(trajectories, quick_config, tmp_path, monkeypatch):
    path = tmp_path / "kept.safetensors"
    with monkeypatch.context() as patch:
        short_of_memory(patch, SAID[0], [5])
        whole = ki.fit(trajectories, quick_config, progress=False)
    with monkeypatch.context() as patch:
        short_of_memory(patch, SAID[0], [5])
        descend = Descent._descend
        patch.setattr(Descent, "_descend", lambda self, step: interrupts() if step == 33 else descend(self, step))
        with pytest.raises(FitInterrupted):
            ki.fit(trajectories, quick_config, checkpoint=path, progress=False)
    resumed = ki.fit(trajectories, quick_config, checkpoint=path, resume=True, progress=False)
    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_what_cannot_be_halved_is_told_at_once():
    own = torch.ones(1, requires_grad=True)

    def objective(*_):
        raise SAID[0]

    descent = Descent(
        [([own], 1.0)], objective, lambda _: {"loss": 0.0}, DescentConfig(), Checkpoint(None, {}, "distil")
    )
    with pytest.raises(TooLargeError, match=r"step 0 of distil\. Lower batch_size"):
        descent.run(resume=False, progress=False)


def test_other_errors_are_not_taken_for_want_of_memory(trajectories, quick_config, monkeypatch):
    short_of_memory(monkeypatch, RuntimeError("shapes differ"), [5])
    with pytest.raises(RuntimeError, match="shapes differ"):
        ki.fit(trajectories, replace(quick_config, steps=10), progress=False)
    assert not is_out_of_memory(KoopmanInterpError("out of memory"))
    assert not is_out_of_memory(TooLargeError("refused"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
