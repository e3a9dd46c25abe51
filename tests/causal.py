"""Small language models and surrogates whose encoder looks back, for tests; the context of none of them is nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import koopman_interp as ki
from koopman_interp.surrogates.context import CausalEncoder
from koopman_interp.trajectories import Trajectories

WIDTH, VOCABULARY = 16, 40


def gpt2() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=WIDTH, n_layer=4, n_head=2, bos_token_id=1, eos_token_id=None,
        pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=None, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Sixty prompts of eight tokens, of two classes."""
    ids = torch.randint(2, VOCABULARY, (60, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 2
    ids[labels == 1] = ids[labels == 1] // 2 + 1
    return ids, labels


def fitted(trajectories: Trajectories, **settings: Any) -> ki.KoopmanAutoencoder:
    """Fit a surrogate for two steps, and give its context the weights that a long fit would."""
    sizes = {"observables": 24, "hidden": (32,), "context_width": 16, "context_heads": 2, "steps": 2}
    config = ki.FitConfig(context="causal", **(sizes | settings))
    koopman = ki.fit(trajectories, config, progress=False)
    made_to_look_back(koopman)
    koopman.gather_moments(trajectories)
    return koopman


def made_to_look_back(koopman: ki.KoopmanAutoencoder) -> None:
    """Give a context weights by which observables depend on it strongly."""
    assert isinstance(koopman.encoder, CausalEncoder)
    weight = koopman.encoder.leave.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
