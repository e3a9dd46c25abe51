"""What can still be read of some classes in a representation: probes and few-shot prototypes.

All are trained on one half of the given rows and judged on the other. Chance is 50 % for the probes, whose two
sides are balanced, and one over the number of classes for the prototypes. Knows nothing of models.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

Kernel = Literal["linear", "rbf", "mlp"]
"""Logistic regression, a support vector machine with a Gaussian kernel, or one hidden layer of `HIDDEN` units."""

HIDDEN = 32

MOST_ROWS = 1000
"""Rows of either side that a probe sees in training; more change little and cost much."""

DRAWS = 20
"""Random draws that a few-shot figure is averaged over."""


def probe_accuracy(
    states: Float[Tensor, "sample width"], forgotten: Bool[Tensor, " sample"], *, kernel: Kernel, seed: int = 0
) -> float:
    """Train a probe to tell forget rows from the rest, and judge it on other rows.

    Args:
        states: rows of a representation.
        forgotten: which rows are of the classes to forget.
        kernel: `linear` (logistic regression), `rbf` (support vector machine) or `mlp` (one hidden layer).
        seed: of the balanced draw, the split and the hidden layer.

    Returns:
        Accuracy on the half that was not trained on, both sides weighing the same.
    """
    generator = torch.Generator().manual_seed(seed)
    sides = [forgotten.nonzero().squeeze(1), (~forgotten).nonzero().squeeze(1)]
    size = _side(forgotten)
    drawn = [side[torch.randperm(len(side), generator=generator)[:size]] for side in sides]
    train = torch.cat([side[: size // 2] for side in drawn])
    test = torch.cat([side[size // 2 :] for side in drawn])
    model = make_pipeline(StandardScaler(), _classifier(kernel, seed))
    with warnings.catch_warnings():
        # A probe that has not converged is still a probe: its accuracy is a lower bound either way.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(states[train].double().numpy(), forgotten[train].numpy())
    return float((model.predict(states[test].double().numpy()) == forgotten[test].numpy()).mean())


def probed_rows(forgotten: Bool[Tensor, " sample"]) -> int:
    """Count the rows that a probe is judged on."""
    size = _side(forgotten)
    return 2 * (size - size // 2)


def _side(forgotten: Bool[Tensor, " sample"]) -> int:
    """Rows of either side, for training and judging together."""
    gone = int(forgotten.sum())
    return min(2 * MOST_ROWS, gone, len(forgotten) - gone)


def _classifier(kernel: Kernel, seed: int) -> ClassifierMixin:
    if kernel == "linear":
        return LogisticRegression(max_iter=1000)
    if kernel == "rbf":
        return SVC(kernel="rbf")
    return MLPClassifier((HIDDEN,), solver="lbfgs", alpha=1e-2, max_iter=500, random_state=seed)


def prototype_recall(
    states: Float[Tensor, "sample width"],
    labels: Int[Tensor, " sample"],
    forget: Sequence[int],
    *,
    shots: int = 10,
    seed: int = 0,
) -> float:
    """Name rows by the nearest class prototype, each the mean of a few shots.

    Args:
        states: rows of a representation.
        labels: class of each.
        forget: the classes that are looked for.
        shots: examples a class.
        seed: of the draws.

    Returns:
        Share of a class's other rows that are named rightly, averaged over the classes and over `DRAWS` draws.
    """
    rng = np.random.default_rng(seed)
    members = {int(c): (labels == c).nonzero().squeeze(1).numpy() for c in torch.unique(labels)}
    rows = states.double()
    recalls = []
    for _ in range(DRAWS):
        shuffled = {c: rng.permutation(own) for c, own in members.items()}
        prototypes = torch.stack([rows[own[:shots]].mean(0) for own in shuffled.values()])
        for label in forget:
            named = torch.cdist(rows[shuffled[label][shots:]], prototypes).argmin(1)
            recalls.append(float((named == list(members).index(label)).double().mean()))
    return float(np.mean(recalls))
