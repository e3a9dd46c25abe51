"""Row scores: what an audit keeps of the passes of one method, a few figures a row and the states that probes read.

Log-probabilities of all rows are never held together: rows × classes can be more than there is memory. Knows nothing
of how a method works.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from koopman_interp.auditing.passes import LabelledPass
from koopman_interp.divergence import jensen_shannon, kullback_leibler
from koopman_interp.errors import InputError

_AT_ONCE = 256
"""Rows whose log-probabilities are copied at once."""


@dataclass(frozen=True, eq=False)
class RowScores:
    """What is kept of one method's passes; *forget* rows are those of the classes to forget, *retain* rows the others.

    Attributes:
        forgotten: which rows are forget rows.
        labels: class of each row.
        right: which rows are predicted as their own class.
        true: log-probability of its own class, of each forget row.
        top: log-probability of the likeliest class, of each forget row.
        divergences: figures a row by name: `kl` and `js` of retain rows to the base model, `retrained_kl` and
            `retrained_js` of forget rows to the retrained reference, as far as these were given.
        states: by site, the rows of each batch.
    """

    forgotten: Bool[Tensor, " row"]
    labels: Int[Tensor, " row"]
    right: Bool[Tensor, " row"]
    true: Float[Tensor, " forget"]
    top: Float[Tensor, " forget"]
    divergences: Mapping[str, Float[Tensor, " _"]] = field(default_factory=dict)
    states: Mapping[str, Sequence[Float[Tensor, "_ _"]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        ours: LabelledPass,
        labels: Sequence[int],
        *,
        base: LabelledPass | None = None,
        retrained: LabelledPass | None = None,
    ) -> RowScores:
        """Score the rows of one pass.

        Args:
            ours: the pass.
            labels: the classes to forget; outputs of the model.
            base: the base model's pass over the same batch, to compare with.
            retrained: that of the retrained reference.

        Returns:
            The scores. States that are the base model's to the last bit are held as the base model's own tensors.

        Raises:
            InputError: the passes are not of the same rows and classes.
        """
        forgotten = torch.isin(ours.labels, torch.tensor(labels))
        forget, retain = forgotten.nonzero().flatten(), (~forgotten).nonzero().flatten()
        divergences: dict[str, Tensor] = {}
        for other, rows, prefix in ((base, retain, ""), (retrained, forget, "retrained_")):
            if other is not None:
                divergences |= _divergences(ours, other, rows, prefix)
        return cls(
            forgotten=forgotten,
            labels=ours.labels,
            right=ours.logp.argmax(1) == ours.labels,
            true=ours.logp[forget, ours.labels[forget]],
            top=ours.logp.amax(1)[forget],
            divergences=divergences,
            states={site: [_shared(rows, site, base)] for site, rows in ours.states.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[RowScores]) -> RowScores:
        """Put the rows of several batches one after another; states stay parted."""
        sites = [site for site in parts[0].states if all(site in part.states for part in parts)]

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        return cls(
            forgotten=joined("forgotten"),
            labels=joined("labels"),
            right=joined("right"),
            true=joined("true"),
            top=joined("top"),
            divergences={name: torch.cat([part.divergences[name] for part in parts]) for name in parts[0].divergences},
            states={site: [rows for part in parts for rows in part.states[site]] for site in sites},
        )

    @property
    def forget_accuracy(self) -> float:
        """Share of the forget rows that are predicted as their own class."""
        return float(self.right[self.forgotten].double().mean())

    @property
    def retain_accuracy(self) -> float:
        """Share of the retain rows that are predicted as their own class."""
        return float(self.right[~self.forgotten].double().mean())

    @property
    def counts(self) -> tuple[int, int]:
        """Forget rows and retain rows."""
        forget = int(self.forgotten.sum())
        return forget, len(self.forgotten) - forget

    def has_states_of(self, other: RowScores, site: str) -> bool:
        """Whether the states at a site are the other's to the last bit."""
        ours, theirs = self.states[site], other.states[site]
        return all(one is another for one, another in zip(ours, theirs, strict=True))


def _divergences(ours: LabelledPass, other: LabelledPass, rows: Tensor, prefix: str) -> dict[str, Tensor]:
    if ours.logp.shape != other.logp.shape:
        raise InputError(
            f"The audited models do not answer alike: one has {tuple(ours.logp.shape)} log-probabilities (row, class) "
            f"of a batch, another {tuple(other.logp.shape)}. Give a retrained model of the same architecture."
        )
    kl, js = [], []
    for part in rows.split(_AT_ONCE):
        p, q = ours.logp[part], other.logp[part]
        kl.append(kullback_leibler(p, q))
        js.append(jensen_shannon(p, q) / math.log(2))
    return {f"{prefix}kl": torch.cat(kl), f"{prefix}js": torch.cat(js)}


def _shared(rows: Tensor, site: str, base: LabelledPass | None) -> Tensor:
    own = None if base is None else base.states.get(site)
    return own if own is not None and torch.equal(own, rows) else rows
