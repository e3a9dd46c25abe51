"""What comes after a site is the host's own computation, whatever state is put there."""

import pytest
import torch
from torch import nn

from koopman_interp.errors import InputError, UnknownSiteError, UnskippableError, UnsupportedHostError
from koopman_interp.hosts.finding import host_for
from koopman_interp.observing.own_pass import OwnPass
from tests.hosts.lens_models import llama_bridge, native_bridge


def passed(model, x, sites=None, **how):
    host = host_for(model)
    return OwnPass.of(host, x, host.sites(sites), **how)


@pytest.fixture
def x():
    return torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[native_bridge, llama_bridge], ids=["native", "llama"])
def language_model(request):
    return request.param()


IDS = torch.randint(2, 90, (3, 7), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_hosts_own_states_give_the_hosts_own_output(model, x):
    own = passed(model, x)
    assert torch.equal(own.output.logp, model(x).double().log_softmax(1))
    for depth in range(1, 5):
        with own.after(depth) as said:
            # The first pass learns the blocks, the second skips them.
            assert all(torch.equal(said(own.rows(depth)).logp, own.output.logp) for _ in range(3))


@torch.no_grad()
@pytest.mark.parametrize("skip", [0, 2])
def test_so_they_do_in_a_language_model(language_model, skip):
    own = passed(language_model, IDS, skip=skip)
    expected = language_model(IDS)[:, skip:].flatten(0, 1).double().log_softmax(1)
    assert torch.equal(own.output.logp, expected)
    with own.after(len(own.sites) - 1) as said:
        assert torch.equal(said(own.rows(-1)).logp, expected)


@torch.no_grad()
def test_what_follows_a_site_is_computed_from_what_is_put_there(model, x):
    own = passed(model, x)
    rows = torch.randn(40, 10, generator=torch.Generator().manual_seed(2))
    following = model.blocks[2:]
    with own.after(2) as said:
        for put in (rows, rows.flip(0)):
            state = put
            for block in following:
                state = block(state)
            assert torch.equal(said(put).logp, model.head(state).double().log_softmax(1))


@torch.no_grad()
def test_skipped_positions_keep_the_hosts_own_states(language_model):
    own = passed(language_model, IDS, skip=6)
    # The last of seven positions is the only sample: attention after the site still sees the others' own states.
    with own.after(2) as said:
        assert torch.equal(said(own.rows(2)).logp, own.output.logp)
        assert not torch.equal(said(own.rows(2) + 1).logp, own.output.logp)


def test_gradients_reach_the_rows_and_are_those_of_the_head(model, x):
    own = passed(model, x, training=True)
    rows = own.rows(4).clone().requires_grad_(True)
    with own.after(4) as said:
        ours = torch.autograd.grad(said(rows).logp[:, 0].sum(), rows)[0]
    expected = torch.autograd.grad(model.head(rows).log_softmax(1)[:, 0].sum(), rows)[0]
    torch.testing.assert_close(ours, expected)
    with own.after(4) as said:
        assert said(rows).logp.dtype == own.output.logp.dtype == torch.float32


class _Unskippable:
    """A host whose spans cannot be skipped, as of blocks that return tensors beside their state."""

    def __init__(self, host, refusal=UnskippableError):
        self._host, self._refusal = host, refusal

    def __getattr__(self, name):
        return getattr(self._host, name)

    def replaced(self, source, target, advance):
        def refuse(state):
            raise self._refusal("cannot be skipped")

        return self._host.replaced(source, target, refuse)


@torch.no_grad()
def test_where_blocks_cannot_be_skipped_their_output_is_written_over(model, x):
    host = _Unskippable(host_for(model))
    own = OwnPass.of(host, x, host.sites(None))
    rows = torch.randn(40, 10, generator=torch.Generator().manual_seed(2))
    with own.after(4) as said:
        assert torch.equal(said(rows).logp, model.head(rows).double().log_softmax(1))
        assert torch.equal(said(own.rows(4)).logp, own.output.logp)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_what_is_written_over_is_seen_by_the_other_readers_of_the_site(model, x):
    host = _Unskippable(host_for(model))
    own = OwnPass.of(host, x, host.sites(None))
    seen = []
    model.blocks[3].register_forward_hook(lambda module, args, output: seen.append(output))
    rows = torch.randn(40, 10, generator=torch.Generator().manual_seed(2))
    with own.after(4) as said:
        said(rows)
        said(rows)
    assert torch.equal(seen[-1], rows)


@torch.no_grad()
def test_no_other_refusal_is_taken_for_blocks_that_cannot_be_skipped(model, x):
    host = _Unskippable(host_for(model), UnsupportedHostError)
    own = OwnPass.of(host, x, host.sites(None))
    with pytest.raises(UnsupportedHostError, match="cannot be skipped"), own.after(4) as said:
        said(own.rows(4))


class Convolutional(nn.Module):
    """States of images at the first sites, whose channels are written over in place further on, then of vectors."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3)
        self.activation = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.activation(self.first(x)).flatten(1))


@torch.no_grad()
def test_states_are_kept_as_they_were_when_the_site_was_reached():
    model = Convolutional().eval()
    images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    own = passed(model, images, ["first", "activation"])
    assert torch.equal(own.state(0), model.first(images))
    assert own.state(0).min() < 0


@torch.no_grad()
def test_where_layouts_differ_the_samples_are_those_of_the_state_with_most_axes():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.vectors, self.positions = nn.Identity(), nn.Identity()

        def forward(self, x):
            return self.positions(self.vectors(x.flatten(0, 1)).unflatten(0, x.shape[:2])).mean(1)

    own = passed(Pooled(), torch.randn(2, 3, 4), ["vectors", "positions"])
    assert own.of_states.entry.tolist() == [0, 0, 0, 1, 1, 1]
    assert own.of_states.place.tolist() == [0, 1, 2] * 2


@torch.no_grad()
def test_nothing_is_left_behind_even_when_it_breaks(model, x):
    before = [sorted(vars(module)) for module in model.modules()]
    own = passed(model, x)
    with pytest.raises(RuntimeError), own.after(3) as said:
        said(torch.zeros(40, 3))
    assert before == [sorted(vars(module)) for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("depth", [0, -1, 5])
def test_only_depths_past_the_first_can_be_put(model, x, depth):
    with pytest.raises(InputError, match="from 1 to 4"), passed(model, x).after(depth):
        pass


def test_a_site_that_is_never_reached_is_named(x):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x):
            return self.blocks[0](x)

    with pytest.raises(UnknownSiteError, match=r"never reached blocks\.1"):
        passed(Idle(), x)


def test_sites_are_named_in_order_of_depth(model, x):
    host = host_for(model)
    with pytest.raises(InputError, match=r"blocks\.0:input, blocks\.2; got blocks\.2, blocks\.0:input\..*in order"):
        OwnPass.of(host, x, ("blocks.2", "blocks.0:input"))


def test_a_batch_without_samples_has_no_next_tokens(language_model):
    assert passed(language_model, IDS, skip=7).output.following().tolist() == []


def test_next_tokens_stay_within_their_sequence(language_model):
    ids = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    ids["attention_mask"][1, 5:] = 0
    following = passed(language_model, ids, skip=1).output.following().tolist()
    expected = [[*row[2:length], -100] for row, length in zip(IDS.tolist(), [7, 5, 7], strict=True)]
    assert following == [one for row in expected for one in row]


def test_next_tokens_need_token_ids(model, x):
    with pytest.raises(InputError, match="has none here"):
        passed(model, x).output.following()
