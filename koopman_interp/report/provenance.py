"""Where a run came from: when it was written, by what, on what machine, of which model."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime

import torch

from koopman_interp import __version__
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

DATE, VERSION, TORCH, SEED, MODEL, DIGEST, OPERATOR, MACHINE = (
    "written", "koopman-interp", "torch", "seed of the fit", "model class", "digest of the model",
    "digest of the surrogate", "machine",
)  # fmt: skip


def provenance(koopman: KoopmanAutoencoder | None, trajectories: Trajectories | None) -> dict[str, str]:
    """Say where a run comes from, by name; what is not known is left out."""
    host = koopman.config.host if koopman is not None else None if trajectories is None else trajectories.host
    seed = None if koopman is None else koopman.record.seed
    facts = {
        DATE: datetime.now(UTC).isoformat(timespec="seconds"),
        VERSION: __version__,
        TORCH: str(torch.__version__),
        SEED: "" if seed is None else str(seed),
        **_of_model(host),
        OPERATOR: "" if koopman is None else koopman.digest(),
        MACHINE: _machine(),
    }
    return {name: value for name, value in facts.items() if value}


def _of_model(host: HostFingerprint | None) -> dict[str, str]:
    return {} if host is None else {MODEL: host.model, DIGEST: host.weights}


def _machine() -> str:
    """Kind of the machine, and not its name or its user's."""
    parts = [
        f"{platform.system()} {platform.machine()}",
        f"{os.cpu_count()} cores",
        f"Python {platform.python_version()}",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
