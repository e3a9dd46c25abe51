"""Observing: attach to a model and record how its representations move through depth.

`attach` returns a Tap, which either drives batches through the model (`observe`) or listens while the user's own
forward passes run (`with tap:`). Recording costs one copy of each state; the model's values are never touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from koopman_interp.errors import InputError, NonFiniteError, UnknownSiteError
from koopman_interp.hosts import Host, HostFingerprint, SiteSelection, host_for
from koopman_interp.layouts import kept_rows, row_origins, to_rows
from koopman_interp.trajectories import Trajectories, labels_of_rows

LABEL_COLUMNS = ("label", "labels")


def attach(model: nn.Module | Host, sites: SiteSelection = None, *, times: Sequence[float | int] | None = None) -> Tap:
    """Attach to a model; nothing is hooked until something is recorded.

    Args:
        model: a torch module, a model of a known host framework, or a host.
        sites: which states to record, in order of depth: names, globs or a predicate on names. None is the
            residual stream: the input of the first block and the output of each.
        times: time of each site in operator steps; 0, 1, 2, … unless told otherwise. Two sites at times 0 and k
            give the setting of arXiv 2505.12809.

    Returns:
        A Tap on those sites.

    Raises:
        InputError: fewer than two sites, or as many times as sites were not given.
    """
    host = host_for(model)
    chosen = host.sites(sites)
    if len(chosen) < 2:
        raise InputError(f"A trajectory needs two or more sites; {sites!r} chose only {', '.join(chosen)}.")
    if times is not None and len(times) != len(chosen):
        raise InputError(f"Expected {len(chosen)} times, one a site ({', '.join(chosen)}); got {len(times)}.")
    return Tap(host, chosen, tuple(map(float, range(len(chosen)) if times is None else times)))


class Tap:
    """A recorder on the sites of a host; made by `attach`.

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

    def __init__(self, host: Host, sites: tuple[str, ...], times: tuple[float, ...]) -> None:
        self.host = host
        self.sites = sites
        self.times = times
        self._recording: _Recording | None = None

    def __repr__(self) -> str:
        return f"Tap({type(self.host.model).__name__}, {len(self.sites)} sites: {', '.join(self.sites)})"

    def __enter__(self) -> Tap:
        if self._recording is not None and self._recording.running:
            raise InputError("This tap is recording already. Leave its `with` block before entering it again.")
        self._recording = _Recording(self.host, self.sites)
        self._recording.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._recording is not None
        self._recording.stop()

    @property
    def trajectories(self) -> Trajectories:
        """What was recorded in the last `with tap:` block.

        Raises:
            InputError: nothing was recorded.
        """
        if self._recording is None:
            raise InputError("Nothing was recorded yet. Use `with tap: model(x)`, or tap.observe(batches).")
        return self._recording.trajectories(self.times)

    def observe(
        self,
        batches: Any,
        labels: Sequence[int] | Tensor | str | None = None,
        *,
        inputs: str | Callable[[Any], Any] | None = None,
        batch_size: int = 256,
        progress: bool | None = None,
    ) -> Trajectories:
        """Drive batches through the model, without gradients, and record them.

        Args:
            batches: a tensor of inputs (cut into batches); a split of a `datasets` data set (the same); or any
                iterable of batches, a DataLoader for one. A batch is a tensor, a pair (inputs, labels), or a
                mapping that is passed as keyword arguments.
            labels: one whole number an input or a sample, or the name of the column that holds them. Without it
                they are taken from pairs, and from a column `label` or `labels` of mappings.
            inputs: the column to pass to the model, or a function from a batch to what the model is called with.
            batch_size: for tensors and data sets.
            progress: show a bar; None shows it on a terminal only.

        Returns:
            The trajectories of all samples, in the order observed, on the CPU in the host's dtype.

        Raises:
            InputError: there were no batches, or the labels do not fit them.
        """
        if self.host.model.training:
            warnings.warn(
                "The model is in train mode: dropout and batch statistics make its states random. "
                "Call model.eval() first.",
                stacklevel=2,
            )
        column = labels if isinstance(labels, str) else None
        given = None if isinstance(labels, str) else labels
        found: list[Tensor] = []
        recording = _Recording(self.host, self.sites)
        recording.start()
        try:
            with torch.no_grad():
                for batch in tqdm(
                    _batches(batches, batch_size), desc="observe", unit="batch", disable=_hidden(progress)
                ):
                    x, y = _parted(batch, inputs, column)
                    if y is not None:
                        found.append(torch.as_tensor(y).flatten())
                    self.host.call(x)
        finally:
            recording.stop()
        trajectories = recording.trajectories(self.times)
        if given is None and found:
            given = torch.cat([part.cpu() for part in found])
        return trajectories if given is None else recording.labelled(trajectories, given)


class _Recording:
    """Rows of the sites of a host, pass by pass. A pass is one call of the model itself."""

    def __init__(self, host: Host, sites: tuple[str, ...]) -> None:
        self.host = host
        self.sites = sites
        self.fingerprint = HostFingerprint.of(host)
        self._stack = ExitStack()
        self._running = False
        self._pending: dict[str, Tensor] = {}
        self._mask: Tensor | None = None
        self._rows: list[list[Tensor]] = [[] for _ in sites]
        self._origins: list[tuple[Tensor, Tensor]] = []
        self._kept: list[Tensor] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._inputs = 0

    @property
    def running(self) -> bool:
        """Whether the hooks are on."""
        return self._running

    def start(self) -> None:
        self._running = True
        model = self.host.model
        with ExitStack() as stack:
            stack.callback(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            stack.enter_context(self.host.hooked({site: partial(self._record, site) for site in self.sites}))
            stack.callback(model.register_forward_hook(self._end).remove)
            self._stack = stack.pop_all()

    def stop(self) -> None:
        self._running = False
        self._stack.close()
        self._pending = {}

    def _begin(self, _model: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pending = {}
        self._mask = kwargs.get("attention_mask")

    def _record(self, site: str, state: Tensor) -> None:
        if site in self._pending:
            raise InputError(
                f"Site {site!r} was reached twice in one forward pass, so its depth is not one place. "
                "Choose sites that are reached once."
            )
        # The copy matters: an in-place activation further on would write into what was kept.
        rows = to_rows(state.detach()).to("cpu", copy=True)
        shape = tuple(state.shape)
        keep = kept_rows(self._mask.cpu(), shape) if self._mask is not None else None
        if keep is not None:
            rows = rows[keep]
        if not torch.isfinite(rows).all():
            raise NonFiniteError(
                f"Site {site!r} gave NaN or infinity in batch {len(self._origins)} (counted from 0). "
                "Check that batch, or run the model in a wider dtype."
            )
        self._pending[site] = rows
        self._shape, self._keep = shape, keep
        self._shapes[site] = shape[1:] if state.ndim == 4 else shape[-1:]

    def _end(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        missing = [site for site in self.sites if site not in self._pending]
        if missing:
            raise UnknownSiteError(f"The forward pass never reached {', '.join(missing)}. Choose other sites.")
        counts = {site: len(rows) for site, rows in self._pending.items()}
        if len(set(counts.values())) != 1:
            raise InputError(f"The sites differ in their number of samples ({counts}). Choose sites that agree.")
        entry, position = row_origins(self._shape)
        self._kept.append(torch.ones(len(entry), dtype=torch.bool) if self._keep is None else self._keep)
        self._origins.append((entry + self._inputs, position))
        for rows, site in zip(self._rows, self.sites, strict=True):
            rows.append(self._pending[site])
        self._inputs += self._shape[0]
        self._pending = {}

    def trajectories(self, times: tuple[float, ...]) -> Trajectories:
        if not self._inputs:
            raise InputError("No forward pass was recorded: there were no batches, or the model was not called.")
        kept = torch.cat(self._kept)
        return Trajectories(
            states=tuple(torch.cat(rows) for rows in self._rows),
            sites=self.sites,
            times=times,
            host=self.fingerprint,
            sequence=torch.cat([entry for entry, _ in self._origins])[kept],
            position=torch.cat([position for _, position in self._origins])[kept],
            shapes=tuple(self._shapes[site] for site in self.sites),
        )

    def labelled(self, trajectories: Trajectories, labels: Sequence[int] | Tensor) -> Trajectories:
        """Attach labels, given one an input, one a kept row, or one a position with padding still in it."""
        kept = torch.cat(self._kept)
        if len(labels) == len(kept) != len(trajectories):
            labels = torch.as_tensor(labels)[kept]
        return trajectories.with_labels(labels_of_rows(labels, trajectories.sequence))


def _hidden(progress: bool | None) -> bool | None:
    """Translate to tqdm's `disable`, in which None hides the bar where there is no terminal."""
    return None if progress is None else not progress


def _batches(batches: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(batches, Tensor):
        return iter(batches.split(batch_size))
    if hasattr(batches, "with_format") and hasattr(batches, "iter"):  # a split of a datasets data set
        return iter(batches.with_format("torch").iter(batch_size=batch_size))
    if isinstance(batches, Iterable) and not isinstance(batches, (str, bytes, Mapping)):
        return iter(batches)
    raise InputError(
        "Expected a tensor, a split of a data set, or an iterable of batches; got "
        f"{type(batches).__name__}. A single batch goes in a list: observe([batch])."
    )


def _parted(batch: Any, inputs: str | Callable[[Any], Any] | None, column: str | None) -> tuple[Any, Any]:
    """Part a batch into what the model is called with and its labels (or None)."""
    y = None
    if isinstance(batch, Mapping):
        if column is not None and column not in batch:
            raise InputError(f"There is no column {column!r} for the labels; there are {', '.join(batch)}.")
        found = column or next((name for name in LABEL_COLUMNS if name in batch), None)
        y = None if found is None else batch[found]
        rest = {name: value for name, value in batch.items() if name != found}
        if isinstance(inputs, str) and inputs not in batch:
            raise InputError(f"There is no column {inputs!r} for the inputs; there are {', '.join(batch)}.")
        x = inputs(batch) if callable(inputs) else rest if inputs is None else batch[inputs]
        return x, y
    if column is not None or isinstance(inputs, str):
        named = column if column is not None else inputs
        raise InputError(
            f"A column ({named!r}) needs batches that are mappings; this batch is a {type(batch).__name__}."
        )
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and _are_labels(batch[1], batch[0]):
        y = batch[1]
    if callable(inputs):
        return inputs(batch), y
    x = batch[0] if y is not None else batch
    if isinstance(x, (tuple, list)) and len(x) == 1:
        x = x[0]
    if isinstance(x, (tuple, list)):
        raise InputError(
            f"A batch is a {type(x).__name__} of {len(x)}, and not a pair of inputs and whole-number labels. "
            "Say how to call the model with it: observe(…, inputs=lambda batch: …)."
        )
    return x, y


def _are_labels(y: Any, x: Any) -> bool:
    """Whether y can be one whole number an input of x."""
    if not isinstance(y, Tensor) or y.is_floating_point():
        return False
    return y.ndim >= 1 and (not isinstance(x, Tensor) or len(y) == len(x))
