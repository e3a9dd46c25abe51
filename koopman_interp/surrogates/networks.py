"""The networks of a surrogate: a linear map beside a small MLP, or an MLP alone.

Encoder and decoder are one of them each, mirror images. Knows nothing of what they are fitted to.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Architecture = Literal["linear_plus_nonlinear", "mlp"]
Activation = Literal["leaky_relu", "gelu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"leaky_relu": nn.LeakyReLU, "gelu": nn.GELU}


class LinearPlusNonlinear(nn.Module):
    """`W x + g(x)`: a linear map beside a small MLP.

    Args:
        inputs: width in.
        hidden: widths of the hidden layers of g.
        outputs: width out.
        activation: between the layers of g.

    W starts as an isometric embedding (or projection) and g small, so that the start is an isometry.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "leaky_relu") -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.nonlinear = mlp(inputs, hidden, outputs, activation)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(outputs, inputs))
            last = _last_layer(self.nonlinear)
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Map rows."""
        return self.linear(x) + self.nonlinear(x)

    def layers_in(self) -> list[nn.Linear]:
        """The layers that see the input first."""
        return [self.linear, _first_layer(self.nonlinear)]

    def layers_out(self) -> list[nn.Linear]:
        """The layers whose sum is the output."""
        return [self.linear, _last_layer(self.nonlinear)]


class PlainMLP(nn.Module):
    """An MLP alone; with leaky ReLUs, the paper's encoder."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "leaky_relu") -> None:
        super().__init__()
        self.nonlinear = mlp(inputs, hidden, outputs, activation)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Map rows."""
        return self.nonlinear(x)

    def layers_in(self) -> list[nn.Linear]:
        """The layer that sees the input first."""
        return [_first_layer(self.nonlinear)]

    def layers_out(self) -> list[nn.Linear]:
        """The layer whose output is the output."""
        return [_last_layer(self.nonlinear)]


ARCHITECTURES: dict[str, type[LinearPlusNonlinear] | type[PlainMLP]] = {
    "linear_plus_nonlinear": LinearPlusNonlinear,
    "mlp": PlainMLP,
}


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "leaky_relu") -> nn.Sequential:
    """Stack linear layers with activations between them."""
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def _first_layer(layers: nn.Sequential) -> nn.Linear:
    layer = layers[0]
    assert isinstance(layer, nn.Linear)
    return layer


def _last_layer(layers: nn.Sequential) -> nn.Linear:
    layer = layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer
