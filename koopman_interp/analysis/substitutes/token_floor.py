"""The token-wise floor: what a model says on the mean, given the token alone.

    q(·|t) = E[p | t]    of all maps of the token alone the one with the least mean `KL(p ‖ q)`, since of each token
                         `E KL(p ‖ q) = E KL(p ‖ p̄) + KL(p̄ ‖ q)` with p̄ the arithmetic mean (the geometric one
                         has the least `KL(q ‖ p)`)

A map of states that know nothing but their token, as embeddings do, cannot come nearer to the model, whatever it is: no
surrogate, no lens. Estimated on the rows fitted, whose last states the model's own head reads, and judged on others, so
that what it leaves is, up to the luck of the draw, an upper bound of the floor. Rare tokens lean on the mean over all
by their credibility, `q_t = (n_t p̄_t + κ p̄) / (n_t + κ)` with κ the variance within tokens over that between them
(Bühlmann, ASTIN Bulletin 4, 1967). Costs one pass of the head over those rows; holds a distribution for each token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.divergence import kullback_leibler
from koopman_interp.observing.own_pass import Continuation, OwnPass
from koopman_interp.tables import in_percent
from koopman_interp.trajectories import Trajectories

FLOOR = "token-wise floor"

_KEPT = 2**26
"""Probabilities that are kept at most: of the most frequent tokens; others are given the mean over all."""
_READ = 2**30
"""Probabilities that are read off the head at most, of evenly spaced rows."""
_CALLS = 1000
"""Calls of the head at most."""
_SAME = 1e-4
"""Divergence in nats up to which the head says the same of a state wherever it stands."""
_NOTHING_ELSE = 1e-6
"""Share of the variance of the first states that may lie within tokens for them to be of the token alone."""


class TokenFloor:
    """The mean of a model's output given the token, learnt by the first pass that it is asked about.

    Args:
        fitted: rows to learn it on.

    Attributes:
        rows: how many of them it was learnt on; 0 where there is no such mean, or none yet.
        parameters: numbers that were learnt.
    """

    def __init__(self, fitted: Trajectories) -> None:
        self.rows = self.parameters = 0
        self._fitted = fitted
        self._asked = False
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._logq = torch.empty(1, 0, dtype=torch.float64)

    def logp(self, own: OwnPass) -> Float[Tensor, "sample class"] | None:
        """Return what the token alone says of each sample of a pass, as log-probabilities.

        None where the model's output has no row a token, or what lies after the last site mixes rows.
        """
        ids = own.output.samples.ids
        if not self._asked and len(own.output.logp):
            self._asked = True
            if ids is not None and self._fitted.tokens is not None and len(ids) == len(own.rows(len(own.sites) - 1)):
                self._learn(own)
        if not self.rows or ids is None:
            return None
        index = torch.searchsorted(self._tokens, ids).clamp_max(len(self._tokens) - 1)
        return self._logq[torch.where(self._tokens[index] == ids, index, len(self._tokens))]

    def note(self) -> str:
        """Say what it is and what it is not; nothing where there is none."""
        if not self.rows:
            return ""
        said = (
            f"The {FLOOR} is the mean of what the model says given the token, over {self.rows:,} rows fitted: no map "
            "of the token alone does better, but for what more rows would bring."
        )
        share = _within(self._fitted)
        if share > _NOTHING_ELSE:
            said += f" States at the first depth hold more than the token ({in_percent(share, 1)} of their variance)."
        return said

    def _learn(self, own: OwnPass) -> None:
        last = len(own.sites) - 1
        with torch.no_grad(), own.after(last) as continued:
            rows = own.rows(last)
            if len(rows) < 2 or not _is_head(continued, rows, own.output.logp):
                return
            size, classes = len(rows), own.output.logp.shape[1]
            most = max(1, min(len(self._fitted), _READ // classes, _CALLS * size))
            index = torch.linspace(0, len(self._fitted) - 1, most).round().long()
            tokens = self._fitted.tokens
            assert tokens is not None, "a floor is of tokens"
            means = _Means(_frequent(tokens, _KEPT // classes), classes)
            for part in index.split(size):
                # The pass takes as many rows as it has samples.
                filled = torch.cat([part, part.new_zeros(size - len(part))])
                logp = continued(self._fitted.states[last][filled]).logp[: len(part)]
                means.add(tokens[part], logp.exp())
        self.rows, self._tokens, self._logq = most, means.tokens, means.credible().log()
        self.parameters = self._logq.numel()


def _frequent(tokens: Int[Tensor, " sample"], most: int) -> Int[Tensor, " token"]:
    """Return the most frequent tokens, ascending."""
    distinct, counts = torch.unique(tokens, return_counts=True)
    return distinct[counts.argsort(descending=True, stable=True)[: max(1, most)]].sort().values


class _Means:
    """Sums of distributions by token.

    Args:
        tokens: those that are told apart, ascending; the last place is for all others.
        classes: of the distributions.
    """

    def __init__(self, tokens: Int[Tensor, " token"], classes: int) -> None:
        self.tokens = tokens
        self._sums = torch.zeros(len(tokens) + 1, classes, dtype=torch.float64)
        self._counts = torch.zeros(len(tokens) + 1, dtype=torch.float64)
        self._squares = 0.0

    def add(self, ids: Int[Tensor, " row"], p: Float[Tensor, "row class"]) -> None:
        index = torch.searchsorted(self.tokens, ids).clamp_max(len(self.tokens) - 1)
        place = torch.where(self.tokens[index] == ids, index, len(self.tokens))
        self._sums.index_add_(0, place, p)
        self._counts += place.bincount(minlength=len(self._counts))
        self._squares += float(p.square().sum())

    def credible(self) -> Float[Tensor, "token class"]:
        """Return the mean of each token, as far as it is credible, and below all the mean over all."""
        n, counts = self._counts[:, None], self._counts[self._counts > 0]
        total, groups = float(counts.sum()), len(counts)
        overall, own = self._sums.sum(0) / total, self._sums / n.clamp_min(1)
        mixed = overall.expand_as(own).clone()
        if groups < 2:
            return mixed
        explained = float((n * own.square()).sum())
        within = max(0.0, self._squares - explained) / max(1.0, total - groups)
        between = explained - total * float(overall.square().sum()) - (groups - 1) * within
        between = between / (total - float(counts.square().sum()) / total)
        if between > 0:
            kappa = within / between
            seen = self._counts[:-1] > 0
            mixed[:-1][seen] = ((self._sums + kappa * overall) / (n + kappa))[:-1][seen]
        return mixed


def _is_head(continued: Continuation, rows: Float[Tensor, "sample width"], logp: Float[Tensor, "sample class"]) -> bool:
    """Whether what lies after the last site says the same of each state in whatever order they stand."""
    turned = continued(rows.flip(0)).logp
    return float(kullback_leibler(logp.flip(0), turned).mean()) <= _SAME


def _within(fitted: Trajectories) -> float:
    """Share of the variance of the first states that lies within tokens."""
    _, index = torch.unique(fitted.tokens, return_inverse=True)
    states = fitted.states[0].double()
    sums = states.new_zeros(int(index.max()) + 1, states.shape[1]).index_add_(0, index, states)
    means = sums / index.bincount()[:, None]
    return float((states - means[index]).square().sum() / (states - states.mean(0)).square().sum().clamp_min(1e-300))
