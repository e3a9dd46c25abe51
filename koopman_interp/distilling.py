"""distil(): fit a surrogate further, against what its host says; tune(): train an affine lens in the same way.

A fit minimises errors of states, and the host's head hears some directions of the state far better than others. Here
the loss is the divergence at the output, `mean KL(host ‖ D(K^n E(x)) in place of the span)` from every depth to the
last, with gradients through the host's own remaining forward pass, whose weights stay as they are (distillation, Hinton
et al., arXiv 1503.02531; for affine maps it is the tuned lens, Belrose et al., arXiv 2303.08112). The losses of a fit
stay on, so that the decoder still undoes the encoder, the motion stays linear at every depth, and distances are kept;
they give way a little, so a distilled surrogate is nearer to the output and farther from the states than a fitted one.

Costs, a step: one pass of the host over a batch, and its head forward and backward for each depth. Both judge by
held-out batches and keep the best. Knows nothing of edits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from koopman_interp.analysis.substitutes.affine import AffineMap
from koopman_interp.analysis.substitutes.lenses import AffineLens
from koopman_interp.divergence import kullback_leibler
from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.fitting.losses import linearity, matching_isometry, prediction, reconstruction
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import calls
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.moments import Moments
from koopman_interp.trajectories import Trajectories

_CHUNK = 8192
_WARM_UP = 0.05


@dataclass(frozen=True)
class DistilConfig:
    """How long and how to distil.

    Attributes:
        steps: gradient steps; each takes one batch.
        learning_rate: its peak; it rises over a twentieth of the steps, and falls to zero as a cosine.
        operator_rate: learning rate of K, relative to the rest.
        states: weight of reconstruction, linearity and prediction beside the divergence at the output: the dial
            between a motion that is true to the states between, and one that is true to what the host says.
        isometry_weight: of the isometry; None is one over the normalised width, as in a fit.
        depths: how many depths to start from at each step, drawn; None is all of them.
        clip: largest norm of the gradient; None does not clip.
        weight_decay: of AdamW.
        validation: share of the batches that is held out.
        evaluate_every: steps between looks at them.
        seed: of split, order, depths and matchings.
    """

    steps: int = 500
    learning_rate: float = 2e-3
    operator_rate: float = 0.1
    states: float = 1.0
    isometry_weight: float | None = None
    depths: int | None = None
    clip: float | None = 1.0
    weight_decay: float = 1e-4
    validation: float = 0.1
    evaluate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "evaluate_every", "depths"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or int(value) < 1):
                raise InputError(f"{name} must be a whole number, 1 or more; got {value}.")
        for name in ("learning_rate", "operator_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be positive and finite; got {value}.")
        for name in ("states", "isometry_weight", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} must be finite and not negative; got {value}.")
        if not 0.0 < self.validation < 1.0:
            raise InputError(f"validation is a share between 0 and 1, both excluded; got {self.validation}.")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def distil(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories,
    batches: Any,
    config: DistilConfig | None = None,
    *,
    skip: int = 0,
    batch_size: int = 4,
    progress: bool | None = None,
) -> KoopmanAutoencoder:
    """Fit a surrogate further, so that the host says the same with it in place of any span up to its last depth.

    Args:
        model: the host; its weights are not changed.
        koopman: the surrogate to start from; it is not changed.
        trajectories: what it was fitted on, with the labels: the moments that edits need are gathered anew.
        batches: inputs to distil on, as in `Tap.observe`; they are kept in memory. Where certificates of edits are to
            be of rows never seen, leave out those that the fit held out.
        config: how.
        skip: leading positions of each sequence to leave out, as in `attach`.
        batch_size: for inputs that come uncut: how many a step takes.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        A new surrogate, in eval mode, on the CPU. Edits made for the old one do not fit it.

    Raises:
        UnsupportedHostError: the host returns no logits.
        HostMismatchError: the surrogate or the trajectories belong to another host.
        InputError: fewer than two batches, so that none can be held out, or one without samples.
        NonFiniteError: the loss diverged.
    """
    config = config or DistilConfig()
    host = host_for(model)
    _require_own(host, koopman, trajectories)
    found = deepcopy(koopman).to(device_of(host.model))
    trained = [*found.encoder.parameters(), *found.decoder.parameters()]
    for parameter in (*trained, *found.operator.parameters()):
        parameter.requires_grad_(True)
    groups = [(trained, 1.0), (list(found.operator.parameters()), config.operator_rate)]
    descent = _Descent(host, koopman.sites, groups, config, skip)
    weight = 1 / koopman.config.dimension if config.isometry_weight is None else config.isometry_weight

    def objective(own: OwnPass, depths: Sequence[int], generator: torch.Generator) -> Tensor:
        return _koopman_loss(found, own, depths, generator, config.states, weight)

    def divergence(own: OwnPass) -> Tensor:
        last = len(koopman.sites) - 1
        return _divergence(own, [found.predict(own.rows(depth), depth, last) for depth in range(last)])

    history = descent.run(_inputs(host, batches, batch_size), objective, divergence, progress)
    found = found.cpu().eval().requires_grad_(False)
    found.config = replace(koopman.config, distilled=(*koopman.config.distilled, *history))
    _gather(found, trajectories, config)
    return found


def tune(
    model: nn.Module | Host,
    lens: AffineLens,
    sites: Sequence[str],
    batches: Any,
    config: DistilConfig | None = None,
    *,
    skip: int = 0,
    batch_size: int = 4,
    progress: bool | None = None,
) -> AffineLens:
    """Train an affine lens on the divergence at the output: the tuned lens, to judge others by.

    Args:
        model: the host; its weights are not changed.
        lens: where to start, as `AffineLens.fit` gives it.
        sites: of its depths, the last included.
        batches: inputs to train on, as in `Tap.observe`; they are kept in memory.
        config: how; the weights of the losses of states do not apply.
        skip: leading positions of each sequence to leave out, as in `attach`.
        batch_size: for inputs that come uncut: how many a step takes.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        The trained lens, on the CPU.

    Raises:
        UnsupportedHostError: the host returns no logits.
        InputError: as many sites as the lens has depths were not given or not in order of depth, fewer than two
            batches, or one without samples.
        NonFiniteError: the loss diverged.
    """
    config = config or DistilConfig()
    host = host_for(model)
    if len(sites) != len(lens.maps) + 1:
        raise InputError(f"Expected {len(lens.maps) + 1} sites, one a depth and the last; got {len(sites)}.")
    device = device_of(host.model)
    maps = [
        AffineMap(*(part.detach().to(device, torch.float32, copy=True) for part in _parts(one))) for one in lens.maps
    ]
    trained = [part.requires_grad_(True) for one in maps for part in (one.weight, one.bias)]

    def objective(own: OwnPass, depths: Sequence[int], _: torch.Generator) -> Tensor:
        return _divergence(own, [maps[depth](own.rows(depth)) for depth in depths])

    def divergence(own: OwnPass) -> Tensor:
        return _divergence(own, [one(own.rows(depth)) for depth, one in enumerate(maps)])

    descent = _Descent(host, tuple(sites), [(trained, 1.0)], config, skip)
    descent.run(_inputs(host, batches, batch_size), objective, divergence, progress)
    return AffineLens(
        tuple(AffineMap(*(part.detach().cpu() for part in _parts(one))) for one in maps), "affine lens, tuned"
    )


Objective = Callable[[OwnPass, Sequence[int], torch.Generator], Tensor]


class _Descent:
    """AdamW on an objective at the output, batch by batch, judged on held-out batches; the best weights stay.

    Args:
        host: the host.
        sites: of the depths.
        groups: parameters, each with its learning rate relative to the peak.
        config: how.
        skip: leading positions to leave out.
    """

    def __init__(
        self,
        host: Host,
        sites: tuple[str, ...],
        groups: Sequence[tuple[Sequence[Tensor], float]],
        config: DistilConfig,
        skip: int,
    ) -> None:
        self._host, self._sites, self._config, self._skip = host, sites, config, skip
        self._parameters = [parameter for parameters, _ in groups for parameter in parameters]
        self._optimizer = torch.optim.AdamW(
            [{"params": list(parameters), "lr": config.learning_rate * rate} for parameters, rate in groups],
            weight_decay=config.weight_decay,
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self._generator = torch.Generator().manual_seed(config.seed)

    def run(
        self,
        batches: Sequence[Any],
        objective: Objective,
        divergence: Callable[[OwnPass], Tensor],
        progress: bool | None,
    ) -> list[dict[str, float]]:
        """Take the steps; return the held-out divergence by step."""
        config = self._config
        train, held_out = self._split(batches)
        history: list[dict[str, float]] = []
        best = [parameter.detach().clone() for parameter in self._parameters]
        hidden = None if progress is None else not progress
        order: list[int] = []
        for step in (bar := tqdm(range(config.steps + 1), desc="distil", unit="step", disable=hidden)):
            if step % config.evaluate_every == 0 or step == config.steps:
                found = self._judged(held_out, divergence)
                if not history or found < min(look["kl"] for look in history):
                    best = [parameter.detach().clone() for parameter in self._parameters]
                history.append({"step": float(step), "kl": found})
                bar.set_postfix(kl=f"{found:.4f}")
            if step == config.steps:
                break
            order = order or torch.randperm(len(train), generator=self._generator).tolist()
            self._descend(train[order.pop()], objective, step)
        with torch.no_grad():
            for parameter, kept in zip(self._parameters, best, strict=True):
                parameter.copy_(kept)
        return history

    def _descend(self, batch: Any, objective: Objective, step: int) -> None:
        last = len(self._sites) - 1
        drawn = torch.randperm(last, generator=self._generator)[: self._config.depths].sort().values.tolist()
        own = self._passed(batch)
        with torch.enable_grad():
            loss = objective(own, drawn, self._generator)
            # Not backward(): the host's own weights would gather gradients too.
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        if not math.isfinite(value := float(loss.detach())):
            raise NonFiniteError(
                f"The loss diverged by step {step} (to {value}). Lower learning_rate ({self._config.learning_rate})."
            )
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        if self._config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        self._optimizer.step()
        self._schedule.step()

    @torch.no_grad()
    def _judged(self, batches: Iterable[Any], divergence: Callable[[OwnPass], Tensor]) -> float:
        total, rows = 0.0, 0
        for batch in batches:
            own = self._passed(batch)
            total += float(divergence(own)) * len(own.output.logp)
            rows += len(own.output.logp)
        return total / rows

    def _passed(self, batch: Any) -> OwnPass:
        own = OwnPass.of(self._host, batch, self._sites, self._skip, training=True)
        if not len(own.output.logp):
            raise InputError(
                "A batch has no samples to learn from: it is empty, or all its tokens are padding or among the first "
                f"{self._skip} of their sequences, which skip={self._skip} leaves out. Take it out."
            )
        return own

    def _split(self, batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        if len(batches) < 2:
            raise InputError(
                f"One batch or more is held out and one or more fitted on; got {len(batches)} in all. "
                "Give more inputs, or a smaller batch_size."
            )
        held = min(len(batches) - 1, max(1, round(self._config.validation * len(batches))))
        order = torch.randperm(len(batches), generator=self._generator).tolist()
        return [batches[index] for index in order[held:]], [batches[index] for index in order[:held]]

    def _rate(self, step: int) -> float:
        warm_up = max(1, round(_WARM_UP * self._config.steps))
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self._config.steps - warm_up)))


def _koopman_loss(
    koopman: KoopmanAutoencoder,
    own: OwnPass,
    depths: Sequence[int],
    generator: torch.Generator,
    states_weight: float,
    isometry_weight: float,
) -> Float[Tensor, ""]:
    """Weigh the divergence at the output from some depths, and the losses of a fit over all pairs of depths."""
    last, times = len(own.sites) - 1, koopman.config.times
    x = torch.stack([koopman.normalization.normalize(own.rows(depth), depth) for depth in range(last + 1)])
    z = koopman.encoder(x)
    # One rollout from every depth at once: each step takes those under way and the depth just passed.
    rolling = arrived = z[:1]
    drift = x.new_zeros(())
    for depth in range(1, last + 1):
        rolling = koopman.operator.advance(rolling, times[depth] - times[depth - 1])
        drift = drift + depth * linearity(rolling, z[depth].expand_as(rolling))
        arrived, rolling = rolling, torch.cat([rolling, z[depth : depth + 1]])
    reached = koopman.decoder(arrived)
    faithful = reconstruction(koopman.decoder(z), x) + prediction(reached, x[-1].expand_as(reached))
    faithful = faithful + drift / (last * (last + 1) / 2)
    said = _divergence(own, [koopman.normalization.denormalize(reached[depth], last) for depth in depths])
    return said + states_weight * faithful + isometry_weight * matching_isometry(z, x, generator)


def _divergence(own: OwnPass, arrived: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Mean of `KL(host ‖ host with these rows at the last depth)` over several sets of rows."""
    with own.after(len(own.sites) - 1) as said:
        found = [kullback_leibler(own.output.logp, said(rows).logp).mean() for rows in arrived]
    return torch.stack(found).mean()


def _require_own(host: Host, koopman: KoopmanAutoencoder, trajectories: Trajectories) -> None:
    fingerprint = HostFingerprint.of(host)
    koopman.config.host.require(fingerprint, "surrogate")
    trajectories.host.require(fingerprint, "set of trajectories")
    if (trajectories.sites, trajectories.classes) != (koopman.sites, koopman.config.classes):
        raise InputError(
            "The trajectories are not those that the surrogate was fitted on: their sites or labels differ. Give the "
            "same ones, from which the moments that edits need are gathered anew."
        )


def _inputs(host: Host, batches: Any, batch_size: int) -> list[Any]:
    return [x for x, _ in calls(host, batches, batch_size=batch_size)]


def _parts(one: AffineMap) -> tuple[Tensor, Tensor, Tensor]:
    return one.centre, one.weight, one.bias


@torch.no_grad()
def _gather(koopman: KoopmanAutoencoder, trajectories: Trajectories, config: DistilConfig) -> None:
    """Gather the moments of the new observables, on rows to fit on and held-out ones."""
    c = koopman.config
    for name, part in zip(("moments", "heldout_moments"), trajectories.split(config.validation), strict=True):
        moments = Moments(len(c.sites), c.classes, c.observables)
        for start in range(0, len(part), _CHUNK):
            rows = part[start : start + _CHUNK]
            z = torch.stack([koopman.encode(state, depth) for depth, state in enumerate(rows.states)])
            moments.update(z, rows.labels)
        setattr(koopman, name, moments)
