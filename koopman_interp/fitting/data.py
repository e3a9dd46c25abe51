"""What a fit is made of: rows to fit on, rows to judge by, and passes for what is summed over rows.

Trajectories in memory are parted, and held as one normalised copy. What is larger comes from its source, window by
window; what is summed is summed over so many rows as settings say.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.normalizing import Normalizer
from koopman_interp.fitting.rows import HeldRows, Rows
from koopman_interp.fitting.survey import Survey, surveyed
from koopman_interp.fitting.windows import StreamedRows
from koopman_interp.hashing import in_share, tensor_digest
from koopman_interp.processes import Processes
from koopman_interp.sources.memory import Memory
from koopman_interp.sources.opening import Rows as AnyRows
from koopman_interp.sources.opening import as_source, shared
from koopman_interp.sources.protocol import Blocks, Part, Source, thinning
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.normalization import Normalization
from koopman_interp.surrogates.outlying_rows import outlying_rows
from koopman_interp.trajectories import Trajectories

HELD_BYTES = 2**26
"""States of a source up to this are taken into memory, and fitted as trajectories are."""
_CHUNK = 8192
_LEAST_BLOCKS = 4
"""Blocks of a small source that each of several processes is to have, about."""
_LEAST_BASIS, _BASIS_ROWS = 8192, 16
"""Rows that a basis is fitted on, at least, and the same for each coordinate of the states."""
_BASIS_SHARES = 4
"""How many times as many are drawn from a source, since they cost little beside reading it."""


@runtime_checkable
class FitData(Protocol):
    """Rows of a fit, in two parts.

    Attributes:
        facts: trajectories without rows, with all that is said of them.
        classes: labels that occur, ascending.
        fitted: rows to fit on.
        held_out: rows to judge by.
        inputs: digests of the inputs held out, ascending.
        bound: of the hashes of inputs held out, see `Draw`; None where `inputs` names all of them.
        notes: what to say of the rows.
        processes: that each have a share of them.
    """

    facts: Trajectories
    classes: tuple[int, ...]
    fitted: int
    held_out: int
    inputs: Int[Tensor, " input"]
    bound: int | None
    notes: list[str]
    processes: Processes

    @property
    def rows_an_input(self) -> float:
        """How many rows an input has in the mean."""
        ...

    def is_held_out(self, digests: Int[Tensor, " input"]) -> Bool[Tensor, " input"]:
        """Mark the inputs held out."""
        ...

    def knows(self, digests: Int[Tensor, " input"]) -> bool:
        """Whether any of these inputs is among those observed, as far as that is known."""
        ...

    @property
    def stride(self) -> int:
        """How far apart the rows of `chunks` lie that a basis is fitted on."""
        ...

    def chunks(self) -> Iterator[list[Tensor]]:
        """Go through the states to fit on, as they are, one tensor a depth."""
        ...

    def rows(self, normalization: Normalization, device: torch.device) -> tuple[Rows, HeldRows]:
        """Return normalised rows to fit on, and to judge by."""
        ...

    def gather_moments(self, surrogate: KoopmanAutoencoder) -> None:
        """Gather both moments of a surrogate that knows what is held out."""
        ...


def fit_data(rows: AnyRows, config: FitConfig) -> FitData:
    """Part rows for a fit.

    Args:
        rows: trajectories, or another source of rows; what is small is taken into memory.
        config: of the fit.

    Raises:
        InputError: there are too few inputs to hold any out, or rows that outlie where none can be left out.
        NonFiniteError: a state is NaN or infinite.
    """
    source, processes = as_source(rows), Processes.here()
    if processes.are_several:
        return FromSource(_of_all(source, processes), config, processes)
    if isinstance(source, Memory):
        return InMemory(source.trajectories, config)
    small, found, size = HELD_BYTES // source.row_bytes, list[Trajectories](), 0
    for batch in source.batches():
        found.append(batch)
        size += len(batch)
        if size > small:
            del batch, found
            return FromSource(source, config, processes)
    return InMemory(Trajectories.concatenate(found, same_inputs=True), config)


def _of_all(source: Source, processes: Processes) -> Source:
    """Check that all processes were given one and the same source, and cut a small one so that each has blocks of it.

    Raises:
        InputError: they were given different ones.
    """
    if not isinstance(source, Blocks):
        return source  # which is refused, with what to do, where it is to be shared
    first = tensor_digest([("inputs", source.read(0).digests)]) if source.counts else ""
    if len(set(processes.all_of((len(source), source.sites, source.host.weights, first)))) > 1:
        raise InputError(
            "Under torchrun all processes fit one source, and these were given different rows. Observe them to one "
            "store, tap.observe(…, store='states'), and fit that; or fit in a process that torchrun did not start."
        )
    if len(source) * source.row_bytes > HELD_BYTES:
        return source
    rows = Trajectories.concatenate(source.batches(), same_inputs=True)
    return Memory(rows, max(1, min(_CHUNK, len(rows) // (_LEAST_BLOCKS * processes.ranks))))


class InMemory:
    """Trajectories in memory, parted; see `FitData`.

    Args:
        trajectories: all rows.
        config: of the fit.
    """

    def __init__(self, trajectories: Trajectories, config: FitConfig) -> None:
        trajectories.require_finite()
        self.facts, self.classes, self.processes = trajectories[:0], trajectories.classes, Processes()
        self.bound: int | None = None
        self._all, self._config = trajectories, config
        self._train, self._judged = trajectories.split(config.validation, seed=config.seed)
        self.inputs = torch.unique(self._judged.digests)
        self.notes = self._leave_out()
        self.fitted, self.held_out = len(self._train), len(self._judged)

    def _leave_out(self) -> list[str]:
        """Leave out the rows that outlie, and say so."""
        held = torch.isin(self._all.digests, self.inputs)
        marked = outlying_rows(self._all.states, self._config.outlying, held)
        if not marked.any():
            return []
        first = int(marked.nonzero()[0])
        where = f"the first is row {first}, at position {int(self._all.position[first])} of its input"
        said = _of_outlying(self._config, int(marked.sum()), len(self._all), where)
        self._train, self._judged = self._train[~marked[~held]], self._judged[~marked[held]]
        self._all = self._all[~marked]
        return [said]

    @property
    def rows_an_input(self) -> float:
        """How many rows an input has in the mean."""
        return len(self._all) / len(torch.unique(self._all.sequence))

    def is_held_out(self, digests: Int[Tensor, " input"]) -> Bool[Tensor, " input"]:
        """Mark the inputs held out."""
        return torch.isin(digests, self.inputs)

    def knows(self, digests: Int[Tensor, " input"]) -> bool:
        """Whether any of these inputs is among those observed."""
        return bool(torch.isin(digests, self._all.digests).any())

    @property
    def stride(self) -> int:
        """How far apart the rows of `chunks` lie that a basis is fitted on."""
        return max(1, self.fitted // basis_rows(self.facts.widths))

    def chunks(self) -> Iterator[list[Tensor]]:
        """Go through the states to fit on."""
        for start in range(0, len(self._train), _CHUNK):
            yield [state[start : start + _CHUNK] for state in self._train.states]

    def rows(self, normalization: Normalization, device: torch.device) -> tuple[Rows, HeldRows]:
        """Return normalised copies."""
        normalizer = Normalizer(normalization, device, looks_back=self._config.context is not None)
        train, judged = normalizer.held(self._train), normalizer.held(self._judged)
        if len(train) > self._config.statistics:
            drawn = thinning(torch.unique(self._train.digests), self._config.statistics / len(train))
            train.summed = drawn(self._train.digests).to(device)
        return train, judged

    def gather_moments(self, surrogate: KoopmanAutoencoder) -> None:
        """Gather the moments of as many rows as settings say."""
        if len(self._all) <= self._config.statistics:
            surrogate.gather_moments([self._all])
            return
        surrogate.gather_moments(Memory(self._all).thinned(self._config.statistics).batches())


class FromSource:
    """Rows that do not fit into memory; see `FitData`.

    Args:
        source: of the rows.
        config: of the fit.
        processes: that each go through a share of them.
    """

    def __init__(self, source: Source, config: FitConfig, processes: Processes) -> None:
        self._source, self._config, self.processes = source, config, processes
        self._seen: Survey = surveyed(source, config, processes)
        seen = self._seen
        self.facts, self.classes, self.notes = source.empty, seen.classes, []
        self.fitted, self.held_out, self.inputs = seen.fitted, seen.held_out, seen.inputs
        # The rule and not the digests alone: sums need not go through all inputs, and none held out may be forgotten.
        self.bound: int | None = seen.draw.bound
        if seen.left_out:
            where = "found on the way through the source"
            self.notes = [_of_outlying(config, seen.left_out, seen.fitted + seen.held_out + seen.left_out, where)]

    @property
    def rows_an_input(self) -> float:
        """How many rows an input has in the mean."""
        return self._seen.rows_an_input

    def is_held_out(self, digests: Int[Tensor, " input"]) -> Bool[Tensor, " input"]:
        """Mark the inputs held out."""
        return self._seen.draw(digests)

    def knows(self, digests: Int[Tensor, " input"]) -> bool:  # noqa: ARG002 (all that were observed are not kept)
        """Whether any of these inputs is among those observed: not known."""
        return True

    @property
    def stride(self) -> int:
        """How far apart the rows of `chunks` lie that a basis is fitted on: they are drawn already."""
        return 1

    def chunks(self) -> Iterator[list[Tensor]]:
        """Go through the states of rows drawn from those to fit on: the same, whichever process reads them."""
        share = _BASIS_SHARES * basis_rows(self.facts.widths) / self.fitted
        for batch in self._parts(self._seen.draw.rest):
            kept = batch[in_share(batch.digests, batch.position, share, use="basis")]
            if len(kept):
                yield list(kept.states)

    def rows(self, normalization: Normalization, device: torch.device) -> tuple[Rows, HeldRows]:
        """Return rows to fit on that come window by window, and normalised ones to judge by."""
        looks_back = self._config.context is not None
        normalizer = Normalizer(normalization, device, self._seen.outlying, looks_back=looks_back)
        train = StreamedRows(
            self._source,
            self._seen.draw.rest,
            normalizer,
            statistics=self._config.statistics,
            looks_back=looks_back,
            processes=self.processes,
        )
        return train, normalizer.held(normalizer.kept(self._seen.judged))

    def gather_moments(self, surrogate: KoopmanAutoencoder) -> None:
        """Gather the moments of as many rows as settings say."""
        surrogate.gather_moments(self._parts(None))
        if self.processes.are_several:
            for moments in (surrogate.moments, surrogate.heldout_moments):
                first, *others = self.processes.all_of(moments)
                for other in others:
                    first.add(other)
                moments.load_state_dict(first.state_dict())

    def _parts(self, part: Part | None) -> Iterator[Trajectories]:
        """Go through this process's share of the rows that do not outlie, of as many as settings say."""
        outlying = self._seen.outlying
        for batch in shared(self._source.thinned(self._config.statistics), self.processes).batches(part=part):
            kept = batch if outlying is None else batch[~outlying.marked(batch.states)]
            if len(kept):
                yield kept


def basis_rows(widths: Sequence[int]) -> int:
    """Return how many rows a basis is fitted on, at least."""
    return max(_LEAST_BASIS, _BASIS_ROWS * max(widths))


def _of_outlying(config: FitConfig, count: int, rows: int, where: str) -> str:
    """Warn of rows that are left out, and return what to keep of it.

    Raises:
        InputError: an encoder looks back on all rows, so that none can be left out.
    """
    far = f"rows: {count:,} of {rows:,} lie more than {config.outlying:g} times as far out as the median row"
    remedy = (
        "leave them out when you observe (attach(model, skip=1) for attention sinks, labels of -100), or fit them too "
        "with FitConfig(outlying=None)."
    )
    if config.context is not None:
        raise InputError(
            f"{far}; {where}. An encoder with context='causal' looks back on all rows of a sequence, so that none can "
            f"be left out of the fit: {remedy}"
        )
    said = f"{far}, and are left out of the fit"
    warnings.warn(f"{said}; {where}. What is measured with such rows is measured of them alone: {remedy}", stacklevel=7)
    return said
