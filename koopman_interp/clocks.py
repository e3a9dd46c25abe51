"""Clocks: what time is where it is not depth, but the ticks of a path of inputs at one site.

A value that trajectories carry, a surrogate keeps and a spectrum reads. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from koopman_interp.errors import InputError
from koopman_interp.files import Json


@dataclass(frozen=True)
class Clock:
    """One site, observed tick by tick along paths of inputs.

    Attributes:
        site: the site in the model.
        period: ticks after which each path is where it was; None where paths do not return, or it is not known.

    Raises:
        InputError: the period is not positive and finite.
    """

    site: str
    period: float | int | None = None

    def __post_init__(self) -> None:
        if self.period is not None and not (self.period > 0 and math.isfinite(self.period)):
            raise InputError(f"A period is a positive number of ticks, or None where there is none; got {self.period}.")

    def __str__(self) -> str:
        returns = "" if self.period is None else f", period {self.period:g}"
        return f"{self.site!r}{returns}"

    def name(self, time: float) -> str:
        """Name a tick as trajectories name a site.

        >>> Clock("blocks.0.mlp").name(3.0)
        'blocks.0.mlp@t=3'
        """
        return f"{self.site}@t={time:.12g}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Json] | None) -> Clock | None:
        """Rebuild from plain values; None, as files of what has no clock hold it, stays None."""
        return None if values is None else cls(**values)

    def as_dict(self) -> dict[str, Json]:
        """Return plain values for JSON."""
        return asdict(self)

    def no_span(self, what: str) -> str:
        """Say why this has no place in a forward pass, and what to write.

        Args:
            what: that was asked for, as the subject of the sentence.
        """
        return (
            f"{what} needs a surrogate that moves through the depth of the model; this one moves from tick to tick "
            f"along an orbit of inputs at {self.site!r}, and no forward pass holds two ticks. Fit depth: "
            "ki.fit(ki.attach(model, [source, target]).observe(x))."
        )
