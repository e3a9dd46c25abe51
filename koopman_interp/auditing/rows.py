"""One method of forgetting and all that was measured of it, as a value.

Everything that an audit was not asked for is None or empty. Computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from koopman_interp.auditing.language import LanguageScores
from koopman_interp.auditing.membership import Membership
from koopman_interp.auditing.probe_scores import ProbeScores
from koopman_interp.auditing.relearning import RelearningCurve


@dataclass(frozen=True)
class AuditRow:
    """One method of forgetting. Shares lie between 0 and 1, and are of held-out rows unless said otherwise.

    *Forget* rows are those of the classes to forget, *retain* rows all others.

    Attributes:
        name: of the method.
        forget_accuracy: share of the forget rows that are still predicted as their own class.
        retain_accuracy: accuracy on the retain rows.
        kl: mean `KL(this ‖ base model)` on the retain rows, in nats; in this direction, since a masked logit leaves a
            probability of zero.
        linear_probe: accuracy of a balanced linear probe for forget rows on the last site's states; 0.5 at chance.
        rbf_probe: the same with an RBF kernel.
        prototype: recall of the classes by nearest 10-shot class prototypes at the last site.
        mlp_probe: as the linear probe, with a hidden layer.
        one_shot, five_shot: as the prototype, from fewer examples.
        js: mean Jensen-Shannon divergence to the base model on the retain rows, in bits: 0 is the same, 1 nothing
            shared.
        retrained_kl: mean `KL(this ‖ retrained reference)` on the forget rows, in nats.
        retrained_js: mean Jensen-Shannon divergence to the retrained reference on the forget rows, in bits.
        drift: root mean square by which the retain rows' states move at the last site, relative to the root mean
            square spread of the base model's states there. None for another model.
        forget_accuracy_training, retain_accuracy_training: the accuracies on rows that were trained on.
        membership: attacks that tell the training rows of the classes from held-out ones.
        depths: probe scores at every site that was reached, if asked for; the last are those of the probes above.
        relearning: how the classes come back under fine-tuning.
        language: what a language model does, if asked for.
        intervals: 95 % intervals, by the name of the measure: Wilson's for shares.
    """

    name: str
    forget_accuracy: float
    retain_accuracy: float
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
    forget_accuracy_training: float | None = None
    retain_accuracy_training: float | None = None
    membership: Membership | None = None
    depths: tuple[ProbeScores, ...] = ()
    relearning: tuple[RelearningCurve, ...] = ()
    language: LanguageScores | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def best_probe(self) -> float | None:
        """Accuracy of the best probe at the last site; None without any."""
        return max(
            (probe for probe in (self.linear_probe, self.rbf_probe, self.mlp_probe) if probe is not None), default=None
        )
