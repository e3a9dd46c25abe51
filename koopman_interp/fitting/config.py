"""What a descent and a fit can be told: frozen values, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Literal

from koopman_interp.errors import InputError, nearest
from koopman_interp.files import Json
from koopman_interp.fitting.losses import Isometry
from koopman_interp.surrogates.context import ContextShape
from koopman_interp.surrogates.coordinates import NormalizationConfig
from koopman_interp.surrogates.networks import ACTIVATIONS, ARCHITECTURES, Activation, Architecture
from koopman_interp.surrogates.operators import OPERATORS

Pairs = Literal["sampled", "all", "endpoints"]
Schedule = Literal["wsd", "cosine", "cyclic", "constant"]
Precision = Literal["float32", "bfloat16"]
Aim = Literal["prediction", "spectrum"]
Context = Literal["causal"]

_LEAST_CONTEXT, _MOST_CONTEXT = 64, 256


@dataclass(frozen=True, kw_only=True)
class DescentConfig:
    """How a descent steps, how it is judged, and when it stops.

    Attributes:
        steps: gradient steps at most.
        seconds: wall-clock time that the steps and looks may take; None sets no limit. A descent with a limit is not
            the same twice, since how far it comes depends on the machine.
        learning_rate: the largest that the schedule reaches.
        schedule: wsd (warm-up, stable, decay; Hägele et al., arXiv 2405.18392), which needs no length in advance: it
            is level until the held-out figure is, then falls to zero; cosine, from a warm-up down to zero over all
            steps; cyclic, triangles between a tenth of `learning_rate` and all of it; or constant.
        cycle: steps of a triangle.
        warm_up: share of the steps over which the cosine schedule rises, and wsd too, but within 50 steps.
        decay: steps over which wsd falls, as a share of those taken before.
        least_gain: share of the held-out figure that `patience` looks have to bring for wsd to stay level.
        averaging: decay of the running average of the weights, which is what is judged and kept; 0 judges and keeps
            the latest.
        clip: norm that a longer gradient is shortened to; None leaves all gradients as they are.
        weight_decay: share of a weight, relative to the learning rate, that each step takes off it, apart from the
            gradient (AdamW; Loshchilov & Hutter, arXiv 1711.05101).
        validation: share of the inputs that is held out to judge by.
        evaluate_every: steps between looks at what is held out, and between checkpoints.
        patience: looks without improvement after which it stops, and for wsd, over which `least_gain` is asked for;
            None takes all steps.
        precision: of the products of a step: `float32`, or `bfloat16` for accelerators that have it; weights, sums and
            looks stay in float32.
        seed: of all that is drawn: what is held out, the order of batches, what a step draws, initial weights.
    """

    steps: int = 500
    seconds: float | None = None
    learning_rate: float = 3e-3
    schedule: Schedule = "cosine"
    cycle: int = 500
    warm_up: float = 0.1
    decay: float = 0.2
    least_gain: float = 0.05
    averaging: float = 0.99
    clip: float | None = 1.0
    weight_decay: float = 1e-4
    validation: float = 0.1
    evaluate_every: int = 100
    patience: int | None = 5
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        self._require_choice("schedule", ("wsd", "cosine", "cyclic", "constant"))
        self._require_choice("precision", ("float32", "bfloat16"))
        self._require_whole("steps", "evaluate_every", "cycle", "patience")
        self._require_positive("learning_rate", "clip", "seconds", "decay")
        self._require_not_negative("weight_decay", "warm_up", "least_gain")
        if not isinstance(self.seed, Integral) or not -(2**63) <= int(self.seed) < 2**63:
            raise InputError(f"seed must be a whole number of 64 bits; got {self.seed}.")
        if not 0.0 < self.validation < 1.0:
            raise InputError(f"validation is a share between 0 and 1, both excluded; got {self.validation}.")
        if not 0.0 <= self.averaging < 1.0:
            raise InputError(f"averaging is a decay between 0 (none) and 1, excluded; got {self.averaging}.")

    def _require_choice(self, name: str, allowed: Iterable[str | None]) -> None:
        if getattr(self, name) not in allowed:
            raise InputError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(str, allowed))}.")

    def _require_whole(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or int(value) < 1):
                raise InputError(f"{name} must be a whole number, 1 or more; got {value}.")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be positive and finite; got {value}.")

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} must be finite and not negative; got {value}.")

    def as_dict(self) -> dict[str, Json]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FitConfig(DescentConfig):
    """How a Koopman autoencoder is built and fitted; how it descends stands in `DescentConfig`.

    `divergence`, `depths`, `inputs` and `least_gain_at_output` apply where a fit is given the model.

    Attributes:
        steps: the default is far more than a fit takes before its loss is level.
        schedule: by default `least_gain` and `patience` end most fits.
        aim: `prediction` fits K by gradient steps on the losses; `spectrum` solves K in closed form on each batch
            (variable projection; Golub & Pereyra 2003), with how far the observables are from an invariant space among
            the losses: eigenvalues are nearer the truth, at more time a step.
        least_gain_at_output: in place of `least_gain` where the model is given: what it says is learnt more slowly
            than its states.
        observables: width of the observable space; None is the normalised width, or twice that where the model is
            given, but 64 at least and 256 at most, as far as there are rows for them.
        architecture: of encoder and decoder, `linear_plus_nonlinear` or the paper's plain `mlp`.
        activation: between their layers, `leaky_relu`, or `gelu` for systems that are smooth.
        hidden: widths of the encoder's hidden layers, mirrored by the decoder; None is one as wide as the
            observables, or twice as wide where the model is given, 128 at least, or 256 where the aim is the spectrum:
            width and hidden together are as high as the observables' rank can be.
        batch_size: samples a step; None is 256, and 1,024 with a context, where they come in whole sequences.
        context: `causal` lets the encoder look back on the earlier rows of a sequence by attention, for language models
            and others whose states come in order; K and decoder stay with each row. None encodes each row alone.
        context_blocks: blocks of attention and MLP that look back.
        context_width: width between them; None is about the normalised width, but 64 at least and 256 at most.
        context_heads: heads of the attention.
        operator: kind of K: dense, generator, low_rank, identity_plus_low_rank or blocks.
        rank: of the low-rank kinds; None is 32.
        normalization: what is done to each depth first.
        pairs: of depths to predict between, at each step: the whole span and one other pair, drawn; all of them;
            or the ends alone. The held-out loss takes all pairs, unless only the ends are fitted.
        drawn: weight of the drawn pair beside the whole span.
        reconstruction: weight of how far the decoder is from undoing the encoder.
        prediction: weight of how far the decoded motion is from the states.
        linearity: weight of how far the motion is from linear in the observables.
        residual: weight of the mean squared one-step residual of white observables, where the aim is the spectrum.
        isometry: pairs of samples over which distances are compared: a random matching of the batch, all pairs,
            or chords (Jacobian-vector products).
        isometry_weight: weight of how far distances are from those before the encoder; None is one over the
            normalised width, which puts a mean over pairs on the scale of the other losses' means over entries.
        divergence: weight of the divergence at the model's output; 0 makes a fit with the model one without.
        depths: from how many depths, drawn at each step, the divergence is taken beside the first, from which the
            motion is longest; None is all of them.
        inputs: inputs a step that the model is called with, where they come uncut; None is as many as hold
            512 samples.
        operator_rate: learning rate of K, relative to the rest. K is applied many times over, so the same step
            moves it much farther.
        warm_start: start K by ridge regression on the encoder's first observables.
        ridge: regularisation of least squares, relative to each observable's own mean square.
        outlying: rows that lie more than so many times as far out as the median row are fitted neither on nor judged
            by, where they are no more than a twentieth of all and hold more than a tenth of all squares; None keeps
            all.
        statistics: rows that moments, and solves for K, are summed over, at most: of more, about as many, of inputs
            drawn by their digests.
        device: where to fit; None is CUDA where there is one, else the CPU.
    """

    steps: int = 20_000
    schedule: Schedule = "wsd"
    least_gain: float = 0.08
    patience: int | None = 3
    least_gain_at_output: float = 0.01
    aim: Aim = "prediction"
    observables: int | None = None
    architecture: Architecture = "linear_plus_nonlinear"
    activation: Activation = "leaky_relu"
    hidden: tuple[int, ...] | None = None
    batch_size: int | None = None
    context: Context | None = None
    context_blocks: int = 4
    context_width: int | None = None
    context_heads: int = 4
    operator: str = "dense"
    rank: int | None = None
    normalization: NormalizationConfig = field(default_factory=NormalizationConfig)
    pairs: Pairs = "sampled"
    drawn: float = 0.25
    reconstruction: float = 1.0
    prediction: float = 1.0
    linearity: float = 1.0
    residual: float = 3.0
    isometry: Isometry = "matching"
    isometry_weight: float | None = None
    divergence: float = 2.0
    depths: int | None = 1
    inputs: int | None = None
    operator_rate: float = 0.2
    warm_start: bool = True
    ridge: float = 1e-6
    outlying: float | None = 30.0
    statistics: int = 1_000_000
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_choice("aim", ("prediction", "spectrum"))
        self._require_choice("architecture", ARCHITECTURES)
        self._require_choice("activation", ACTIVATIONS)
        self._require_choice("operator", OPERATORS)
        self._require_choice("pairs", ("sampled", "all", "endpoints"))
        self._require_choice("isometry", ("matching", "all_pairs", "chords"))
        if self.observables is not None and self.observables < 2:
            raise InputError(f"A fit needs 2 observables or more; got {self.observables}.")
        if self.aim == "spectrum" and self.operator != "dense":
            raise InputError(f"aim='spectrum' solves for a dense K; leave operator='dense', got {self.operator!r}.")
        widths = self.hidden
        if widths is not None and not (isinstance(widths, tuple) and all(_is_width(width) for width in widths)):
            raise InputError(f"hidden is a tuple of widths, each 1 or more, as in (128,); got {widths!r}.")
        self._require_whole(
            "batch_size", "depths", "inputs", "statistics", "context_blocks", "context_width", "context_heads"
        )
        self._require_choice("context", ("causal", None))
        if self.context is not None and self.isometry == "chords":
            raise InputError(
                "isometry='chords' moves one row alone, and an encoder with context='causal' sees others beside it. "
                "Take isometry='matching'."
            )
        self._require_positive("operator_rate", "outlying")
        self._require_not_negative(
            "reconstruction", "prediction", "linearity", "residual", "drawn", "isometry_weight", "divergence", "ridge"
        )
        self._require_not_negative("least_gain_at_output")

    def context_shape(self, dimension: int) -> ContextShape | None:
        """Sizes of the context for states of a normalised width; None without one."""
        if self.context is None:
            return None
        width, pairs = self.context_width, 2 * self.context_heads
        if width is None:  # which the heads divide into even parts
            width = max(1, min(max(dimension, _LEAST_CONTEXT), _MOST_CONTEXT) // pairs) * pairs
        return ContextShape(self.context_blocks, width, self.context_heads)

    @classmethod
    def from_dict(cls, values: dict[str, Json]) -> FitConfig:
        """Rebuild from plain values.

        Raises:
            InputError: there is a name that is no setting, or there are no names.
        """
        if not isinstance(values, dict):
            raise InputError(f"Settings are values by name; got a {type(values).__name__}.")
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise InputError(
                f"{', '.join(unknown)} is no setting of a fit. {nearest(unknown[0], cls.__dataclass_fields__)}"
            )
        values = dict(values)
        if isinstance(nested := values.get("normalization"), dict):
            unknown = sorted(set(nested) - set(NormalizationConfig.__dataclass_fields__))
            if unknown:
                near = nearest(unknown[0], NormalizationConfig.__dataclass_fields__)
                raise InputError(f"{', '.join(unknown)} is no setting of a normalisation. {near}")
        if isinstance(hidden := values.get("hidden"), list):  # JSON has no tuples
            values["hidden"] = tuple(hidden)
        try:
            if isinstance(nested, dict):
                values["normalization"] = NormalizationConfig(**nested)
            return cls(**values)
        except TypeError as error:  # a comparison with what is no number
            raise InputError(f"A setting has a value of another kind than it takes: {error}.") from error


def _is_width(value: object) -> bool:
    return isinstance(value, Integral) and int(value) >= 1
