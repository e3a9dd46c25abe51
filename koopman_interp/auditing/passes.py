"""What a host says of the audited rows: states at sites, log-probabilities and labels, aligned.

Costs one forward pass a batch; holds the states of the sites asked for, in float64. Knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hosts.layouts import to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED
from koopman_interp.observing.batches import calls
from koopman_interp.observing.outputs import Output
from koopman_interp.observing.samples import Samples

BATCH = 512

Batches = Sequence[tuple[Any, Any]]
"""Pairs of what to call a host with, and labels."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What came out of a host for all rows.

    Attributes:
        states: float64 rows of each site that was reached, on the CPU.
        logp: log-probabilities.
        labels: class of each row.
    """

    states: dict[str, Float[Tensor, "row _"]]
    logp: Float[Tensor, "row class"]
    labels: Int[Tensor, " row"]

    @classmethod
    def of(
        cls,
        host: Host,
        batches: Batches,
        sites: Sequence[str],
        *,
        skip: int = 0,
        patch: AbstractContextManager[Any] | None = None,
    ) -> Seen:
        """Call a host on all batches.

        Args:
            host: the host.
            batches: of which there is at least one.
            sites: what to read; the last one is reached by every pass.
            skip: leading positions of each sequence to leave out.
            patch: in which the passes run; what is read is what the rest of the network sees.

        Returns:
            All rows whose label is not -100.

        Raises:
            InputError: labels and logits are not of the same rows.
        """
        parts: list[Seen] = []
        found: dict[str, Tensor] = {}

        def reader(site: str) -> Any:
            def read(state: Tensor) -> None:
                # The copy matters: an in-place activation further on would write into what was kept.
                found[site] = state.clone()

            return read

        with ExitStack() as stack:
            stack.enter_context(patch or nullcontext())
            # Entered after the patch, these hooks see the states that the patch has written.
            stack.enter_context(host.hooked({site: reader(site) for site in sites}))
            for x, y in batches:
                found.clear()
                output = Output.of(host, x, skip)
                parts.append(cls(*_aligned(found, sites[-1], y, output, skip)))
        return cls.joined(parts)

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """Put the rows of several one after another."""
        sites = [site for site in parts[0].states if all(site in part.states for part in parts)]
        return cls(
            {site: torch.cat([part.states[site] for part in parts]) for site in sites},
            torch.cat([part.logp for part in parts]),
            torch.cat([part.labels for part in parts]),
        )


def _aligned(
    found: Mapping[str, Tensor], last: str, y: Any, output: Output, skip: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Bring the states, log-probabilities and labels of one pass to the same rows, those to ignore left out."""
    of_last = Samples.of(found[last].shape, output.tokens, skip).labels(y)
    labels = output.labels(of_last, Samples.of(found[last].shape, output.tokens, skip))
    if labels is None:
        raise InputError(
            f"An audit needs one label a row of logits; got {len(of_last)} labelled rows of states and "
            f"{len(output.logp)} rows of logits, and the rows of one input differ in their labels."
        )
    judged = labels != IGNORED
    states = {site: _rows(state, y, output, skip)[judged] for site, state in found.items()}
    return states, output.logp[judged], labels[judged]


def _rows(state: Tensor, y: Any, output: Output, skip: int) -> Tensor:
    """Flatten a state to the rows of the output: of tokens under one row of logits, to their mean."""
    samples = Samples.of(state.shape, output.tokens, skip)
    rows = samples.take(to_rows(state)).to("cpu", torch.float64)
    if len(output.logp) == len(rows):
        return rows
    weights = (samples.labels(y) != IGNORED).double()
    counts = torch.zeros(samples.inputs, dtype=torch.float64).index_add(0, samples.entry, weights)
    sums = rows.new_zeros(samples.inputs, rows.shape[1]).index_add(0, samples.entry, rows * weights[:, None])
    return sums / counts.clamp_min(1)[:, None]


def gather_batches(host: Host, data: Any) -> list[tuple[Any, Any]]:
    """Bring a pair of inputs and labels, or batches, to what to call the host with, and labels.

    Raises:
        InputError: labels are missing, or are not as many as the inputs.
    """
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Mapping):
        data = [data]
    elif isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], tuple):
        x, y = data
        if len(x) != len(y):
            raise InputError(f"Expected one label an input; got {len(x)} inputs and {len(y)} labels.")
        data = [(x[start : start + BATCH], y[start : start + BATCH]) for start in range(0, len(x), BATCH)]
    found = list(calls(host, data, batch_size=BATCH))
    if any(y is None for _, y in found):
        raise InputError("An audit takes pairs of inputs and labels: (x, y), or batches of such pairs.")
    return found


def drawn(batches: Batches, inputs: int, seed: int) -> list[tuple[Any, Any]]:
    """Draw a few inputs, with their labels.

    Args:
        batches: to draw from, where labels are one an input; a batch with other labels is drawn whole.
        inputs: how many; all where there are fewer.
        seed: of the draw.

    Returns:
        The batches that they are in, cut down to them.
    """
    sizes = [_inputs(x) if _inputs(x) == len(y) else 1 for x, y in batches]
    places = [(batch, row) for batch, size in enumerate(sizes) for row in range(size)]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:inputs].tolist()
    chosen: dict[int, list[int]] = {}
    for batch, row in sorted(places[index] for index in order):
        chosen.setdefault(batch, []).append(row)
    return [_cut(*batches[batch], rows, sizes[batch]) for batch, rows in chosen.items()]


def _inputs(x: Any) -> int:
    """Count the inputs of a batch; 0 where that is not known."""
    if isinstance(x, Mapping):
        return next((len(value) for value in x.values() if isinstance(value, Tensor) and value.ndim), 0)
    return len(x) if isinstance(x, Tensor) else 0


def _cut(x: Any, y: Any, rows: Sequence[int], size: int) -> tuple[Any, Any]:
    if _inputs(x) != len(y):
        return x, y
    cut = {name: _taken(value, rows, size) for name, value in x.items()} if isinstance(x, Mapping) else x[list(rows)]
    return cut, _taken(y, rows, size)


def _taken(value: Any, rows: Sequence[int], size: int) -> Any:
    """Take rows of what has one entry an input."""
    if isinstance(value, Tensor):
        return value[list(rows)] if value.ndim and len(value) == size else value
    return [value[row] for row in rows] if isinstance(value, (list, tuple)) and len(value) == size else value
