"""Patches of a surrogate whose encoder looks back: with and without a cache, padded, in beams, in place, baked."""

import copy

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.hosts.cache_layers import ExtraLayer
from koopman_interp.patching.stepped_motion import SteppedMotion
from tests.causal import fitted, gpt2, llama, prompts
from tests.hosts.lens_models import gpt2_bridge, llama_bridge
from tests.naming import named

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

EXACT, IN_FLOAT32 = 1e-10, 1e-5  # `generate` gives logits in float32


@pytest.fixture(scope="module", params=[(gpt2, 0), (llama, 0), (llama, 1)], ids=["gpt2", "llama", "llama, skip=1"])
def case(request):
    """A model, prompts, a surrogate that looks back, and an edit that is seen at the output."""
    build, skip = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval().double()  # so that what is equal in theory is seen to be
    ids, labels = prompts()
    trajectories = ki.attach(model, skip=skip).observe(ids, labels, progress=False)
    koopman = fitted(trajectories).double()
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


def by_hand(koopman, states, edit, first, skip):
    """What a patch writes at the last site, one sequence at a time, from its states at the source."""
    moved = []
    for state in states:
        rows, place = state[skip:], torch.arange(skip, len(state))
        sequences = ki.Sequences.of(torch.zeros_like(place), place)
        z = koopman.encode(rows, first, sequences)
        after = [z, z if edit is None else edit(z)]
        last = len(koopman.sites) - 1
        out = [koopman.decode(koopman.operator.advance(one, koopman.steps(first, last)), last) for one in after]
        moved.append(torch.cat([torch.zeros(skip, state.shape[1]).double(), out[1] - out[0]]))
        replaced = torch.cat([state[:skip], out[1]])
        moved.append(replaced)
    return torch.stack(moved[::2]), torch.stack(moved[1::2])


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_what_is_written_is_what_the_surrogate_says_of_whole_sequences(case, mode):
    model, ids, koopman, edit = case
    skip, last = koopman.config.skip, koopman.sites[-1]
    own = ki.attach(model, list(koopman.sites)).observe(ids[:3], progress=False)
    sites = [state.view(3, 8, -1) for state in own.states]
    delta, replaced = by_hand(koopman, sites[1], edit, 1, skip)
    expected = sites[-1] + delta if mode == "delta" else replaced
    with ki.patched(model, koopman, edit, mode=mode, source=1):
        patched = ki.attach(model, [koopman.sites[0], last]).observe(ids[:3], progress=False).states[-1].view(3, 8, -1)
    rows = slice(skip, None)
    torch.testing.assert_close(patched[:, rows], expected[:, rows], rtol=0, atol=EXACT)
    assert not torch.allclose(patched, sites[-1], atol=1e-2)


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
    torch.testing.assert_close(torch.stack(cached.logits, 1), logits.float(), rtol=0, atol=IN_FLOAT32)
    assert not torch.equal(plain, expected), "the patch changes nothing that is seen"
    assert torch.equal(greedy(model, prompt, 6), plain)


@pytest.mark.parametrize("mode", ["delta", "replace"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(case, mode, side):
    model, ids, koopman, edit = case
    short, long = ids[:1, :4], ids[1:2]
    padding = torch.zeros(1, 4, dtype=torch.long)
    first = torch.cat([padding, short] if side == "left" else [short, padding], 1)
    padded = torch.cat([first, long])
    mask = (padded != 0).long()
    own = slice(4, None) if side == "left" else slice(0, 4)
    with torch.no_grad(), ki.patched(model, koopman, edit, mode=mode, source=1):
        together = model(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
        alone = model(short).logits, model(long).logits
    torch.testing.assert_close(together[:1, own], alone[0], rtol=0, atol=EXACT)
    torch.testing.assert_close(together[1:], alone[1], rtol=0, atol=EXACT)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_left_padding_changes_nothing_in_a_generation(case, mode):
    model, ids, koopman, edit = case
    short, long = ids[:1, :4], ids[1:2]
    padded = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1), long])
    mask = (padded != 0).long()
    with ki.patched(model, koopman, edit, mode=mode, source=1):
        together = greedy(model, padded, 5, attention_mask=mask)
        alone = greedy(model, short, 5), greedy(model, long, 5)
    assert torch.equal(together[0, 4:], alone[0][0])
    assert torch.equal(together[1], alone[1][0])


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_beam_search(case, mode):
    model, ids, koopman, edit = case
    with ki.patched(model, koopman, edit, mode=mode, source=1):
        cached = greedy(model, ids[:2], 6, num_beams=3)
        uncached = greedy(model, ids[:2], 6, num_beams=3, use_cache=False)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, greedy(model, ids[:2], 6, num_beams=3))


def test_in_place_at_each_site_a_cache_changes_nothing(case):
    model, ids, koopman, _ = case
    edits = ki.each_site(koopman, lambda site: ki.erase_class(koopman, label=1, site=site, strength=3.0), [1, 2, 4])
    prompt = ids[:3]
    with ki.patched(model, koopman, edits, at="each site"):
        expected, logits = step_by_step(model, prompt, 6)
        cached = greedy(model, prompt, 6, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(cached.sequences, expected)
    torch.testing.assert_close(torch.stack(cached.logits, 1), logits.float(), rtol=0, atol=IN_FLOAT32)


@pytest.mark.parametrize("given", [True, False], ids=["cache given", "cache made by the model"])
def test_steps_by_hand_with_a_cache(case, given):
    """The cache can be copied, cropped and begun by the model itself, and goes on from there."""
    model, ids, koopman, edit = case
    settings = {"past_key_values": transformers.DynamicCache()} if given else {}
    with torch.no_grad(), ki.patched(model, koopman, edit, mode="replace", source=1):
        whole = model(ids[:2], use_cache=False).logits
        cache = model(ids[:2, :3], use_cache=True, **settings).past_key_values
        branch = copy.deepcopy(cache)
        model(ids[2:4, 3:5], past_key_values=branch)
        branch.crop(-2)
        for one in (cache, branch):
            rest = [model(ids[:2, 3:6], past_key_values=one).logits, model(ids[:2, 6:], past_key_values=one).logits]
            torch.testing.assert_close(torch.cat(rest, 1), whole[:, 3:], rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    "settings", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}], ids=["static", "prompt lookup"]
)
def test_caches_of_fixed_length_and_those_that_are_cropped(case, settings):
    model, ids, koopman, edit = case
    with ki.patched(model, koopman, edit, source=1):
        found = greedy(model, ids[:1], 8, return_dict_in_generate=True, output_logits=True, **settings)
        expected, logits = step_by_step(model, ids[:1], 8)
    assert torch.equal(found.sequences, expected)
    torch.testing.assert_close(torch.stack(found.logits, 1), logits.float(), rtol=0, atol=IN_FLOAT32)


def test_a_cache_that_the_patch_has_not_seen_is_refused(case):
    model, ids, koopman, edit = case
    with torch.no_grad():
        cache = model(ids[:2, :3], use_cache=True).past_key_values
        with (
            ki.patched(model, koopman, edit, source=1),
            pytest.raises(InputError, match=r"cache of 3 tokens, .* has not seen them, .*use_cache=False"),
        ):
            model(ids[:2, 3:], past_key_values=cache)
        with ki.patched(model, koopman, edit, source=1):
            cache = model(ids[:2, :3], use_cache=True).past_key_values
        model(ids[:2, 3:5], past_key_values=cache)
        with ki.patched(model, koopman, edit, source=1), pytest.raises(InputError, match="has not seen them"):
            model(ids[:2, 5:], past_key_values=cache)


def test_two_patches_keep_their_columns_apart(case):
    model, ids, koopman, edit = case
    later = ki.erase_class(koopman, label=1, site=3, strength=0.5)
    with ki.patched(model, koopman, edit, source=1), ki.patched(model, koopman, later):
        expected, _ = step_by_step(model, ids[:2], 5)
        assert torch.equal(greedy(model, ids[:2], 5), expected)


def test_a_null_edit_changes_no_bit(case):
    model, ids, koopman, edit = case
    with torch.no_grad():
        plain = model(ids).logits
        for null in (None, edit.scaled(0.0)):
            with ki.patched(model, koopman, null):
                assert torch.equal(model(ids).logits, plain)
        with ki.patched(model, koopman, edit):
            assert not torch.equal(model(ids).logits, plain)
        assert torch.equal(model(ids).logits, plain)


def test_a_baked_copy_generates_as_the_patched_model(case):
    model, ids, koopman, edit = case
    with ki.patched(model, koopman, edit, mode="replace", source=1):
        expected = greedy(model, ids[:2], 6)
    baked = ki.patched(model, koopman, edit, mode="replace", source=1).bake()
    assert torch.equal(greedy(baked, ids[:2], 6), expected)
    assert torch.equal(greedy(copy.deepcopy(baked), ids[:2], 6), expected)
    assert any("context" in name for name in baked.state_dict())


def test_places_that_are_not_looked_back_on_are_refused(case):
    model, ids, koopman, edit = case
    if not koopman.config.skip:
        with torch.no_grad(), ki.patched(model, koopman, edit, positions=slice(0, None)):
            model(ids[:1])
        return
    with (
        torch.no_grad(),
        ki.patched(model, koopman, edit, positions=slice(0, None)),
        pytest.raises(InputError, match=r"first 1 places .*positions=slice\(1, None\)"),
    ):
        model(ids[:1])


def test_sequences_packed_into_one_row_do_not_see_each_other():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = llama().eval().double()
    ids, labels = prompts()
    koopman = fitted(ki.attach(model).observe(ids, labels, progress=False)).double()
    edit = ki.erase_class(koopman, label=1, site=1, strength=3.0)
    packed = torch.cat([ids[:1, :5], ids[1:2, :7]], 1)
    position_ids = torch.cat([torch.arange(5), torch.arange(7)])[None]
    own = ki.attach(model, [koopman.sites[0], koopman.sites[-1]])
    with torch.no_grad(), ki.patched(model, koopman, edit, mode="replace", source=0):
        found = own.observe([{"input_ids": packed, "position_ids": position_ids, "use_cache": False}], progress=False)
        alone = [own.observe(one, progress=False) for one in (ids[:1, :5], ids[1:2, :7])]
    expected = torch.cat([one.states[-1] for one in alone])
    torch.testing.assert_close(found.states[-1], expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("build", [gpt2_bridge, llama_bridge], ids=["gpt2", "llama"])
@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_a_bridge_generates_with_a_cache_as_without(build, mode):
    """A bridge passes no cache to its first pass, and takes the one that the model has made from there on."""
    model = build()
    ids = torch.randint(3, 90, (12, 9), generator=torch.Generator().manual_seed(0))
    trajectories = ki.attach(model).observe(ids, torch.arange(12) % 2, progress=False)
    koopman = fitted(trajectories, observables=16, normalization=ki.NormalizationConfig(dimension=16))
    edit = ki.erase_class(koopman, label=1, site=1, strength=3.0)

    def generated(**settings):
        return model.generate(
            ids[:2],
            max_new_tokens=6,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            return_type="tokens",
            **settings,
        )

    plain = generated()
    with ki.patched(model, koopman, edit, mode=mode, source=1):
        assert torch.equal(generated(use_past_kv_cache=True), generated(use_past_kv_cache=False))
        whole = model(ids[:2])
        patched = generated()
    with model.hooks(fwd_hooks=ki.patched(model, koopman, edit, mode=mode, source=1).fwd_hooks()):
        torch.testing.assert_close(model(ids[:2]), whole)
        assert torch.equal(generated(), patched)
    assert torch.equal(generated(), plain)


def test_the_layer_in_a_cache_follows_its_entries_and_columns():
    keys = torch.arange(24.0).view(2, 1, 4, 3)
    layer = ExtraLayer("a", keys, keys + 1)
    layer.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(layer.keys, keys[[1, 0]])
    layer.crop(-1)
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0, 2]))
    torch.testing.assert_close(layer.values, keys[[1, 0], :, :3] + 1)
    assert layer.get_seq_length() == 3
    with pytest.raises(InputError, match="Begin anew without a cache"):
        layer.update(keys, keys)
    layer.reset()
    assert layer.get_seq_length() == 0


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_one_step_after_another_gives_the_numbers_of_the_prepared_motion(case, mode):
    model, ids, koopman, edit = case
    prepared = ki.patched(model, koopman, edit, mode=mode, source=1)
    stepped = ki.patched(model, koopman, edit, mode=mode, source=1)
    stepped.moved_by(lambda first, last: SteppedMotion(koopman, first, last, [(1, edit)], mode))
    found = []
    for patch in (prepared, stepped):
        with torch.no_grad(), patch:
            whole = model(ids[:2], use_cache=False).logits
            cache = model(ids[:2, :5], use_cache=True).past_key_values
            torch.testing.assert_close(
                model(ids[:2, 5:], past_key_values=cache).logits, whole[:, 5:], rtol=0, atol=EXACT
            )
            found.append(whole)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=EXACT)


def test_an_edit_is_trained_through_what_is_looked_back_on(case):
    model, ids, koopman, edit = case
    if koopman.config.skip:
        pytest.skip("once is enough")
    trained = ki.gradient_edit(
        model, koopman, lambda host: host(ids[:4]).logits[:, -1, 3].mean(), start=edit, steps=3, progress=False
    )
    with torch.no_grad():
        said = []
        for one in (edit, trained):
            with ki.patched(model, koopman, one):
                said.append(float(model(ids[:4]).logits[:, -1, 3].mean()))
    assert said[1] < said[0]


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_a_cache_with_a_sliding_window_keeps_its_masks(settings):
    """The model attends within its window, and the encoder to all that went before."""
    config = transformers.MistralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=None, pad_token_id=0,
        initializer_range=0.3, sliding_window=5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MistralForCausalLM(config).eval().double()
    ids, labels = prompts()
    koopman = fitted(ki.attach(model, skip=1).observe(ids, labels, progress=False)).double()
    edit = ki.erase_class(koopman, label=1, site=1, strength=3.0)
    with ki.patched(model, koopman, edit, source=1):
        found = greedy(model, ids[:2], 8, return_dict_in_generate=True, output_logits=True, **settings)
        expected, logits = step_by_step(model, ids[:2], 8)
    assert torch.equal(found.sequences, expected)
    torch.testing.assert_close(torch.stack(found.logits, 1), logits.float(), rtol=0, atol=IN_FLOAT32)
