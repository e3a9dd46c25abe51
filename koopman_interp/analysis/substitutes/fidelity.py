"""How faithful a surrogate is: depth by depth, and span by span at the host's output, beside what is free.

Each number stands beside the identity (the state as it was at the source), the mean, the best linear map from source to
target and a chain of such maps layer by layer, all fitted on the same rows as the surrogate. An operator that looks
faithful at its site can lose to these once its error has passed through the rest of the network, so the host's output
has the last word. Costs two passes over the inputs and, for each span and stand-in, what lies after the span.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import nn

from koopman_interp.analysis.encoding import require_sites
from koopman_interp.analysis.substitutes.in_place import OutputFidelity, Span, by_span_and_name, judged_in_place
from koopman_interp.analysis.substitutes.stand_ins import NAMES, SURROGATE, StandIn, StandIns
from koopman_interp.depths import span
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import calls
from koopman_interp.observing.tap import attach
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import number, percent, table
from koopman_interp.trajectories import Trajectories

Spans = Literal["given", "to_target", "all"]

QUANTILES = (0.05, 0.5, 0.95)


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
class SpanFidelity:
    """Figures at the host's output with each stand-in in place of one span.

    Attributes:
        source: site where the span starts.
        target: site where it ends.
        outputs: of the host, then of each stand-in.
    """

    source: str
    target: str
    outputs: tuple[OutputFidelity, ...]


@dataclass(frozen=True, repr=False)
class Fidelity:
    """What `fidelity` found.

    Attributes:
        depths: one entry a depth of the whole span.
        outputs: with each stand-in in place of the whole span, the host first.
        rows: held-out rows judged.
        spans: the same for each span asked for; empty where it was the whole one alone.
    """

    depths: tuple[DepthFidelity, ...]
    outputs: tuple[OutputFidelity, ...]
    rows: int
    spans: tuple[SpanFidelity, ...] = ()

    def __repr__(self) -> str:
        ours = next(row for row in self.outputs if row.name == SURROGATE)
        return (
            f"Fidelity({self.rows:,} rows, agreement with the host {ours.agreement:.2%}, KL {ours.kl:.4f}, "
            f"unexplained at the target {self.depths[-1].unexplained[SURROGATE]:.4f})"
        )

    def __str__(self) -> str:
        names = list(self.depths[-1].unexplained)
        at_depths = table(
            ["site", *(f"unexplained: {name}" for name in names), "linearity", "isometry 5/50/95 %"],
            [
                [
                    depth.site,
                    *(number(depth.unexplained[name], 4) for name in names),
                    number(depth.linearity_residual, 4),
                    " / ".join(f"{ratio:.2f}" for ratio in depth.isometry),
                ]
                for depth in self.depths
            ],
        )
        labelled = any(row.cross_entropy is not None for row in self.outputs)
        at_output = table(
            ["in place of the span", "accuracy %", "agreement %", "KL to host"]
            + (["cross-entropy", "recovered %"] if labelled else []),
            [
                [row.name, percent(row.accuracy), percent(row.agreement), f"{row.kl:.4f}"]
                + ([number(row.cross_entropy, 4), percent(row.recovered)] if labelled else [])
                for row in self.outputs
            ],
        )
        return "\n\n".join([repr(self), at_depths, at_output, *([self.by_span()] if self.spans else [])])

    def by_span(self) -> str:
        """Tabulate, for each span and stand-in, divergence / agreement / share of cross-entropy recovered."""
        names = [row.name for row in self.outputs[1:]]
        spans = {f"{one.source} → {one.target}": one.outputs for one in self.spans}
        return by_span_and_name(spans, names)

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
    spans: Spans = "given",
    next_token: bool = False,
    batch_size: int = 512,
    skip: int = 0,
) -> Fidelity:
    """Measure a surrogate beside the identity, the mean, the best linear map and a chain of linear maps.

    Args:
        model: the host.
        koopman: the surrogate.
        trajectories: rows to fit the mean and the linear maps on: those that the surrogate was fitted on.
        batches: held-out inputs, as in `Tap.observe`; they are read twice.
        labels: of the held-out inputs, as in `Tap.observe`. Without any there is neither accuracy nor cross-entropy.
            Samples labelled -100 are left out of all figures.
        source: site or depth where the span starts; None is the first.
        target: site or depth where it ends; None is the last.
        spans: which to judge at the output beside the whole: only the one given; those from every depth of it to its
            target; or all within it.
        next_token: label each token of a language model with the one that follows it, in place of labels.
        batch_size: for inputs that come uncut.
        skip: leading positions of each sequence to leave out, as in `attach`; the host's own states stay there.

    Returns:
        Figures per depth and at the output: of tokens, over all that are real.

    Raises:
        InputError: the inputs are an iterator that can be read only once, the trajectories have other sites, or labels
            and next tokens are both asked for.
    """
    if isinstance(batches, Iterable) and iter(batches) is batches:
        raise InputError("The batches are read more than once; give a list or a DataLoader, not an iterator.")
    if spans not in ("given", "to_target", "all"):
        raise InputError(f"spans={spans!r} is none of 'given', 'to_target' and 'all'.")
    host = host_for(model)
    koopman.config.host.require(HostFingerprint.of(host), "surrogate")
    require_sites(koopman, trajectories)
    first, last = span(koopman.sites, source, target)
    tap = attach(host, koopman.sites, times=koopman.config.times, skip=skip)
    every, found, _ = tap.observed(batches, labels, batch_size=batch_size, progress=False)
    if next_token and found is not None:
        raise InputError("Figures are of given labels or of next tokens; got both. Leave out one of them.")
    held_out = every if found is None else every.with_labels(found)
    if len(held_out) < 2:
        raise InputError(f"Fidelity is judged on 2 held-out samples or more; got {len(held_out)}. Give more inputs.")
    stand_ins = StandIns(koopman, trajectories)
    depths = tuple(_at_depth(depth, first, koopman, held_out, stand_ins) for depth in range(first, last + 1))
    column = labels if isinstance(labels, str) else None
    fed = (x for x, _ in calls(host, batches, column=column, batch_size=batch_size))
    asked = {ends: stand_ins.of(*ends) for ends in _asked(first, last, spans)}
    judged = judged_in_place(host, fed, koopman.sites, asked, found, next_token=next_token, skip=skip)
    sites = koopman.sites
    by_span = tuple(SpanFidelity(sites[i], sites[j], outputs) for (i, j), outputs in judged.items())
    return Fidelity(depths, judged[first, last], len(held_out), () if spans == "given" else by_span)


def _asked(first: int, last: int, spans: Spans) -> list[Span]:
    match spans:
        case "given":
            return [(first, last)]
        case "to_target":
            return [(depth, last) for depth in range(first, last)]
    return list(combinations(range(first, last + 1), 2))


def _at_depth(
    depth: int,
    first: int,
    koopman: KoopmanAutoencoder,
    held_out: Trajectories,
    stand_ins: StandIns,
) -> DepthFidelity:
    state, origin = held_out.states[depth], held_out.states[first]
    variance = float((state.double() - state.double().mean(0)).square().sum())
    if not variance:
        raise InputError(
            f"All {len(held_out)} held-out samples have the same state at {held_out.sites[depth]!r}, so there is no "
            "variance to explain. Give other inputs, or start the span at a later site."
        )
    unexplained: dict[str, float | None] = {}
    if depth == first:
        found: dict[str, StandIn | None] = dict.fromkeys(NAMES)
        found[SURROGATE] = lambda rows: koopman.decode(koopman.encode(rows, first), first)
    else:
        found = stand_ins.of(first, depth)
    for name, stand_in in found.items():
        reached = None if stand_in is None else stand_in(origin)
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
