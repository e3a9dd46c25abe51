"""Edits written in place at each site: the formula by hand, the host in between, and no trace."""

import copy

import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_interp.errors import InputError


class Block(nn.Module):
    """Mixes positions causally, as attention does."""

    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        mixed = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None].to(x)
        return x + torch.tanh(self.fc(mixed))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(Block(8) for _ in range(3))
        self.head = nn.Linear(8, 11)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def case():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tokens().double().eval()
        ids = torch.randint(0, 11, (60, 5))
    trajectories = ki.attach(model).observe(ids, torch.arange(60) % 3, progress=False)
    koopman = ki.fit(trajectories, ki.FitConfig(observables=12), method="least_squares").double()
    edits = ki.each_site(koopman, lambda site: ki.erase_class(koopman, label=1, site=site, strength=1.5), [0, 2, 3])
    return model, koopman, edits, ids[:7]


def by_hand(model, koopman, edits, ids, chosen=slice(None)):
    """`x + D(P E(x)) − D(E(x))` at each site with an edit, the host's own blocks in between."""
    own = {edit.depth: edit for edit in edits}

    def write(x, depth):
        if depth not in own:
            return x
        rows = x.flatten(0, 1)
        z = koopman.encode(rows, depth)
        moved = (koopman.decode(own[depth](z), depth) - koopman.decode(z, depth)).view_as(x)
        mask = torch.zeros(x.shape[1], dtype=torch.bool)
        mask[chosen] = True
        return x + moved * mask[None, :, None]

    x = write(model.embed(ids), 0)
    for depth, block in enumerate(model.blocks, 1):
        x = write(block(x), depth)
    return model.head(x)


def run(model, ids, *arguments, **more):
    with torch.no_grad(), ki.patched(model, *arguments, at="each site", **more):
        return model(ids)


@pytest.mark.parametrize("depths", [[0], [3], [0, 2], [0, 2, 3]])
def test_each_edit_is_written_where_it_acts(case, depths):
    model, koopman, edits, ids = case
    some = [edit for edit in edits if edit.depth in depths]
    with torch.no_grad():
        expected = by_hand(model, koopman, some, ids)
        assert float((expected - model(ids)).abs().max()) > 1e-3
    torch.testing.assert_close(run(model, ids, koopman, some), expected, rtol=1e-9, atol=1e-9)


def test_it_is_not_what_k_carries_to_the_target(case):
    model, koopman, edits, ids = case
    with torch.no_grad(), ki.patched(model, koopman, edits):
        carried = model(ids)
    assert float((carried - run(model, ids, koopman, edits)).abs().max()) > 1e-3


def test_edits_at_one_site_act_in_order(case):
    model, koopman, edits, ids = case
    other = ki.erase_class(koopman, label=2, site=2)
    both = run(model, ids, koopman, [edits[1], other])
    with torch.no_grad():
        expected = by_hand(model, koopman, [other @ edits[1]], ids)
    torch.testing.assert_close(both, expected, rtol=1e-9, atol=1e-9)


def test_chosen_positions_only(case):
    model, koopman, edits, ids = case
    with torch.no_grad():
        expected = by_hand(model, koopman, edits, ids, slice(2, None))
    found = run(model, ids, koopman, edits, positions=slice(2, None))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("edits", [None, (), "nothing"])
def test_no_edit_changes_no_bit(case, edits):
    model, koopman, own, ids = case
    with torch.no_grad():
        assert torch.equal(run(model, ids, koopman, own.scaled(0.0) if edits == "nothing" else edits), model(ids))


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_no_exit_leaves_a_trace(case, error):
    model, koopman, edits, ids = case
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with torch.no_grad():
        plain = model(ids)
        try:
            with ki.patched(model, koopman, edits, at="each site"):
                model(ids)
                if error:
                    raise error
        except RuntimeError:
            pass
        assert torch.equal(model(ids), plain)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == before


def test_a_baked_copy_is_the_patched_model(case):
    model, koopman, edits, ids = case
    expected = run(model, ids, koopman, edits)
    baked = ki.patched(model, koopman, edits, at="each site").bake()
    with torch.no_grad():
        for each in (baked, copy.deepcopy(baked)):
            assert torch.equal(each(ids), expected)
    assert any(name.startswith("koopman_patch.2.") for name in baked.state_dict())


def test_gradients_reach_the_input(case):
    model, koopman, edits, ids = case
    model = copy.deepcopy(model)
    with ki.patched(model, koopman, edits, at="each site"):
        loss = model(ids).square().mean()
    slope = torch.autograd.grad(loss, model.embed.weight)[0]
    loss = by_hand(model, koopman, edits, ids).square().mean()
    torch.testing.assert_close(slope, torch.autograd.grad(loss, model.embed.weight)[0], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("more", [{"mode": "replace"}, {"source": 0}, {"target": -1}])
def test_a_span_of_its_own_is_refused(case, more):
    model, koopman, edits, _ = case
    with pytest.raises(InputError, match="written in place"):
        ki.patched(model, koopman, edits, at="each site", **more)


def test_a_place_that_is_none_is_refused(case, unchecked):
    model, koopman, edits, _ = case
    with pytest.raises(InputError, match="neither 'target' nor 'each site'"):
        ki.patched(model, koopman, edits, at="everywhere")
