"""Calls as the tools around a model make them: transforms of torch, `generate` in its ways, models of other shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.errors import HostMismatchError, UnsupportedHostError
from koopman_interp.testing.identities import change, identity, mover
from tests.hosts.odd_models import IDS, MASK, Stack, X, by_formula, llama, near
from tests.hosts.situations import refused, right
from tests.naming import named

ENDS = ("blocks.0:input", "blocks.3")


def patch_of(model: nn.Module, sites: tuple[str, str] = ENDS, width: int = 6, **options: Any) -> ki.Patch:
    koopman = identity(model, sites, (width,))
    return ki.patched(model, koopman, mover(koopman), **options)


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is missing")


@right("Who starts a pass", "`model.forward(x)` called directly, past torch's hooks of the model")
@torch.no_grad()
def test_a_forward_that_is_called_directly_is_patched() -> None:
    model = Stack()
    with patch_of(model):
        assert near(model.forward(X), by_formula(model, X, "delta"))


@right("Who starts a pass", "`torch.func.functional_call`, `torch.vmap` and `nn.DataParallel` on the CPU")
@torch.no_grad()
def test_transforms_of_torch_see_the_patch() -> None:
    model = Stack()
    expected = by_formula(model, X, "delta")
    with patch_of(model):
        assert near(torch.func.functional_call(model, dict(model.named_parameters()), (X,)), expected)
        assert near(torch.vmap(lambda row: model(row[None])[0])(X), expected)
        assert near(nn.DataParallel(model)(X), expected)


@right("Gradients", "gradients through a patch, for attributions: they are those of the patched function")
def test_gradients_are_those_of_the_patched_function() -> None:
    model = Stack().double()
    x = X.double()[:3].requires_grad_(True)
    koopman = identity(model, ENDS, (6,)).double()
    with ki.patched(model, koopman, mover(koopman)):
        assert torch.autograd.gradcheck(model, (x,), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3}, {"cache_implementation": "static"}, {"assisted": True}, {"use_cache": False}],
    ids=named,
)
@right("Tokens and padding", "`positions` under beam search, assisted generation, static caches and none")
@torch.no_grad()
def test_positions_hold_in_each_way_to_generate(settings: dict[str, Any]) -> None:
    model, settings = llama(), dict(settings)
    if settings.pop("assisted", False):
        settings["assistant_model"] = llama()
    asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    prompt = IDS[:1, :4]
    with patch_of(model, ("model.layers.0", "model.layers.2"), 32, positions=slice(3, None)):
        expected = model.generate(prompt, **asked, num_beams=settings.get("num_beams", 1), use_cache=False)
        assert torch.equal(model.generate(prompt, **asked, **settings), expected)


@right("Tokens and padding", "prompts of vectors, `inputs_embeds` with a mask")
@torch.no_grad()
def test_prompts_of_vectors_keep_their_padding_out() -> None:
    model = llama()
    vectors = model.get_input_embeddings()(IDS)
    of_ids = ki.attach(model).observe([{"input_ids": IDS, "attention_mask": MASK}], progress=False)
    of_vectors = ki.attach(model).observe([{"inputs_embeds": vectors, "attention_mask": MASK}], progress=False)
    assert all(map(torch.equal, of_ids.states, of_vectors.states))


@right("Tokens and padding", "audio with a mask of samples: frames by the model's own frame mask")
@torch.no_grad()
def test_frames_of_audio_that_are_padding_are_left_out() -> None:
    config = transformers().Wav2Vec2Config(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16, 16),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
    )
    model = transformers().Wav2Vec2ForCTC(config).eval()
    mask = (torch.arange(400) < torch.tensor([[400], [200], [400], [100]])).long()
    observed = ki.attach(model).observe([{"input_values": torch.randn(4, 400), "attention_mask": mask}], progress=False)
    assert len(observed) == int(model._get_feat_extract_output_lengths(mask.sum(1)).sum())


@right("Axes of a state", "patches of an image transformer; `skip=1` leaves its class token alone")
@torch.no_grad()
def test_the_class_token_of_an_image_transformer_is_left_alone() -> None:
    config = transformers().ViTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = transformers().ViTForImageClassification(config).eval(), torch.randn(30, 3, 16, 16)
    observed = ki.attach(model, skip=1).observe(images, torch.arange(30) % 3, progress=False)
    assert len(observed) == 30 * 16
    koopman = ki.fit(observed, method="least_squares", progress=False)
    edit = ki.erase_class(koopman, label=1, site=-1, strength=4.0)
    plain = model(images).logits
    with ki.patched(model, koopman, edit):
        assert torch.equal(model(images).logits, plain)
    with ki.patched(model, koopman, edit, positions=slice(0, None)):
        assert not torch.allclose(model(images).logits, plain)


@right("Tokens and padding", "encoder and decoder of speech: frames in the one, tokens in the other")
@torch.no_grad()
def test_the_decoder_of_speech_has_tokens_and_its_encoder_has_frames() -> None:
    config = transformers().WhisperConfig(
        vocab_size=90,
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=20,
        decoder_start_token_id=3,
        pad_token_id=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers().WhisperForConditionalGeneration(config).eval()
    batch = {"input_features": torch.randn(6, 8, 20), "decoder_input_ids": IDS}
    frames = ki.attach(model, "model.encoder.layers.*").observe([batch], progress=False)
    tokens = ki.attach(model, "model.decoder.layers.*").observe([batch], progress=False)
    assert len(frames) == 6 * 10 and frames.tokens is None
    assert torch.equal(tokens.tokens, IDS.flatten())


class Recurrent(nn.Module):
    """Layers that return their states beside a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(90, 8)
        self.layers = nn.ModuleList(nn.GRU(8, 8, batch_first=True) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x, _ = layer(x)
        return x


@right("Axes of a state", "recurrent layers, which return a memory beside their states")
@torch.no_grad()
def test_recurrent_layers_are_patched_in_either_way() -> None:
    model = Recurrent().eval()
    source, target = "layers.0", "layers.2"
    with torch.no_grad():
        first = model.layers[0](model.embed(IDS))[0]
    for mode, expected in (("delta", model(IDS) + change(first)), ("replace", first + change(first))):
        with patch_of(model, (source, target), 8, mode=mode):
            for _ in range(3):
                assert near(model(IDS), expected), mode


@refused("Who starts a pass", "models that were traced or scripted", "TorchScript runs them past all hooks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused() -> None:
    with pytest.raises(UnsupportedHostError, match="traced or scripted from"):
        ki.attach(torch.jit.trace(Stack(), X), ["blocks.0", "blocks.2"])


@refused("Fingerprints", "a model cast to another dtype after the fit", "its states are others; fit it as it runs")
def test_a_model_cast_after_the_fit_is_refused() -> None:
    model = Stack()
    koopman = identity(model, ENDS, (6,))
    with pytest.raises(HostMismatchError, match="dtype was float32, here it is float16"):
        ki.patched(model.half(), koopman)
