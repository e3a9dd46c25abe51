"""Small models of the kinds on which software that hooks has gone wrong, and the right numbers by plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from koopman_interp.errors import KoopmanInterpError
from koopman_interp.testing.identities import change
from tests.hosts.models import seeded

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
LABELS = X[:, :3].argmax(1)
IDS = torch.randint(3, 90, (6, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9) < torch.tensor([[9], [4], [7], [5], [9], [6]])).long()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.fc(x))


class InPlaceBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        x += torch.tanh(self.fc(x))
        return x


class Stack(nn.Module):
    """Embedding, four blocks, head."""

    block: ClassVar[type[Block]] = Block
    skipped: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Linear(4, 6)
            self.blocks = nn.ModuleList(self.block() for _ in range(4))
            self.head = nn.Linear(6, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index, block in enumerate(self.blocks):
            if index not in self.skipped:
                x = self.call(block, x)
        return self.head(x)

    def call(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x)


class InPlaceStack(Stack):
    block = InPlaceBlock


class ScalingStack(Stack):
    """Scales the state in place after each block."""

    def call(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x).mul_(0.9)


class CheckpointedStack(Stack):
    """Runs its blocks again in the backward pass."""

    checkpointed = reentrant = False

    def call(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=self.reentrant) if self.checkpointed else block(x)


class Experts(nn.Module):
    """A mixture whose experts are a run of same-typed modules, within one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + sum(expert(x) for expert in self.experts)


class ExpertStack(Stack):
    """Has a mixture in every other layer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Experts(), Block(), Experts()])


class Wrapper(nn.Module):
    """A module around a language model, whose `generate` goes to the model inside; PEFT's are such."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, **kwargs: Any) -> Any:
        return self.lm(**kwargs)

    def generate(self, **kwargs: Any) -> Any:
        return self.lm.generate(**kwargs)


def llama() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    config = transformers.LlamaConfig(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return seeded(transformers.LlamaForCausalLM, config, seed=0)


def t5() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    config = transformers.T5Config(
        vocab_size=90,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return seeded(transformers.T5ForConditionalGeneration, config, seed=0)


def generated(model: Any, prompt: Tensor, **settings: Any) -> Any:
    """Generate six tokens greedily, and keep the logits by which each was chosen."""
    return model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )


@contextmanager
def moved_by_hand(source: nn.Module, target: nn.Module, chosen: slice) -> Iterator[None]:
    """Add to the output of one block what the edit changes at that of another, at chosen positions."""
    read: list[Tensor] = []

    def write(_block: nn.Module, _args: Any, output: Any) -> Any:
        state = (output if isinstance(output, Tensor) else output[0]).clone()
        state[:, chosen] += change(read.pop())[:, chosen]
        return state if isinstance(output, Tensor) else (state, *output[1:])

    def keep(_block: nn.Module, _args: Any, output: Any) -> None:
        read.append((output if isinstance(output, Tensor) else output[0]).clone())

    handles = [source.register_forward_hook(keep), target.register_forward_hook(write)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_formula(model: Stack, x: Tensor, mode: str = "delta") -> Tensor:
    """Compute what a stack says whose last state is moved by what an edit at its first block's input changes."""
    source = model.embed(x)
    if mode == "replace":
        return model.head(source + change(source))
    state = source.clone()
    for index, block in enumerate(model.blocks):
        if index not in model.skipped:
            state = block(state)
    return model.head(state + change(source))


def near(got: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same within the rounding of float32."""
    return torch.allclose(got, right, rtol=1e-4, atol=1e-4)


def answer(call: Callable[[], Any]) -> Any:
    """Return what a call gives, or None where it is refused in a sentence."""
    try:
        return call()
    except KoopmanInterpError as refusal:
        require_sentence(refusal)
        return None


def require_sentence(refusal: KoopmanInterpError) -> None:
    """Require that a refusal says more than a word."""
    text = str(refusal)
    assert text[:1].isupper() and text.rstrip().endswith((".", ")", "]")) and len(text.split()) > 5, text
