"""What can still be read of the class in a way's states: probes and few-shot prototypes, at one depth or at all.

Costs a probe a depth and kernel, on at most `probes.MOST_ROWS` rows of either side; states that were read before are
not read again. Knows nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.auditing.intervals import wilson
from koopman_interp.auditing.passes import Seen
from koopman_interp.auditing.probes import Kernel, probe_accuracy, probed_rows, prototype_recall

SHOTS = (1, 5, 10)
"""Examples a class that prototypes are made of."""

Depths = Literal["last", "all"]


@dataclass(frozen=True)
class Reading:
    """What is found of the forgotten class at one site. Shares lie between 0 and 1.

    Attributes:
        site: the site.
        probes: accuracy of a balanced probe for the class on rows it was not trained on, by kernel; chance is 0.5.
        prototypes: recall of the class by nearest class prototypes, by the number of shots.
        intervals: 95 % interval of each probe.
    """

    site: str
    probes: dict[str, float]
    prototypes: dict[int, float]
    intervals: dict[str, tuple[float, float]]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reading:
        """Rebuild from the plain values of JSON, whose keys are texts."""
        prototypes = {int(shots): recall for shots, recall in values["prototypes"].items()}
        intervals = {kernel: (low, high) for kernel, (low, high) in values["intervals"].items()}
        return cls(values["site"], dict(values["probes"]), prototypes, intervals)


@dataclass(eq=False)
class Reader:
    """Reads states, and remembers what it has read: ways that leave a site alone share its reading.

    Attributes:
        label: the forgotten class.
        kernels: of the probes.
        seed: of splits and draws.
    """

    label: int
    kernels: Sequence[Kernel]
    seed: int
    _known: list[tuple[str, Tensor, Tensor, Reading]] = field(default_factory=list)

    def depths(self, seen: Seen) -> tuple[Reading, ...]:
        """Read every site of a way."""
        return tuple(self.read(site, states, seen.labels) for site, states in seen.states.items())

    def read(self, site: str, states: Float[Tensor, "row width"], labels: Int[Tensor, " row"]) -> Reading:
        """Read one site."""
        for known, theirs, named, reading in self._known:
            if known == site and torch.equal(theirs, states) and torch.equal(named, labels):
                return reading
        forgotten = labels == self.label
        rows = probed_rows(forgotten)
        probes: dict[str, float] = {
            kernel: probe_accuracy(states, forgotten, kernel=kernel, seed=self.seed) for kernel in self.kernels
        }
        prototypes = {
            shots: prototype_recall(states, labels, self.label, shots=shots, seed=self.seed) for shots in SHOTS
        }
        intervals = {kernel: wilson(share, rows) for kernel, share in probes.items()}
        found = Reading(site, probes, prototypes, intervals)
        self._known.append((site, states, labels, found))
        return found
