"""The training loop of a surrogate: batches, objective, held-out figures, early stopping, checkpoints.

Each step's randomness comes from the seed and the step's number alone, so that a fit resumed from a checkpoint
takes the same steps, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from koopman_interp.errors import FitInterrupted, InputError, NonFiniteError
from koopman_interp.files import read_tensors, write_tensors
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.losses import (
    all_pairs_isometry,
    chord_isometry,
    linearity,
    matching_isometry,
    prediction,
    reconstruction,
)
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.operators import Propagator

States = Float[Tensor, "depth sample width"]

_HELD_OUT_ROWS = 2048
_WARM_UP = 0.1
_DRAWN_ROWS = 0.5
"""Part of a batch on which the drawn pair of depths is fitted: it is there to keep the depths between in line."""


@dataclass
class Progress:
    """Where a fit stands; all of it goes into a checkpoint."""

    step: int = 0
    best: float = math.inf
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Fits a surrogate by AdamW on the four losses.

    Args:
        surrogate: what to fit, on the device to fit on.
        config: how.
        train: normalised states to fit on.
        held_out: normalised states to judge by.
        checkpoint: file to keep the fit's state in; None keeps none.
    """

    def __init__(
        self,
        surrogate: KoopmanAutoencoder,
        config: FitConfig,
        train: States,
        held_out: Float[Tensor, "depth held_out width"],
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        self.surrogate = surrogate
        self.config = config
        ends = [0, len(train) - 1]
        self.train = train[ends] if config.pairs == "endpoints" else train
        held_out = held_out[:, :_HELD_OUT_ROWS]
        self.held_out = held_out[ends] if config.pairs == "endpoints" else held_out
        times = surrogate.config.times
        self.times = (times[0], times[-1]) if config.pairs == "endpoints" else times
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.parameters = [
            parameter
            for part in (surrogate.encoder, surrogate.operator, surrogate.decoder)
            for parameter in part.parameters()
        ]
        own = {id(parameter) for parameter in surrogate.operator.parameters()}
        groups = [
            {"params": [parameter for parameter in self.parameters if id(parameter) not in own], "rate": 1.0},
            {"params": list(surrogate.operator.parameters()), "rate": config.operator_rate},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.progress = Progress()
        self.best = self._weights()
        self.averaged = self._weights() if config.averaging else None
        self._samples = config.pairs == "sampled" and len(self.train) > 2

    def run(self, *, resume: bool, progress: bool | None) -> list[dict[str, float]]:
        """Take the steps and leave the best weights in the surrogate.

        Args:
            resume: go on from the checkpoint.
            progress: show a bar; None shows it on a terminal only.

        Returns:
            The held-out figures by step.

        Raises:
            FitInterrupted: Ctrl-C; the message says what was kept.
            InputError: the checkpoint is another fit's, or would be overwritten.
            NonFiniteError: the losses diverged.
        """
        if resume:
            self._load()
        elif self.checkpoint is not None and self.checkpoint.exists():
            raise InputError(
                f"There is a checkpoint at {self.checkpoint}. Go on from it with resume=True, or delete it."
            )
        bar = tqdm(
            total=self.config.steps,
            initial=self.progress.step,
            desc="fit",
            unit="step",
            disable=None if progress is None else not progress,
        )
        try:
            with bar:
                for _ in self._steps(bar):
                    pass
        except KeyboardInterrupt as interrupt:
            raise FitInterrupted(self._how_to_go_on()) from interrupt
        self._restore(self.best)
        return self.progress.history

    def _steps(self, bar: Any) -> Iterator[int]:
        state, patience = self.progress, self.config.patience
        if not state.history:
            self._look(bar)
        while state.step < self.config.steps and (patience is None or state.stale < patience):
            self._descend(state.step)
            state.step += 1
            bar.update()
            if state.step % self.config.evaluate_every == 0 or state.step == self.config.steps:
                self._look(bar)
            yield state.step

    def _descend(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(self.config, step)
        batch = self.train[:, self._rows(step)]
        generator = torch.Generator().manual_seed(_mixed(self.config.seed, step))
        loss = self._sampled(batch, generator) if self._samples else self.objective(batch, self.times, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        if self.averaged is not None:
            # Young averages follow faster, so that they forget where the fit began.
            decay = min(self.config.averaging, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(
                self.averaged, [weight.detach() for weight in self.parameters], torch.tensor(step)
            )

    def _sampled(self, states: States, generator: torch.Generator) -> Float[Tensor, ""]:
        """Weigh the losses of the whole span, and those of one other pair of depths, drawn, on a part of the rows."""
        times, rows = self.times, states.shape[1]
        others = [pair for pair in combinations(range(len(states)), 2) if pair != (0, len(states) - 1)]
        i, j = others[int(torch.randint(len(others), (1,), generator=generator))]
        few = states[[i, j], : max(2, round(_DRAWN_ROWS * rows))]
        whole = self.objective(states[[0, -1]], (times[0], times[-1]), generator)
        return whole + self.config.drawn * self.objective(few, (times[i], times[j]), generator)

    def objective(self, states: States, times: Sequence[float], generator: torch.Generator) -> Float[Tensor, ""]:
        """Weigh the four losses on a batch of trajectories, over all pairs of its depths.

        Args:
            states: the batch.
            times: of its depths.
            generator: of the matching.

        Returns:
            The weighted sum.
        """
        config, surrogate = self.config, self.surrogate
        pairs = list(combinations(range(len(states)), 2))
        z = surrogate.encoder(states)
        # Every prediction trains the decoder as well, so that half of the rows are enough for what it undoes.
        some = slice(0, (states.shape[1] + 1) // 2)
        total = config.reconstruction * reconstruction(surrogate.decoder(z[:, some]), states[:, some])
        advanced = torch.stack(self._advanced(z, times, pairs))
        arriving = [later for _, later in pairs]
        z_target, x_target = z[arriving], states[arriving]
        total = total + config.linearity * linearity(advanced, z_target)
        total = total + config.prediction * prediction(surrogate.decoder(advanced), x_target)
        weight = 1 / states.shape[-1] if config.isometry_weight is None else config.isometry_weight
        if weight == 0:
            return total
        match config.isometry:
            case "matching":
                isometry = matching_isometry(z, states, generator)
            case "all_pairs":
                isometry = all_pairs_isometry(z, states)
            case _:
                isometry = chord_isometry(surrogate.encoder, states, generator)
        return total + weight * isometry

    def _advanced(self, z: Tensor, times: Sequence[float], pairs: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Advance the observables of each pair's earlier depth to its later one.

        A rollout that passes through a depth on its way to a later one is continued, not begun anew.
        """
        propagators: dict[float, Propagator] = {}
        reached = {(depth, depth): z[depth] for depth in range(len(z))}
        for i, j in pairs:
            nearest = max(k for (start, k) in reached if start == i and k <= j)
            gap = times[j] - times[nearest]
            if gap not in propagators:
                propagators[gap] = self.surrogate.operator.propagator(gap)
            if nearest < j:
                reached[i, j] = propagators[gap](reached[i, nearest])
        return [reached[pair] for pair in pairs]

    def _rows(self, step: int) -> Tensor:
        samples = self.train.shape[1]
        size = min(self.config.batch_size, samples)
        per_epoch = samples // size
        epoch, place = divmod(step, per_epoch)
        if place == 0 or not hasattr(self, "_order"):
            generator = torch.Generator().manual_seed(_mixed(self.config.seed, -1 - epoch))
            self._order = torch.randperm(samples, generator=generator).to(self.train.device)
        return self._order[place * size : (place + 1) * size]

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the running average of the weights in the place of the latest while the context lasts."""
        latest = self._weights()
        if self.averaged is not None:
            self._restore(self.averaged)
        try:
            yield
        finally:
            self._restore(latest)

    @torch.no_grad()
    def _look(self, bar: Any) -> None:
        """Judge on held-out rows, keep the best weights, and write a checkpoint."""
        state = self.progress
        with self.averaged_weights():
            generator = torch.Generator().manual_seed(_mixed(self.config.seed, 0))
            loss = float(self.objective(self.held_out, self.times, generator))
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"The losses diverged by step {state.step} (held-out loss {loss}). "
                    f"Lower learning_rate ({self.config.learning_rate}), or set warm_start=True."
                )
            figures = held_out_figures(self.surrogate, self.held_out, self.times) | {"loss": loss, "step": state.step}
            state.history.append(figures)
            improved = loss < state.best
            state.stale = 0 if improved else state.stale + 1
            if improved:
                state.best, self.best = loss, self._weights()
        bar.set_postfix(unexplained=f"{figures['unexplained']:.4f}", stress=f"{figures['stress']:.1e}")
        if self.checkpoint is not None:
            self._save(self.checkpoint)

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _restore(self, weights: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)

    def _identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be this fit's: settings, sites, host, and the data's normalisation."""
        digest = hashlib.blake2b(digest_size=16)
        for buffer in self.surrogate.normalization.buffers():
            digest.update(buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        settings = {key: value for key, value in self.config.as_dict().items() if key != "device"}
        hidden = self.config.hidden
        return {
            "settings": settings | {"hidden": None if hidden is None else list(hidden)},
            "sites": list(self.surrogate.sites),
            "times": list(self.surrogate.config.times),
            "host": self.surrogate.config.host.weights,
            "data": digest.hexdigest(),
        }

    def _save(self, path: Path) -> None:
        tensors = {f"now.{index}": weight for index, weight in enumerate(self._weights())}
        tensors |= {f"best.{index}": weight for index, weight in enumerate(self.best)}
        tensors |= {f"averaged.{index}": weight for index, weight in enumerate(self.averaged or [])}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in state.items()}
        state = self.progress
        header = {"best": state.best, "step": state.step, "stale": state.stale, "history": state.history}
        write_tensors(path, tensors, kind="checkpoint", header=header | {"fit": self._identity()})

    def _load(self) -> None:
        if self.checkpoint is None:
            raise InputError("resume=True needs the checkpoint to go on from: fit(…, checkpoint=path, resume=True).")
        tensors, header = read_tensors(self.checkpoint, kind="checkpoint")
        own = self._identity()
        differing = [name for name, value in own.items() if header["fit"][name] != value]
        if differing:
            raise InputError(
                f"The checkpoint {self.checkpoint} is another fit's: {', '.join(differing)} differ. "
                "Resume with the same configuration, host and trajectories, or start anew elsewhere."
            )
        count = range(len(self.parameters))
        device = self.train.device
        self._restore([tensors[f"now.{index}"].to(device) for index in count])
        self.best = [tensors[f"best.{index}"].to(device) for index in count]
        if self.averaged is not None:
            self.averaged = [tensors[f"averaged.{index}"].to(device) for index in count]
        adam: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                adam.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": adam})
        self.progress = Progress(header["step"], header["best"], header["stale"], header["history"])

    def _how_to_go_on(self) -> str:
        if self.checkpoint is None or not self.checkpoint.exists():
            return (
                f"Interrupted at step {self.progress.step} of {self.config.steps}; nothing was kept. "
                "With fit(…, checkpoint=path) the last look is."
            )
        kept = self.progress.history[-1]["step"] if self.progress.history else 0
        return (
            f"Interrupted at step {self.progress.step} of {self.config.steps}; {self.checkpoint} holds step "
            f"{kept:.0f}. Go on with the same call and resume=True."
        )


def learning_rate(config: FitConfig, step: int) -> float:
    """Learning rate of a step, a function of its number alone."""
    peak = config.learning_rate
    match config.schedule:
        case "constant":
            return peak
        case "cyclic":
            place = step % config.cycle / config.cycle
            return peak * (0.1 + 0.9 * (1 - abs(2 * place - 1)))
    warm_up = max(1, round(_WARM_UP * config.steps))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, config.steps - warm_up)))


def held_out_figures(surrogate: KoopmanAutoencoder, states: States, times: tuple[float, ...]) -> dict[str, float]:
    """Two figures to watch a fit by.

    `unexplained` is the variance of the last depth that the prediction from the first leaves unexplained;
    `stress` is `Σ(‖z_i−z_j‖ − ‖x_i−x_j‖)² / Σ‖x_i−x_j‖²` over a matching of the rows.
    """
    z = surrogate.encoder(states)
    predicted = surrogate.decoder(surrogate.operator.advance(z[0], times[-1] - times[0]))
    last = states[-1]
    smallest = torch.finfo(last.dtype).tiny
    unexplained = (predicted - last).square().sum() / (last - last.mean(0)).square().sum().clamp_min(smallest)
    before = (states - states.roll(1, dims=1)).norm(dim=-1)
    after = (z - z.roll(1, dims=1)).norm(dim=-1)
    stress = (after - before).square().sum() / before.square().sum().clamp_min(smallest)
    return {"unexplained": float(unexplained), "stress": float(stress)}


def _mixed(seed: int, number: int) -> int:
    """Mix a seed with a step or epoch, so that neighbouring seeds share no stream."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
