"""Labelled passes: what came out of one forward pass over a batch, aligned with its labels.

Costs the pass and a copy of the states asked for; holds one batch. Knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.auditing.labelled import Batch
from koopman_interp.errors import InputError, UnknownSiteError
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED, require_outputs
from koopman_interp.observing.outputs import Output
from koopman_interp.observing.pass_record import PassRecord, recorded
from koopman_interp.observing.samples import Samples


@dataclass(frozen=True, eq=False)
class LabelledPass:
    """What came out of one pass, for all rows whose label is not -100; on the CPU.

    Attributes:
        labels: class of each row.
        logp: log-probabilities in float64.
        states: rows of each site that was reached, in the dtype of the model; where there is one row of logits an input
            of tokens, the mean over its labelled tokens, in float64.
    """

    labels: Int[Tensor, " row"]
    logp: Float[Tensor, "row class"]
    states: dict[str, Float[Tensor, "row _"]]

    @classmethod
    def of(cls, host: Host, batch: Batch, sites: Sequence[str], skip: int = 0) -> LabelledPass:
        """Call a model on a batch.

        Args:
            host: the model; a patch of it that is installed is heard.
            batch: what to call it with, and labels.
            sites: what to read; the last one is reached by every pass.
            skip: leading positions of each sequence to leave out.

        Returns:
            The pass.

        Raises:
            UnknownSiteError: the pass never reached the last site.
            InputError: labels and logits are not of the same rows, or a label is none of the outputs.
        """
        x, y = batch
        records: list[PassRecord] = []
        # Hooks that come last see what a patch has written.
        with recorded(host, sites, skip, records.append, rows_alone=True):
            output = Output.of(host, x, skip)
        if not records:
            raise UnknownSiteError(f"The forward pass never reached {', '.join(sites)}. Choose other sites.")
        record = records[-1]
        record.require(sites[-1:])
        samples = record.samples(sites[-1])
        of_states = samples.labels(y)
        labels = output.labels(of_states, samples)
        if labels is None:
            raise InputError(
                f"An audit needs one label a row of logits; got {len(of_states)} labelled rows of states and "
                f"{len(output.logp)} rows of logits, and the rows of one input differ in their labels."
            )
        require_outputs(labels, output.logp.shape[1])
        states = {site: _aligned(rows, record.samples(site), y, output) for site, rows in record.states.items()}
        judged = labels != IGNORED
        if bool(judged.all()):
            return cls(labels, output.logp, states)
        return cls(labels[judged], output.logp[judged], {site: rows[judged] for site, rows in states.items()})

    def without_states(self) -> LabelledPass:
        """Return the pass without its states, for those who keep many."""
        return replace(self, states={})


def _aligned(rows: Tensor, samples: Samples, y: Any, output: Output) -> Tensor:
    """Bring rows of a state to those of the output: of tokens under one row of logits, to their mean."""
    if len(output.logp) == len(rows):
        return rows
    weights = (samples.labels(y) != IGNORED).double()
    counts = torch.zeros(samples.inputs, dtype=torch.float64).index_add(0, samples.entry, weights)
    sums = rows.new_zeros(samples.inputs, rows.shape[1], dtype=torch.float64)
    return sums.index_add(0, samples.entry, rows * weights[:, None]) / counts.clamp_min(1)[:, None]
