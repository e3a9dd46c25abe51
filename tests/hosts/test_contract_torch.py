"""Plain torch models keep the laws of a host."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from koopman_interp.testing import HostContract, ResidualMLP
from tests.hosts.models import padded_tokens, seeded, shared_models, stories


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TorchContract(HostContract):
    """Hooks placed by torch itself, on modules named in the sites."""

    def watch(self, model: nn.Module, site: str, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], Any]:
        model = getattr(model, "_orig_mod", model)
        name, _, at_input = site.partition(":")
        module = model.get_submodule(name)
        if not at_input:
            return module.register_forward_hook(partial(_at_output, hook)).remove
        return module.register_forward_pre_hook(partial(_at_input, hook), with_kwargs=True).remove


def _at_output(hook: Callable[[Tensor], Tensor | None], _module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return hook(output)
    new = hook(output[0])
    return None if new is None else (new, *output[1:])


def _at_input(hook: Callable[[Tensor], Tensor | None], _module: nn.Module, args: Any, kwargs: Any) -> Any:
    new = hook(args[0] if args else kwargs["hidden_states"])
    if new is None:
        return None
    return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})


class TestMLP(TorchContract):
    def make(self) -> nn.Module:
        return seeded(lambda: ResidualMLP(inputs=4, width=10, blocks=4, outputs=3))

    def inputs(self, count: int) -> Tensor:
        return drawn(64, 4)[:count]


class TestMLPFromItsFirstBlock(TestMLP):
    span = (0, 2)


class TestCompiledMLP(TestMLP):
    def make(self) -> nn.Module:
        return torch.compile(super().make(), backend="eager")


class Twice(nn.Module):
    """A stack that is run through twice, with weights of its own for nothing in between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(x)


class TestModuleCalledSeveralTimes(TestMLP):
    sites = ("block:input#0", "block:input#1", "block:input#2")

    def make(self) -> nn.Module:
        return seeded(Twice)

    def watch(self, model: nn.Module, site: str, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], Any]:
        wanted, calls = int(site[-1]), threading.local()  # passes of two threads take turns

        def counted(state: Tensor) -> Tensor | None:
            calls.made = getattr(calls, "made", -1) + 1
            return hook(state) if calls.made % 3 == wanted else None

        return super().watch(model, "block:input", counted)


class ConvBlock(nn.Module):
    """The block of He et al.'s CIFAR ResNets; the shortcut of a wider stage pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        short = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(branch + short)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(ConvBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(ConvBlock(16, 32, 2), *(ConvBlock(32, 32, 1) for _ in range(2)))
        self.layer3 = nn.Sequential(ConvBlock(32, 64, 2), *(ConvBlock(64, 64, 1) for _ in range(2)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class TestResNet20(TorchContract):
    """The trained one; skipped where it is not at hand."""

    span = (8, 9)

    def make(self) -> nn.Module:
        model = seeded(ResNet20)
        weights = shared_models() / "resnet20-cifar10" / "model.safetensors"
        if not weights.exists():
            pytest.skip(f"there is no {weights}")
        model.load_state_dict(load_file(weights))
        return model

    def inputs(self, count: int) -> Tensor:
        return drawn(64, 3, 16, 16)[:count]


class HuggingFaceContract(TorchContract):
    """Small models of random weights, from their configurations."""

    @abstractmethod
    def build(self, transformers: Any) -> nn.Module:
        """Make the model, with the library, from a configuration."""

    def make(self) -> nn.Module:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        return seeded(lambda: self.build(transformers))

    def inputs(self, count: int) -> Any:
        return padded_tokens(count)


class GeneratingContract(HuggingFaceContract):
    def generate(self, model: nn.Module, tokens: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return found.sequences, torch.stack(found.logits, 1)


class TestGPT2(GeneratingContract):
    def build(self, transformers: Any) -> nn.Module:
        config = transformers.GPT2Config(vocab_size=90, n_positions=32, n_embd=32, n_layer=4, n_head=4)
        return transformers.GPT2LMHeadModel(config)


class TestLlama(GeneratingContract):
    def build(self, transformers: Any) -> nn.Module:
        config = transformers.LlamaConfig(
            vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
        )
        return transformers.LlamaForCausalLM(config)


class TestStories260K(GeneratingContract):
    def make(self) -> nn.Module:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        return transformers.AutoModelForCausalLM.from_pretrained(stories(), dtype=torch.float32).eval()


class TestBERT(HuggingFaceContract):
    def build(self, transformers: Any) -> nn.Module:
        config = transformers.BertConfig(
            vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
        )
        return transformers.BertForMaskedLM(config)


class TestViT(HuggingFaceContract):
    def build(self, transformers: Any) -> nn.Module:
        config = transformers.ViTConfig(
            image_size=16,
            patch_size=4,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
        )
        return transformers.ViTForImageClassification(config)

    def inputs(self, count: int) -> dict[str, Tensor]:
        return {"pixel_values": drawn(64, 3, 16, 16)[:count]}
