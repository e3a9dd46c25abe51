"""On each host on which software that hooks has gone wrong, the number is right, or a sentence says what to write."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import eval_frame

import koopman_interp as ki
from koopman_interp.errors import KoopmanInterpError
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.testing.identities import change, identity, mover
from tests.hosts.lens_models import gpt2_bridge, tokenizer
from tests.hosts.odd_models import (
    IDS,
    LABELS,
    MASK,
    CheckpointedStack,
    ExpertStack,
    InPlaceStack,
    ScalingStack,
    Stack,
    Wrapper,
    X,
    answer,
    by_formula,
    generated,
    llama,
    moved_by_hand,
    near,
    require_sentence,
    t5,
)
from tests.hosts.situations import refused, right

ENDS = ("blocks.0:input", "blocks.3")
MODES = ("delta", "replace")


def patch_of(model: nn.Module, sites: tuple[str, str] = ENDS, width: int = 6, **options: Any) -> ki.Patch:
    """Patch a model by an edit whose effect is `change`, through a surrogate that is an identity."""
    koopman = identity(model, sites, (width,))
    return ki.patched(model, koopman, mover(koopman), **options)


@pytest.fixture(autouse=True)
def gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Off, but for tests of them."""
    with torch.set_grad_enabled("backward" in request.node.name):
        yield


# --- states are read at once ----------------------------------------------------------------------------------------


@right("Writing in place", "blocks that write `x += f(x)`, activations in place behind a site")
@pytest.mark.parametrize("mode", MODES)
def test_blocks_that_write_in_place_are_patched_like_others(mode: str) -> None:
    model = InPlaceStack()
    right = by_formula(model, X, mode)
    assert not near(model(X), right)
    with patch_of(model, mode=mode):
        assert near(model(X), right)


@right(
    "Writing in place",
    "a model that writes into the state between its blocks, under `replace`: every pass is as the first",
)
def test_a_replaced_span_is_the_same_in_each_pass_of_a_model_that_writes_between_its_blocks() -> None:
    model = ScalingStack()
    source = model.embed(X)
    right = model.head((source + change(source)) * 0.9)
    with patch_of(model, mode="replace"):
        for _ in range(10):
            assert near(model(X), right)


# --- a pass is one call, whoever makes it ---------------------------------------------------------------------------


@right(
    "Who starts a pass", "a wrapper (PEFT, one of your own) whose `generate` goes to the inner model: `positions` hold"
)
@pytest.mark.parametrize("positions", [slice(5, None), slice(0, 1)])
def test_positions_are_those_of_the_inner_model_where_a_wrapper_generates(positions: slice) -> None:
    wrapper = Wrapper(llama()).eval()
    layers = wrapper.lm.model.layers
    with patch_of(wrapper, ("lm.model.layers.0", "lm.model.layers.2"), 32, positions=positions):
        found = generated(wrapper, IDS[:4, :4])
    for step, logits in enumerate(found.logits):
        whole = found.sequences[:, : 4 + step]
        with moved_by_hand(layers[0], layers[2], positions):
            right = wrapper.lm(whole).logits[:, -1]
        assert near(logits, right), f"step {step}"
        # The fifth place is first fed in the third step.
        if positions.start == 5:
            assert near(right, wrapper.lm(whole).logits[:, -1]) == (step < 2)


@right("Who starts a pass", "a tap on a wrapper while the inner model generates, or is called bare")
def test_a_wrapper_that_generates_is_recorded_like_the_model_in_it() -> None:
    wrapper = Wrapper(llama()).eval()
    outer, inner = ki.attach(wrapper), ki.attach(wrapper.lm)
    for tap in (outer, inner):
        with tap:
            generated(wrapper, IDS[:2, :4])
    assert len(outer.trajectories) == 2 * 9
    for one, other in zip(outer.trajectories.states, inner.trajectories.states, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(outer.trajectories.position, inner.trajectories.position)
    assert torch.equal(outer.trajectories.sequence, inner.trajectories.sequence)


@right("Who starts a pass", "threads that run one patched model at the same time")
@pytest.mark.parametrize("mode", MODES)
def test_two_threads_in_the_same_patched_model_do_not_meet(mode: str) -> None:
    model = Stack()
    halves = (X[:30], X[30:])
    right = [by_formula(model, half, mode) for half in halves]
    between = threading.Barrier(2)

    def wait(*_: Any) -> None:
        between.wait(10)

    def speak(half: Tensor) -> Tensor:
        with torch.no_grad():
            return model(half)

    with patch_of(model, mode=mode), ThreadPoolExecutor(2) as pool:
        # Both stand behind the source before either goes on.
        handle = model.blocks[0].register_forward_pre_hook(wait)
        got = list(pool.map(speak, halves))
        handle.remove()
    assert all(map(near, got, right))


@refused(
    "Passes that go another way",
    "a pass that drops the block where a patched span starts (layer drop, early exit)",
    "there is no state to move on from; patch a span that every pass goes through. A `delta` whose target is "
    "not reached warns once",
)
@pytest.mark.filterwarnings("ignore:A pass went through .* so nothing was patched in it")
@pytest.mark.parametrize("mode", MODES)
def test_a_pass_that_leaves_out_the_source_is_refused_and_leaves_nothing_behind(mode: str) -> None:
    model = Stack()
    right = by_formula(model, X, mode)
    with patch_of(model, mode=mode):
        for skipped in ((0,), (3,), (0,)):
            model.skipped = skipped
            if 0 in skipped:
                with pytest.raises(KoopmanInterpError) as refusal:
                    model(X.flip(0))
                require_sentence(refusal.value)
            else:
                answer(lambda: model(X.flip(0)))
            model.skipped = ()
            assert near(model(X), right)


@refused("Passes that go another way", "the same for sites off the residual stream", "as above")
def test_a_source_off_the_stream_that_a_pass_leaves_out_is_refused() -> None:
    model = Stack()
    model.skipped = (0,)
    with patch_of(model, ("blocks.0.fc", "blocks.2.fc"), mode="replace"), pytest.raises(KoopmanInterpError) as refusal:
        model(X)
    require_sentence(refusal.value)


# --- tokens ---------------------------------------------------------------------------------------------------------


@right("Tokens and padding", "a mask given by position, `model(ids, mask)`")
def test_a_mask_given_by_position_tells_what_is_padding() -> None:
    model = llama()
    tap = ki.attach(model)
    with tap:
        model(IDS, MASK)
    real = MASK.bool()
    assert torch.equal(tap.trajectories.tokens, IDS[real])
    assert torch.equal(tap.trajectories.states[0], model.model.embed_tokens(IDS)[real])


@right("Tokens and padding", "an encoder-decoder: the decoder's rows are its own tokens, whatever the encoder's mask")
def test_the_rows_of_a_decoder_are_its_own_tokens() -> None:
    model, decoded = t5(), IDS.flip(1)
    batch = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": decoded}
    trajectories = ki.attach(model).observe([batch], progress=False)
    assert trajectories.sites[0].startswith("decoder.")
    assert torch.equal(trajectories.tokens, decoded.flatten())
    assert torch.equal(trajectories.states[0], model.shared(decoded).flatten(0, 1))


@right("Tokens and padding", "`positions` in a decoder under `generate`, with a cache and without")
@pytest.mark.parametrize("use_cache", [True, False])
def test_positions_of_a_decoder_are_its_own(use_cache: bool) -> None:
    model, prompt, places = t5(), IDS[:2], slice(3, None)
    blocks = model.decoder.block
    with patch_of(model, ("decoder.block.0", "decoder.block.2"), 32, positions=places):
        found = generated(model, prompt, use_cache=use_cache)
    for step, logits in enumerate(found.logits):
        decoded = {"input_ids": prompt, "decoder_input_ids": found.sequences[:, : 1 + step]}
        with moved_by_hand(blocks[0], blocks[2], places):
            right = model(**decoded).logits[:, -1]
        assert near(logits, right), f"step {step}"
        assert near(right, model(**decoded).logits[:, -1]) == (step < 3)


@right("Tokens and padding", "texts packed into one row by restarting `position_ids`: each is an input of its own")
def test_texts_packed_into_one_row_stay_apart() -> None:
    ids, words = torch.tensor([[5, 6, 7, 8, 9, 10, 11]]), tokenizer()
    packed = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}
    trajectories = ki.attach(llama()).observe([packed], progress=False)
    assert trajectories.position.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert trajectories.sequence.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert trajectories.text(1, words) == f"{words.decode([5])}⟦ {words.decode([6])}⟧ {words.decode([7, 8])}"


@refused(
    "Tokens and padding",
    "texts longer than the positions that a model has learnt",
    "torch would fail inside the embedding; cut the texts",
)
def test_a_text_longer_than_the_context_is_refused() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    config = transformers.GPT2Config(vocab_size=90, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    tap = ki.attach(transformers.GPT2LMHeadModel(config).eval())
    with pytest.raises(KoopmanInterpError, match="32") as refusal:
        tap.observe(["once upon a time " * 40], tokenizer=tokenizer(), progress=False)
    require_sentence(refusal.value)


# --- which sites, and which of their axes ---------------------------------------------------------------------------


@right(
    "Axes of a state",
    "TransformerLens's hooks with an axis of heads (`hook_z`, `hook_q`, …): heads are joined to one width",
)
def test_the_heads_of_an_attention_are_no_image() -> None:
    bridge, texts = gpt2_bridge(), ["once upon a time"]
    trajectories = answer(lambda: ki.attach(bridge, "z").observe(texts, progress=False))
    if trajectories is not None:
        z = bridge.run_with_cache(texts)[1]["blocks.0.attn.hook_z"]
        assert torch.equal(trajectories.states[0], z.flatten(0, 1).flatten(1))


@right("Sites", "lists of experts or adapters inside a block are not taken for depth; blocks of several types are")
def test_the_experts_of_one_layer_are_not_taken_for_depth() -> None:
    tap = answer(lambda: ki.attach(ExpertStack()))
    assert tap is None or tap.sites == ("blocks.0:input", *(f"blocks.{index}" for index in range(4)))


# --- compiled hosts -------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled() -> Iterator[tuple[Stack, Callable[..., Tensor]]]:
    """A model, and the same compiled and called once."""
    torch.compiler.reset()
    model = Stack()
    quick = torch.compile(model, backend="eager")
    quick(X)
    yield model, quick
    torch.compiler.set_stance("default")


@right("Compiled code", "a model that was compiled elsewhere: compiled code is set aside while a tap or patch is on")
def test_code_compiled_elsewhere_is_patched_too(compiled: tuple[Stack, Callable[..., Tensor]]) -> None:
    model, quick = compiled
    plain, right = model(X), by_formula(model, X)

    def patched() -> Tensor:
        with patch_of(model):
            return quick(X)

    got = answer(patched)
    assert got is None or near(got, right)
    assert near(quick(X), plain)


@right("Compiled code", "two patches removed in any order: the last one turns the compiler back on")
def test_of_two_patches_of_compiled_code_each_works_until_it_is_removed(
    compiled: tuple[nn.Module, Callable[..., Tensor]],
) -> None:
    model, quick = compiled
    first, second = patch_of(quick, source=0), patch_of(quick, source=0)
    right = by_formula(model, X)
    first.install()
    second.install()
    first.remove()
    assert near(quick(X), right)
    second.remove()
    assert eval_frame._stance.stance == "default"
    assert near(quick(X), model(X))


@right("Compiled code", "`patch.bake()` of a compiled model leaves the compiler on")
def test_baking_compiled_code_leaves_the_compiler_on(compiled: tuple[nn.Module, Callable[..., Tensor]]) -> None:
    model, quick = compiled
    right = by_formula(model, X)
    baked = answer(patch_of(quick).bake)
    assert baked is None or near(baked(X), right)
    assert eval_frame._stance.stance == "default"


# --- backward -------------------------------------------------------------------------------------------------------


@refused(
    "Gradients",
    "activation checkpointing under a patch",
    "blocks that are computed again would run without what the pass has read; switch checkpointing off while patched",
)
@pytest.mark.parametrize("mode", MODES)
def test_backward_through_blocks_that_are_run_again(mode: str) -> None:
    model = CheckpointedStack()
    by_formula(model, X, mode).square().mean().backward()
    right = model.embed.weight.grad.clone()
    model.zero_grad()
    model.checkpointed = True
    with patch_of(model, mode=mode):
        answer(lambda: model(X).square().mean().backward())
    gradient = model.embed.weight.grad
    assert gradient is None or near(gradient, right)


REENTRANT = """
from tests.hosts.test_odd_hosts import *

model = CheckpointedStack()
with torch.no_grad():
    right = by_formula(model, X, "replace")
model.checkpointed = model.reentrant = True


def patched():
    with patch_of(model, mode="replace"):
        with torch.no_grad():
            model(X)
        said = model(X)
        said.square().mean().backward()
        return said


said = answer(patched)
assert said is None or near(said, right)
"""


@refused("Gradients", "the reentrant kind of checkpointing", "as above, said in the backward pass")
@pytest.mark.tutorial
def test_backward_through_reentrant_checkpoints_ends() -> None:
    """In a process of its own, since recursion in C++ cannot be stopped from within."""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "ignore", "-c", REENTRANT], cwd=root, check=True, timeout=120)


# --- fingerprints ---------------------------------------------------------------------------------------------------


@right("Fingerprints", "packed weights of quantised models")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_models_of_other_weights_have_other_fingerprints() -> None:
    def quantised() -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {nn.Linear})

    first, second = quantised(), quantised()
    assert not torch.equal(first(X), second(X))
    digests = answer(lambda: (weight_digest(first), weight_digest(second)))
    assert digests is None or digests[0] != digests[1]


@right("Fingerprints", "weights written through `.data`, as PEFT merges adapters")
def test_weights_written_through_data_change_the_fingerprint() -> None:
    model = Stack()
    before = weight_digest(model)
    model.blocks[0].fc.weight.data.mul_(3)
    assert weight_digest(model) != before


# --- what used to end in a traceback --------------------------------------------------------------------------------


@right("Gradients", "`fit` inside `torch.no_grad()` or `torch.inference_mode()`")
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_fit_takes_the_gradients_that_it_needs(context: Callable[[], Any]) -> None:
    trajectories = ki.attach(Stack()).observe(X, LABELS, progress=False)
    config = ki.FitConfig(steps=5, observables=6, hidden=(4,))
    with torch.enable_grad():
        right = ki.fit(trajectories, config, progress=False)
    with context():
        koopman = answer(lambda: ki.fit(trajectories, config, progress=False))
    assert koopman is None or koopman.digest() == right.digest()


@right("Fingerprints", "sparse buffers")
def test_a_sparse_buffer_is_part_of_the_fingerprint() -> None:
    model, other = Stack(), Stack()
    for host, size in ((model, 1.0), (other, 2.0)):
        host.register_buffer("adjacency", (size * torch.eye(3)).to_sparse())
    digests = answer(lambda: (weight_digest(model), weight_digest(other)))
    assert digests is None or digests[0] != digests[1]


@refused("Fingerprints", "lazy layers before their first call", "they have no weights yet; call the model once")
def test_a_lazy_layer_is_refused_until_it_has_weights() -> None:
    model = Stack()
    model.embed = nn.LazyLinear(6)
    with pytest.raises(KoopmanInterpError, match="embed") as refusal:
        ki.attach(model).observe(X, progress=False)
    require_sentence(refusal.value)


@refused(
    "Axes of a state",
    "nested tensors, which torch's own encoder makes of padded inputs",
    "their rows have no common length; `enable_nested_tensor=False`",
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_states_that_are_nested_tensors_are_rows_of_real_tokens_or_refused() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3).eval()
    padded = torch.arange(7)[None] >= torch.tensor([[7], [4]])
    batch = {"src": torch.randn(2, 7, 8), "src_key_padding_mask": padded}
    trajectories = answer(lambda: ki.attach(model).observe([batch], progress=False))
    if trajectories is not None:
        assert torch.equal(trajectories.states[0], batch["src"][~padded])


@right("Saving", "`torch.save` of a baked copy; its `save_pretrained`, which would write plain weights, is refused")
def test_a_baked_model_is_saved_whole_or_not_at_all() -> None:
    model = Stack()
    baked, file = patch_of(model).bake(), io.BytesIO()

    def loaded() -> nn.Module:
        torch.save(baked, file)
        return torch.load(io.BytesIO(file.getvalue()), weights_only=False)

    again = answer(loaded)
    assert again is None or near(again(X), by_formula(model, X))
