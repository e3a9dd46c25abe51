"""Patches under `generate`: with and without a cache, padded, in beams, in half precision, baked into a copy."""

import copy

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from tests.causal import VOCABULARY, gpt2, llama
from tests.naming import named


@pytest.fixture(scope="module", params=[gpt2, llama], ids=["gpt2", "llama"])
def case(request):
    """A model, a surrogate fitted on two classes of prompts, and an edit that is seen at the output."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = request.param().eval()
        ids = torch.randint(2, VOCABULARY, (60, 8))
    labels = torch.arange(60) % 2
    ids[labels == 1] = ids[labels == 1] // 2 + 1
    trajectories = ki.attach(model).observe(ids, labels, progress=False)
    koopman = ki.fit(trajectories, ki.FitConfig(observables=24), method="least_squares")
    return model, ids, koopman, ki.erase_class(koopman, label=1, site=1, strength=3.0)


def greedy(model, ids, steps, **settings):
    return model.generate(ids, max_new_tokens=steps, do_sample=False, **settings)


def step_by_step(model, ids, steps):
    """Greedy decoding that computes the whole sequence anew for each token, and the logits on the way."""
    logits = []
    for _ in range(steps):
        with torch.no_grad():
            logits.append(model(input_ids=ids, use_cache=False).logits[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(1, keepdim=True)], 1)
    return ids, torch.stack(logits, 1)


@pytest.mark.parametrize("positions", [None, slice(2, None), [9, 10]], ids=named)
@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_with_a_cache_is_step_by_step_without(case, mode, positions):
    model, ids, koopman, edit = case
    prompt = ids[:3]
    plain, _ = step_by_step(model, prompt, 6)
    with ki.patched(model, koopman, edit, mode=mode, source=1, positions=positions):
        expected, logits = step_by_step(model, prompt, 6)
        cached = greedy(model, prompt, 6, return_dict_in_generate=True, output_logits=True)
        uncached = greedy(model, prompt, 6, use_cache=False)
    assert torch.equal(cached.sequences, expected)
    assert torch.equal(uncached, expected)
    torch.testing.assert_close(torch.stack(cached.logits, 1), logits, rtol=0, atol=2e-5)
    assert not torch.equal(plain, expected), "the patch changes nothing that is seen"
    assert torch.equal(greedy(model, prompt, 6), plain)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_left_padding_changes_nothing(case, mode):
    model, ids, koopman, edit = case
    short, long = ids[:1, :4], ids[1:2]
    padded = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1), long])
    mask = (padded != 0).long()
    with ki.patched(model, koopman, edit, mode=mode, source=1, positions=slice(1, None)):
        together = greedy(model, padded, 5, attention_mask=mask)
        alone = greedy(model, short, 5), greedy(model, long, 5)
    assert torch.equal(together[0, 4:], alone[0][0])
    assert torch.equal(together[1], alone[1][0])


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_beam_search(case, mode):
    model, ids, koopman, edit = case
    with ki.patched(model, koopman, edit, mode=mode, source=1):
        cached = greedy(model, ids[:2], 5, num_beams=3)
        uncached = greedy(model, ids[:2], 5, num_beams=3, use_cache=False)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, greedy(model, ids[:2], 5, num_beams=3))


def test_a_replaced_span_from_the_first_block_refuses_a_cache(case):
    model, ids, koopman, _ = case
    with ki.patched(model, koopman, mode="replace"):
        with pytest.raises(InputError, match=r"over block 0 cannot be replaced .* source=1 .*use_cache=False"):
            greedy(model, ids[:1], 3)
        expected, _ = step_by_step(model, ids[:1], 3)
        assert torch.equal(greedy(model, ids[:1], 3, use_cache=False), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_half_precision_stays_what_it_is(case, mode, dtype):
    model, ids, _, _ = case
    half = copy.deepcopy(model).to(dtype)
    labels = torch.arange(60) % 2
    trajectories = ki.attach(half).observe(ids, labels, progress=False)
    assert {state.dtype for state in trajectories.states} == {dtype}
    koopman = ki.fit(trajectories, ki.FitConfig(observables=24), method="least_squares")
    assert koopman.K.dtype == torch.float32
    edit = ki.erase_class(koopman, label=1, strength=3.0)
    with torch.no_grad():
        plain = half(ids).logits
        with ki.patched(half, koopman, edit, mode=mode):
            patched = half(ids).logits
        with ki.patched(half, koopman, edit.scaled(0.0)):
            assert torch.equal(half(ids).logits, plain)
    assert plain.dtype == patched.dtype == dtype
    assert not torch.equal(plain, patched)
    with ki.patched(half, koopman, edit, mode=mode, source=0 if mode == "delta" else None):
        assert greedy(half, ids[:2], 2, use_cache=mode == "delta").shape == (2, 10)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_autocast_leaves_a_null_edit_alone_and_an_edit_precise(case, mode):
    model, ids, koopman, edit = case
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(ids).logits
        with ki.patched(model, koopman, edit.scaled(0.0)):
            assert torch.equal(model(ids).logits, plain)
        with ki.patched(model, koopman, edit, mode=mode):
            patched = model(ids).logits
    assert patched.dtype == plain.dtype
    assert not torch.equal(patched, plain)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_a_baked_copy_generates_as_the_patched_model(case, mode):
    model, ids, koopman, edit = case
    with ki.patched(model, koopman, edit, mode=mode, source=1):
        expected = greedy(model, ids[:2], 6)
    baked = ki.patched(model, koopman, edit, mode=mode, source=1).bake()
    assert torch.equal(greedy(baked, ids[:2], 6), expected)
    assert torch.equal(greedy(copy.deepcopy(baked), ids[:2], 6), expected)
    assert not torch.equal(greedy(model, ids[:2], 6), expected)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_gradients_reach_what_lies_before_the_patch(case, mode):
    model, ids, koopman, edit = case
    embedded = model.get_input_embeddings()(ids[:2]).detach().requires_grad_(True)
    with ki.patched(model, koopman, edit, mode=mode, source=1):
        (patched,) = torch.autograd.grad(model(inputs_embeds=embedded).logits[:, -1].sum(), embedded)
    (plain,) = torch.autograd.grad(model(inputs_embeds=embedded).logits[:, -1].sum(), embedded)
    assert torch.isfinite(patched).all()
    assert float(patched.norm()) > 0
    assert not torch.allclose(patched, plain, rtol=1e-3)


@pytest.mark.parametrize("positions", [None, slice(2, None)], ids=named)
def test_in_place_at_each_site_a_cache_changes_nothing(case, positions):
    """Keys and values of edited states are what the cache holds, so later tokens see the edit as they would without."""
    model, ids, koopman, _ = case
    edits = ki.each_site(koopman, lambda site: ki.erase_class(koopman, label=1, site=site, strength=3.0), [1, 2, 4])
    prompt = ids[:3]
    plain, _ = step_by_step(model, prompt, 6)
    with ki.patched(model, koopman, edits, at="each site", positions=positions):
        expected, logits = step_by_step(model, prompt, 6)
        cached = greedy(model, prompt, 6, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(cached.sequences, expected)
    torch.testing.assert_close(torch.stack(cached.logits, 1), logits, rtol=0, atol=2e-5)
    assert not torch.equal(plain, expected), "the edits change nothing that is seen"
    assert torch.equal(greedy(model, prompt, 6), plain)
