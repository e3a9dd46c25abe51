"""Samples: which rows of one forward pass are kept, and where each of them came from.

States and logits of a pass are flattened to rows by the same rule (`layouts.to_rows`); a `Samples` picks the same
ones from either, so that they stay aligned: padding is dropped, and so are skipped leading positions. It also brings
labels, in whichever form a user has them, to those rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from koopman_interp.errors import InputError, UnsupportedHostError
from koopman_interp.hosts.layouts import row_origins
from koopman_interp.hosts.tokens import Tokens
from koopman_interp.labels import Form, spread_labels


@dataclass(frozen=True, eq=False)
class Samples:
    """The rows of one pass that are samples; all tensors are on the CPU.

    Attributes:
        inputs: entries of the batch; where several texts are packed into one, as many as there are texts.
        real: `[row]`, False at padding.
        kept: `[row]`, False at padding and at skipped positions.
        entry: `[sample]`, the input that each kept row belongs to.
        place: `[sample]`, where in its sequence it stands; 0 without positions.
        ids: `[sample]` token ids, or None.
    """

    inputs: int
    real: Bool[Tensor, " row"]
    kept: Bool[Tensor, " row"]
    entry: Int[Tensor, " sample"]
    place: Int[Tensor, " sample"]
    ids: Int[Tensor, " sample"] | None = None

    def __len__(self) -> int:
        return len(self.entry)

    @classmethod
    def of(cls, shape: Sequence[int], tokens: Tokens | None, skip: int = 0) -> Samples:
        """Say which rows of a state are samples.

        Args:
            shape: of the state, in the host's layout.
            tokens: of the pass; they apply to a state that has one row a token, and to no other.
            skip: leading places of each sequence to leave out.

        Returns:
            The samples.

        Raises:
            InputError: positions are to be skipped in a state that has none.
            UnsupportedHostError: its axes are those of the tokens in the other order.
        """
        if tokens is not None and _row_per_token(shape, tokens):
            real = tokens.real.flatten().cpu()
            kept = tokens.at(slice(skip, None)).flatten().cpu() if skip else real
            place, ids = tokens.place.flatten().cpu(), None if tokens.ids is None else tokens.ids.flatten().cpu()
            entry, _ = row_origins((*tokens.shape, 1))
            inputs = tokens.shape[0]
            if tokens.document is not None:  # each of the texts that are packed into a row is an input of its own
                packed = torch.stack([entry, tokens.document.flatten().cpu()])
                texts, entry = torch.unique(packed, dim=1, return_inverse=True)
                inputs = texts.shape[1]
        else:
            if skip and len(shape) != 3:
                raise InputError(
                    f"skip={skip} leaves out leading positions, but a state of shape {tuple(shape)} has none. "
                    "Attach without skip=, or choose sites with states [batch, position, width]."
                )
            (entry, place), ids, inputs = row_origins(tuple(shape)), None, shape[0]
            real = torch.ones(len(entry), dtype=torch.bool)
            kept = place >= skip
        if bool(kept.all()):
            return cls(inputs, real, kept, entry, place, ids)
        return cls(inputs, real, kept, entry[kept], place[kept], None if ids is None else ids[kept])

    def take(self, rows: Shaped[Tensor, " row *axes"]) -> Shaped[Tensor, " sample *axes"]:
        """Pick the samples from all rows of a pass, on their device; the rows themselves where all are kept."""
        if len(self) == len(rows):
            return rows
        return rows[self.kept.to(rows.device)]

    def some(self, chosen: Bool[Tensor, " sample"]) -> Samples:
        """Keep some of the samples."""
        kept = self.kept.clone()
        kept[self.kept] = chosen
        ids = None if self.ids is None else self.ids[chosen]
        return replace(self, kept=kept, entry=self.entry[chosen], place=self.place[chosen], ids=ids)

    def of_row(self, marked: Bool[Tensor, " row"]) -> Bool[Tensor, " sample"]:
        """Bring a mark of each row of a pass to its samples."""
        return marked[self.kept]

    def at(self, positions: slice | Sequence[int]) -> Bool[Tensor, " sample"]:
        """Mark the samples at chosen places of their sequences; negative ones count from the last, as in a list.

        Raises:
            InputError: the places are no whole numbers, or a slice goes backwards.
        """
        length = torch.zeros(self.inputs, dtype=torch.long)
        length = length.scatter_reduce(0, self.entry, self.place + 1, "amax")[self.entry]
        if isinstance(positions, slice):
            step = 1 if positions.step is None else positions.step
            if step < 1:
                raise InputError(f"Positions go forward; got {positions}.")
            start, stop = (
                bound if bound >= 0 else (length + bound).clamp_min(0)
                for bound in (positions.start or 0, 2**62 if positions.stop is None else positions.stop)
            )
            return (self.place >= start) & (self.place < stop) & ((self.place - start) % step == 0)
        if isinstance(positions, int) or not all(isinstance(one, int) for one in positions):
            raise InputError(f"Positions are a slice or a list of whole numbers, as in [5]; got {positions!r}.")
        chosen = torch.tensor([*positions], dtype=torch.long)
        return torch.isin(self.place, chosen[chosen >= 0]) | torch.isin(self.place - length, chosen[chosen < 0])

    def labels(self, labels: object) -> Int[Tensor, " sample"]:
        """Bring the labels of this pass to one a sample; see `labels_of_samples`."""
        return labels_of_samples(labels, [self])


def labels_of_samples(labels: object, passes: Sequence[Samples]) -> Int[Tensor, " sample"]:
    """Bring labels to one a sample, over several passes in order.

    Args:
        labels: whole numbers, nested or not: one a sample, one an input, one a real token (skipped ones included), or
            one a position with padding still in it.
        passes: the samples of each pass.

    Returns:
        One label a sample.

    Raises:
        InputError: their number fits none of these, or they are not whole numbers.
    """
    starts = accumulate((samples.inputs for samples in passes), initial=0)
    entries = [samples.entry + start for samples, start in zip(passes, starts, strict=False)]
    kept, real = (_joined([getattr(samples, rows) for samples in passes]) for rows in ("kept", "real"))
    forms = (
        Form("a sample", sum(map(len, passes))),
        Form("an observed input", sum(samples.inputs for samples in passes), _joined(entries)),
        Form("a token", int(real.sum()), kept[real]),
        Form("a position", len(real), kept),
    )
    return spread_labels(labels, forms)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(parts)) if parts else torch.zeros(0, dtype=torch.bool)


def none_left(passes: Sequence[Samples], skip: int) -> str:
    """Say why passes have no samples."""
    if not sum(len(samples.real) for samples in passes):
        return "There were no samples: the batches hold no inputs."
    if any(len(samples) for samples in passes):
        return "There are no samples left: all are labelled -100, the mark of what to leave out."
    return (
        f"There are no samples left: all {sum(int(samples.real.sum()) for samples in passes):,} tokens are padding or "
        f"among the first {skip} of their sequences, which skip={skip} leaves out."
    )


def _row_per_token(shape: Sequence[int], tokens: Tokens) -> bool:
    """Whether a state holds the tokens of a pass, as `[batch, position, width]` or flattened to their rows."""
    if len(shape) == 3:
        if tuple(shape[:2]) == tokens.shape[::-1] != tokens.shape:
            raise UnsupportedHostError(
                f"A state of shape {tuple(shape)} has the axes of {tokens.shape} tokens, batch and position, in the "
                "other order. If positions come first in the model's states, say so: attach(model, layout='position "
                "batch width'). If they come first in its token ids, wrap it in a module that is called with the batch "
                "first: def forward(self, ids): return self.model(ids.T).transpose(0, 1)."
            )
        return tuple(shape[:2]) == tokens.shape
    return len(shape) == 2 and shape[0] == tokens.real.numel()
