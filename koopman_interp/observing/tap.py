"""Observing: attach to a model and record how its representations move through depth.

`attach` returns a Tap, which either drives batches through the model (`observe`) or listens while the user's own
forward passes run (`with tap:`). Recording costs one copy of each state; the model's values are never touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokenizer
from koopman_interp.observing.batches import BATCH_SIZE, Inputs, batches_in, calls
from koopman_interp.observing.handed_on import Blocks, warned_of_no_stream
from koopman_interp.observing.loader_order import require_own_order
from koopman_interp.observing.model_inputs import Batch
from koopman_interp.observing.pass_record import warn_of_train_mode
from koopman_interp.observing.recording import OnNonfinite, Recording
from koopman_interp.observing.samples import Samples, labels_of_samples, none_left
from koopman_interp.observing.storing import observed_to_store
from koopman_interp.sources.store import Store
from koopman_interp.sources.writing import Coordinates
from koopman_interp.trajectories import Trajectories


class Tap:
    """A recorder on the sites of a model; made by `attach`.

    Examples:
        >>> import torch, koopman_interp as ki
        >>> from koopman_interp.testing import ResidualMLP
        >>> model = ResidualMLP(inputs=4, width=8, blocks=3, outputs=2).eval()
        >>> tap = ki.attach(model)
        >>> with tap:
        ...     _ = model(torch.randn(16, 4))
        >>> tap.trajectories
        Trajectories(16 samples, 4 depths from 'blocks.0:input' to 'blocks.2', width 8, unlabelled)
    """

    def __init__(
        self,
        host: Host,
        sites: tuple[str, ...],
        times: tuple[float, ...],
        skip: int = 0,
        layout: str | None = None,
        blocks: Blocks = (),
    ) -> None:
        self.host = host
        self.sites = sites
        self.times = times
        self.skip = skip
        self.layout = layout
        self._blocks = blocks
        self._recording: Recording | None = None
        self._listening = ExitStack()

    def __repr__(self) -> str:
        skipping = f", skipping {self.skip} leading positions" if self.skip else ""
        in_order = self.times == tuple(map(float, range(len(self.sites))))
        at = "" if in_order else f" at times {', '.join(f'{time:g}' for time in self.times)}"
        return f"Tap({type(self.host.model).__name__}, {len(self.sites)} sites: {', '.join(self.sites)}{at}{skipping})"

    def __enter__(self) -> Tap:
        if self._recording is not None and self._recording.running:
            raise InputError("This tap is recording already. Leave its `with` block before entering it again.")
        warn_of_train_mode(self.host.model)
        self._recording = Recording(self.host, self.sites, self.skip, self.layout)
        self._listening.enter_context(self._handed_on())
        self._listening.enter_context(self._recording.listening())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()

    @property
    def trajectories(self) -> Trajectories:
        """What was recorded in the last `with tap:` block.

        Passes that go on from a key-value cache, as in `generate`, go on in the sequences of the pass before: rows come
        in the order of the passes, and `sequence` and `position` say where each belongs. What a model is fed is what
        is recorded, so a sequence that ends before others in its batch goes on in the padding that `generate` feeds
        it, and under beam search a sequence is one of the beams, whichever text it holds by then.

        Raises:
            InputError: nothing was recorded.
        """
        if self._recording is None:
            raise InputError("Nothing was recorded yet. Use `with tap: model(x)`, or tap.observe(batches).")
        return self._recording.trajectories(self.times)

    @overload
    def observe(
        self,
        batches: object,
        labels: object = None,
        *,
        inputs: Inputs = None,
        tokenizer: Tokenizer = None,
        batch_size: int = BATCH_SIZE,
        progress: bool | None = None,
        on_nonfinite: OnNonfinite = "raise",
    ) -> Trajectories: ...

    @overload
    def observe(
        self,
        batches: object,
        labels: str | None = None,
        *,
        inputs: Inputs = None,
        tokenizer: Tokenizer = None,
        batch_size: int = BATCH_SIZE,
        progress: bool | None = None,
        on_nonfinite: OnNonfinite = "raise",
        store: str | os.PathLike[str],
        keep: float | None = None,
        coordinates: Coordinates | None = None,
    ) -> Store: ...

    def observe(
        self,
        batches: object,
        labels: object = None,
        *,
        inputs: Inputs = None,
        tokenizer: Tokenizer = None,
        batch_size: int = BATCH_SIZE,
        progress: bool | None = None,
        on_nonfinite: OnNonfinite = "raise",
        store: str | os.PathLike[str] | None = None,
        keep: float | None = None,
        coordinates: Coordinates | None = None,
    ) -> Trajectories | Store:
        """Drive batches through the model, without gradients, and record them.

        Of tokens, each is a sample; padding, as the attention mask tells it, is left out.

        Args:
            batches: inputs, to be cut into batches: a tensor or array with one a row (of token ids `[batch,
                position]`); lists of texts, of sequences of token ids of any lengths, or of rows of numbers; a dict of
                columns; a split of a `datasets` data set, read in its own format or through its transform. With labels
                they are a tuple `(x, y)`. Or an iterable of batches, a DataLoader for one: each a batch of these
                inputs, a pair of it and its labels, or a mapping of columns. Columns are passed as keyword arguments
                (`input_ids`, `attention_mask`, …); a single one is passed as it is, texts tokenised, where `forward`
                takes none of its name. Float64 is brought to the dtype of a model that has none of it.
            labels: whole numbers or truth values: one an input, one a sample, one a token (skipped ones too), or one a
                position with padding still in it; or the name of the column that holds them. Without it they are taken
                from pairs, and from a column `label` or `labels`, which the model is then not called with. Samples
                labelled -100, Hugging Face's mark of what to ignore, are left out.
            inputs: the column to pass to the model (a column of texts is tokenised), or a function from a batch to
                what the model is called with. It is asked for wherever a batch can be read in two ways.
            tokenizer: of Hugging Face's kind, for texts; None is the model's own.
            batch_size: of inputs that are to be cut.
            progress: show a bar; None shows it on a terminal only.
            on_nonfinite: what to do with an input that has a NaN or infinity at any site: `raise`, or `skip` it, with
                all its rows, and warn at the end of how many there were.
            store: a folder to write them to instead of keeping them, for more than memory holds; labels then come with
                the batches. An observation that was killed goes on where it was, when the same is observed to the same
                folder; under `torchrun`, each process observes every so many-th batch.
            keep: share of the rows that a store keeps, drawn by input and position; None keeps all.
            coordinates: of which a store keeps these alone, such as `koopman.normalization`: states are read back from
                them, without what they leave out.

        Returns:
            The trajectories of all samples, in the order observed, on the CPU in the model's dtype; or the store.

        Raises:
            InputError: there were no batches, no samples are left of them, the labels do not fit them, or the folder
                holds something else.
            NonFiniteError: a state is NaN or infinite.
            HostMismatchError: the folder holds what was observed of another model.
            StorageError: the disk has no room for the store.
        """
        if store is not None:
            said: dict[str, Any] = {"inputs": inputs, "tokenizer": tokenizer, "batch_size": batch_size}
            said |= {"progress": progress, "on_nonfinite": on_nonfinite, "share": keep, "coordinates": coordinates}
            return self._stored(batches, labels, Path(store), **said)
        if keep is not None or coordinates is not None:
            raise InputError("keep and coordinates say what a store keeps. Give store='folder' with them.")
        warn_of_train_mode(self.host.model)
        column = labels if isinstance(labels, str) else None
        given = None if isinstance(labels, str) else labels
        if given is not None:
            require_own_order(batches)
        seen: list[Samples] = []
        found: list[Tensor] = []

        def parts() -> Iterator[Trajectories]:
            driven = self._driven(batches, inputs, column, tokenizer, batch_size, progress, on_nonfinite)
            for part, samples, y in driven:
                seen.extend(samples)
                if given is None and y is not None:
                    found.append(labels_of_samples(y, samples))
                yield part

        whole = Trajectories.concatenate(parts(), same_inputs=True, count=batches_in(batches, batch_size))
        y = labels_of_samples(given, seen) if given is not None else torch.cat(found) if found else None
        if y is not None and len(y) != len(whole):
            raise InputError("Some batches came with labels and others without. Give labels with all or with none.")
        labelled = whole if y is None else whole.with_labels(y)
        if not len(labelled):
            raise InputError(none_left(seen, self.skip))
        return labelled

    def of_states(self, states: Any, batch: object = None, labels: object = None) -> Trajectories:
        """Take states that were recorded elsewhere: by `run_with_cache`, by nnsight, by hooks of one's own.

        Args:
            states: of one call of the model, the state at each site in its own shape: by name of the site, in a
                mapping or an `ActivationCache`, or one after the other in the order of the sites. Hugging Face's
                `hidden_states` are not these: their last one is past the final norm in most models.
            batch: what the model was called with, which tells tokens from padding, and inputs from each other. Without
                it every row is taken, and inputs are told apart by their states.
            labels: as in `observe`.

        Returns:
            The trajectories of all samples.

        Raises:
            UnknownSiteError: there are no states of a site.
            InputError: there are more states than sites or fewer, their samples differ in number, or labels do not fit.
            NonFiniteError: a state is NaN or infinite.
        """
        recording = Recording(self.host, self.sites, self.skip, self.layout)
        if hasattr(states, "keys"):
            there = set(states.keys())
            by_site = {site: states[site] for site in self.sites if site in there}
        elif len(states) == len(self.sites):
            by_site = dict(zip(self.sites, states, strict=True))
        else:
            raise InputError(f"Expected {len(self.sites)} states, one a site; got {len(states)}.")
        recording.take(by_site, batch)
        whole = recording.trajectories(self.times)
        return whole if labels is None else whole.with_labels(labels_of_samples(labels, recording.passes))

    def stream(
        self,
        batches: object,
        labels: str | None = None,
        *,
        inputs: Inputs = None,
        tokenizer: Tokenizer = None,
        batch_size: int = BATCH_SIZE,
        progress: bool | None = None,
        on_nonfinite: OnNonfinite = "raise",
    ) -> Iterator[Trajectories]:
        """Observe batch by batch, and keep nothing: memory for one batch, however many there are.

        Hooks are on only while the model runs. Inputs are numbered through all batches, so that `observe` is
        `Trajectories.concatenate(tap.stream(…))`.

        Args:
            batches: as in `observe`.
            labels: name of the column that holds them; else they are taken as in `observe`.
            inputs: as in `observe`.
            tokenizer: as in `observe`.
            batch_size: as in `observe`.
            progress: as in `observe`.
            on_nonfinite: as in `observe`.

        Yields:
            The trajectories of each batch that has samples.

        Raises:
            InputError: there were no batches, or the labels do not fit one.
            NonFiniteError: a state is NaN or infinite.
        """
        warn_of_train_mode(self.host.model)
        driven = self._driven(batches, inputs, labels, tokenizer, batch_size, progress, on_nonfinite)
        for part, samples, y in driven:
            labelled = part if y is None else part.with_labels(labels_of_samples(y, samples))
            if len(labelled):
                yield labelled

    def _driven(
        self,
        batches: object,
        inputs: Inputs,
        column: str | None,
        tokenizer: Tokenizer,
        batch_size: int,
        progress: bool | None,
        on_nonfinite: OnNonfinite,
    ) -> Iterator[tuple[Trajectories, list[Samples], Any]]:
        """Call the model on each batch; yield what was recorded, which of it are samples, and its labels."""
        recording = Recording(self.host, self.sites, self.skip, self.layout, on_nonfinite)
        found = calls(self.host, batches, inputs=inputs, column=column, batch_size=batch_size, tokenizer=tokenizer)
        none = True
        for x, y in tqdm(found, desc="observe", unit="batch", disable=None if progress is None else not progress):
            none = False
            yield (*self._called(recording, x), y)
        if none:
            raise InputError("There were no batches to observe.")
        if recording.left_out and recording.left_out == recording.inputs:
            raise NonFiniteError(
                f"All {recording.inputs:,} inputs gave NaN or infinity at a site, so that none is left. Check the "
                "model, or run it in a wider dtype."
            )
        recording.warn_of_left_out()

    def _stored(self, batches: object, labels: object, store: Path, *, on_nonfinite: OnNonfinite, **how: Any) -> Store:
        """Observe to a store; see `observe`."""
        if labels is not None and not isinstance(labels, str):
            raise InputError(
                "A store takes labels batch by batch: observe((x, labels), store=…), or the name of their column."
            )
        warn_of_train_mode(self.host.model)
        recording = Recording(self.host, self.sites, self.skip, self.layout, on_nonfinite)
        called = partial(self._called, recording)
        how |= {"times": self.times}
        return observed_to_store(self.host, called, recording, batches, labels, store, **how)

    def _called(self, recording: Recording, x: Batch) -> tuple[Trajectories, list[Samples]]:
        """Call the model on a batch; return what was recorded, and which of it are samples."""
        with torch.no_grad(), self._handed_on(), recording.listening(x):
            self.host.call(x)
        return recording.drained(self.times)

    def _handed_on(self) -> AbstractContextManager[None]:
        """Look, once, whether the blocks whose outputs were taken unasked hand their states on."""
        blocks, self._blocks = self._blocks, ()
        return warned_of_no_stream(self.host, blocks) if blocks else nullcontext()
