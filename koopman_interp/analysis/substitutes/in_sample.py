"""Which rows of what is called held out the surrogate was fitted on: what is said of them is not said of others."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.observing.digests import input_digests
from koopman_interp.observing.samples import Samples
from koopman_interp.surrogates.record import FitRecord


def fitted_on(record: FitRecord, batch: Any, samples: Samples) -> Bool[Tensor, " sample"]:
    """Mark the samples of a pass that are known to be of inputs fitted on.

    Args:
        record: of the fit.
        batch: what the model was called with.
        samples: of the pass.
    """
    try:
        return record.is_fitted_on(input_digests(batch, samples))[samples.entry]
    except InputError:  # it is not known which entry is which input
        return torch.zeros(len(samples), dtype=torch.bool)
