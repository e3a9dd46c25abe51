"""The Koopman lens: what a model would say at each depth if its motion were linear from there on.

A state is advanced by K to the last site, decoded, and read by the model's own head: the rest of its forward pass. Any
other lens can be looked through in the same way. Costs one pass of the model a batch, and one of its head a depth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from koopman_interp.analysis.substitutes.layers import Layers, depths_of_layers
from koopman_interp.analysis.substitutes.lenses import KoopmanLens, lens_of
from koopman_interp.analysis.substitutes.stand_ins import substituted
from koopman_interp.annotations import as_annotated
from koopman_interp.divergence import kullback_leibler
from koopman_interp.errors import InputError
from koopman_interp.files import read_tensors, rebuilding, write_tensors
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions, Tokenizer, token_names
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.outputs import Output
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.observing.samples import Samples
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import Result
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits, percents

Naming = Callable[[int], str]

MOST_SAMPLES = 40
"""Samples whose likeliest outputs are shown."""

_BY_DEPTH = ("top", "probability", "kl", "own")


@dataclass(frozen=True, eq=False, repr=False)
class LensReading(Result):
    """What a lens reads at each depth, for each sample: a token, or an input.

    Attributes:
        lens: its name.
        sites: the depths, the last included, where a lens reads what the model says.
        top: ids of the likeliest outputs, likeliest first.
        probability: theirs.
        kl: `KL(model ‖ lens)`, in nats.
        own: probability that the lens gives to what the model puts first.
        sequence: input that each sample belongs to.
        position: where in it the sample stands.
        inputs: name of each sample: its token, or its number.
        names: of the outputs in `top`, by id.
    """

    lens: str
    sites: tuple[str, ...]
    top: Int[Tensor, "depth sample rank"]
    probability: Float[Tensor, "depth sample rank"]
    kl: Float[Tensor, "depth sample"]
    own: Float[Tensor, "depth sample"]
    sequence: Int[Tensor, " sample"]
    position: Int[Tensor, " sample"]
    inputs: tuple[str, ...]
    names: dict[int, str]

    def __len__(self) -> int:
        return len(self.sequence)

    def __repr__(self) -> str:
        by_depth = ", ".join(f"{value:.2f}" for value in self.kl.mean(1).tolist())
        return f"LensReading({self.lens}, {len(self)} samples, mean KL to the model by depth {by_depth})"

    def tables(self) -> tuple[Table, ...]:
        """Return the mean over all samples by depth, and the likeliest output of the first samples at each depth."""
        agreement = (self.top[:, :, 0] == self.top[-1, :, 0]).double().mean(1)
        by_depth = Table(
            (
                Column("read at", self.sites),
                Column("KL to the model, nats", tuple(self.kl.double().mean(1).tolist()), digits(3)),
                Column("agreement %", tuple(agreement.tolist()), percents(1)),
            ),
            f"Mean over {len(self):,} samples",
        )
        return by_depth, self.likeliest()

    def likeliest(self, most: int = MOST_SAMPLES) -> Table:
        """Return the likeliest output at each depth and its probability, for the first samples."""
        shown = range(min(len(self), most))
        columns = (
            Column(site, tuple(self._cell(depth, sample) for sample in shown)) for depth, site in enumerate(self.sites)
        )
        caption = f"Likeliest output and its probability, first {len(shown)} of {len(self):,} samples"
        return Table((Column("input", self.inputs[: len(shown)]), *columns), caption)

    def _cell(self, depth: int, sample: int) -> str:
        return f"{self.said(depth, sample)} {float(self.probability[depth, sample, 0]):.2f}"

    def said(self, depth: int, sample: int, rank: int = 0) -> str:
        """Name an output at a depth for a sample, the likeliest unless told otherwise."""
        return self.names[int(self.top[depth, sample, rank])]

    def of_input(self, number: int) -> LensReading:
        """Keep the samples of one input.

        Raises:
            InputError: there is no such input.
        """
        rows = (self.sequence == number).nonzero().squeeze(1)
        if not len(rows):
            raise InputError(f"There is no input {number}; there are 0 to {int(self.sequence.max())}.")
        picked = {name: getattr(self, name)[:, rows] for name in _BY_DEPTH}
        inputs = tuple(self.inputs[row] for row in rows.tolist())
        return replace(self, sequence=self.sequence[rows], position=self.position[rows], inputs=inputs, **picked)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        tensors = (*_BY_DEPTH, "sequence", "position")
        return {name: getattr(self, name) for name in ("lens", "sites", "inputs", "names")} | {
            name: getattr(self, name).tolist() for name in tensors
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LensReading:
        """Rebuild from what `as_dict` and JSON made of it."""
        whole = {name: torch.tensor(values[name], dtype=torch.long) for name in ("top", "sequence", "position")}
        shares = {name: torch.tensor(values[name], dtype=torch.float32) for name in ("probability", "kl", "own")}
        names = {int(number): name for number, name in values["names"].items()}
        return cls(
            values["lens"], tuple(values["sites"]), inputs=tuple(values["inputs"]), names=names, **whole, **shares
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        header = {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}
        write_tensors(path, tensors, kind="lens", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LensReading:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="lens")
        with rebuilding(path, "a lens"):
            names = {int(number): name for number, name in header["names"].items()}
            sites, inputs = tuple(header["sites"]), tuple(header["inputs"])
            return as_annotated(cls(lens=header["lens"], sites=sites, inputs=inputs, names=names, **tensors))


@own_kinds
@torch.no_grad()
def koopman_lens(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    batches: Any,
    *,
    lens: object = None,
    layers: Layers = None,
    positions: Positions = None,
    names: Any = None,
    tokenizer: Tokenizer = None,
    top: int = 5,
    batch_size: int = BATCH_SIZE,
) -> LensReading:
    """Read each depth of a model through its own head, after the motion that a surrogate predicts for the rest.

    Args:
        model: the model.
        koopman: the surrogate; another lens takes its sites, and the leading positions that it leaves out.
        batches: inputs, as in `Tap.observe`.
        lens: to look through another one: a `LogitLens`, an `AffineLens`, TransformerLens's `JacobianLens`.
        layers: where to read: sites by name, or numbers of blocks, whose outputs are read; None is every site. The last
            site, where a lens reads what the model says, always comes along.
        positions: which tokens to read: places counted from each input's first real token, negative ones from its last
            (a slice, whole numbers, or a function from places `[batch, position]` to a mask). None is all.
        names: of the outputs: a tokenizer, or a name for each class. None is the model's own tokenizer, and numbers
            where it has none.
        tokenizer: of Hugging Face's kind, for texts and for names; None is the model's own.
        top: outputs to keep for each sample and depth.
        batch_size: of inputs that are to be cut.

    Returns:
        Of each sample at each depth the likeliest outputs, and the divergence from what the model says.

    Raises:
        UnsupportedHostError: the model returns no logits, so that it has no head to read with.
        HostMismatchError: the surrogate, or the lens, belongs to another model.
        InputError: no samples, no such layer, names of no known kind, or a lens that has no map at a depth.
    """
    if top < 1:
        raise InputError(f"A lens shows 1 output or more; got top={top}.")
    koopman.require_depth("A Koopman lens")
    host = host_for(model, koopman.config.layout)
    koopman.config.host.require(HostFingerprint.of(host), "surrogate")
    naming = _naming(tokenizer if names is None else names, host)
    through = KoopmanLens(koopman) if lens is None else lens_of(lens, host, koopman.sites, koopman.config.skip)
    last = len(koopman.sites) - 1
    depths = tuple(depth for depth in depths_of_layers(koopman.sites, layers) if depth < last)
    maps = [through.at(depth) for depth in depths]
    if None in maps:
        raise InputError(
            f"There is no {through.name} at {koopman.sites[depths[maps.index(None)]]!r}, from which it has no map to "
            "the last depth. Look through the Koopman lens, or an affine one, or read other layers: layers=…."
        )
    readings = []
    for batch, _ in calls(host, batches, batch_size=batch_size, tokenizer=tokenizer):
        own = OwnPass.of(host, batch, koopman.sites, koopman.config.skip)
        chosen = None if positions is None else own.at(positions)
        # One after the other, since outputs can be wide.
        with own.after(last) as continued:
            by_depth = [
                _at_depth(continued(substituted(move, own.rows(depth).cpu(), own)), own.output, top, chosen)
                for depth, move in zip(depths, maps, strict=True)
                if move is not None
            ]
        samples = own.output.samples if chosen is None else own.output.samples.some(chosen)
        readings.append(_BatchReading([*by_depth, _at_depth(own.output, own.output, top, chosen)], samples))
    if not any(len(reading.samples) for reading in readings):
        raise InputError("There were no samples to look at. Give inputs that are longer than what is skipped.")
    return _joined(readings, through.name, tuple(koopman.sites[depth] for depth in (*depths, last)), naming)


@dataclass(frozen=True)
class _BatchReading:
    """What a lens reads in one batch: figures at each depth, by name; the outputs themselves are not kept."""

    by_depth: list[dict[str, Tensor]]
    samples: Samples


def _at_depth(output: Output, own: Output, top: int, chosen: Bool[Tensor, " sample"] | None) -> dict[str, Tensor]:
    """Read one output beside the model's own, at the samples chosen."""
    logp, said = (one.logp if chosen is None else one.logp[chosen] for one in (output, own))
    likeliest = logp.topk(min(top, logp.shape[1]), dim=1)
    first = said.argmax(1, keepdim=True)
    return {
        "top": likeliest.indices,
        "probability": likeliest.values.exp().float(),
        "kl": kullback_leibler(said, logp).float(),
        "own": logp.gather(1, first).squeeze(1).exp().float(),
    }


def _joined(
    readings: Sequence[_BatchReading], lens: str, sites: tuple[str, ...], naming: tuple[Naming, Naming]
) -> LensReading:
    name_input, name_output = naming
    samples = [reading.samples for reading in readings]
    starts = accumulate((each.inputs for each in samples), initial=0)
    sequence = torch.cat([each.entry + start for each, start in zip(samples, starts, strict=False)])
    joined = {
        name: torch.cat([torch.stack([figures[name] for figures in reading.by_depth]) for reading in readings], 1)
        for name in _BY_DEPTH
    }
    ids = [each.ids for each in samples if each.ids is not None]
    if len(ids) == len(samples):
        inputs = [name_input(number) for number in torch.cat(ids).tolist()]
    else:
        inputs = [str(number) for number in sequence.tolist()]
    names = {number: name_output(number) for number in joined["top"].unique().tolist()}
    position = torch.cat([each.place for each in samples])
    return LensReading(lens, sites, sequence=sequence, position=position, inputs=tuple(inputs), names=names, **joined)


def _naming(names: Any, host: Host) -> tuple[Naming, Naming]:
    """Say how inputs and outputs are named: tokens by a tokenizer, classes by a list, else by their numbers."""
    if isinstance(names, Sequence) and not isinstance(names, str):
        return token_names(host.tokenizer), lambda number: str(names[number]) if number < len(names) else str(number)
    if names is not None and not (hasattr(names, "convert_ids_to_tokens") or hasattr(names, "decode")):
        raise InputError(
            f"Outputs are named by a tokenizer, or by a list of one name a class; got {type(names).__name__}."
        )
    of_tokens = token_names(host.tokenizer if names is None else names)
    return of_tokens, of_tokens
