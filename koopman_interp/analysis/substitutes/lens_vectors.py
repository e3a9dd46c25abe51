"""Lens vectors: the direction of the state, at each depth, along which a lens says a token.

    v_t = mean over samples of ∂/∂x  logit_t(head(D(K^n E(x))))

the gradient of a token's logit through decoder, K, encoder and the model's own remaining forward pass, its final norm
included. To first order a step ε v_t of the state raises the logit that the lens reads by ε ‖v_t‖². Encoder, decoder
and norm bend, so each sample has a gradient of its own: how well their mean stands for them is measured beside it. For
a linear lens without the norm these are the rows of W_U J (Gurnee et al., Transformer Circuits Thread 2026; arXiv
2303.08112 for affine lenses). Costs a pass of the model a batch, and for each depth and token one backward pass through
lens and head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from koopman_interp.analysis.substitutes.layers import Layers, depths_of_layers
from koopman_interp.analysis.substitutes.lenses import KoopmanLens, lens_of
from koopman_interp.analysis.substitutes.stand_ins import StandIn, substituted
from koopman_interp.annotations import as_annotated
from koopman_interp.errors import InputError, UnsupportedHostError
from koopman_interp.files import read_tensors, rebuilding, write_tensors
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions, Tokenizer, token_names
from koopman_interp.hosts.vocabulary import Token, token_ids
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import Result
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits

KIND = "lens vectors"


@dataclass(frozen=True, eq=False, repr=False)
class LensVectors(Result):
    """Directions of the state that say tokens, as `lens_vectors` finds them.

    Attributes:
        vectors: mean gradient of each token's logit in the state, `[token, width]` at each site.
        agreement: `[site, token]`, mean cosine between the gradient at a sample and that mean: 1 for a linear lens
            without a norm, near 0 where there is no one direction.
        size: `[site]`, median norm of the states, in which `steering_hooks` measures steps.
        sites: where they were taken, in order of depth.
        tokens: ids.
        names: of the tokens in the vocabulary.
        written: the tokens as they were asked for.
        samples: how many states the means are over.
        lens: name of the lens.
        host: fingerprint of the model.
        skip: leading places of each sequence that were left out.
        layout: names of the axes of the states in the model, where `attach` was told.
    """

    vectors: tuple[Float[Tensor, "token _"], ...]
    agreement: Float[Tensor, "site token"]
    size: Float[Tensor, " site"]
    sites: tuple[str, ...]
    tokens: tuple[int, ...]
    names: tuple[str, ...]
    written: tuple[str, ...]
    samples: int
    lens: str
    host: HostFingerprint
    skip: int = 0
    layout: str | None = None

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:4]) + (", …" if len(self.names) > 4 else "")
        return f"LensVectors({self.lens}, {shown}, at {len(self.sites)} sites, mean of {self.samples:,} samples)"

    def at(self, layer: str | int) -> Float[Tensor, "token width"]:
        """Return the directions at a site by name, or at the output of a block by its number.

        Raises:
            InputError: none were taken there.
        """
        (depth,) = depths_of_layers(self.sites, layer)
        return self.vectors[depth]

    def index(self, token: Token) -> int:
        """Say which of the directions is a token's: by its id, its name, or as it was asked for.

        Raises:
            InputError: it is not among them.
        """
        known = [
            place
            for place, (number, *names) in enumerate(zip(self.tokens, self.names, self.written, strict=True))
            if token == number or token in names
        ]
        if not known:
            raise InputError(
                f"There is no direction for {token!r}; there are those of {', '.join(map(repr, self.names))}. Take "
                f"one: lens_vectors(model, koopman, [{token!r}], …)."
            )
        return known[0]

    def tables(self) -> tuple[Table, ...]:
        """Return, site by site, the length of each direction, and how well it stands for each sample's own."""
        where = Column("at", self.sites)
        lengths = [[float(vectors[place].norm()) for vectors in self.vectors] for place in range(len(self.tokens))]
        length = (Column(name, tuple(of), digits(4)) for name, of in zip(self.names, lengths, strict=True))
        agreement = (
            Column(name, tuple(self.agreement[:, place].tolist()), digits(2)) for place, name in enumerate(self.names)
        )
        size = Column("median state", tuple(self.size.tolist()), digits(3))
        return (
            Table((where, *length, size), "Rise of the logit, in nats, for a step of length 1 along its direction"),
            Table((where, *agreement), "Mean cosine between each sample's own gradient and that direction"),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = {name: getattr(self, name) for name in ("sites", "tokens", "names", "written", "samples", "lens")}
        figures = {name: getattr(self, name).tolist() for name in ("agreement", "size")}
        kept = {"host": asdict(self.host), "skip": self.skip, "layout": self.layout}
        return plain | figures | {"vectors": [each.tolist() for each in self.vectors]} | kept

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LensVectors:
        """Rebuild from what `as_dict` and JSON made of it."""
        vectors = tuple(torch.tensor(each, dtype=torch.float64) for each in values["vectors"])
        agreement, size = (torch.tensor(values[name], dtype=torch.float64) for name in ("agreement", "size"))
        return cls(vectors, agreement, size, **_from_header(values))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors = {f"vectors.{depth}": each for depth, each in enumerate(self.vectors)}
        header = {name: value for name, value in self.as_dict().items() if name not in ("vectors", "agreement", "size")}
        write_tensors(path, tensors | {"agreement": self.agreement, "size": self.size}, kind=KIND, header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LensVectors:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind=KIND)
        with rebuilding(path, "lens vectors"):
            vectors = tuple(tensors[f"vectors.{depth}"] for depth in range(len(header["sites"])))
            return as_annotated(cls(vectors, tensors["agreement"], tensors["size"], **_from_header(header)))


def _from_header(values: Mapping[str, Any]) -> dict[str, Any]:
    listed = {name: tuple(values[name]) for name in ("sites", "tokens", "names", "written")}
    rest = {name: values[name] for name in ("samples", "lens", "skip", "layout")}
    return listed | rest | {"host": HostFingerprint(**values["host"])}


@own_kinds
@torch.inference_mode(False)  # in whatever context it is called; gradients are taken below
def lens_vectors(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    tokens: Token | Sequence[Token],
    inputs: Any,
    *,
    layers: Layers = None,
    positions: Positions = None,
    lens: object = None,
    tokenizer: Tokenizer = None,
    batch_size: int = BATCH_SIZE,
) -> LensVectors:
    """Find the direction at each depth along which a lens says a token: its logit's gradient, averaged over inputs.

    A place whose state also moves what is read at other places (a last site with attention after it) counts with what
    it does at its own place alone; that costs a backward pass for each place of the longest sequence.

    Args:
        model: the model.
        koopman: the surrogate; another lens takes its sites, and the leading positions that it leaves out.
        tokens: texts that are one token each (" she"), names in the vocabulary ("▁she"), or ids. Of a model that gives
            one row of logits an input, ids of classes.
        inputs: over whose states the gradients are averaged, as in `Tap.observe`.
        layers: where to take them: sites by name, or numbers of blocks, whose outputs they are; None is every site,
            the last too, where the lens is the model's own head.
        positions: at which tokens: places counted from each input's first real token, negative ones from its last (a
            slice, whole numbers, or a function from places `[batch, position]` to a mask). None is all.
        lens: to look through another one: an `AffineLens`, a `LogitLens`, TransformerLens's `JacobianLens`.
        tokenizer: of Hugging Face's kind, for texts and names; None is the model's own.
        batch_size: of inputs that are to be cut.

    Returns:
        The directions, in float64 on the CPU.

    Raises:
        UnsupportedHostError: the model gives no logits, or none for each of its states.
        HostMismatchError: the surrogate, or the lens, belongs to another model.
        InputError: a text is not one token, there is no tokenizer for it, no such layer, no samples, or a lens that has
            no map at a depth.

    Examples:
        >>> import torch, koopman_interp as ki
        >>> from koopman_interp.testing import ResidualMLP
        >>> model = ResidualMLP(inputs=4, width=8, blocks=3, outputs=2).eval()
        >>> x = torch.randn(64, 4)
        >>> koopman = ki.fit(ki.attach(model).observe(x), method="least_squares")
        >>> ki.lens_vectors(model, koopman, [0, 1], x, layers=[1]).at(1).shape
        torch.Size([2, 8])
    """
    host = host_for(model, koopman.config.layout)
    koopman.config.host.require(HostFingerprint.of(host), "surrogate")
    names = host.tokenizer if tokenizer is None else tokenizer
    ids = token_ids(tokens, names)
    through = KoopmanLens(koopman) if lens is None else lens_of(lens, host, koopman.sites, koopman.config.skip)
    sums = [_Sums(_map_at(through, depth, koopman.sites), depth) for depth in depths_of_layers(koopman.sites, layers)]
    for batch, _ in calls(host, inputs, batch_size=batch_size, tokenizer=tokenizer):
        own = OwnPass.of(host, batch, koopman.sites, koopman.config.skip)
        _require_rows(own, ids, names)
        chosen = own.at(positions)
        if not bool(chosen.any()):
            continue
        with torch.enable_grad(), own.logits_after(len(koopman.sites) - 1) as said:
            for each in sums:
                each.add(own, said, ids, chosen)
    if not sums[0].count:
        raise InputError("There were no samples to take gradients at. Give longer inputs, or other positions.")
    given = [tokens] if isinstance(tokens, (str, int)) else tokens
    return LensVectors(
        vectors=tuple(each.mean() for each in sums),
        agreement=torch.stack([each.agreement() for each in sums]),
        size=torch.stack([torch.cat(each.norms).median() for each in sums]),
        sites=tuple(koopman.sites[each.depth] for each in sums),
        tokens=ids,
        names=tuple(map(token_names(names), ids)),
        written=tuple(map(str, given)),
        samples=sums[0].count,
        lens=through.name,
        host=koopman.config.host,
        skip=koopman.config.skip,
        layout=koopman.config.layout,
    )


class _Sums:
    """Gradients at one depth, summed batch by batch."""

    def __init__(self, move: StandIn, depth: int) -> None:
        self.depth, self.count = depth, 0
        self.norms: list[Tensor] = []
        self._move = move
        self._gradients = self._directions = torch.zeros((), dtype=torch.float64)

    def add(self, own: OwnPass, said: Any, ids: tuple[int, ...], chosen: Bool[Tensor, " sample"]) -> None:
        """Add the gradients at some samples of a pass."""
        rows = own.rows(self.depth).cpu()
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32)).clone().requires_grad_()
        logits = said(substituted(self._move, rows, own))[:, list(ids)]
        gradients = torch.stack([_own_places(logits[:, token], rows, own) for token in range(len(ids))])
        gradients = gradients[:, chosen].double()
        lengths = gradients.norm(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        self._gradients = self._gradients + gradients.sum(1)
        self._directions = self._directions + (gradients / lengths).sum(1)
        self.norms.append(rows.detach()[chosen].double().norm(dim=1))
        self.count += int(chosen.sum())

    def mean(self) -> Float[Tensor, "token width"]:
        """Mean of the gradients."""
        return self._gradients / self.count

    def agreement(self) -> Float[Tensor, " token"]:
        """Mean cosine between each gradient and their mean."""
        mean = torch.nn.functional.normalize(self.mean(), dim=1)
        return (self._directions / self.count * mean).sum(1)


def _own_places(
    values: Float[Tensor, " sample"], rows: Float[Tensor, "sample width"], own: OwnPass
) -> Float[Tensor, "sample width"]:
    """Differentiate what is read at each sample in that sample's own row."""

    def gradient(of: Tensor) -> Tensor:
        return torch.autograd.grad(of, rows, retain_graph=True)[0]

    groups = list(_one_of_each(own.output.samples.entry))
    if len(groups) == 1:
        return gradient(values.sum())
    # Of each sequence the last: where it hears the ones before it, no sum over places tells them apart.
    last = groups[-1]
    heard = gradient(values[last].sum())
    heard[last] = 0
    if not bool(heard.any()):
        return gradient(values.sum())
    apart = torch.zeros_like(rows)
    for group in groups:
        apart[group] = gradient(values[group].sum())[group]
    return apart


def _one_of_each(entry: Tensor) -> Iterator[Tensor]:
    """Number the samples in groups that hold one of each sequence at most; the last group, the last of each."""
    order = torch.argsort(entry, stable=True)
    _, sizes = torch.unique_consecutive(entry[order], return_counts=True)
    # Ranks count from the end of each sequence, so that the last of all are one group.
    rank = torch.cat([torch.arange(int(size) - 1, -1, -1) for size in sizes])
    for place in range(int(sizes.max()) - 1, -1, -1):
        yield order[rank == place]


def _map_at(lens: Any, depth: int, sites: tuple[str, ...]) -> StandIn:
    move: StandIn | None = lens.at(depth)
    if move is None:
        raise InputError(
            f"There is no {lens.name} at {sites[depth]!r}, from which it has no map to the last depth. Choose other "
            "layers: layers=…."
        )
    return move


def _require_rows(own: OwnPass, ids: tuple[int, ...], tokenizer: Tokenizer) -> None:
    if not own.is_aligned:
        raise UnsupportedHostError(
            f"The model's output has {len(own.output.samples):,} rows of logits for {len(own.of_states):,} states, so "
            "that no state says a token of its own. Lens vectors are for models with a row of logits a token, or one "
            "an input whose state is one row."
        )
    token_ids(ids, tokenizer, own.output.logp.shape[1])
