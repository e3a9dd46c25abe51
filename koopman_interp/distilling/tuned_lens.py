"""tune_lens(): train an affine lens on the divergence at the model's output: the tuned lens, to judge others by.

After Belrose et al., arXiv 2303.08112, with the divergence from every depth at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from koopman_interp.analysis.substitutes.affine import AffineMap
from koopman_interp.analysis.substitutes.lenses import AffineLens
from koopman_interp.analysis.substitutes.stand_ins import substituted
from koopman_interp.distilling.config import DistilConfig
from koopman_interp.fitting.callbacks import Callback
from koopman_interp.fitting.checkpoint import Checkpoint, Resume, with_checkpoint
from koopman_interp.fitting.descent import Descent
from koopman_interp.fitting.inputs import PartedInputs
from koopman_interp.fitting.output import OutputObjective
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import calls
from koopman_interp.own_kinds import own_kinds


@own_kinds
@with_checkpoint
def tune_lens(
    model: nn.Module | Host,
    lens: AffineLens,
    batches: object,
    config: DistilConfig | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: Resume = False,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> AffineLens:
    """Train an affine lens on the divergence at the output.

    Args:
        model: the model; its weights are not changed.
        lens: where to start, as `AffineLens.fit` gives it; it is not changed.
        batches: inputs to train on, as in `Tap.observe`; they are kept in memory, and a share of them is held out.
        config: how to train; its `batch_size` is that of inputs that come uncut, and the weights of the losses of
            states do not apply.
        checkpoint: file that holds the state at each look at the held-out inputs; it is left in place.
        resume: go on from the checkpoint, `auto` where there is one; the result equals, bit for bit, that of an
            uninterrupted call. With other `steps`, `seconds` or `patience` it is prolonged.
        progress: show a bar; None shows it on a terminal only.
        callbacks: whom to tell of each look, such as `ki.JSONLines("metrics.jsonl")`.

    Returns:
        The trained lens, on the CPU.

    Raises:
        UnsupportedHostError: the model returns no logits.
        HostMismatchError: the lens belongs to another host.
        InputError: there are fewer than two inputs, or none of them has a sample.
        FitInterrupted: Ctrl-C; the message says what was kept and how to go on.
        LockedError: another process descends into the checkpoint.
        NonFiniteError: the loss diverged.
    """
    config = config or DistilConfig()
    host = host_for(model, lens.layout)
    lens.host.require(HostFingerprint.of(host), "lens")
    inputs = PartedInputs.of(
        (x for x, _ in calls(host, batches, batch_size=config.batch_size)), config.validation, config.seed
    )
    trained = replace(lens, maps=tuple(map_.to(device_of(host.model), torch.float32) for map_ in lens.maps))
    parameters = [part.requires_grad_(True) for map_ in trained.maps for part in (map_.weight, map_.bias)]
    objective = OutputObjective(
        host,
        lens.sites,
        lens.skip,
        inputs,
        lambda own, depth: substituted(trained.at(depth), own.rows(depth), own),
        starts=range(len(lens.maps)),
        depths=config.depths,
        seed=config.seed,
    )
    identity = {
        "settings": config.as_dict(),
        "lens": lens.digest(),
        "host": lens.host.weights,
        "inputs": inputs.digest,
    }
    checkpoint_ = Checkpoint(checkpoint, identity, "tune_lens")
    descent = Descent(
        [(parameters, 1.0)],
        objective,
        lambda _: {"kl": objective.judged()},
        config,
        checkpoint_,
        minimised="kl",
        callbacks=callbacks,
    )
    descent.run(resume=resume, progress=progress)
    maps = tuple(
        AffineMap(*(part.detach().cpu() for part in (map_.centre, map_.weight, map_.bias))) for map_ in trained.maps
    )
    return replace(lens, maps=maps, name="affine lens, tuned")
