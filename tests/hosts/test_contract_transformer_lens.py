"""Models of TransformerLens keep the laws of a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from koopman_interp.testing import HostContract
from tests.hosts.lens_models import gpt2_bridge, hooked_transformer, llama_bridge, native_bridge, stories_bridge
from tests.hosts.models import padded_tokens


class LensContract(HostContract):
    """Hooks placed by TransformerLens itself."""

    def inputs(self, count: int) -> Any:
        return padded_tokens(count)

    def watch(self, model: Any, site: str, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], Any]:
        point = model.hook_dict[site]
        point.add_hook(lambda tensor, hook, own=hook: own(tensor))
        handle = point.fwd_hooks[-1]

        def remove() -> None:
            handle.hook.remove()
            point.fwd_hooks[:] = [known for known in point.fwd_hooks if known is not handle]

        return remove


class TestNativeBridge(LensContract):
    def make(self) -> nn.Module:
        return native_bridge()


class TestNativeBridgeFromItsFirstBlock(TestNativeBridge):
    span = (0, 2)


class BridgeContract(LensContract):
    def generate(self, model: Any, tokens: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        settings: Any = {"max_new_tokens": steps, "do_sample": False, "stop_at_eos": False, "return_type": "tokens"}
        found = model.generate(tokens, verbose=False, **settings)
        # TransformerLens's own loop gives no logits on all versions; Hugging Face's takes the same steps.
        again = model.hf_generate(tokens, output_logits=True, **settings)
        assert torch.equal(found, again.sequences)
        return found, torch.stack(again.logits, 1)


class TestGPT2Bridge(BridgeContract):
    def make(self) -> nn.Module:
        return gpt2_bridge()


class TestLlamaBridge(BridgeContract):
    def make(self) -> nn.Module:
        return llama_bridge()


class TestStories260KBridge(BridgeContract):
    def make(self) -> nn.Module:
        return stories_bridge()


class TestHookedTransformer(LensContract):
    def make(self) -> nn.Module:
        return hooked_transformer()

    def generate(self, model: Any, tokens: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        settings: Any = {"max_new_tokens": steps, "do_sample": False, "stop_at_eos": False, "return_type": "tokens"}
        found = model.generate(tokens, verbose=False, output_logits=True, **settings)
        return found.sequences, torch.stack(found.logits, 1)
