"""Gram matrices are sums over pairs of depths of one sample, however they were cut and put together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis.spectra.grams import shard_of
from koopman_interp.analysis.spectra.residuals import step_residuals
from koopman_interp.errors import FileFormatError, InputError
from tests.analysis.linear import known_operator, pairs_of, plain_surrogate, trajectories_of

PARTS = ("G", "A", "L")


def assert_alike(ours, theirs, rtol=1e-12):
    for name in (*PARTS, "sums", "count"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=rtol, atol=1e3 * rtol)


def random_data(times, rows=90, seed=0):
    return trajectories_of(np.random.default_rng(seed).normal(size=(len(times), rows, 6)), times)


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 1.0, 2.0, 3.0), (0.0, 2.0, 3.0, 5.0), (0.0, 0.1, 0.2, 0.3)])
def test_sums_over_pairs_with_equally_many_steps_between(times):
    koopman, data = plain_surrogate(known_operator(), times), random_data(times)
    grams = ki.gather_grams(koopman, data)
    slow = {}
    for gap, before, after in pairs_of(koopman, data):
        G, A, L = slow.setdefault(round(gap, 6), [0, 0, 0])
        slow[round(gap, 6)] = [G + before.T @ before, A + before.T @ after, L + after.T @ after]
    assert [round(span.gap, 6) for span in grams.spans] == sorted(slow)
    for index, span in enumerate(grams.spans):
        for name, expected in zip(PARTS, slow[round(span.gap, 6)], strict=True):
            np.testing.assert_allclose(getattr(grams, name)[index, 0, 0], expected, rtol=1e-12, atol=1e-10)
    by_depth = ki.gather_grams(koopman, data, by_depth=True)
    assert len(by_depth.spans) == len(times) - 1
    torch.testing.assert_close(by_depth.A.sum(0), grams.A.sum(0))


def test_no_pair_joins_two_samples():
    """The jump from one sample's last depth to the next one's first is no step: order cannot matter."""
    times = (0.0, 1.0, 2.0)
    koopman, data = plain_surrogate(known_operator(), times), random_data(times)
    shuffled = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))]
    assert_alike(ki.gather_grams(koopman, shuffled), ki.gather_grams(koopman, data))


def test_classes_and_shards_add_up_to_the_whole(surrogate, trajectories):
    whole = ki.gather_grams(surrogate, trajectories)
    assert_alike(ki.gather_grams(surrogate, trajectories, by_class=True, shards=5).pooled(), whole)
    split = ki.gather_grams(surrogate, trajectories, by_class=True)
    for label in split.classes:
        alone = ki.gather_grams(surrogate, trajectories[trajectories.labels == label])
        # The encoder works in float32, and rounds with the rows beside.
        assert_alike(split.of_class(label), alone, rtol=1e-6)


def test_parts_add_up_to_the_whole(surrogate, trajectories):
    whole = ki.gather_grams(surrogate, trajectories, shards=4)
    ours, theirs = (ki.gather_grams(surrogate, part, shards=4) for part in (trajectories[:250], trajectories[250:]))
    assert_alike(ours + theirs, whole)
    assert_alike(ki.gather_grams(surrogate, iter([trajectories[:10], trajectories[10:]]), shards=4), whole)


def test_the_samples_of_one_input_share_a_shard():
    sequence = torch.arange(1000).repeat_interleave(3)
    shards = shard_of(sequence, 16)
    assert (shards.view(-1, 3) == shards.view(-1, 3)[:, :1]).all()
    counts = shards[::3].bincount(minlength=16)
    assert counts.min() > 30  # 62.5 expected
    # Inputs in the order of their classes, as many classes as shards, do not end up class by class.
    of_one_class = shard_of(torch.arange(0, 1600, 16), 16)
    assert len(of_one_class.unique()) > 10


def test_centred_is_each_depth_less_its_mean():
    times = (0.0, 1.0, 2.0)
    data = random_data(times)
    moved = replace(data, states=tuple(state + 10 * (depth + 1) for depth, state in enumerate(data.states)))
    koopman = plain_surrogate(known_operator(), times)
    centred = replace(moved, states=tuple(state - state.mean(0) for state in moved.states))
    ours, theirs = ki.gather_grams(koopman, moved, shards=3).centred(), ki.gather_grams(koopman, centred)
    for name in PARTS:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-8)


def test_a_projection_can_come_first_or_last(surrogate, trajectories):
    basis = torch.linalg.qr(torch.randn(14, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    first, last = (
        ki.gather_grams(surrogate, trajectories, basis=basis),
        ki.gather_grams(surrogate, trajectories).projected(basis),
    )
    assert_alike(first, last)
    torch.testing.assert_close(first.basis, last.basis)
    assert first.width == 5


def test_they_come_back_from_their_file(tmp_path, surrogate, trajectories):
    basis = torch.eye(14, dtype=torch.float64)[:, :5]
    for grams in (
        ki.gather_grams(surrogate, trajectories, by_class=True, shards=2),
        ki.gather_grams(surrogate, trajectories, basis=basis),
    ):
        grams.save(tmp_path / "grams.safetensors")
        back = ki.Grams.load(tmp_path / "grams.safetensors")
        assert_alike(back, grams)
        assert (back.spans, back.classes, back.operator) == (grams.spans, grams.classes, grams.operator)
        assert_alike(back + grams, grams + grams)
    trajectories.save(tmp_path / "trajectories.safetensors")
    with pytest.raises(FileFormatError, match="not the 'grams'"):
        ki.Grams.load(tmp_path / "trajectories.safetensors")


def test_bad_input_gets_a_sentence(surrogate, trajectories):
    plain = replace(trajectories, labels=None)
    with pytest.raises(InputError, match="no labels"):
        ki.gather_grams(surrogate, plain, by_class=True)
    with pytest.raises(InputError, match="Label 7 is not among"):
        ki.gather_grams(surrogate, trajectories.with_labels([7] * 600), by_class=True)
    with pytest.raises(InputError, match="1 or more; got 0"):
        ki.gather_grams(surrogate, trajectories, shards=0)
    with pytest.raises(InputError, match=r"differ in classes, count"):
        ki.gather_grams(surrogate, trajectories) + ki.gather_grams(surrogate, trajectories, by_class=True)
    basis = torch.eye(14, dtype=torch.float64)[:, :5]
    some = ki.gather_grams(surrogate, trajectories, basis=basis)
    for other in (basis.flip(0), None):
        with pytest.raises(InputError, match="differ in basis"):
            some + replace(some, basis=other)
    with pytest.raises(InputError, match="differ in operator"):
        ki.gather_grams(surrogate, trajectories) + replace(ki.gather_grams(surrogate, trajectories), operator="another")
    with pytest.raises(InputError, match=r"14 coordinates.* take 35 GiB"):
        ki.gather_grams(surrogate, trajectories, shards=8_000_000)
    with pytest.raises(InputError, match="no class 9"):
        ki.gather_grams(surrogate, trajectories, by_class=True).of_class(9)


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_residuals_are_the_same_in_whatever_unit_observables_are(unit):
    """Of modes that no row reaches too, which have none."""
    K = known_operator()
    koopman, data = plain_surrogate(K, (0.0, 1.0, 2.0)), random_data((0.0, 1.0, 2.0))
    values, left = np.linalg.eig(K.T)
    reader = left[:, :1].real / np.linalg.norm(left[:, 0].real)
    states = torch.from_numpy(np.eye(len(K)) - reader @ reader.T).to(data.states[0])
    flat = replace(data, states=tuple(state @ states for state in data.states))
    for rows in (data, flat):
        grams = ki.gather_grams(koopman, rows)
        square = unit**2
        scaled = replace(grams, G=grams.G * square, A=grams.A * square, L=grams.L * square, sums=grams.sums * unit)
        found, expected = (step_residuals(each, values, left) for each in (scaled, grams))
        np.testing.assert_allclose(found.about_zero, expected.about_zero, rtol=1e-9)
        np.testing.assert_allclose(found.about_mean, expected.about_mean, rtol=1e-6)
        np.testing.assert_allclose(found.variance, square * expected.variance, rtol=1e-6)
