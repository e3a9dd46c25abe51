"""An audit asks each model once a batch, and never holds the log-probabilities of all rows."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import koopman_interp as ki
from koopman_interp.auditing import comparison
from koopman_interp.auditing.baselines import has_leace
from koopman_interp.testing import ResidualMLP

METHODS = 3 + has_leace()
"""What takes a pass of the model itself: the base model, mean difference, LEACE and the edit. A mask takes none."""


REACH = 4
"""Passes a batch that say what arrives of the edit, on four batches at most: the base model, and three ways of it."""


@contextmanager
def counted(model):
    """Count calls of a model and of its copies."""
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize(("batch_size", "held_out", "training"), [(1000, 1, 1), (100, 3, 6)])
def test_each_method_takes_one_pass_a_batch(case, batch_size, held_out, training):
    settings = {"probes": (), "retrained": case.retrained, "batch_size": batch_size}
    with counted(case.model) as calls, counted(case.retrained) as others:
        case.audited(**settings)
    assert (len(calls), len(others)) == (METHODS * held_out + REACH * held_out, held_out)
    with counted(case.model) as calls, counted(case.retrained) as others:
        case.audited(**settings, training=case.training)
    asked = METHODS * (held_out + training) + REACH * held_out
    assert (len(calls), len(others)) == (asked, held_out + training)


def test_outputs_that_are_too_much_to_keep_cost_the_base_model_a_second_pass(case, found, monkeypatch):
    x, _ = case.held_out
    half = len(x) // 2 * 3 * 8
    for kept, more in ((half, 2), (0, 4)):
        monkeypatch.setattr(comparison, "MOST_KEPT", kept)
        with counted(case.model) as calls:
            again = case.audited(retrained=case.retrained, batch_size=len(x) // 4)
        assert len(calls) == 4 * (METHODS + REACH) + more
        for ours, theirs in zip(again.rows, found.rows, strict=True):
            assert (ours.forget_accuracy, ours.retain_accuracy) == (theirs.forget_accuracy, theirs.retain_accuracy)
            assert ours.kl == pytest.approx(theirs.kl, rel=1e-4, abs=1e-9)
            assert ours.linear_probe == pytest.approx(theirs.linear_probe, abs=0.02)


def test_relearning_takes_its_steps_and_a_pass_a_batch_for_each_point(case):
    with counted(case.model) as before:
        case.audited(probes=(), training=case.training, batch_size=100)
    relearn = ki.Relearning(steps=(0, 1, 4))
    with counted(case.model) as calls:
        case.audited(probes=(), training=case.training, batch_size=100, relearn=relearn)
    # All methods that learn, and K alone: three points of three batches, and four steps on one batch of drawn rows.
    assert len(calls) - len(before) == METHODS * (3 * 3 + 4)


class Live(TorchDispatchMode):
    """Notes the largest tensor that is made, and the most bytes that are alive at once."""

    def __init__(self):
        super().__init__()
        self.largest = self.peak = self.alive = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        if self.alive > self.peak:
            gc.collect()  # what only a cycle holds is alive or not as the collector pleases
        self.largest, self.peak = max(self.largest, size), max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self._known.discard(key)
        self.alive -= size


CLASSES, BATCH = 1000, 20


@pytest.fixture(scope="module")
def wide():
    """A small model with a wide head, its retrained reference, and a patch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, retrained = (ResidualMLP(4, 10, 3, CLASSES).eval() for _ in range(2))
    x, y = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 3
    koopman = ki.fit(
        ki.attach(model).observe(x, y, progress=False), ki.FitConfig(observables=20), method="least_squares"
    )
    return ki.patched(model, koopman, ki.erase_class(koopman, label=1)), retrained


def live(wide, batches, **settings):
    patch, retrained = wide
    x = torch.randn(batches * BATCH, 4, generator=torch.Generator().manual_seed(1))
    rows = x, torch.arange(len(x)) % 3
    gc.collect()
    gc.freeze()  # so that collecting looks at nothing older than this
    try:
        with Live() as mode:
            ki.audit(patch, held_out=rows, training=rows, retrained=retrained, probes=(), batch_size=BATCH, **settings)
    finally:
        gc.unfreeze()
    return mode


@pytest.mark.parametrize("relearn", [None, ki.Relearning(rows=5, beside=5, steps=(0, 1))])
def test_memory_does_not_grow_with_rows_times_classes(wide, monkeypatch, relearn):
    monkeypatch.setattr(comparison, "MOST_KEPT", 0)
    few, many = (live(wide, batches, relearn=relearn) for batches in (3, 15))
    table = BATCH * CLASSES * 8
    assert few.largest == many.largest == table
    # Past the passes of one batch, what grows are some figures a row and ten coordinates of its states, not a table.
    assert 3 * table < few.peak < many.peak < few.peak + table


def test_what_is_kept_of_the_base_model_is_bounded(wide, monkeypatch):
    table = BATCH * CLASSES * 8
    monkeypatch.setattr(comparison, "MOST_KEPT", 0)
    nothing = live(wide, 12)
    monkeypatch.setattr(comparison, "MOST_KEPT", 6 * table)
    some = live(wide, 12)
    assert 5 * table <= some.peak - nothing.peak <= 7 * table
