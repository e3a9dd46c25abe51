"""Where in a pass something is written: the rows of a state at chosen places; and how long a list of hooks lives.

Knows nothing of what is written there.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hosts.passes import Pass
from koopman_interp.hosts.tokens import Positions, Tokens


def chosen_rows(
    running: Pass, state: Float[Tensor, "..."], site: str, positions: Positions
) -> Int[Tensor, " row"] | None:
    """Number the rows of a state `[batch, position, width]` that stand at chosen places; None is all.

    Args:
        running: the pass that the state is of.
        state: in the host's own shape.
        site: its name, for messages.
        positions: the places.

    Raises:
        InputError: the state has no positions, or not those that the pass was called with.
    """
    if positions is None:
        return None
    if state.ndim != 3:
        raise InputError(
            f"Positions choose among tokens, but the state at {site!r} has the shape {tuple(state.shape)}; "
            "expected [batch, position, width]. Patch without positions."
        )
    return tokens_of(running, state, site).at(positions).to(state.device).flatten().nonzero().squeeze(1)


def tokens_of(running: Pass, state: Tensor, site: str) -> Tokens:
    """Return the tokens of a state `[batch, position, width]`; each row is real where the call tells none.

    Raises:
        InputError: the state has other positions than the call has tokens.
    """
    shape = (state.shape[0], state.shape[1])
    tokens = running.tokens if running.tokens is not None else Tokens.of_mask(None, shape, 0, state)
    if tokens.shape != shape:
        raise InputError(
            f"The pass was called with {tokens.shape} tokens (batch, position), but the state at {site!r} "
            f"has {shape}, so their places are not known. Patch without positions."
        )
    return tokens


class Alive:
    """What hooks hold on to, so that it is known when the last of them is gone."""

    def call(self, hook: Callable[[Tensor], Tensor | None], state: Tensor) -> Tensor | None:
        """Call a hook."""
        return hook(state)
