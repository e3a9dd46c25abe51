"""Small models of TransformerLens, with a tokenizer where they take one; none needs a network."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tests.hosts.models import stories

SENTENCE = "once upon a time there was girl who had red ball and she liked to play with it in the park every day"


def bridge_class() -> Any:
    return pytest.importorskip("transformer_lens.model_bridge", reason="transformer-lens is missing").TransformerBridge


def native_bridge() -> Any:
    bridge = bridge_class()
    from transformer_lens.config import TransformerBridgeConfig

    config = TransformerBridgeConfig(
        d_model=32,
        d_head=8,
        n_heads=4,
        n_layers=4,
        n_ctx=32,
        d_vocab=90,
        act_fn="gelu",
        normalization_type="LN",
        seed=0,
    )
    if not hasattr(bridge, "boot_native"):
        pytest.skip("native bridges came with TransformerLens 4")
    return bridge.boot_native(config).eval()


def tokenizer(**special: str) -> Any:
    """Words of one sentence; by default like GPT-2's, whose one special token is all of them."""
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = special or dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|end|>")
    known = [*dict.fromkeys(special.values()), *SENTENCE.split()]
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(known)}, special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **special)


def booted(model: Any, words: Any) -> Any:
    """Boot a bridge from a folder that holds model and tokenizer, as users do."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder))
        words.save_pretrained(Path(folder))
        return bridge_class().boot_transformers(folder, dtype=torch.float32, device="cpu").eval()


def gpt2_bridge(**special: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    config = transformers.GPT2Config(
        vocab_size=90, n_positions=32, n_embd=32, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return booted(transformers.GPT2LMHeadModel(config), tokenizer(**special))


def llama_bridge() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    config = transformers.LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        return booted(transformers.LlamaForCausalLM(config), tokenizer(**special))


def stories_bridge() -> Any:
    return bridge_class().boot_transformers(str(stories()), dtype=torch.float32, device="cpu").eval()


def hooked_transformer() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    lens = pytest.importorskip("transformer_lens", reason="transformer-lens is missing")
    if "HookedTransformer" not in dir(lens):  # which 4.x raises on, asked by hasattr
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    config = lens.HookedTransformerConfig(
        n_layers=4, d_model=32, n_ctx=32, d_head=8, n_heads=4, d_vocab=90, act_fn="gelu", device="cpu", seed=0
    )
    with TemporaryDirectory() as folder:  # from which TransformerLens loads the tokenizer again
        tokenizer().save_pretrained(folder)
        words = transformers.AutoTokenizer.from_pretrained(folder)
        return lens.HookedTransformer(config, tokenizer=words).eval()
