"""What the faults are tried on: a tiny host, two fits of it, and each kind of file that the package writes.

Cost: about a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import xxhash

import koopman_interp as ki
from koopman_interp.sources import writing
from koopman_interp.sources.store import INDEX
from koopman_interp.testing import ResidualMLP

QUICK = ki.FitConfig(observables=12, hidden=(8,), steps=60, evaluate_every=3, batch_size=32, patience=None)
"""Settings of a fit that takes a fraction of a second and looks, and so writes, twenty times."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of what it holds.
        file: its name in a folder.
        save: writes it, and whatever belongs to it, to a folder.
        load: reads it from a folder as it would be used.
    """

    name: str
    file: str
    save: Callable[[Path], None]
    load: Callable[[Path], Any]


class Values:
    """A host, what was observed of it, and what was made of that; each made when it is first asked for."""

    @cached_property
    def model(self) -> torch.nn.Module:
        """A residual MLP, untrained."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ResidualMLP(inputs=4, width=10, blocks=3, outputs=3).eval()

    @cached_property
    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(300, 4, generator=generator)
        return x, torch.arange(300) % 3

    @cached_property
    def trajectories(self) -> ki.Trajectories:
        """What was observed."""
        return ki.attach(self.model).observe(*self.data, progress=False)

    @cached_property
    def koopman(self) -> ki.KoopmanAutoencoder:
        """A fit in closed form."""
        return ki.fit(self.trajectories, QUICK, method="least_squares")

    @cached_property
    def other(self) -> ki.KoopmanAutoencoder:
        """Another, of another seed."""
        return ki.fit(self.trajectories, replace(QUICK, seed=1), method="least_squares")

    def kinds(self) -> tuple[Kind, ...]:
        """Each kind of file, with how it is written and read."""
        koopman, trajectories = self.koopman, self.trajectories
        edit = ki.erase_class(koopman, label=1, site=1)
        spectrum = ki.spectrum(koopman, trajectories)
        topology = ki.topology(trajectories, points=40)
        fidelity = ki.fidelity(self.model, koopman, held_out=self.data)
        both = ki.each_site(koopman, lambda site: ki.erase_class(koopman, label=1, site=site))
        return (
            _of("trajectories", trajectories, ki.Trajectories),
            Kind("surrogate", "model.safetensors", koopman.save_pretrained, ki.KoopmanAutoencoder.from_pretrained),
            Kind("configuration", "config.json", koopman.save_pretrained, ki.KoopmanAutoencoder.from_pretrained),
            _of("edit", edit, ki.OperatorEdit),
            _of("edits", both, ki.EditSet),
            _of("spectrum", spectrum, ki.Spectrum),
            _of("topology", topology, ki.Topology),
            _of("fidelity", fidelity, type(fidelity), "fidelity.json"),
            Kind("checkpoint", "kept.safetensors", self._save_checkpoint, self._resume),
            Kind("shard", "000001.safetensors", self.observe, _stored),
            Kind("index", INDEX, self.observe, _stored),
        )

    def fit(self, folder: Path | None = None, **settings: Any) -> ki.KoopmanAutoencoder:
        """Fit by steps, going on from the checkpoint in a folder where there is one."""
        path = None if folder is None else folder / "kept.safetensors"
        config = replace(QUICK, **settings)
        return ki.fit(self.trajectories, config, checkpoint=path, resume=path is not None and "auto", progress=False)

    def observe(self, folder: Path) -> ki.Store:
        """Observe to a store of five shards, going on where an earlier observation was killed."""
        with mock.patch.multiple(writing, SHARD_ROWS=64, _INDEX_SECONDS=0.0):
            return ki.attach(self.model).observe(self.data, batch_size=8, store=folder, progress=False)

    def _save_checkpoint(self, folder: Path) -> None:
        (folder / "kept.safetensors").unlink(missing_ok=True)
        self.fit(folder)

    def _resume(self, folder: Path) -> ki.KoopmanAutoencoder:
        return self.fit(folder)


def _of(name: str, value: Any, kind: Any, file: str | None = None) -> Kind:
    file = file or f"{name}.safetensors"
    return Kind(name, file, lambda folder: value.save(folder / file), lambda folder: kind.load(folder / file))


def _stored(folder: Path) -> ki.Trajectories:
    with warnings.catch_warnings():  # that it did not come to its end
        warnings.simplefilter("ignore", UserWarning)
        return ki.Store(folder).trajectories()


def digest_of(value: Any) -> str:
    """Digest all that a value holds: two that are the same to the bit have the same."""
    if isinstance(value, ki.KoopmanAutoencoder):
        record = replace(value.record, seconds=0.0)
        parts: object = [*sorted(value.state_dict().items()), value.config, record.as_dict()]
    else:
        parts = {each.name: getattr(value, each.name) for each in fields(value)}
    return xxhash.xxh3_128(b"".join(_bytes(parts))).hexdigest()


def _bytes(value: Any) -> Iterator[bytes]:
    """Go through a value, whatever it is made of."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif is_dataclass(value):
        yield from _bytes({each.name: getattr(value, each.name) for each in fields(value)})
    elif isinstance(value, Mapping):
        yield from _bytes(list(value.items()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _bytes(each)
    else:
        yield repr(value).encode()
