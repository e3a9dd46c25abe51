"""The objective at the output: how far what a model says is from what it would say with something else in its place.

Costs, a step: one pass of the model over a batch, and all past the last site forward and backward for each depth. Knows
nothing of how it is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.analysis.substitutes.lenses import AffineLens, KoopmanLens
from koopman_interp.analysis.substitutes.stand_ins import substituted
from koopman_interp.distilling.config import DistilConfig
from koopman_interp.distilling.inputs import PartedInputs
from koopman_interp.divergence import kullback_leibler
from koopman_interp.errors import InputError
from koopman_interp.fitting.descent import Epochs
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.own_pass import OwnPass

Arrivals = Callable[[OwnPass, Sequence[int], torch.Generator], tuple[Sequence[Tensor], Tensor]]
"""From a pass, some depths and a generator to the rows that arrive from each of them at the last depth, and to what is
lowered beside the divergence."""


class OutputObjective:
    """`mean KL(host ‖ host with a lens's state at the last depth)`, over depths and samples.

    Args:
        host: the model.
        sites: of the depths.
        skip: leading places of each sequence that are no samples.
        inputs: to train on, and to judge by.
        config: how many depths a step takes.
        lens: the map from each depth to the last that is judged.
        arrivals: of the lens while it is trained, where more than the divergence is lowered.
    """

    def __init__(
        self,
        host: Host,
        sites: tuple[str, ...],
        skip: int,
        inputs: PartedInputs,
        config: DistilConfig,
        lens: KoopmanLens | AffineLens,
        arrivals: Arrivals | None = None,
    ) -> None:
        self._host, self._sites, self._skip, self._lens = host, sites, skip, lens
        self._inputs, self._depths, self._arrivals = inputs, config.depths, arrivals
        self._epochs = Epochs(len(inputs.train), 1, config.seed)

    def __call__(self, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the divergence on the batch of a step from some depths, drawn, and what is lowered beside it."""
        before = len(self._sites) - 1
        depths = torch.randperm(before, generator=generator)[: self._depths].sort().values.tolist()
        own = self._training_pass(step)
        if self._arrivals is None:
            return divergence(own, self._mapped(own, depths))
        arrived, beside = self._arrivals(own, depths, generator)
        return divergence(own, arrived) + beside

    def judged(self, _: torch.Generator) -> dict[str, float]:
        """Return the divergence on the inputs held out, from all depths, as `kl`; each sample counts the same."""
        total, samples = 0.0, 0
        for batch in self._inputs.held_out:
            own = OwnPass.of(self._host, batch, self._sites, self._skip, training=True)
            if of_batch := len(own.output.logp):
                arrived = self._mapped(own, range(len(self._sites) - 1))
                total += float(divergence(own, arrived)) * of_batch
                samples += of_batch
        if not samples:
            raise InputError(self._no_samples("judge by", "held out"))
        return {"kl": total / samples}

    def _mapped(self, own: OwnPass, depths: Sequence[int]) -> list[Tensor]:
        return [substituted(self._lens.at(depth), own.rows(depth), own) for depth in depths]

    def _training_pass(self, step: int) -> OwnPass:
        """Make the pass of a step; in place of a batch without samples, over the next that has some."""
        batches = self._inputs.train
        first = int(self._epochs(step))
        for batch in (*batches[first:], *batches[:first]):
            own = OwnPass.of(self._host, batch, self._sites, self._skip, training=True)
            if len(own.output.logp):
                return own
        raise InputError(self._no_samples("train on", "to train on"))

    def _no_samples(self, purpose: str, inputs: str) -> str:
        return (
            f"There are no samples to {purpose}: the inputs {inputs} are empty, or all their tokens are padding or "
            f"among the first {self._skip} of their sequences, which skip={self._skip} leaves out. Give longer ones."
        )


def divergence(own: OwnPass, arrived: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Mean of `KL(host ‖ host with these rows at the last depth)`, in nats, over several sets of rows."""
    with own.after(len(own.sites) - 1) as continued:
        of_each = [kullback_leibler(own.output.logp, continued(rows).logp).mean() for rows in arrived]
    return torch.stack(of_each).mean()
