"""Ctrl-C at a step of a descent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from koopman_interp.fitting.descent import Descent


def interrupted_at(monkeypatch: pytest.MonkeyPatch, stop: int) -> Callable[[], None]:
    """Let Ctrl-C come at the start of a step; the function returned undoes that."""
    descend = Descent._descend

    def stops(self: Descent, step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt
        descend(self, step)

    monkeypatch.setattr(Descent, "_descend", stops)
    return lambda: monkeypatch.setattr(Descent, "_descend", descend)
