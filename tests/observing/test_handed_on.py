"""Sites go by the order in which a model computes them; of blocks that hand no state on it is asked what is meant."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.errors import InputError

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
NO_STREAM = {
    "side_by_side": r"'blocks\.1:input' is the same as 'blocks\.0:input', and nothing of 'blocks\.0' is in it",
    "added_to_a_stream": r"'blocks\.1:input' is the sum of 'blocks\.0:input' and 'blocks\.0'",
}


class Block(nn.Linear):
    """A type of its own, as blocks are."""


class Host(nn.Module):
    def __init__(self, run: Callable[[nn.ModuleList, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(6, 6) for _ in range(4))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.blocks, x)


def in_a_row(blocks, x):
    for block in blocks:
        x = block(x)
    return x


def backwards(blocks, x):
    return in_a_row(list(blocks)[::-1], x)


def side_by_side(blocks, x):
    return sum(block(x) for block in blocks)


def added_to_a_stream(blocks, x):
    for block in blocks:
        x = x + block(x)
    return x


def with_activations(blocks, x):
    for block in blocks:
        x = block(x)
        x.relu_()
    return x


def observed(host: Host, sites: object = None, *, own_pass: bool = False) -> ki.Trajectories:
    tap = ki.attach(host.eval(), sites)
    if not own_pass:
        return tap.observe([*X.split(10)], progress=False)
    with torch.no_grad(), tap:
        host(X[:10])
        host(X[10:])
    return tap.trajectories


@pytest.mark.parametrize("own_pass", [False, True])
@pytest.mark.parametrize("run", [side_by_side, added_to_a_stream])
def test_blocks_that_hand_no_state_on_are_asked_about_once(run, own_pass):
    host = Host(run)
    with pytest.warns(UserWarning, match=NO_STREAM[run.__name__]) as told:
        found = observed(host, own_pass=own_pass)
    assert len(told) == 1
    inputs = [f"blocks.{number}:input" for number in range(4)]
    assert f"attach(model, {inputs})" in str(told[0].message)
    assert observed(host, inputs).sites == tuple(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meant = observed(host, found.sites, own_pass=own_pass)
    assert all(map(torch.equal, found.states, meant.states))


@pytest.mark.parametrize("own_pass", [False, True])
@pytest.mark.parametrize("run", [in_a_row, with_activations])
def test_a_stream_is_taken_without_a_word(run, own_pass):
    found = observed(Host(run), own_pass=own_pass)
    assert found.sites == ("blocks.0:input", "blocks.0", "blocks.1", "blocks.2", "blocks.3")


def test_blocks_that_run_in_another_order_than_that_of_their_names_are_refused_with_it():
    host = Host(backwards)
    with pytest.raises(InputError, match=r"blocks\.3, blocks\.2, blocks\.1, blocks\.0:input, blocks\.0"):
        observed(host)
    found = observed(host, ["blocks.3", "blocks.2", "blocks.1", "blocks.0"])
    torch.testing.assert_close(found.states[-1], host(X).detach())
    with pytest.raises(InputError, match=r"attach\(model, \['blocks\.1', 'blocks\.3'\]\)"):
        observed(Host(in_a_row), ["blocks.3", "blocks.1"])
