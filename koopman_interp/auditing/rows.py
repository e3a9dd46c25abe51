"""One way of forgetting and all that was measured of it, as a value.

Everything that an audit was not asked for is None or empty. Computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from koopman_interp.auditing.language import LanguageReading
from koopman_interp.auditing.membership import Membership
from koopman_interp.auditing.probe_scores import Reading
from koopman_interp.auditing.relearning import RelearningCurve


@dataclass(frozen=True)
class AuditRow:
    """One way of forgetting. Shares lie between 0 and 1, and are of held-out rows unless said otherwise.

    Attributes:
        name: of the way.
        forgotten: share of the forgotten class's rows that are still predicted as it.
        retained: accuracy on the other rows.
        kl: mean `KL(this ‖ host)` on the other rows, in nats; in this direction, since a masked logit leaves a
            probability of zero.
        linear_probe: accuracy of a balanced linear probe for the class on the last site's states; chance is 0.5.
        rbf_probe: the same with an RBF kernel.
        prototype: recall of the class by nearest 10-shot class prototypes at the last site.
        mlp_probe: as the linear probe, with a hidden layer.
        one_shot, five_shot: as the prototype, from fewer examples.
        js: mean Jensen-Shannon divergence to the host on the other rows, in bits: 0 is the same, 1 nothing shared.
        retrained_kl: mean `KL(this ‖ retrained)` on the forgotten class's rows, in nats.
        retrained_js: mean Jensen-Shannon divergence to the retrained model on the forgotten class's rows, in bits.
        drift: root mean square by which the others' states move at the last site, relative to the root mean square
            spread of the host's states there. None for another model.
        forgotten_training, retained_training: as `forgotten` and `retained`, on rows that were trained on.
        membership: attacks that tell the class's training rows from held-out ones.
        depths: readings at every site that was reached, if asked for; the last is that of the probes above.
        relearning: how the class comes back under fine-tuning.
        language: what a language model does, if asked for.
        intervals: 95 % intervals, by the name of the measure: Wilson's for shares.
    """

    name: str
    forgotten: float
    retained: float
    kl: float
    linear_probe: float | None
    rbf_probe: float | None
    prototype: float
    mlp_probe: float | None = None
    one_shot: float | None = None
    five_shot: float | None = None
    js: float | None = None
    retrained_kl: float | None = None
    retrained_js: float | None = None
    drift: float | None = None
    forgotten_training: float | None = None
    retained_training: float | None = None
    membership: Membership | None = None
    depths: tuple[Reading, ...] = ()
    relearning: tuple[RelearningCurve, ...] = ()
    language: LanguageReading | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def found(self) -> float | None:
        """Accuracy of the best probe; None without any."""
        return max(
            (probe for probe in (self.linear_probe, self.rbf_probe, self.mlp_probe) if probe is not None), default=None
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AuditRow:
        """Rebuild from the plain values of JSON, in which a figure that was not finite is None."""
        parts = {**values, "kl": _finite_or_nan(values["kl"])}
        if (found := parts["membership"]) is not None:
            parts["membership"] = Membership(**{name: _finite_or_nan(figure) for name, figure in found.items()})
        if parts["language"] is not None:
            parts["language"] = LanguageReading.from_dict(parts["language"])
        parts["depths"] = tuple(map(Reading.from_dict, parts["depths"]))
        parts["relearning"] = tuple(map(RelearningCurve.from_dict, parts["relearning"]))
        parts["intervals"] = {name: tuple(ends) for name, ends in parts["intervals"].items()}
        return cls(**parts)


def _finite_or_nan(figure: float | None) -> float:
    return math.nan if figure is None else figure
