"""The objective at the output: how far what a model says is from what it would say with something else in its place.

`mean KL(host ‖ D(K^n E(x)) in place of the span)` from several depths to the last, with gradients through the model's
own remaining forward pass, whose weights stay as they are (distillation, Hinton et al., arXiv 1503.02531). A fit takes
it beside the losses of the states, a distillation and a lens too: there is no other. Costs, a step: all past the last
site forward and backward for each depth, and one pass of the model over a batch, unless it was kept from an earlier
step, as those are that fit into half a GB. Knows nothing of how it is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from koopman_interp.divergence import kullback_leibler
from koopman_interp.errors import InputError
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.data import FitData
from koopman_interp.fitting.descent import Epochs
from koopman_interp.fitting.inputs import Batch, PartedInputs
from koopman_interp.fitting.objective import FitObjective
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import calls
from koopman_interp.observing.digests import input_digests
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

Arrivals = Callable[[OwnPass, int], Float[Tensor, "sample width"]]
"""From a pass and a depth before the last to the rows that arrive from there at the last."""

_SAMPLES = 512
"""Samples that a model is called with at a step, about, where it is not said how many inputs."""
_KEPT_BYTES = 2**29
"""Memory that passes may take which are kept for the steps that take the same batch again."""
_JUDGED_SAMPLES = 4096
"""Held-out samples after which no more batches are judged."""


class OutputObjective:
    """`mean KL(host ‖ host with the rows that arrive at the last depth)`, over depths and samples, in nats.

    Args:
        host: the model.
        sites: of the depths.
        skip: leading places of each sequence that are no samples.
        inputs: to train on, and to judge by.
        arrivals: what is trained.
        starts: depths to start from.
        always: those of them that every step starts from.
        depths: how many of the others, drawn, a step takes beside; None is all.
        seed: of the order of the batches.
    """

    def __init__(
        self,
        host: Host,
        sites: tuple[str, ...],
        skip: int,
        inputs: PartedInputs,
        arrivals: Arrivals,
        *,
        starts: Sequence[int],
        always: Sequence[int] = (),
        depths: int | None,
        seed: int,
    ) -> None:
        self._host, self._sites, self._skip = host, sites, skip
        self._inputs, self._arrivals, self._depths = inputs, arrivals, depths
        self._starts, self._always = list(starts), list(always)
        self._epochs = Epochs(len(inputs.train), 1, seed)
        self._kept: dict[int, OwnPass] = {}
        self._room = _KEPT_BYTES

    def __call__(self, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the divergence on the batch of a step, from some depths, drawn."""
        others = [depth for depth in self._starts if depth not in self._always]
        drawn = torch.randperm(len(others), generator=generator)[: self._depths].tolist()
        return self._divergence(self._training_pass(step), sorted([*self._always, *(others[index] for index in drawn)]))

    def judged(self) -> float:
        """Return the divergence on the inputs held out, or the first of them, from all depths.

        Each sample counts the same.
        """
        total, samples = 0.0, 0
        for batch in self._inputs.held_out:
            own = self._pass(batch)
            if of_batch := len(own.output.logp):
                total += float(self._divergence(own, self._starts)) * of_batch
                samples += of_batch
            if samples >= _JUDGED_SAMPLES:
                break
        if not samples:
            raise InputError(self._no_samples("judge by", "held out"))
        return total / samples

    def _divergence(self, own: OwnPass, depths: list[int]) -> Float[Tensor, ""]:
        with own.after(len(own.sites) - 1) as continued:
            of_each = [
                kullback_leibler(own.output.logp, continued(self._arrivals(own, depth)).logp).mean() for depth in depths
            ]
        return torch.stack(of_each).mean()

    def _pass(self, batch: Batch) -> OwnPass:
        return OwnPass.of(self._host, batch, self._sites, self._skip, training=True)

    def _training_pass(self, step: int) -> OwnPass:
        """Make the pass of a step; in place of a batch without samples, over the next that has some."""
        count = len(self._inputs.train)
        first = int(self._epochs(step))
        for index in (*range(first, count), *range(first)):
            own = self._kept_pass(index)
            if len(own.output.logp):
                return own
        raise InputError(self._no_samples("train on", "to train on"))

    def _kept_pass(self, index: int) -> OwnPass:
        """Make the pass over a batch, or take it where it was kept: a model in eval mode says the same again."""
        if index in self._kept:
            return self._kept[index]
        own = self._pass(self._inputs.train[index])
        tensors = (own.output.logp, *own.record.states.values())
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if size <= self._room and not self._host.model.training:
            self._room -= size
            self._kept[index] = own
        return own

    def _no_samples(self, purpose: str, inputs: str) -> str:
        return (
            f"There are no samples to {purpose}: the inputs {inputs} are empty, or all their tokens are padding or "
            f"among the first {self._skip} of their sequences, which skip={self._skip} leaves out. Give longer ones."
        )


class StatesAndOutput:
    """The losses of a surrogate's states, and the divergence at the output, weighed.

    Args:
        states: the losses of the states.
        output: the divergence.
        of_states: weight of the one.
        of_output: weight of the other; nothing is called where it is 0.
    """

    def __init__(self, states: FitObjective, output: OutputObjective, of_states: float, of_output: float) -> None:
        self.surrogate = states.surrogate
        self._states, self._output = states, output
        self._of_states, self._of_output = of_states, of_output

    def __call__(self, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Weigh both on the batches of a step."""
        parts = ((self._of_states, self._states), (self._of_output, self._output))
        return torch.stack([weight * part(step, generator) for weight, part in parts if weight]).sum()

    def halve_batch(self) -> int | None:
        """Halve the batch of the states; that of the inputs is as it came."""
        return self._states.halve_batch()

    def judged(self, generator: torch.Generator) -> dict[str, float]:
        """Return both, weighed, on what is held out as `loss`, the divergence as `kl`, and the other figures."""
        figures, kl = self._states.judged(generator), self._output.judged()
        return figures | {"kl": kl, "loss": self._of_states * figures["loss"] + self._of_output * kl}


def arrivals_of(koopman: KoopmanAutoencoder) -> Arrivals:
    """Return what arrives at the last depth by the motion of a surrogate."""

    def arrive(own: OwnPass, depth: int) -> Tensor:
        sequences = own.sequences if koopman.looks_back else None
        return koopman.predict(own.rows(depth), depth, sequences=sequences)

    return arrive


@dataclass(frozen=True, eq=False)
class AtOutput:
    """A model, and what it is called with in a fit.

    Attributes:
        host: the model.
        inputs: to train on, and to judge by.
        choices: what was chosen where nothing was asked for.
    """

    host: Host
    inputs: PartedInputs
    choices: tuple[str, ...]

    @classmethod
    def of(cls, data: FitData, config: FitConfig, model: nn.Module | Host | None, batches: object) -> AtOutput:
        """Check that the model is that of the rows, and part its inputs as these are.

        Raises:
            InputError: one of the two is missing, none of the inputs was observed, or all of them are held out.
            HostMismatchError: the trajectories are of another model.
        """
        if model is None or batches is None:
            raise InputError(
                "A fit of what the model says needs the model and inputs to call it with: fit(trajectories, "
                "model=model, batches=inputs)."
            )
        host = host_for(model, data.facts.layout)
        data.facts.host.require(HostFingerprint.of(host), "set of trajectories")
        size, choices = config.inputs, tuple[str, ...]()
        if size is None:
            size = max(1, round(_SAMPLES / data.rows_an_input))
            choices = (f"inputs a step {size}, where they came uncut: as many as hold {_SAMPLES} samples",)
        called = [x for x, _ in calls(host, batches, batch_size=size)]
        digests = [input_digests(batch) for batch in called]
        if called and not any(map(data.knows, digests)):
            raise InputError(
                "None of the inputs is among those observed, so that it is not known which of them are held out. Give "
                "the inputs that the trajectories are of, observed by tap.observe(inputs)."
            )
        held_out = torch.unique(torch.cat([each[data.is_held_out(each)] for each in digests] or [data.inputs]))
        parted, here = PartedInputs.of(called, config.validation, config.seed, held_out), data.processes
        if len(parted.train) < here.ranks:
            raise InputError(
                f"There are {len(parted.train)} batches to train on at the output, too few for {here.ranks} processes. "
                "Give more inputs, or fewer at once: FitConfig(inputs=…)."
            )
        return cls(host, replace(parted, train=parted.train[here.rank :: here.ranks]), choices)

    def objective(self, surrogate: KoopmanAutoencoder, config: FitConfig) -> OutputObjective:
        """Return the divergence at the output with a surrogate's motion in place of the span."""
        c = surrogate.config
        return OutputObjective(
            self.host,
            c.sites,
            c.skip,
            self.inputs,
            arrivals_of(surrogate),
            starts=[0] if config.pairs == "endpoints" else range(len(c.sites) - 1),
            always=[0],
            depths=config.depths,
            seed=config.seed,
        )
