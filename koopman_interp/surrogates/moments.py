"""Class means and covariances of observables at each depth, gathered in one pass and kept with a fit.

They are all that the closed-form edits need, so that a class can be forgotten later without data. Knows nothing
of edits; costs one product of the observables with themselves a depth.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Moments(nn.Module):
    """First and second moments of observables, per depth.

    Args:
        depths: number of depths.
        classes: the labels that occur, ascending; empty for unlabelled data.
        observables: width of the observable space.

    Buffers, all float64: `count [class]` (of one class for unlabelled data), `mean [depth, class, observable]`
    and `covariance [depth, observable, observable]`, the total covariance over all rows.
    """

    count: Float[Tensor, " class"]
    mean: Float[Tensor, "depth class observable"]
    covariance: Float[Tensor, "depth observable observable"]

    def __init__(self, depths: int, classes: tuple[int, ...], observables: int) -> None:
        super().__init__()
        self.classes = classes
        groups = max(len(classes), 1)
        zeros = torch.zeros(depths, groups, observables, dtype=torch.float64)
        self.register_buffer("count", torch.zeros(groups, dtype=torch.float64))
        self.register_buffer("mean", zeros)
        self.register_buffer("covariance", torch.zeros(depths, observables, observables, dtype=torch.float64))

    @property
    def rows(self) -> int:
        """How many rows were gathered."""
        return int(self.count.sum())

    def total_mean(self, depth: int) -> Float[Tensor, " observable"]:
        """Mean over all rows at a depth."""
        return self.count @ self.mean[depth] / self.count.sum()

    def update(
        self, observables: Float[Tensor, "depth sample observable"], labels: Int[Tensor, " sample"] | None
    ) -> None:
        """Add a chunk of rows; one without rows adds nothing.

        The running mean and covariance are merged with the chunk's (Chan, Golub & LeVeque 1983), which stays
        accurate where the mean is large beside the spread.
        """
        if not observables.shape[1]:
            return
        z = observables.double()
        if labels is None or not self.classes:
            group = torch.zeros(z.shape[1], dtype=torch.long, device=z.device)
        else:
            known = torch.tensor(self.classes, device=z.device)
            assert torch.isin(labels.to(z.device), known).all(), "a label that is not among the moments' classes"
            group = torch.searchsorted(known, labels.to(z.device))
        member = torch.nn.functional.one_hot(group, len(self.count)).to(z)
        added, before = member.sum(0), self.count.sum()
        total = before + added.sum()
        old_mean = torch.einsum("c,dcm->dm", self.count, self.mean) / before.clamp_min(1)
        new_mean = z.mean(1)
        centred = z - new_mean[:, None]
        jump = new_mean - old_mean
        scatter = self.covariance * before + torch.einsum("dsm,dsn->dmn", centred, centred)
        scatter += (before * added.sum() / total) * torch.einsum("dm,dn->dmn", jump, jump)
        self.covariance.copy_(scatter / total)
        sums = self.mean * self.count[:, None] + torch.einsum("sc,dsm->dcm", member, z)
        self.count.add_(added)
        self.mean.copy_(sums / self.count.clamp_min(1)[:, None])

    def add(self, other: Moments) -> None:
        """Add the moments of other rows, of the same classes and depths, as if their rows had been added."""
        before, added = self.count.sum(), other.count.sum()
        if not added:
            return
        total = before + added
        theirs = torch.einsum("c,dcm->dm", other.count, other.mean) / added
        jump = theirs - torch.einsum("c,dcm->dm", self.count, self.mean) / before.clamp_min(1)
        scatter = self.covariance * before + other.covariance * added
        scatter += (before * added / total) * torch.einsum("dm,dn->dmn", jump, jump)
        sums = self.mean * self.count[:, None] + other.mean * other.count[:, None]
        self.covariance.copy_(scatter / total)
        self.count.add_(other.count)
        self.mean.copy_(sums / self.count.clamp_min(1)[:, None])

    def turned(self, Q: Float[Tensor, "observable _"]) -> Moments:
        """Return the moments of observables that are turned, `z → z Q`."""
        depths, _, observables = self.mean.shape
        turned, Q = Moments(depths, self.classes, observables), Q.to(self.mean)
        turned.count.copy_(self.count)
        turned.mean.copy_(self.mean @ Q)
        turned.covariance.copy_(Q.T @ self.covariance @ Q)
        return turned

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Moments:
        """Follow moves to another device, but stay in float64 when a surrogate is cast."""
        precise = dict(self.named_buffers())
        nn.Module._apply(self, fn, recurse)
        for name, buffer in precise.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self
