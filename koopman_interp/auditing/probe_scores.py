"""Probe scores: what can still be read of the classes to forget at a site, by probes and few-shot prototypes.

Costs a probe a kernel, on at most `probes.MOST_ROWS` rows of either side. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.auditing.intervals import wilson
from koopman_interp.auditing.probes import Kernel, probe_accuracy, probed_rows, prototype_recall

SHOTS = (1, 5, 10)
"""Examples a class that prototypes are made of."""

Depths = Literal["last", "all"]
"""Which sites are probed: the last, or every site of the surrogate."""


@dataclass(frozen=True)
class ProbeScores:
    """How well the classes to forget are found at one site. Shares lie between 0 and 1.

    Attributes:
        site: the site.
        probes: accuracy of a balanced probe for forget rows on rows it was not trained on, by kernel; 0.5 at chance.
        prototypes: recall of the classes by nearest class prototypes, by the number of shots.
        intervals: 95 % interval of each probe.
    """

    site: str
    probes: dict[str, float]
    prototypes: dict[int, float]
    intervals: dict[str, tuple[float, float]]

    @property
    def best_probe(self) -> float | None:
        """Accuracy of the best probe; None without any."""
        return max(self.probes.values(), default=None)


@dataclass(frozen=True)
class Prober:
    """How states are probed.

    Attributes:
        forget: the classes that are looked for.
        kernels: of the probes.
        seed: of splits and draws.
    """

    forget: tuple[int, ...]
    kernels: tuple[Kernel, ...]
    seed: int

    def scores(self, site: str, states: Float[Tensor, "row width"], labels: Int[Tensor, " row"]) -> ProbeScores:
        """Probe the states of one site."""
        forgotten = torch.isin(labels, torch.tensor(self.forget))
        rows = probed_rows(forgotten)
        probes: dict[str, float] = {
            kernel: probe_accuracy(states, forgotten, kernel=kernel, seed=self.seed) for kernel in self.kernels
        }
        prototypes = {
            shots: prototype_recall(states, labels, self.forget, shots=shots, seed=self.seed) for shots in SHOTS
        }
        intervals = {kernel: wilson(share, rows) for kernel, share in probes.items()}
        return ProbeScores(site, probes, prototypes, intervals)
