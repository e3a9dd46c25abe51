"""Where a descent stands, as a value that its checkpoint keeps in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from koopman_interp.surrogates.record import Look

_MOST = 2**53


@dataclass
class Progress:
    """Where a descent stands.

    Attributes:
        step: steps taken.
        best: smallest figure so far.
        stale: looks since then.
        history: figures of all looks.
        decay_from: the step at which the learning rate began to fall, under a schedule that decides so on its way.
        seconds: that steps and looks have taken.
        halvings: how often the batch was halved, for want of memory; once at most.
        notes: what else happened on its way, in words.
    """

    step: int = 0
    best: float = math.inf
    stale: int = 0
    history: list[Look] = field(default_factory=list)
    decay_from: int | None = None
    seconds: float = 0.0
    halvings: int = 0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Progress:
        """Rebuild from what `dataclasses.asdict` and JSON made of it.

        Raises:
            TypeError: there is a part that it does not have.
            ValueError: a part is of another kind, or larger than it can be.
        """
        made = cls(**values)
        looks = made.history if isinstance(made.history, list) else [None]
        fits = (
            all(
                map(
                    _is_count, (made.step, made.stale, made.halvings, 0 if made.decay_from is None else made.decay_from)
                )
            )
            and made.halvings <= 1
            and all(map(_is_number, (made.best, made.seconds)))
            and all(isinstance(look, dict) and _is_count(look.get("step")) for look in looks)
            and all(_is_number(value) for look in looks for value in look.values())
            and isinstance(made.notes, list)
            and all(isinstance(note, str) for note in made.notes)
        )
        if not fits:
            raise ValueError(f"There is no such progress: {values}.")
        return made


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
