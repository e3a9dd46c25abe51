"""orbit(): trajectories whose time is not depth but the ticks of a path of inputs, all observed at one site.

A path is what one input becomes tick by tick: a, a + 1, a + 2 …; an image that is shifted; or one input under a
training run's checkpoints. Everything that reads trajectories reads these, and a spectrum says by what turn a tick
moves each mode. Paths that share an input, as those do that walk one circle from different starts, are held out
together: a path of which every state was fitted in another would be held out in name only. Costs one forward pass an
input and tick, and one copy of the state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from tqdm.auto import tqdm

from koopman_interp.clocks import Clock
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokenizer
from koopman_interp.observing.batches import BATCH_SIZE, Inputs, calls
from koopman_interp.observing.digests import input_digests
from koopman_interp.observing.pass_record import PassRecord, recorded, warn_of_train_mode
from koopman_interp.trajectories import Trajectories

Model = nn.Module | Host


def orbit(
    model: Model | Iterable[Model],
    ticks: Iterable[Any],
    *,
    site: str,
    period: float | int | None = None,
    times: Sequence[float | int] | None = None,
    labels: object = None,
    place: int | None = None,
    skip: int = 0,
    layout: str | None = None,
    inputs: Inputs = None,
    tokenizer: Tokenizer = None,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Trajectories:
    """Observe one site along paths of inputs.

    Args:
        model: the model, or one a tick where the clock is training: checkpoints, read one after the other.
        ticks: the inputs at each tick, each as in `Tap.observe`, or one tensor `[tick, path, …]`. Row i of every tick
            is of path i.
        site: the one site, by name as `ki.sites(model)` lists it; `name:input` is the state before a module.
        period: ticks after which each path is where it was, by which frequencies are also told in turns a period.
        times: of the ticks, in operator steps; None is 0, 1, 2, …
        labels: whole numbers, one a path.
        place: of states `[batch, position, width]`, the position to read, counted from each sequence's first real
            token, or from its last where negative. None takes all, and makes each a path of its own.
        skip: leading places of each sequence to leave out.
        layout: names of the axes of the state, as for `attach`.
        inputs: how to call the model with a batch, as in `Tap.observe`.
        tokenizer: for texts.
        batch_size: of inputs that are to be cut.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        Trajectories with a clock: one row a path, and in the place of sites the ticks, `site@t=0`, `site@t=1`, …

    Raises:
        InputError: fewer than two ticks, ticks that differ in their paths, as many models or times as ticks were not
            given, or labels that do not fit.
        UnknownSiteError: there is no such site, or a pass never reached it.

    Examples:
        >>> import torch, koopman_interp as ki
        >>> from koopman_interp.testing import ResidualMLP
        >>> model = ResidualMLP(inputs=2, width=8, blocks=2, outputs=2).eval()
        >>> angle = torch.arange(12) * torch.pi / 6
        >>> starts = torch.rand(5, 1)
        >>> ticks = [torch.stack([(starts + a).cos(), (starts + a).sin()], 2)[:, 0] for a in angle]
        >>> ki.orbit(model, ticks, site="blocks.1", period=12, progress=False)
        Trajectories(5 paths, 12 ticks of 'blocks.1', period 12, width 8, unlabelled)
    """
    ticks = _batches(ticks)
    clock = Clock(site, None if period is None else float(period))
    if times is not None and len(times) != len(ticks):
        raise InputError(f"Expected {len(ticks)} times, one a tick; got {len(times)}.")
    seen = _Ticks(site, place, skip)
    bar = tqdm(total=len(ticks), desc="orbit", unit="tick", disable=None if progress is None else not progress)
    with bar:
        for at, (one, tick) in enumerate(zip_longest(_models(model, len(ticks)), ticks)):
            if one is None or tick is None:
                got = f"{at}" if one is None else "more"
                raise InputError(f"Expected one model, or one for each of the {len(ticks)} ticks; got {got}.")
            host = host_for(one, layout)
            warn_of_train_mode(host.model)
            found = calls(host, tick, inputs=inputs, batch_size=batch_size, tokenizer=tokenizer)
            seen.add(host, (_unlabelled(x, y) for x, y in found))
            bar.update()
    when = tuple(map(float, range(len(ticks)) if times is None else times))
    whole = seen.trajectories(clock, when, layout)
    return whole if labels is None else whole.with_labels(labels)


class _Ticks:
    """The rows of one site, tick by tick."""

    def __init__(self, site: str, place: int | None, skip: int) -> None:
        self._site, self._place, self._skip = site, place, skip
        self._states: list[Tensor] = []
        self._digests: list[Int[Tensor, " path"]] = []
        self._paths: tuple[Tensor, Tensor] | None = None
        self._hosts: list[HostFingerprint] = []
        self._shape: tuple[int, ...] = ()

    def add(self, host: Host, batches: Iterable[Any]) -> None:
        """Observe one tick."""
        chosen = host.sites([self._site])
        if len(chosen) != 1:
            raise InputError(f"An orbit is observed at one site; {self._site!r} chose {', '.join(chosen)}.")
        states, entries, places, digests = [], [], [], []
        before = 0
        for batch in batches:
            record = _pass(host, chosen[0], batch, self._skip)
            rows, (entry, place) = self._chosen(record, chosen[0])
            samples = record.samples(chosen[0])
            states.append(rows)
            entries.append(entry + before)
            places.append(place)
            digests.append(input_digests(batch, samples)[entry])
            before += samples.inputs
            shape = record.shapes[chosen[0]]
            self._shape = shape[1:] if len(shape) == 4 else shape[-1:]
        if not states:
            raise InputError(f"There were no inputs at tick {len(self._states)}.")
        self._require_paths(torch.cat(entries), torch.cat(places))
        self._states.append(torch.cat(states))
        self._digests.append(torch.cat(digests))
        self._hosts.append(HostFingerprint.of(host))

    def _chosen(self, record: PassRecord, site: str) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the rows of the paths, with the input and the place of each."""
        samples, rows = record.samples(site), record.states[site]
        if self._place is None:
            return rows, (samples.entry, samples.place)
        if self._place >= 0:
            kept = samples.place == self._place
        else:
            last = torch.full((samples.inputs,), -1).scatter_reduce(0, samples.entry, samples.place, "amax")
            kept = samples.place == last[samples.entry] + 1 + self._place
        if int(kept.sum()) != samples.inputs:
            raise InputError(
                f"place={self._place} is to be one row of each sequence; {int(kept.sum())} of {samples.inputs} have "
                "it. Choose a place that all sequences reach."
            )
        # Which place that is may differ from tick to tick, as sequences grow.
        return rows[kept], (samples.entry[kept], torch.zeros_like(samples.place[kept]))

    def _require_paths(self, entry: Tensor, place: Tensor) -> None:
        if self._paths is None:
            self._paths = entry, place
        elif not all(map(torch.equal, self._paths, (entry, place))):
            raise InputError(
                f"Each tick holds the same paths, row by row; tick 0 has {len(self._paths[0]):,} rows and tick "
                f"{len(self._states)} {len(entry):,}, or at other places. Give inputs of one length, or choose one "
                "place of each: place=-1."
            )

    def trajectories(self, clock: Clock, times: tuple[float, ...], layout: str | None) -> Trajectories:
        """Join what was observed."""
        assert self._paths is not None, "no tick was observed"
        entry, place = self._paths
        return Trajectories(
            states=tuple(self._states),
            sites=tuple(map(clock.name, times)),
            times=times,
            host=_joined(self._hosts),
            sequence=entry,
            position=place,
            shapes=(self._shape,) * len(times),
            skip=self._skip,
            layout=layout,
            digests=linked(torch.stack(self._digests)),
            clock=clock,
        )


def linked(digests: Int[Tensor, "tick path"]) -> Int[Tensor, " path"]:
    """Digest paths so that those which share an input, directly or through others, have the same one.

    It is the least of the digests of all inputs that such paths pass. A path that passes all of them, as one does that
    walks a whole circle, has it whichever others were observed with it.

    Args:
        digests: of the input of each path at each tick.
    """
    inputs, index = np.unique(digests.numpy(), return_inverse=True)
    paths = digests.shape[1]
    rows = np.tile(np.arange(paths), len(digests))
    links = coo_array((np.ones(len(rows)), (rows, paths + index.ravel())), shape=(paths + len(inputs),) * 2)
    count, group = connected_components(links, directed=False)
    least = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(least, group[paths:], inputs)
    return torch.from_numpy(least[group[:paths]])


def _batches(ticks: Iterable[Any]) -> list[Any]:
    if isinstance(ticks, Tensor) and (ticks.ndim < 2 or (ticks.ndim == 2 and ticks.is_floating_point())):
        raise InputError(
            f"One tensor holds an orbit as [tick, path, …]; got the shape {tuple(ticks.shape)}. Give a list with a "
            "batch of inputs for each tick."
        )
    found = list(ticks)
    if len(found) < 2:
        raise InputError(f"An orbit takes two ticks or more; got {len(found)}.")
    return found


def _models(model: Model | Iterable[Model], count: int) -> Iterable[Model]:
    if isinstance(model, (nn.Module, Host)):
        return [model] * count
    return model


def _unlabelled(x: Any, y: Any) -> Any:
    if y is not None:
        raise InputError("The inputs of a tick came with labels of their own. Labels are one a path: labels=y.")
    return x


def _pass(host: Host, site: str, batch: Any, skip: int) -> PassRecord:
    """Call the model without gradients, and return what it showed at a site, as rows on the CPU."""
    records: list[PassRecord] = []
    with torch.no_grad(), recorded(host, (site,), skip, records.append, rows_alone=True):
        host.call(batch)
    if not records:
        raise InputError("No forward pass was recorded: the model was not called.")
    records[-1].require((site,))
    records[-1].require_finite("a tick")
    return records[-1]


def _joined(hosts: Sequence[HostFingerprint]) -> HostFingerprint:
    """The fingerprint of one model, or, of checkpoints, one whose weights are those of all."""
    first = hosts[0]
    for other in hosts[1:]:
        first.require(other, "tick", ignoring=("weights",))
    weights = list(dict.fromkeys(host.weights for host in hosts))
    if len(weights) == 1:
        return first
    whole = hashlib.blake2b(" ".join(weights).encode(), digest_size=16).hexdigest()
    return replace(first, weights=whole, parts="")
