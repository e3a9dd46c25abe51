"""Outputs: what a host says of each sample, aligned with the rows of its states.

Costs one forward pass a call; holds one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from koopman_interp.errors import UnsupportedHostError
from koopman_interp.hosts import Host, logits_of
from koopman_interp.samples import Samples
from koopman_interp.tokens import Tokens
from koopman_interp.trajectories import IGNORED


@dataclass(frozen=True, eq=False)
class Output:
    """What came out of one forward pass.

    Attributes:
        logp: log-probabilities `[sample, class]`, float64, on the CPU: one row a kept token, or one an input.
        samples: which rows of the logits those are.
        tokens: of the pass, or None.
    """

    logp: Float[Tensor, "sample class"]
    samples: Samples
    tokens: Tokens | None

    @classmethod
    def of(cls, host: Host, batch: Any, skip: int = 0) -> Output:
        """Call a host.

        Args:
            host: the host.
            batch: for `Host.call`.
            skip: leading places of each sequence to leave out, where there is a row of logits a token.

        Returns:
            Its output.

        Raises:
            UnsupportedHostError: the host returned no logits `[batch, class]` or `[batch, position, class]`.
        """
        seen: list[Tokens | None] = []
        with host.passes(seen.append):
            logits = logits_of(host.call(batch))
        if logits.ndim not in (2, 3):
            raise UnsupportedHostError(
                f"Expected logits [batch, class] or [batch, position, class]; got a shape of {tuple(logits.shape)}."
            )
        tokens = seen[-1] if seen else None
        samples = Samples.of(logits.shape, tokens, skip if logits.ndim == 3 else 0)
        return cls(log_softmax(samples.take(logits.flatten(0, -2)).double(), dim=1).cpu(), samples, tokens)

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
