"""Lenses side by side: how far what each reads at each depth is from what the host says.

Costs one pass of the host a batch, and one of its head for each lens and depth. A smaller divergence is not a better
explanation: a lens with more parameters can learn what the host has not computed yet, so parameters stand beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from koopman_interp.analysis.encoding import require_sites
from koopman_interp.analysis.substitutes.in_place import OutputFidelity, Span, by_span_and_name, judged_in_place
from koopman_interp.analysis.substitutes.lenses import AffineLens, KoopmanLens, Lens, LogitLens
from koopman_interp.analysis.substitutes.stand_ins import MEAN, StandIn
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import calls
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import table
from koopman_interp.trajectories import Trajectories


@dataclass(frozen=True, repr=False)
class LensComparison:
    """What `compare_lenses` found.

    Attributes:
        sites: the depths but the last, where every lens says what the host says.
        parameters: fitted numbers of each lens, by name.
        outputs: at each depth, figures of the host, of the mean of the last state, and of each lens.
    """

    sites: tuple[str, ...]
    parameters: dict[str, int]
    outputs: tuple[tuple[OutputFidelity, ...], ...]

    def __repr__(self) -> str:
        means = []
        for name in self.parameters:
            found = [value for value in self.kl(name) if value is not None]
            means.append(f"{name} {sum(found) / len(found):.3f}" if found else f"{name} –")
        return f"LensComparison(KL to the host, mean over {len(self.sites)} depths: {', '.join(means)})"

    def __str__(self) -> str:
        found = by_span_and_name(dict(zip(self.sites, self.outputs, strict=True)), list(self.parameters))
        counted = table(["lens", "parameters"], [[name, f"{count:,}"] for name, count in self.parameters.items()])
        return f"{self!r}\n\n{found}\n\n{counted}"

    def kl(self, lens: str) -> tuple[float | None, ...]:
        """Mean divergence of a lens from the host at each depth, in nats; None where the lens does not exist.

        Raises:
            InputError: there is no such lens.
        """
        if lens not in self.parameters:
            raise InputError(f"There is no lens {lens!r} here; there are {', '.join(self.parameters)}.")
        return tuple({row.name: row.kl for row in outputs}.get(lens) for outputs in self.outputs)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def compare_lenses(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories,
    batches: Any,
    *,
    others: Sequence[Lens] = (),
    next_token: bool = False,
    skip: int = 0,
    batch_size: int = 64,
) -> LensComparison:
    """Compare the Koopman lens with the logit lens, an affine lens, and others.

    Args:
        model: the host.
        koopman: the surrogate.
        trajectories: rows to fit the affine lens on, by least squares: those that the surrogate was fitted on.
        batches: held-out inputs, as in `Tap.observe`.
        others: lenses to judge beside these: one by `tune_lens`, another surrogate's; each by a name of its own.
        next_token: for language models, give the share of cross-entropy recovered too.
        skip: leading positions of each sequence to leave out, as in `attach`.
        batch_size: for inputs that come uncut.

    Returns:
        Divergence, agreement and parameters of each lens, at each depth but the last.

    Raises:
        UnsupportedHostError: the host returns no logits, so that it has no head to read with.
        HostMismatchError: the surrogate belongs to another host.
        InputError: two lenses share a name, the trajectories have other sites, or there were no samples.
    """
    if isinstance(others, Lens):
        raise InputError(f"Other lenses come in a list; got a single {type(others).__name__}. Give others=[lens].")
    host = host_for(model)
    koopman.config.host.require(HostFingerprint.of(host), "surrogate")
    require_sites(koopman, trajectories)
    lenses: list[Lens] = [KoopmanLens(koopman), LogitLens(koopman.config.widths), AffineLens.fit(trajectories), *others]
    names = [lens.name for lens in lenses]
    if len(set(names)) < len(names) or MEAN in names:
        raise InputError(f"Each lens needs a name of its own, and none is {MEAN!r}; got {', '.join(names)}.")
    last = len(koopman.sites) - 1
    mean = trajectories.states[-1].double().mean(0)

    def ablated(rows: Tensor) -> Tensor:
        return mean.to(rows).expand(len(rows), -1)

    asked: dict[Span, dict[str, StandIn | None]] = {
        (depth, last): {MEAN: ablated} | {lens.name: lens.at(depth) for lens in lenses} for depth in range(last)
    }
    fed = (x for x, _ in calls(host, batches, batch_size=batch_size))
    judged = judged_in_place(host, fed, koopman.sites, asked, next_token=next_token, skip=skip)
    return LensComparison(koopman.sites[:-1], {lens.name: lens.parameters for lens in lenses}, tuple(judged.values()))
