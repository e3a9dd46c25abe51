"""States that were recorded elsewhere make the trajectories that the tap itself would have recorded."""

import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_interp.errors import InputError, NonFiniteError, UnknownSiteError
from tests.hosts.lens_models import native_bridge
from tests.hosts.odd_models import llama


def same(found, expected):
    assert (found.sites, found.times, found.shapes, found.host) == (
        expected.sites,
        expected.times,
        expected.shapes,
        expected.host,
    )
    for ours, theirs in zip(found.states, expected.states, strict=True):
        assert torch.equal(ours, theirs)
    for name in ("sequence", "position", "labels", "tokens", "digests"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs), name


def test_a_cache_of_transformer_lens():
    model, ids = native_bridge(), torch.arange(24).reshape(4, 6) % 23
    tap = ki.attach(model, skip=1)
    with torch.no_grad():
        _, cache = model.run_with_cache(ids)
    same(tap.of_states(cache, ids, labels=torch.arange(4)), tap.observe(ids, torch.arange(4), progress=False))


def test_states_of_padded_inputs_by_hooks_of_ones_own():
    model = llama()
    ids = torch.arange(30).reshape(5, 6) % 17
    batch = {"input_ids": ids, "attention_mask": (torch.arange(6) < torch.tensor([6, 3, 4, 6, 2])[:, None]).long()}
    tap, states = ki.attach(model), {}
    handles = [
        model.get_submodule(site.removesuffix(":input")).register_forward_hook(
            lambda _, inputs, output, site=site: states.update(
                {site: inputs[0] if site.endswith(":input") else output[0] if isinstance(output, tuple) else output}
            )
        )
        for site in tap.sites
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    same(tap.of_states(states, batch), tap.observe([batch], progress=False))


def test_rows_in_the_order_of_the_sites(model, yin_yang_data):
    x, y = yin_yang_data
    tap = ki.attach(model)
    expected = tap.observe(x[:50], y[:50], progress=False)
    same(tap.of_states(expected.states, x[:50], y[:50]), expected)
    alone = tap.of_states(list(expected.states))
    assert alone.labels is None
    assert len(alone.digests.unique()) == 50


def test_axes_in_another_order_are_brought_over_where_it_is_said():
    layers = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, 0.0) for _ in range(3))).eval()
    states = [torch.randn(5, 12, 8) for _ in range(4)]
    with pytest.raises(InputError, match="layout='position batch width'"):
        ki.attach(layers).of_states(states)
    found = ki.attach(layers, layout="position batch width").of_states(states)
    assert torch.equal(found.states[2], states[2].transpose(0, 1).flatten(0, 1))
    assert found.sequence.tolist() == torch.arange(12).repeat_interleave(5).tolist()


def test_what_cannot_be_a_pass_is_refused(model, unchecked):
    tap = ki.attach(model)
    states = {site: torch.randn(9, 10) for site in tap.sites}
    with pytest.raises(UnknownSiteError, match=r"blocks\.2"):
        tap.of_states({site: state for site, state in states.items() if site != "blocks.2"})
    with pytest.raises(InputError, match="Expected 5 states, one a site; got 4"):
        tap.of_states(list(states.values())[:4])
    with pytest.raises(InputError, match="differ in their number of samples"):
        tap.of_states(states | {"blocks.1": torch.randn(8, 10)})
    with pytest.raises(NonFiniteError, match=r"blocks\.1"):
        tap.of_states(states | {"blocks.1": torch.full((9, 10), torch.nan)})
    with pytest.raises(InputError, match=r"attach\(model\)\.of_states\(\{site: states, …\}, inputs\)"):
        ki.fit(states)
