"""A host that has learnt something, and a surrogate whose record tells its inputs as they are given to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.observing.digests import input_digests

Trained = tuple[nn.Module, ki.KoopmanAutoencoder, ki.Trajectories]
Fit = Callable[[ki.FitConfig], Trained]


@pytest.fixture(scope="session")
def fit(trained: Trained, yin_yang_data: tuple[Tensor, Tensor]) -> Fit:
    """Fit the host's trajectories by least squares."""
    model, _, trajectories = trained
    data = replace(trajectories, digests=input_digests(yin_yang_data[0])[trajectories.sequence])

    def fitted(config: ki.FitConfig) -> Trained:
        return model, ki.fit(data, config, method="least_squares"), data

    return fitted


@pytest.fixture(scope="session")
def known(fit: Fit) -> Trained:
    return fit(ki.FitConfig(observables=14))


@pytest.fixture
def points(yin_yang_data: tuple[Tensor, Tensor]) -> list[Tensor]:
    return list(yin_yang_data[0].split(60))


@pytest.fixture
def held_out(known: Trained, yin_yang_data: tuple[Tensor, Tensor]) -> Tensor:
    """The points that the fit held out, in the order in which they are given."""
    x = yin_yang_data[0]
    return x[torch.isin(input_digests(x), known[1].record.held_out)]
