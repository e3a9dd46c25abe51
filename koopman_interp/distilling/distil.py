"""distil(): fit a surrogate further, against what its model says.

A fit minimises errors of states, and the model's head hears some directions of the state far better than others. Here
the loss is the divergence at the output, `mean KL(host ‖ D(K^n E(x)) in place of the span)` from every depth to the
last, with gradients through the model's own remaining forward pass, whose weights stay as they are (distillation,
Hinton et al., arXiv 1503.02531). The losses of a fit stay on, so that the decoder still undoes the encoder, the
motion stays linear at every depth, and distances are kept; they give way a little, so a distilled surrogate is nearer
to the output and farther from the states than a fitted one. Knows nothing of edits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from koopman_interp.analysis.substitutes.lenses import KoopmanLens
from koopman_interp.distilling.config import DistilConfig
from koopman_interp.distilling.inputs import PartedInputs
from koopman_interp.distilling.objective import OutputObjective
from koopman_interp.errors import InputError
from koopman_interp.fitting.checkpoint import Checkpoint
from koopman_interp.fitting.descent import Descent
from koopman_interp.fitting.losses import linearity, matching_isometry, prediction, reconstruction
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import calls
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories


def distil(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    batches: object,
    config: DistilConfig | None = None,
    *,
    fitted: Trajectories,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> KoopmanAutoencoder:
    """Fit a surrogate further, so that the model says the same with it in place of any span up to its last depth.

    Inputs that the fit held out are not trained on, in whatever batch they come; where there are any, the surrogate is
    judged by them alone, and otherwise by a share of the inputs (`DistilConfig.validation`).

    Args:
        model: the model; its weights are not changed.
        koopman: the surrogate to start from; it is not changed.
        batches: inputs to distil on, as in `Tap.observe`; they are kept in memory.
        config: how to distil; its `batch_size` is that of inputs that come uncut.
        fitted: the trajectories that the surrogate was fitted on, with the labels: the moments that edits need are
            gathered anew from them.
        checkpoint: file that holds the state at each look at the held-out inputs; it is left in place.
        resume: go on from the checkpoint; the result equals, bit for bit, that of an uninterrupted call.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        A new surrogate, in eval mode, on the CPU. Edits made for the old one do not fit it.

    Raises:
        UnsupportedHostError: the model returns no logits.
        HostMismatchError: the surrogate or the trajectories belong to another host.
        InputError: the trajectories are not those of the fit, there are too few inputs to hold any out, or none of them
            has a sample.
        FitInterrupted: Ctrl-C; the message says what was kept and how to go on.
        NonFiniteError: the loss diverged.
    """
    started = time.perf_counter()
    config = config or DistilConfig()
    host = host_for(model, koopman.config.layout)
    _require_own(host, koopman, fitted)
    called = (x for x, _ in calls(host, batches, batch_size=config.batch_size))
    inputs = PartedInputs.of(called, config.validation, config.seed, koopman.record.held_out)
    distilled = deepcopy(koopman).to(device_of(host.model)).requires_grad_(True)
    weight = 1 / koopman.config.dimension if config.isometry_weight is None else config.isometry_weight

    def arrivals(own: OwnPass, depths: Sequence[int], generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        return _arrivals(distilled, own, depths, generator, config.states, weight)

    sites, skip = koopman.sites, koopman.config.skip
    objective = OutputObjective(host, sites, skip, inputs, config, KoopmanLens(distilled), arrivals)
    identity = {
        "settings": config.as_dict(),
        "surrogate": koopman.digest(),
        "host": koopman.config.host.weights,
        "inputs": inputs.digest,
    }
    descent = Descent(
        [
            ([*distilled.encoder.parameters(), *distilled.decoder.parameters()], 1.0),
            (list(distilled.operator.parameters()), config.operator_rate),
        ],
        objective,
        objective.judged,
        config,
        Checkpoint(checkpoint, identity, "distil"),
        minimised="kl",
    )
    history = descent.run(resume=resume, progress=progress)
    distilled.gather_moments(fitted)
    distilled.record = replace(
        koopman.record,
        distilled=(*koopman.record.distilled, *history),
        seconds=koopman.record.seconds + time.perf_counter() - started,
    )
    return distilled.cpu().eval().requires_grad_(False)


def _arrivals(
    koopman: KoopmanAutoencoder,
    own: OwnPass,
    depths: Sequence[int],
    generator: torch.Generator,
    states_weight: float,
    isometry_weight: float,
) -> tuple[list[Tensor], Float[Tensor, ""]]:
    """Return the rows that arrive at the last depth from some depths, and the losses of a fit over all pairs, weighed.

    Both come of one rollout.
    """
    last, times = len(own.sites) - 1, koopman.config.times
    x = torch.stack([koopman.normalization.normalize(own.rows(depth), depth) for depth in range(last + 1)])
    z = koopman.lift(x, own.sequences if koopman.looks_back else None)
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
    arriving = [koopman.normalization.denormalize(reached[depth], last) for depth in depths]
    return arriving, states_weight * faithful + isometry_weight * matching_isometry(z, x, generator)


def _require_own(host: Host, koopman: KoopmanAutoencoder, fitted: Trajectories) -> None:
    fingerprint = HostFingerprint.of(host)
    koopman.config.host.require(fingerprint, "surrogate")
    fitted.host.require(fingerprint, "set of trajectories")
    unlike = (fitted.sites, fitted.classes) != (koopman.sites, koopman.config.classes)
    held_out = koopman.record.held_out
    there = int(torch.isin(held_out, fitted.digests).sum())
    if unlike or there < len(held_out):
        why = "their sites or labels differ" if unlike else f"{there} of {len(held_out)} inputs held out are among them"
        raise InputError(
            f"fitted= are not the trajectories that the surrogate was fitted on: {why}. Give the same ones, from which "
            "the moments that edits need are gathered anew."
        )
