"""Labels that come apart from a loader's inputs are theirs, or are refused."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

import koopman_interp as ki
from koopman_interp.errors import InputError

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
ORDERED = [
    DataLoader(X, batch_size=8),
    DataLoader(X.split(10), batch_size=None),
    DataLoader(X, batch_sampler=BatchSampler(SequentialSampler(X), 7, False)),
]
OTHERWISE = [
    DataLoader(X, batch_size=8, shuffle=True),
    DataLoader(X, batch_size=8, sampler=list(range(39, -1, -1))),
    DataLoader(X, batch_sampler=BatchSampler(RandomSampler(X), 8, False)),
    DataLoader(X, batch_sampler=[[3, 1, 2], [*range(3, 40)]]),
]


@pytest.mark.parametrize("loader", ORDERED, ids=range(len(ORDERED)))
def test_in_the_order_of_the_data_they_are_those_of_the_inputs(model, loader):
    found, expected = (ki.attach(model).observe(given, Y, progress=False) for given in (loader, X))
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.states[0], expected.states[0])


@pytest.mark.parametrize("loader", OTHERWISE, ids=range(len(OTHERWISE)))
def test_in_another_order_they_are_refused(model, surrogate, loader):
    tap = ki.attach(model)
    with pytest.raises(InputError, match=r"DataLoader\(TensorDataset\(x, y\), …\).*shuffle=False"):
        tap.observe(loader, Y, progress=False)
    with pytest.raises(InputError, match="shuffle=False"):
        ki.fidelity(model, surrogate, held_out=loader, labels=Y, progress=False)
    assert len(tap.observe(loader, progress=False)) in (38, 40)


def test_together_they_may_come_in_any_order(model):
    loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))
    tap = ki.attach(model)
    found, expected = tap.observe(loader, progress=False), tap.observe(X, Y, progress=False)
    place = {digest: row for row, digest in enumerate(expected.digests.tolist())}
    assert found.labels.tolist() == [int(expected.labels[place[digest]]) for digest in found.digests.tolist()]
