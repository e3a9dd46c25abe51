"""Gram matrices of observables before and after a step: all that residuals, pseudospectra and intervals need.

`G = Z*Z`, `A = Z*Z⁺` and `L = Z⁺*Z⁺` over pairs of consecutive depths (residual dynamic mode decomposition, Colbrook
& Townsend, arXiv 2111.14889), gathered in one streamed pass, whole or per class and per shard of the observed inputs.
A pair is always two depths of one sample. Costs, a row and depth, the products of its observables with themselves and
with those of the next depth; memory does not grow with rows. Knows nothing of eigenvalues.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Complex, Float, Int
from numpy import ndarray
from torch import Tensor

from koopman_interp.analysis.encoding import Encoded, encoded
from koopman_interp.annotations import as_annotated
from koopman_interp.errors import InputError
from koopman_interp.files import read_tensors, rebuilding, write_tensors
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

_MOST_BYTES = 8 * 2**30
"""That Gram matrices may take in all."""
_TENSORS = ("G", "A", "L", "sums", "count")


@dataclass(frozen=True)
class Span:
    """Pairs of depths whose Gram matrices are added up.

    Attributes:
        gap: operator steps between the two depths of each pair.
        starts: the earlier depths; each later one is the next.
    """

    gap: float
    starts: tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Grams:
    """Second moments of observables and of what follows them, in float64.

    Attributes:
        G: `Z*Z` `[span, class, shard, coordinate, coordinate]`; one class and one shard where they are not told apart.
        A: `Z*Z⁺`, likewise: rows of the matrix belong to the earlier depth.
        L: `Z⁺*Z⁺`, likewise.
        sums: `ΣZ` `[depth, class, shard, coordinate]`.
        count: samples `[class, shard]`; each gives one pair for every pair of depths.
        spans: which pairs of depths belong together.
        classes: labels that are told apart; empty where they are not.
        basis: orthonormal columns `[observable, coordinate]` that the observables were projected on; None is all.
        operator: digest of the surrogate whose observables these are.
    """

    G: Float[Tensor, "span class shard coordinate coordinate"]
    A: Float[Tensor, "span class shard coordinate coordinate"]
    L: Float[Tensor, "span class shard coordinate coordinate"]
    sums: Float[Tensor, "depth class shard coordinate"]
    count: Float[Tensor, "class shard"]
    spans: tuple[Span, ...]
    classes: tuple[int, ...]
    basis: Float[Tensor, "observable coordinate"] | None
    operator: str

    def __repr__(self) -> str:
        kinds = f"{len(self.classes)} classes" if self.classes else "no classes"
        return (
            f"Grams({self.samples:,} samples, {self.width} coordinates, {len(self.spans)} spans, {kinds}, "
            f"{self.count.shape[1]} shards)"
        )

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return self.G.shape[-1]

    @property
    def samples(self) -> int:
        """How many samples were gathered."""
        return int(self.count.sum())

    def coordinates(self, vectors: Complex[ndarray, "observable vector"]) -> Complex[ndarray, "coordinate vector"]:
        """Bring vectors of observables, such as readers or modes, to the coordinates of these matrices."""
        return vectors if self.basis is None else self.basis.numpy().T @ vectors

    def pooled(self) -> Grams:
        """Add up classes and shards."""
        sum_of = {name: getattr(self, name).sum((1, 2), keepdim=True) for name in ("G", "A", "L", "sums")}
        return replace(self, **sum_of, count=self.count.sum().reshape(1, 1), classes=())

    def of_class(self, label: int) -> Grams:
        """Keep the samples of one class.

        Raises:
            InputError: the class was not told apart.
        """
        if label not in self.classes:
            raise InputError(f"There is no class {label} among {list(self.classes)}. Gather with by_class=True.")
        index = self.classes.index(label)
        kept = {name: getattr(self, name)[:, index : index + 1] for name in ("G", "A", "L", "sums")}
        return replace(self, **kept, count=self.count[index : index + 1], classes=(label,))

    def centred(self) -> Grams:
        """Take each depth's mean off, over all classes and shards, which are added up."""
        whole = self.pooled()
        mean = whole.sums[:, 0, 0] / whole.count
        G, A, L = whole.G.clone(), whole.A.clone(), whole.L.clone()
        for index, span in enumerate(self.spans):
            now, after = mean[list(span.starts)], mean[[start + 1 for start in span.starts]]
            G[index] -= self.samples * now.T @ now
            A[index] -= self.samples * now.T @ after
            L[index] -= self.samples * after.T @ after
        return replace(whole, G=G, A=A, L=L, sums=torch.zeros_like(whole.sums))

    def projected(self, basis: Float[Tensor, "coordinate _"]) -> Grams:
        """Change to fewer coordinates, `basis` being orthonormal columns in the present ones."""
        B = basis.to(self.G)
        G, A, L = (B.T @ gram @ B for gram in (self.G, self.A, self.L))
        whole = B if self.basis is None else self.basis @ B
        return replace(self, G=G, A=A, L=L, sums=self.sums @ B, basis=whole)

    def __add__(self, other: Grams) -> Grams:
        """Add those of other samples.

        Raises:
            InputError: they are of another surrogate, or gathered in another way.
        """
        settings = ("operator", "spans", "classes")
        differing = [name for name in settings if getattr(self, name) != getattr(other, name)]
        if self.count.shape != other.count.shape:
            differing.append("count")
        bases = (self.basis, other.basis)
        alike = all(basis is None for basis in bases) or (
            bases[0] is not None and bases[1] is not None and torch.equal(bases[0], bases[1])
        )
        if differing or not alike:
            what = ", ".join(differing) or "basis"
            raise InputError(f"Gram matrices add up where they were gathered alike; these differ in {what}.")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in _TENSORS})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        if self.basis is not None:
            tensors["basis"] = self.basis
        spans = [[span.gap, list(span.starts)] for span in self.spans]
        header = {"spans": spans, "classes": self.classes, "operator": self.operator}
        write_tensors(path, tensors, kind="grams", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Grams:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="grams")
        with rebuilding(path, "Gram matrices"):
            own = cls(
                **{name: tensors[name] for name in _TENSORS},
                spans=tuple(Span(gap, tuple(starts)) for gap, starts in header["spans"]),
                classes=tuple(header["classes"]),
                basis=tensors.get("basis"),
                operator=header["operator"],
            )
            return as_annotated(own)


@own_kinds
def gather_grams(
    koopman: KoopmanAutoencoder,
    trajectories: Rows | Iterable[Trajectories],
    *,
    basis: Float[Tensor, "observable coordinate"] | None = None,
    by_class: bool = False,
    shards: int = 1,
    by_depth: bool = False,
) -> Grams:
    """Gather the Gram matrices of a surrogate's observables in one pass.

    Args:
        koopman: the surrogate.
        trajectories: rows in memory, or parts, as `Tap.stream` gives them; read once.
        basis: orthonormal columns to project the observables on first; None keeps all.
        by_class: tell apart the classes that the surrogate was fitted on.
        shards: parts of the observed inputs, at random by their digests, that are told apart for resampling; the
            samples of one input stay together, also where it was observed several times.
        by_depth: tell every pair of depths apart; otherwise pairs with equally many steps between are added up.

    Returns:
        The Gram matrices.

    Raises:
        InputError: other sites, no samples, classes without labels, or matrices past 8 GiB.
    """
    taken = GramPass(koopman, basis=basis, by_class=by_class, shards=shards, by_depth=by_depth)
    for chunk in encoded(koopman, trajectories):
        taken.update(chunk if basis is None else chunk.projected(basis))
    return taken.grams()


class GramPass:
    """What `gather_grams` does, chunk by chunk, for passes that gather other things beside.

    Args:
        koopman: the surrogate.
        basis: as in `gather_grams`.
        by_class: as in `gather_grams`.
        shards: as in `gather_grams`.
        by_depth: as in `gather_grams`.
    """

    def __init__(
        self,
        koopman: KoopmanAutoencoder,
        *,
        basis: Tensor | None = None,
        by_class: bool = False,
        shards: int = 1,
        by_depth: bool = False,
    ) -> None:
        if shards < 1:
            raise InputError(f"Shards are parts of the observed inputs, 1 or more; got {shards}.")
        if by_class and not koopman.config.classes:
            raise InputError("The surrogate was fitted without labels, so there are no classes to tell apart.")
        device = koopman.normalization.maps(0)[0].device
        self.classes = koopman.config.classes if by_class else ()
        self.shards = shards
        self.spans = _spans(koopman.config.times, by_depth)
        self.basis = basis
        self._operator = koopman.digest()
        width = koopman.config.observables if basis is None else basis.shape[1]
        groups = (max(1, len(self.classes)), shards)
        self._require_room(width, groups)
        shape = (len(self.spans), *groups, width, width)
        self._G, self._A, self._L = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3))
        self._sums = torch.zeros(len(koopman.sites), *groups, width, dtype=torch.float64, device=device)
        self._count = torch.zeros(groups, dtype=torch.float64)

    def update(self, chunk: Encoded) -> None:
        """Add a chunk, already in the coordinates of the basis where there is one."""
        z = chunk.z
        for (label, shard), rows in self._groups(chunk).items():
            self._add(label, shard, z if rows is None else z[:, rows.to(z.device)])

    def grams(self) -> Grams:
        """Return what was gathered, on the CPU."""
        G, A, L, sums = (part.cpu() for part in (self._G, self._A, self._L, self._sums))
        basis = None if self.basis is None else self.basis.double().cpu()
        return Grams(G, A, L, sums, self._count, self.spans, self.classes, basis, self._operator)

    def _add(self, label: int, shard: int, z: Tensor) -> None:
        here = (label, shard)
        self._count[here] += z.shape[1]
        self._sums[(slice(None), *here)] += z.sum(1)
        for index, span in enumerate(self.spans):
            starts, ends = set(span.starts), {start + 1 for start in span.starts}
            G, A, L = (gram[(index, *here)] for gram in (self._G, self._A, self._L))
            now, after = _rows(z, starts), _rows(z, ends)
            A.addmm_(now.T, after)
            # A depth between two others is an end and a start: its square is made once.
            between = _rows(z, starts & ends)
            square = between.T @ between
            for gram, own in ((G, starts - ends), (L, ends - starts)):
                alone = _rows(z, own)
                gram.addmm_(alone.T, alone).add_(square)

    def _groups(self, chunk: Encoded) -> dict[tuple[int, int], Int[Tensor, " row"] | None]:
        """Rows of each class and shard; None stands for all rows."""
        if not self.classes and self.shards == 1:
            return {(0, 0): None}
        label = torch.zeros_like(chunk.digests)
        if self.classes:
            label = _class_indices(chunk, self.classes)
        group = label * self.shards + shard_of(chunk.digests, self.shards)
        order = torch.argsort(group, stable=True)
        groups, sizes = torch.unique_consecutive(group[order], return_counts=True)
        parts = order.split(sizes.tolist())
        return {divmod(int(number), self.shards): rows for number, rows in zip(groups, parts, strict=True)}

    def _require_room(self, width: int, groups: tuple[int, int]) -> None:
        size = 3 * 8 * len(self.spans) * groups[0] * groups[1] * width**2
        if size > _MOST_BYTES:
            raise InputError(
                f"Gram matrices of {width} coordinates, {len(self.spans)} spans, {groups[0]} classes and {groups[1]} "
                f"shards take {size / 2**30:.0f} GiB. Give a basis of fewer columns, or tell fewer groups apart."
            )


def shard_of(digests: Int[Tensor, " sample"], shards: int) -> Int[Tensor, " sample"]:
    """Put each observed input into a shard by its digest, mixed once more: equal inputs come into the same one."""
    mixed = digests.cpu().long() * 0x2545F4914F6CDD1D
    mixed = (mixed ^ (mixed >> 29)) * 0x1B873593CC9E2D51
    return ((mixed >> 33) & 0x7FFFFFFF) % shards


def _class_indices(chunk: Encoded, classes: tuple[int, ...]) -> Int[Tensor, " sample"]:
    if chunk.labels is None:
        raise InputError("These trajectories have no labels, so their classes cannot be told apart.")
    known = torch.tensor(classes)
    foreign = ~torch.isin(chunk.labels, known)
    if bool(foreign.any()):
        label = int(chunk.labels[foreign][0])
        raise InputError(f"Label {label} is not among the classes that the surrogate was fitted on: {list(classes)}.")
    return torch.searchsorted(known, chunk.labels)


def _spans(times: tuple[float, ...], by_depth: bool) -> tuple[Span, ...]:
    # Rounded, so that 0.3 − 0.2 and 0.2 − 0.1 are one gap.
    gaps = [round(later - earlier, 9) for earlier, later in pairwise(times)]
    if by_depth:
        return tuple(Span(gap, (start,)) for start, gap in enumerate(gaps))
    return tuple(
        Span(gap, tuple(start for start, other in enumerate(gaps) if other == gap)) for gap in sorted(set(gaps))
    )


def _rows(z: Float[Tensor, "depth sample coordinate"], depths: set[int]) -> Float[Tensor, "_ coordinate"]:
    """Rows of some depths, without a copy where these follow each other."""
    chosen = sorted(depths)
    contiguous = bool(chosen) and chosen[-1] - chosen[0] == len(chosen) - 1
    picked = z[chosen[0] : chosen[-1] + 1] if contiguous else z[chosen]
    return picked.reshape(-1, z.shape[2])
