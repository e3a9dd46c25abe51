"""How faithful a surrogate is: per depth and at the host's output, beside what is free.

Each number stands beside the identity (the state as it was at the source), the mean, and the best linear map from
source to target, fitted on the same rows as the surrogate. An operator that looks faithful at its site can lose to
these once its error has passed through the rest of the network, so the host's output has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from koopman_interp.autoencoder import KoopmanAutoencoder
from koopman_interp.errors import InputError
from koopman_interp.hosts import Host, HostFingerprint, host_for, logits_of, span
from koopman_interp.layouts import to_rows
from koopman_interp.least_squares import ridge
from koopman_interp.observing import attach
from koopman_interp.tables import table
from koopman_interp.trajectories import Trajectories

QUANTILES = (0.05, 0.5, 0.95)
_RIDGE = 1e-6

Predictor = Callable[[Tensor, int], Tensor]
"""From rows at the source, and a depth, to rows at that depth."""


@dataclass(frozen=True)
class DepthFidelity:
    """Figures at one depth, on rows the surrogate was not fitted on.

    Attributes:
        site: the site.
        unexplained: share of the state's variance that each predictor from the source leaves unexplained; None
            where a predictor does not exist (the identity between different widths).
        linearity_residual: `‖z − z_before Kᵀ‖² / ‖z − mean‖²` from the depth before; None at the source.
        isometry: quantiles (5, 50, 95 %) of `‖z_i − z_j‖ / ‖x_i − x_j‖`.
    """

    site: str
    unexplained: dict[str, float | None]
    linearity_residual: float | None
    isometry: tuple[float, ...]


@dataclass(frozen=True)
class OutputFidelity:
    """Figures at the host's output with each predictor in place of the whole span.

    Attributes:
        name: of the predictor.
        accuracy: share of rows whose label is predicted; None without labels.
        agreement: share of rows with the host's own prediction.
        kl: mean `KL(host ‖ predictor in place)`, in nats.
    """

    name: str
    accuracy: float | None
    agreement: float
    kl: float


@dataclass(frozen=True, repr=False)
class Fidelity:
    """What `fidelity` found: one entry a depth, one a predictor at the output."""

    depths: tuple[DepthFidelity, ...]
    outputs: tuple[OutputFidelity, ...]
    rows: int

    def __repr__(self) -> str:
        ours = next(row for row in self.outputs if row.name == "surrogate")
        return (
            f"Fidelity({self.rows:,} rows, agreement with the host {ours.agreement:.2%}, KL {ours.kl:.4f}, "
            f"unexplained at the target {self.depths[-1].unexplained['surrogate']:.4f})"
        )

    def __str__(self) -> str:
        names = list(self.depths[-1].unexplained)
        at_depths = table(
            ["site", *(f"unexplained: {name}" for name in names), "linearity", "isometry 5/50/95 %"],
            [
                [
                    depth.site,
                    *("–" if (value := depth.unexplained[name]) is None else f"{value:.4f}" for name in names),
                    "–" if depth.linearity_residual is None else f"{depth.linearity_residual:.4f}",
                    " / ".join(f"{ratio:.2f}" for ratio in depth.isometry),
                ]
                for depth in self.depths
            ],
        )
        at_output = table(
            ["in place of the span", "accuracy %", "agreement %", "KL to host"],
            [
                [
                    row.name,
                    "–" if row.accuracy is None else f"{100 * row.accuracy:.2f}",
                    f"{100 * row.agreement:.2f}",
                    f"{row.kl:.4f}",
                ]
                for row in self.outputs
            ],
        )
        return f"{self!r}\n\n{at_depths}\n\n{at_output}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def fidelity(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories,
    batches: Iterable[Any] | Tensor,
    labels: Any = None,
    *,
    source: str | int | None = None,
    target: str | int | None = None,
    batch_size: int = 512,
) -> Fidelity:
    """Measure a surrogate beside the identity, the mean and the best linear map.

    Args:
        model: the host.
        koopman: the surrogate.
        trajectories: rows to fit the mean and the linear map on: those that the surrogate was fitted on.
        batches: held-out inputs, a tensor or a re-iterable of batches that the model can be called on.
        labels: one a held-out input or sample; None gives no accuracy.
        source: site or depth where the span starts; None is the first.
        target: site or depth where it ends; None is the last.
        batch_size: for inputs given as one tensor.

    Returns:
        Figures per depth and at the output.

    Raises:
        InputError: the inputs are an iterator that can be read only once.
    """
    if isinstance(batches, Tensor):
        batches = batches.split(batch_size)
    if iter(batches) is batches:
        raise InputError("The batches are read more than once; give a list or a DataLoader, not an iterator.")
    host = host_for(model)
    koopman.config.host.require(HostFingerprint.of(host), "surrogate")
    first, last = span(koopman.sites, source, target)
    held_out = attach(host, koopman.sites, times=koopman.config.times).observe(batches, progress=False)
    if labels is not None:
        held_out = held_out.with_labels(labels)
    predictors = _predictors(koopman, trajectories, first, last)
    depths = tuple(_at_depth(depth, first, koopman, held_out, predictors) for depth in range(first, last + 1))
    return Fidelity(depths, _at_output(host, koopman, batches, held_out, predictors, first, last), len(held_out))


def _predictors(
    koopman: KoopmanAutoencoder, trajectories: Trajectories, first: int, last: int
) -> dict[str, Predictor | None]:
    maps: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for depth in range(first + 1, last + 1):
        maps[depth] = _affine(trajectories.states[first], trajectories.states[depth])

    def linear(rows: Tensor, depth: int) -> Tensor:
        mean, weight, bias = maps[depth]
        return ((rows.double() - mean) @ weight + bias).to(rows)

    same_width = len(set(trajectories.widths[first : last + 1])) == 1
    return {
        "surrogate": lambda rows, depth: koopman.predict(rows, first, depth),
        "identity": (lambda rows, _: rows) if same_width else None,
        "mean": lambda rows, depth: maps[depth][2].to(rows).expand(len(rows), -1),
        "endpoint linear": linear,
    }


def _affine(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Least squares from centred rows to rows: input mean, weight, output mean."""
    x, y = inputs.double(), outputs.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = x - x_mean
    return x_mean, ridge(centred.T @ centred, centred.T @ (y - y_mean), _RIDGE), y_mean


def _at_depth(
    depth: int,
    first: int,
    koopman: KoopmanAutoencoder,
    held_out: Trajectories,
    predictors: dict[str, Predictor | None],
) -> DepthFidelity:
    state, origin = held_out.states[depth], held_out.states[first]
    variance = float((state.double() - state.double().mean(0)).square().sum())
    unexplained: dict[str, float | None] = {}
    for name, predict in predictors.items():
        if depth == first:
            reached = koopman.decode(koopman.encode(state, first), first) if name == "surrogate" else None
        else:
            reached = None if predict is None else predict(origin, depth)
        unexplained[name] = (
            None if reached is None else float((reached.double() - state.double()).square().sum()) / variance
        )
    z = koopman.encode(state, depth)
    residual = None
    if depth > first:
        before = koopman.encode(held_out.states[depth - 1], depth - 1)
        advanced = koopman.operator.advance(before, koopman.steps(depth - 1, depth))
        residual = float((z - advanced).square().sum() / (z - z.mean(0)).square().sum())
    x = koopman.normalization.normalize(state, depth)
    ratios = (z - z.roll(1, 0)).norm(dim=1) / (x - x.roll(1, 0)).norm(dim=1).clamp_min(1e-12)
    quantiles = torch.quantile(ratios[: 2**20].double(), torch.tensor(QUANTILES, dtype=torch.float64))
    return DepthFidelity(held_out.sites[depth], unexplained, residual, tuple(quantiles.tolist()))


def _at_output(
    host: Host,
    koopman: KoopmanAutoencoder,
    batches: Iterable[Any],
    held_out: Trajectories,
    predictors: dict[str, Predictor | None],
    first: int,
    last: int,
) -> tuple[OutputFidelity, ...]:
    own = _log_probabilities(host, batches)
    labels = held_out.labels
    if labels is not None and len(labels) != len(own):
        labels = None  # one label a token does not say whether the output is right

    def judged(name: str, logp: Tensor) -> OutputFidelity:
        guess = logp.argmax(1)
        accuracy = None if labels is None else float((guess == labels).double().mean())
        kl = float(kl_div(logp, own, log_target=True, reduction="batchmean"))
        return OutputFidelity(name, accuracy, float((guess == own.argmax(1)).double().mean()), kl)

    rows = [judged("host", own)]
    for name, predict in predictors.items():
        if predict is None:
            continue

        def put(state: Tensor, predict: Predictor = predict) -> Tensor:
            return koopman.state_from_rows(predict(to_rows(state).cpu(), last).to(state.device), state, last)

        with host.replaced(koopman.sites[first], koopman.sites[last], put):
            rows.append(judged(name, _log_probabilities(host, batches)))
    return tuple(rows)


def _log_probabilities(host: Host, batches: Iterable[Any]) -> Tensor:
    """Run the host over all batches: `[row, class]`, positions counted as rows."""
    found = []
    for batch in batches:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        logits = logits_of(host.call(x))
        found.append(log_softmax(logits.flatten(0, -2).double().cpu(), dim=1))
    return torch.cat(found)
