"""Outputs: what a host says of each sample, aligned with the rows of its states.

Costs one forward pass a call; holds one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from koopman_interp.errors import InputError, UnsupportedHostError
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokens
from koopman_interp.labels import IGNORED
from koopman_interp.observing.samples import Samples


@dataclass(frozen=True, eq=False)
class Output:
    """What came out of one forward pass.

    Attributes:
        logp: log-probabilities `[sample, class]`, by default float64 on the CPU: one row a kept token, or one an input.
        samples: which rows of the logits those are.
        tokens: of the pass, or None.
    """

    logp: Float[Tensor, "sample class"]
    samples: Samples
    tokens: Tokens | None

    @classmethod
    def of(cls, host: Host, batch: Any, skip: int = 0, *, training: bool = False) -> Output:
        """Call a host.

        Args:
            host: the host.
            batch: for `Host.call`.
            skip: leading places of each sequence to leave out, where there is a row of logits a token.
            training: keep the log-probabilities in float32 where the host computed them, and do not move them.

        Returns:
            Its output.

        Raises:
            UnsupportedHostError: the host returned no logits `[batch, class]` or `[batch, position, class]`, of two
                classes or more, or probabilities in their place.
        """
        seen: list[Tokens | None] = []
        with host.eager(), host.passes(ended=lambda running: seen.append(running.tokens)):
            logits = logits_of(host.call(batch))
        return cls.of_logits(logits, seen[-1] if seen else None, skip, training=training)

    @classmethod
    def of_logits(
        cls, logits: Float[Tensor, "..."], tokens: Tokens | None, skip: int = 0, *, training: bool = False
    ) -> Output:
        """Read the logits of a pass; see `of`.

        Args:
            logits: `[batch, class]` or `[batch, position, class]`.
            tokens: of the pass, or None.
            skip: as in `of`.
            training: as in `of`.
        """
        if logits.ndim == 1 or logits.shape[-1] < 2:
            raise UnsupportedHostError(
                f"Expected logits of two classes or more; got a shape of {tuple(logits.shape)}, one number an input, "
                "a quantity. Of one logit y for yes against no make two: torch.stack([torch.zeros_like(y), y], -1), "
                "without an axis of one; of one probability, with torch.logit(y) in the place of y."
            )
        if logits.ndim not in (2, 3):
            raise UnsupportedHostError(
                f"Expected logits [batch, class] or [batch, position, class]; got a shape of {tuple(logits.shape)}."
            )
        samples = Samples.of(logits.shape, tokens, skip if logits.ndim == 3 else 0)
        rows = samples.take(logits.flatten(0, -2))
        if _are_probabilities(rows[:1]) and _are_probabilities(rows):
            raise UnsupportedHostError(
                "Expected logits; got rows that are nowhere negative and sum to 1, so they are probabilities, of which "
                "another softmax would be taken. Give their logarithms: wrap the model in a module that returns "
                "self.model(x).clamp_min(1e-12).log()."
            )
        logp = log_softmax(rows.float(), dim=1) if training else log_softmax(rows.double(), dim=1).cpu()
        return cls(logp, samples, tokens)

    def following(self) -> Int[Tensor, " sample"]:
        """Label each row with the token that follows it in its sequence; -100 where none does.

        Raises:
            InputError: the rows are no tokens whose ids are known, or the output has no class for some of them.
        """
        ids, entry, place = self.samples.ids, self.samples.entry, self.samples.place
        if ids is None:
            raise InputError(
                "Next tokens are labels where the output has a row a token and the host is called with token ids; "
                "it has none here. Give labels."
            )
        labels = torch.full_like(ids, IGNORED)
        follows = (entry[1:] == entry[:-1]) & (place[1:] == place[:-1] + 1)
        labels[:-1][follows] = ids[1:][follows]
        if len(labels) and int(labels.max()) >= self.logp.shape[1]:
            raise InputError(
                f"The host's output has {self.logp.shape[1]} classes, and token ids go up to {int(labels.max())}, so "
                "its classes are not the tokens. Give labels."
            )
        return labels

    def labels(self, of_states: Int[Tensor, " row"], states: Samples) -> Int[Tensor, " sample"] | None:
        """Bring labels of the states of the same pass to the rows of this output.

        Args:
            of_states: one label a state; -100 where it is to be ignored.
            states: which rows of the state those are.

        Returns:
            The same where states and logits are aligned. Where there is one row of logits an input, the one label that
            its states share. None where neither is so.
        """
        if len(states.kept) == len(self.samples.kept) and torch.equal(states.kept, self.samples.kept):
            return of_states
        if len(self.samples) != states.inputs:
            return None
        judged = of_states != IGNORED
        entry, given = states.entry[judged], of_states[judged]
        found = torch.full((states.inputs,), IGNORED)
        found[entry] = given
        return found if torch.equal(found[entry], given) else None


def _are_probabilities(rows: Float[Tensor, "sample class"]) -> bool:
    """Whether rows are nowhere negative and sum to 1, as far as their dtype can tell."""
    sums = rows.sum(1, dtype=torch.float64)
    near = max(torch.finfo(rows.dtype).eps, 1e-5)  # each number is off by half of eps, at most, of itself
    return bool(len(rows)) and bool((rows >= 0).all()) and bool(((sums - 1).abs() <= near).all())


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a model returned.

    Raises:
        UnsupportedHostError: it is neither a tensor nor has one in `.logits` or under that name.
    """
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    logits = output if isinstance(output, Tensor) else named
    if isinstance(logits, Tensor):
        return logits
    raise UnsupportedHostError(
        f"Expected the model to return logits, as a tensor or in .logits; got {type(output).__name__}. Load it with "
        "its head (AutoModelForCausalLM in place of AutoModel), or wrap it in a module that returns them."
    )
