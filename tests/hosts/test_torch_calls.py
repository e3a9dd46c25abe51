"""How the torch adapter calls models, tells passes and tokens, and serves models that others have wrapped."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import koopman_interp as ki
from koopman_hosts.torch_modules import TorchHost
from koopman_interp.errors import InputError, UnknownSiteError, UnsupportedHostError
from koopman_interp.hosts.fingerprint import HostFingerprint, weight_digest
from koopman_interp.testing import ResidualMLP
from koopman_interp.testing.traces import traces
from tests.hosts.lens_models import tokenizer
from tests.hosts.models import padded_tokens, seeded


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def gpt2() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    config = transformers.GPT2Config(vocab_size=90, n_positions=32, n_embd=32, n_layer=4, n_head=4)
    return seeded(transformers.GPT2LMHeadModel, config, seed=0)


# --- calls and tokens -------------------------------------------------------------------------------------------


def test_a_batch_is_a_tensor_or_keyword_arguments(model, gpt2):
    x, batch = drawn(5, 4), padded_tokens(3)
    with torch.no_grad():
        assert torch.equal(TorchHost(model).call(x), model(x))
        assert torch.equal(TorchHost(gpt2).call(batch).logits, gpt2(**batch).logits)


def test_texts_need_a_tokenizer(model, gpt2, tmp_path):
    with pytest.raises(InputError, match=r"ResidualMLP has no tokenizer.*tokenizer=…"):
        TorchHost(model).tokenize(["once"])
    words = tokenizer()
    gpt2.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    import transformers

    batch = TorchHost(transformers.GPT2LMHeadModel.from_pretrained(tmp_path)).tokenize(["once upon a", "girl"])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"][0].tolist() == words("once upon a")["input_ids"]


def test_a_pass_begins_with_its_tokens_and_ends_when_it_is_done(model, gpt2):
    seen: list[Any] = []
    with TorchHost(model).passes(ended=lambda running: seen.append(running.tokens)):
        model(drawn(5, 4))
    assert seen == [None]
    seen.clear()
    batch = padded_tokens(3)
    with TorchHost(gpt2).passes(ended=lambda running: seen.append(running.tokens)) as passes, torch.no_grad():
        assert passes.current is None
        gpt2(**batch)
        assert passes.current is None
    (tokens,) = seen
    assert torch.equal(tokens.real, batch["attention_mask"].bool())
    assert torch.equal(tokens.ids, batch["input_ids"])


def test_a_pass_that_raises_has_no_end_and_leaves_nothing(model):
    before, seen = traces(model), []
    with (
        pytest.raises(RuntimeError),
        TorchHost(model).passes(ended=seen.append) as passes,
    ):
        model(drawn(5, 3))
    assert seen == [] and passes.current is None and traces(model) == before


def test_generation_goes_on_from_the_cache(gpt2):
    found = []
    prompt = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = (prompt > 0).long()
    with TorchHost(gpt2).passes(ended=lambda run: found.append((run.tokens.real.tolist(), run.tokens.place.tolist()))):
        gpt2.generate(prompt, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    (real, place), *steps = found
    assert real == mask.bool().tolist() and place[0][2:] == [0, 1] and place[1] == [0, 1, 2, 3]
    assert steps == [([[True], [True]], [[2], [4]]), ([[True], [True]], [[3], [5]])]


def test_plain_torch_has_no_run_with_hooks(model):
    with pytest.raises(UnsupportedHostError, match=r"no run_with_hooks.*patched"):
        TorchHost(model).fwd_hooks({"blocks.0": lambda state: None})


# --- sites ------------------------------------------------------------------------------------------------------


class Looped(nn.Module):
    """One block, called three times in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.block(x))
        return x


def test_each_call_of_a_module_is_a_site_of_its_own():
    model, x = Looped(), drawn(5, 4)
    host = TorchHost(model)
    assert host.sites(["block#0", "block:input#2"]) == ("block#0", "block:input#2")
    with pytest.raises(UnknownSiteError, match="no module that matches 'blokc'"):
        host.sites("blokc#1")
    found: dict[str, Tensor] = {}
    with (
        torch.no_grad(),
        host.hooked({f"block#{call}": lambda s, call=call: found.update({call: s}) for call in range(3)}),
    ):
        for _ in range(2):  # counting starts anew with each pass
            model(x)
        state = x
        for call in range(3):
            state = model.block.forward(state if call == 0 else torch.tanh(state))
            assert torch.equal(found[call], state)


def test_writing_at_one_call_leaves_the_others():
    model, x = Looped(), drawn(5, 4)
    with torch.no_grad(), TorchHost(model).hooked({"block#1": torch.zeros_like}):
        assert torch.equal(model(x), torch.tanh(model.block.forward(torch.zeros(5, 4))))


def test_first_is_before_the_hooks_of_others(model):
    x, seen = drawn(5, 4), []
    handle = model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    host = TorchHost(model)
    with torch.no_grad():
        for first in (True, False):
            with host.hooked({"blocks.1": torch.zeros_like}, first=first):
                model(x)
    handle.remove()
    assert not seen[0].any() and seen[1].any()


# --- wrapped models ---------------------------------------------------------------------------------------------


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.tanh(self.fc(x))


class Stacked(nn.Module):
    """Without the type checks of our own modules, which cannot be compiled."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Cell() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("whole", [True, False], ids=["the model", "a block"])
def test_compiled_code_is_kept_aside_while_hooks_are_on(whole):
    torch.compiler.reset()
    x, traced = drawn(5, 4), []
    model: Any = Stacked().eval()

    def backend(graph, _inputs):
        traced.append(graph)
        return graph.forward

    if whole:
        compiled: Any = torch.compile(model, backend=backend)
    else:
        compiled = model
        model.blocks[1].compile(backend=backend)
    with torch.no_grad():
        expected = compiled(x)
        assert traced
        found = ki.attach(compiled).observe([x], progress=False)
        assert len(found.sites) == 4 and len(found) == 5
        host = TorchHost(compiled)
        with host.eager(), host.hooked({"blocks.1": torch.zeros_like}):
            assert not torch.equal(compiled(x), expected)
        assert torch.equal(compiled(x), expected)


def test_weights_that_accelerate_keeps_elsewhere_are_the_same_weights(model):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is missing")
    x, whole = drawn(5, 4), HostFingerprint.of(TorchHost(model))
    with torch.no_grad():
        expected, plain = model(x), ki.attach(model).observe([x], progress=False)
        offloaded = accelerate.cpu_offload(deepcopy(model), execution_device="cpu")
        assert all(parameter.is_meta for parameter in offloaded.parameters())
        for _ in range(2):  # accelerate makes new stand-ins in each pass
            assert HostFingerprint.of(TorchHost(offloaded)) == whole
            assert torch.equal(TorchHost(offloaded).call(x), expected)
        found = ki.attach(offloaded).observe([x], progress=False)
    assert all(map(torch.equal, found.states, plain.states))
    changed = deepcopy(model)
    with torch.no_grad():
        changed.head.weight[0, 0] += 1
    other = TorchHost(accelerate.cpu_offload(changed, execution_device="cpu"))
    assert HostFingerprint.of(other).weights != whole.weights


def test_weights_that_are_nowhere_are_refused():
    with torch.device("meta"):
        empty = ResidualMLP(inputs=4, width=6, blocks=2, outputs=3)
    with pytest.raises(UnsupportedHostError, match=r"weights loaded; 'blocks.0.fc1.bias' is on the meta device"):
        weight_digest(empty)


def test_states_under_autocast_are_those_of_autocast(model):
    x = drawn(5, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found: dict[str, Tensor] = {}
        with TorchHost(model).hooked({"blocks.0.fc1": lambda state: found.update(state=state)}):
            expected = model(x)
        assert found["state"].dtype == torch.bfloat16
        with TorchHost(model).hooked({"blocks.0.fc1": lambda state: state.clone()}):
            assert torch.equal(model(x), expected)


# --- spans and caches -------------------------------------------------------------------------------------------


def test_a_cache_is_refused_where_its_length_is_read_from_a_skipped_block(gpt2):
    host, before = TorchHost(gpt2), traces(gpt2)
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with host.replaced("transformer.h.0:input", "transformer.h.2", lambda state: state):
        with pytest.raises(InputError, match=r"block 0 cannot be replaced.*key-value cache.*source=1.*use_cache=False"):
            gpt2.generate(prompt, **settings)
        assert gpt2.generate(prompt, use_cache=False, **settings).shape == (1, 6)
    with host.replaced("transformer.h.0", "transformer.h.2", lambda state: state):
        assert gpt2.generate(prompt, **settings).shape == (1, 6)
    assert traces(gpt2) == before
