"""Each class erased in turn, delta, at a strength chosen on training rows. Knows nothing of data sets or hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from common import Data, predictions, share
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.tables import table

STRENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)


def erased_in_turn(model: nn.Module, koopman: ki.KoopmanAutoencoder, data: Data) -> list[dict[str, Any]]:
    """Erase each class at the strength that leaves the fewest of its training rows; see `fewest_left`.

    Returns:
        Figures on the test rows, in percent, one entry a class.
    """
    host = predictions(model, data.x_test)
    classes = []
    for label in data.y.unique().tolist():

        def left(strength: float, label: int = label) -> int:
            with ki.patched(model, koopman, ki.erase_class(koopman, label=label, strength=strength)):
                return int((predictions(model, data.x[data.y == label]) == label).sum())

        strength = fewest_left(STRENGTHS, left)
        edit = ki.erase_class(koopman, label=label, strength=strength)
        with ki.patched(model, koopman, edit):
            guess = predictions(model, data.x_test)
        classes.append({"label": label, "site": edit.site, "strength": strength, **moved(host, guess, data, [label])})
    return classes


def fewest_left(strengths: Sequence[float], left: Callable[[float], int]) -> float:
    """Return the smallest strength that leaves no training row; where each leaves some, the one that leaves least."""
    found: dict[float, int] = {}
    for strength in strengths:
        found[strength] = left(strength)
        if not found[strength]:
            break
    return min(found, key=lambda strength: found[strength])


def moved(host: Tensor, guess: Tensor, data: Data, labels: list[int]) -> dict[str, float]:
    """Compare an edited host's predictions on the test rows with the host's own; in percent."""
    y = data.y_test
    gone = sum((y == label for label in labels), start=y != y)
    still = sum((guess[gone] == label for label in labels), start=guess[gone] != guess[gone])
    own = share(host[~gone] == y[~gone])
    return {
        "rows": int(gone.sum()),
        "host": 100 * share(host[gone] == y[gone]),
        "forgotten": 100 * share(still),
        "retained": 100 * share(guess[~gone] == y[~gone]),
        "retained_minus_host": 100 * (share(guess[~gone] == y[~gone]) - own),
    }


def by_class(classes: list[dict[str, Any]]) -> str:
    """Tabulate the classes."""
    rows = [
        [
            str(one["label"]),
            one["site"],
            f"{one['strength']:g}",
            f"{one['host']:.2f}",
            f"{one['forgotten']:.2f}",
            f"{one['retained_minus_host']:+.2f}",
        ]
        for one in classes
    ]
    return table(["class", "site", "strength", "host %", "recognised %", "retained − host"], rows)
