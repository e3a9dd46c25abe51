"""What many tests share: one small host, its data, and one quickly fitted surrogate."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub or datasets
os.environ["MPLBACKEND"] = "Agg"

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache

import pytest
import torch
from hypothesis import settings
from jaxtyping import config as jaxtyping_config
from torch import nn

import koopman_interp as ki
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.testing import ResidualMLP, train_classifier, yin_yang

# The same examples on every machine, and no folder of past failures in the repository. Hosts are drawn more often
# before a change lands (--hypothesis-profile=ci), and thoroughly by hand (--hypothesis-profile=zoo).
for name, examples in (("tests", 25), ("ci", 200), ("zoo", 5000)):
    settings.register_profile(name, deadline=None, max_examples=examples, derandomize=True, database=None)
settings.load_profile("tests")


@cache
def _small_host_made_once() -> ResidualMLP:
    """Untrained, with batch norms whose running statistics are not those of a fresh layer, in eval mode.

    Made once a session: its sums depend, in the last bit, on how many threads torch has at the time.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualMLP(inputs=4, width=10, blocks=4, outputs=3)
        model.train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(64, 4))
    return model.eval()


def _small_host() -> ResidualMLP:
    return deepcopy(_small_host_made_once())


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the type checker, which would refuse an argument of a wrong type before the package does."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture
def traces() -> Callable[[nn.Module], object]:
    """What hooks, replaced forwards and switches could leave behind on a model, to be compared before and after."""

    def left(model: nn.Module) -> object:
        hooks = [name for name in vars(model) if "hooks" in name]
        return {
            name: (
                {key: dict(value) for key in hooks if isinstance(value := getattr(module, key), dict)},
                vars(module).get("forward"),
                sorted(vars(module)),
                module.training,
                [parameter.requires_grad for parameter in module.parameters()],
            )
            for name, module in model.named_modules()
        }, weight_digest(model)

    return left


@pytest.fixture
def model() -> ResidualMLP:
    """A host of one's own, to be changed at will."""
    return _small_host()


@pytest.fixture(scope="session")
def yin_yang_data() -> tuple[torch.Tensor, torch.Tensor]:
    return yin_yang(600, seed=0)


@pytest.fixture(scope="session")
def trajectories(yin_yang_data: tuple[torch.Tensor, torch.Tensor]) -> ki.Trajectories:
    """Of the small host on 600 points of Yin-Yang, labelled; treat as read-only."""
    points, labels = yin_yang_data
    return ki.attach(_small_host()).observe(points, labels, progress=False)


@pytest.fixture(scope="session")
def quick_config() -> ki.FitConfig:
    return ki.FitConfig(observables=14, hidden=(16,), steps=60, evaluate_every=20, batch_size=64)


@pytest.fixture(scope="session")
def surrogate(trajectories: ki.Trajectories, quick_config: ki.FitConfig) -> ki.KoopmanAutoencoder:
    """Fitted in 60 steps; treat as read-only."""
    return ki.fit(trajectories, quick_config, progress=False)


@pytest.fixture(scope="session")
def trained(
    yin_yang_data: tuple[torch.Tensor, torch.Tensor],
) -> tuple[ResidualMLP, ki.KoopmanAutoencoder, ki.Trajectories]:
    """A host that has learnt something, so that it costs to put another state in it; treat as read-only."""
    x, y = yin_yang_data
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResidualMLP(inputs=4, width=10, blocks=4, outputs=3)
        train_classifier(model, x, y, epochs=15, batch_size=64)
    data = ki.attach(model).observe(x, y, progress=False)
    return model, ki.fit(data, ki.FitConfig(observables=14), method="least_squares"), data
