"""Moments gathered in chunks are those of all rows at once, and stay in float64."""

import copy

import numpy as np
import pytest
import torch

from koopman_interp.surrogates.moments import Moments

CLASSES = (2, 5, 9)


def data(rows=200, depths=3, observables=4):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(depths, rows, observables, generator=generator, dtype=torch.float64) * 2 + 1
    labels = torch.tensor(CLASSES)[torch.randint(0, 3, (rows,), generator=generator)]
    return z, labels


def gathered(z, labels, sizes, classes=CLASSES):
    moments = Moments(len(z), classes, z.shape[-1])
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        moments.update(z[:, rows], None if labels is None else labels[rows])
        start += size
    assert start == z.shape[1]
    return moments


SIZES = [(200,), (1,) * 200, (3, 150, 47), (100, 100)]


@pytest.mark.parametrize("sizes", SIZES, ids=len)
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_chunks_give_what_numpy_gives_on_all_rows(sizes, shift):
    z, labels = data()
    z = z + shift
    moments = gathered(z, labels, sizes)
    assert moments.rows == 200
    assert moments.count.tolist() == [int((labels == label).sum()) for label in CLASSES]
    for depth, points in enumerate(z.numpy()):
        for index, label in enumerate(CLASSES):
            expected = points[labels.numpy() == label].mean(0)
            np.testing.assert_allclose(moments.mean[depth, index].numpy(), expected, rtol=1e-12)
        np.testing.assert_allclose(moments.total_mean(depth).numpy(), points.mean(0), rtol=1e-12)
        expected = np.cov(points.T, bias=True)
        # Cancellation at a mean of 10⁶ costs digits of the points themselves, but no more.
        np.testing.assert_allclose(moments.covariance[depth].numpy(), expected, rtol=1e-7, atol=1e-9)


def test_a_chunk_without_rows_adds_nothing():
    z, labels = data()
    whole, with_empty_ones = gathered(z, labels, (150, 50)), gathered(z, labels, (0, 150, 0, 50, 0))
    assert all(torch.equal(tensor, with_empty_ones.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_without_labels_all_rows_are_one_group():
    z, _ = data()
    moments = gathered(z, None, (120, 80), classes=())
    assert moments.count.tolist() == [200]
    torch.testing.assert_close(moments.mean[:, 0], z.mean(1))
    np.testing.assert_allclose(moments.covariance[1].numpy(), np.cov(z[1].numpy().T, bias=True))


def test_a_class_that_does_not_occur_counts_nothing():
    z, _ = data(rows=10)
    moments = gathered(z, torch.tensor([2] * 4 + [9] * 6), (4, 6))
    assert moments.count.tolist() == [4, 0, 6]
    assert torch.isfinite(moments.mean).all()
    torch.testing.assert_close(moments.total_mean(0), z[0].mean(0))


@pytest.mark.parametrize(
    "cast", [lambda m: m.to(torch.bfloat16), lambda m: m.float(), lambda m: m.half(), lambda m: m.cpu()]
)
def test_casts_leave_every_bit(cast):
    z, labels = data()
    moments = gathered(z, labels, (200,))
    before = copy.deepcopy(moments.state_dict())
    for module in (cast(moments), cast(torch.nn.Sequential(torch.nn.Linear(2, 2), moments))[1]):
        assert module is moments
        for name, tensor in module.state_dict().items():
            assert tensor.dtype == torch.float64
            assert torch.equal(tensor, before[name])
    moments.update(z, labels)  # and it can still be added to
    assert moments.rows == 400


def test_rows_of_a_narrow_dtype_are_summed_in_float64():
    z, labels = data()
    narrow = z.to(torch.bfloat16)
    moments = gathered(narrow, labels, (90, 110))
    np.testing.assert_allclose(moments.covariance[0].numpy(), np.cov(narrow[0].double().numpy().T, bias=True))


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("sizes", [(200,), (0, 200), (200, 0), (30, 170), (1, 99, 100)])
def test_moments_added_are_those_of_all_rows(sizes, shift):
    z, labels = data()
    z = z + shift + labels[:, None]  # so that parts differ in their means, and classes in theirs
    order = labels.argsort()
    z, labels = z[:, order], labels[order]
    whole, added = gathered(z, labels, (200,)), Moments(3, CLASSES, 4)
    for part in zip(z.split(sizes, 1), labels.split(sizes), strict=True):
        added.add(gathered(*part, (len(part[1]),)))
    assert torch.equal(added.count, whole.count)
    torch.testing.assert_close(added.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(added.covariance, whole.covariance, rtol=1e-7, atol=1e-9)


def test_moments_turned_are_those_of_rows_turned():
    z, labels = data()
    Q = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned, expected = gathered(z, labels, (200,)).turned(Q), gathered(z @ Q, labels, (200,))
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(turned.state_dict()[name], tensor)
