"""Texts labelled by the token that follows each token, for what is judged or erased by class.

Costs a pass over the inputs; holds them, tokenised.
"""

from __future__ import annotations

from typing import Any

import torch

from koopman_interp.errors import InputError
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.outputs import Output


@torch.no_grad()
def labelled_by_next_token(
    host: Host, inputs: Any, *, skip: int = 0, least: int = 1, batch_size: int = BATCH_SIZE
) -> list[tuple[Any, Any]]:
    """Label each token of a language model with the one that follows it.

    Args:
        host: the model.
        inputs: texts, or what else `Tap.observe` takes, without labels.
        skip: leading positions that are left out, as in what is made of the labels.
        least: rows that a token must follow; those that rarer ones follow are left out, by -100.
        batch_size: of inputs that are to be cut.

    Returns:
        Batches of what to call the model with and of labels, one a sample.

    Raises:
        InputError: the inputs have labels, the model is not called with token ids, or no token follows that often.
    """
    batches = []
    for x, y in calls(host, inputs, batch_size=batch_size):
        if y is not None:
            raise InputError("Labels are those given or next tokens; got both. Leave out one of them.")
        batches.append((x, Output.of(host, x, skip).following()))
    following = torch.cat([torch.empty(0, dtype=torch.long), *(y for _, y in batches)])
    tokens, counts = torch.unique(following[following != IGNORED], return_counts=True)
    common = tokens[counts >= least]
    if not len(common):
        raise InputError(f"No token follows {least:,} times or more. Give more texts.")
    return [(x, y.where(torch.isin(y, common), IGNORED)) for x, y in batches]
