"""What our tests, the demo and the authors of adapters share.

`systems` has hosts and data with known answers, `modular` one more, which adds modulo a prime; `contract` the laws that
each adapter keeps, as a class of tests to subclass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from koopman_interp.testing.modular import ModularAdder, train_modular_adder
from koopman_interp.testing.systems import LinearHost, ResidualMLP, train_classifier, yin_yang

if TYPE_CHECKING:
    from koopman_interp.testing.contract import HostContract

__all__ = [
    "HostContract",
    "LinearHost",
    "ModularAdder",
    "ResidualMLP",
    "train_classifier",
    "train_modular_adder",
    "yin_yang",
]


def __getattr__(name: str) -> Any:
    # The contract needs all of the package; the demo needs only the systems.
    if name == "HostContract":
        from koopman_interp.testing.contract import HostContract

        return HostContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
