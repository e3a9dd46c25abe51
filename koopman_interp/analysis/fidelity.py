"""How faithful a surrogate is: per depth and at the host's output, beside what is free.

Each number stands beside the identity (the state as it was at the source), the mean, and the best linear map from
source to target, fitted on the same rows as the surrogate. An operator that looks faithful at its site can lose to
these once its error has passed through the rest of the network, so the host's output has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from koopman_interp.autoencoder import KoopmanAutoencoder
from koopman_interp.batches import calls
from koopman_interp.errors import InputError
from koopman_interp.hosts import Host, HostFingerprint, host_for, span
from koopman_interp.layouts import from_rows, to_rows
from koopman_interp.least_squares import ridge
from koopman_interp.observing import attach
from koopman_interp.outputs import Output
from koopman_interp.samples import Samples
from koopman_interp.tables import table
from koopman_interp.tokens import Tokens
from koopman_interp.trajectories import IGNORED, Trajectories

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
    batches: Any,
    labels: Any = None,
    *,
    source: str | int | None = None,
    target: str | int | None = None,
    batch_size: int = 512,
    skip: int = 0,
) -> Fidelity:
    """Measure a surrogate beside the identity, the mean and the best linear map.

    Args:
        model: the host.
        koopman: the surrogate.
        trajectories: rows to fit the mean and the linear map on: those that the surrogate was fitted on.
        batches: held-out inputs, as in `Tap.observe`; they are read twice.
        labels: of the held-out inputs, as in `Tap.observe`. Without any there is no accuracy. Samples labelled -100 are
            left out of all figures.
        source: site or depth where the span starts; None is the first.
        target: site or depth where it ends; None is the last.
        batch_size: for inputs that come uncut.
        skip: leading positions of each sequence to leave out, as in `attach`; the host's own states stay there.

    Returns:
        Figures per depth and at the output: of tokens, over all that are real.

    Raises:
        InputError: the inputs are an iterator that can be read only once.
    """
    if isinstance(batches, Iterable) and iter(batches) is batches:
        raise InputError("The batches are read more than once; give a list or a DataLoader, not an iterator.")
    host = host_for(model)
    koopman.config.host.require(HostFingerprint.of(host), "surrogate")
    first, last = span(koopman.sites, source, target)
    tap = attach(host, koopman.sites, times=koopman.config.times, skip=skip)
    every, found, seen = tap.observed(batches, labels, batch_size=batch_size, progress=False)
    held_out = every if found is None else every.with_labels(found)
    if len(held_out) < 2:
        raise InputError(f"Fidelity is judged on 2 held-out samples or more; got {len(held_out)}. Give more inputs.")
    predictors = _predictors(koopman, trajectories, first, last)
    depths = tuple(_at_depth(depth, first, koopman, held_out, predictors) for depth in range(first, last + 1))
    stand_ins = {
        name: _InPlace(host, (koopman.sites[first], koopman.sites[last]), _to_depth(predict, last), skip)
        for name, predict in predictors.items()
        if predict is not None
    }
    column = labels if isinstance(labels, str) else None
    fed = (x for x, _ in calls(host, batches, column=column, batch_size=batch_size))
    return Fidelity(depths, _at_output(host, fed, stand_ins, found, seen, skip), len(held_out))


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
    if not variance:
        raise InputError(
            f"All {len(held_out)} held-out samples have the same state at {held_out.sites[depth]!r}, so there is no "
            "variance to explain. Give other inputs, or start the span at a later site."
        )
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


def _to_depth(predict: Predictor, depth: int) -> Callable[[Tensor], Tensor]:
    return lambda rows: predict(rows, depth)


class _InPlace:
    """A predictor in place of a span: it writes the samples' states at the target, and leaves all others as they are.

    Args:
        host: the host.
        ends: sites of source and target.
        predict: from rows at the source to rows at the target.
        skip: leading positions that are no samples.
    """

    def __init__(self, host: Host, ends: tuple[str, str], predict: Callable[[Tensor], Tensor], skip: int) -> None:
        self._host, self._ends, self._predict, self._skip = host, ends, predict, skip
        self._tokens: Tokens | None = None
        self._predicted = torch.empty(0)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand in for the span while the context lasts."""
        source, target = self._ends
        with (
            self._host.passes(self._begin),
            self._host.hooked({source: self._read}),
            self._host.hooked({target: self._write}, first=True),
        ):
            yield

    def _begin(self, tokens: Tokens | None) -> None:
        self._tokens = tokens

    def _read(self, state: Tensor) -> None:
        samples = Samples.of(state.shape, self._tokens, self._skip)
        self._predicted = self._predict(samples.take(to_rows(state)).cpu())

    def _write(self, state: Tensor) -> Tensor:
        rows = to_rows(state).clone()
        rows[Samples.of(state.shape, self._tokens, self._skip).kept.to(rows.device)] = self._predicted.to(rows)
        return from_rows(rows, tuple(state.shape))


@dataclass
class _Tally:
    """Sums over the rows of an output, batch by batch."""

    rows: int = 0
    right: int = 0
    agreeing: int = 0
    divergence: float = 0.0

    def add(self, logp: Tensor, own: Tensor, labels: Tensor | None) -> None:
        guess = logp.argmax(1)
        self.rows += len(logp)
        self.right += 0 if labels is None else int((guess == labels).sum())
        self.agreeing += int((guess == own.argmax(1)).sum())
        self.divergence += float(kl_div(logp, own, log_target=True, reduction="sum"))

    def figures(self, name: str, *, labelled: bool) -> OutputFidelity:
        accuracy = self.right / self.rows if labelled else None
        return OutputFidelity(name, accuracy, self.agreeing / self.rows, self.divergence / self.rows)


def _at_output(
    host: Host,
    batches: Iterable[Any],
    stand_ins: Mapping[str, _InPlace],
    labels: Tensor | None,
    states: Sequence[Samples],
    skip: int,
) -> tuple[OutputFidelity, ...]:
    """Judge the host and each predictor in its place, one batch after the other, since logits can be wide."""
    tallies = {name: _Tally() for name in ("host", *stand_ins)}
    labelled, start = labels is not None, 0
    for x, of_states in zip(batches, states, strict=True):
        own = Output.of(host, x, skip)
        given = None if labels is None else own.labels(labels[start : start + len(of_states)], of_states)
        start += len(of_states)
        # One label a token does not say whether an output of one row an input is right.
        labelled &= given is not None
        judged = slice(None) if given is None else given != IGNORED
        right = None if given is None else given[judged]
        tallies["host"].add(own.logp[judged], own.logp[judged], right)
        for name, stand_in in stand_ins.items():
            with stand_in.installed():
                logp = Output.of(host, x, skip).logp
            tallies[name].add(logp[judged], own.logp[judged], right)
    return tuple(tally.figures(name, labelled=labelled) for name, tally in tallies.items())
