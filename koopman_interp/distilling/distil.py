"""distil(): fit a surrogate further, against what its model says.

What `fit` does where it is given the model, from where an earlier fit of the states alone came: the divergence at the
output beside the losses of that fit, which stay on, so that the decoder still undoes the encoder, the motion stays
linear at every depth, and distances are kept; they give way a little, so a distilled surrogate is nearer to the output
and farther from the states than a fitted one. Knows nothing of edits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from koopman_interp.distilling.config import DistilConfig
from koopman_interp.errors import InputError
from koopman_interp.fitting.callbacks import Callback
from koopman_interp.fitting.checkpoint import Checkpoint, Resume, with_checkpoint
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.descent import Descent
from koopman_interp.fitting.inputs import PartedInputs
from koopman_interp.fitting.normalizing import Normalizer
from koopman_interp.fitting.objective import FitObjective
from koopman_interp.fitting.output import OutputObjective, StatesAndOutput, arrivals_of
from koopman_interp.fitting.sizes import sizes
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import calls
from koopman_interp.observing.digests import input_digests
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories


@own_kinds
@with_checkpoint
def distil(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    batches: object,
    config: DistilConfig | None = None,
    *,
    fitted: Rows,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: Resume = False,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> KoopmanAutoencoder:
    """Fit a surrogate further, so that the model says the same with it in place of any span up to its last depth.

    Inputs that the fit held out are not trained on, in whatever batch they come; where there are any, the surrogate is
    judged by them alone, and otherwise by a share of the inputs (`DistilConfig.validation`).

    Args:
        model: the model; its weights are not changed.
        koopman: the surrogate to start from; it is not changed.
        batches: inputs to distil on, as in `Tap.observe`; they are kept in memory.
        config: how to distil; its `batch_size` is that of inputs that come uncut.
        fitted: the trajectories that the surrogate was fitted on, with the labels: the losses of its fit are taken on
            them, and the moments that edits need are gathered anew.
        checkpoint: file that holds the state at each look at the held-out inputs; it is left in place.
        resume: go on from the checkpoint, `auto` where there is one; the result equals, bit for bit, that of an
            uninterrupted call. With other `steps`, `seconds` or `patience` it is prolonged.
        progress: show a bar; None shows it on a terminal only.
        callbacks: whom to tell of each look, such as `ki.JSONLines("metrics.jsonl")`.

    Returns:
        A new surrogate, in eval mode, on the CPU. Edits made for the old one do not fit it.

    Raises:
        UnsupportedHostError: the model returns no logits.
        HostMismatchError: the surrogate or the trajectories belong to another host.
        InputError: the trajectories are not those of the fit, there are too few inputs to hold any out, or none of them
            has a sample.
        FitInterrupted: Ctrl-C; the message says what was kept and how to go on.
        LockedError: another process descends into the checkpoint.
        NonFiniteError: the loss diverged.
    """
    fitted = in_memory(fitted)
    started = time.perf_counter()
    koopman.require_depth("Distilling")
    config = config or DistilConfig()
    host = host_for(model, koopman.config.layout)
    _require_own(host, koopman, fitted)
    called = [x for x, _ in calls(host, batches, batch_size=config.batch_size)]
    digests = torch.cat([torch.empty(0, dtype=torch.int64), *map(input_digests, called)])
    held_out = digests[koopman.record.is_held_out(digests)]
    inputs = PartedInputs.of(called, config.validation, config.seed, held_out)
    distilled = deepcopy(koopman).to(device_of(host.model)).requires_grad_(True)
    output = OutputObjective(
        host,
        koopman.sites,
        koopman.config.skip,
        inputs,
        arrivals_of(distilled),
        starts=range(len(koopman.sites) - 1),
        depths=config.depths,
        seed=config.seed,
    )
    objective = StatesAndOutput(_of_states(distilled, fitted, config), output, config.states, 1.0)
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
        callbacks=callbacks,
    )
    history = descent.run(resume=resume, progress=progress)
    distilled.gather_moments(fitted)
    distilled.record = replace(
        koopman.record,
        distilled=(*koopman.record.distilled, *history),
        seconds=koopman.record.seconds + time.perf_counter() - started,
    )
    return distilled.cpu().eval().requires_grad_(False)


def _of_states(koopman: KoopmanAutoencoder, fitted: Trajectories, config: DistilConfig) -> FitObjective:
    """Return the losses of the surrogate's own fit, weighed as there; of one built by hand, those of `FitConfig()`."""
    settings = FitConfig.from_dict(koopman.record.settings)
    held_out = koopman.is_held_out(fitted)
    device = next(koopman.parameters()).device
    normalizer = Normalizer(koopman.normalization, device, looks_back=koopman.looks_back)
    train, judged = (normalizer.held(fitted[side]) for side in (~held_out, held_out))
    chosen = sizes(settings, koopman.config.dimension, len(train), len(koopman.sites))
    return FitObjective(koopman, replace(settings, seed=config.seed), train, judged, chosen.batch_size)


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
