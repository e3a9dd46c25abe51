"""What the benchmarks share: MNIST, hosts, the paper's recipe as a FitConfig, and a fit on a stopwatch.

Knows nothing of what is measured. A watched fit is `ki.fit` itself with its trainer replaced by one that
keeps a clock, so what is timed is what users run; looks at held-out rows and at the test set are left off it.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import datasets
import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import koopman_interp as ki
import koopman_interp.fitting as fitting
from koopman_interp.gradient_descent import Trainer

HUB_MNIST = "ylecun/mnist"
CALIBRATION_ROWS = 4096
CALIBRATION_STEPS = 8
PATIENCE_ON_CLOCK = 1.2
"""A fit is stopped when it takes this many times the seconds that its calibration promised."""

Accuracy = Callable[[ki.KoopmanAutoencoder], float]


@dataclass(frozen=True)
class Data:
    """Training and test rows with their classes."""

    x: Float[Tensor, "sample input"]
    y: Int[Tensor, "sample"]
    x_test: Float[Tensor, "test input"]
    y_test: Int[Tensor, "test"]


def default_mnist() -> str:
    """Find MNIST: below KOOPMAN_INTERP_DATA, beside the checkout, else its name on the Hub."""
    root = os.environ.get("KOOPMAN_INTERP_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    folder = (Path(root) if root else beside) / "mnist"
    return str(folder) if folder.is_dir() else HUB_MNIST


def mnist(name: str, rows: int | None, *, mean: float = 0.0, spread: float = 1.0) -> Data:
    """Load MNIST as flat rows.

    Args:
        name: folder, or name on the Hub.
        rows: training rows to keep, and a quarter as many test rows; None keeps all.
        mean: taken off each pixel, whose range is 0 to 1.
        spread: divides what is left.

    Returns:
        Rows of 784 pixels.
    """
    splits = datasets.load_dataset(name)
    train = _pixels(splits["train"], rows)
    test = _pixels(splits["test"], None if rows is None else max(500, rows // 4))
    return Data((train[0] - mean) / spread, train[1], (test[0] - mean) / spread, test[1])


def _pixels(split: Any, rows: int | None) -> tuple[Tensor, Tensor]:
    kept = split.with_format("numpy")[: len(split) if rows is None else min(rows, len(split))]
    images = np.stack(list(kept["image"])).reshape(len(kept["label"]), -1)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(np.asarray(kept["label"])).long()


def train_host(
    model: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], torch.optim.lr_scheduler.LRScheduler],
    *,
    epochs: int,
    batch_size: int,
    shift: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Train a classifier.

    Args:
        model: the classifier.
        data: rows to train on.
        optimizer: of its parameters.
        schedule: from the number of steps to a scheduler, stepped after each batch.
        epochs: passes over the rows; the last, incomplete batch of each is dropped.
        batch_size: rows a step.
        shift: move each batch of 28×28 images by up to a pixel either way.
        seed: of the batches and shifts.

    Returns:
        The same model, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(data.x))
    scheduler = schedule(epochs * (len(data.x) // batch_size))
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(data.x), generator=generator)
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            x = data.x[rows]
            if shift:
                by = torch.randint(-1, 2, (2,), generator=generator).tolist()
                x = x.view(-1, 28, 28).roll(by, (1, 2)).flatten(1)
            loss = cross_entropy(model(x), data.y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
    return model.eval()


def sgd(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """SGD as the paper's code has it: momentum 0.9, weight decay 5e-4 on matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)


def host_from(model: nn.Module, path: Path | None, train: Callable[[], nn.Module]) -> nn.Module:
    """Load a host's weights from a safetensors file, or train it, and keep it there if a path is given."""
    if path is not None and path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    train()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return model.eval()


@torch.no_grad()
def predictions(model: nn.Module, x: Float[Tensor, "sample input"]) -> Int[Tensor, "sample"]:
    """Name the class of each row, in one pass: in `replace` mode every pass prepares K^n anew."""
    return model(x).argmax(1)  # type: ignore[no-any-return]


def share(right: Tensor) -> float:
    """Return the share of True, or of no rows 0."""
    return float(right.double().mean()) if len(right) else 0.0


def in_place_accuracy(model: nn.Module, data: Data) -> Accuracy:
    """Return the function from a surrogate to test accuracy with it in place of the whole span."""

    def judge(koopman: ki.KoopmanAutoencoder) -> float:
        with torch.no_grad(), ki.patched(model, koopman, mode="replace"):
            return share(predictions(model, data.x_test) == data.y_test)

    return judge


@dataclass(frozen=True)
class PaperRecipe:
    """The settings of arXiv 2505.12809 for one data set, as its text and public code give them.

    Attributes:
        dimension: principal components kept.
        hidden: widths of the encoder's hidden layers.
        observables: width of the observable space.
        k: operator steps between the first and the last representation; see `tap`.
        isometry: weight of the isometry.
        learning_rate: peak of the cyclic schedule.
        epochs: passes over the training rows.
        batch_size: rows a step.
    """

    dimension: int
    hidden: tuple[int, ...]
    observables: int
    k: int
    isometry: float
    learning_rate: float
    epochs: int
    batch_size: int

    def fitted_rows(self, rows: int, validation: float) -> int:
        """Rows that are left to fit on."""
        return rows - round(validation * rows)

    def steps_per_epoch(self, rows: int) -> int:
        """Whole batches in one pass over the rows that are fitted on."""
        return max(1, self.fitted_rows(rows, ki.FitConfig().validation) // self.batch_size)

    def config(self, rows: int, steps: int) -> ki.FitConfig:
        """Say the recipe in our terms.

        The paper divides each depth by its Frobenius norm over 100, which leaves a root mean square of
        `100 / sqrt(rows · dimension)`. It sums the isometry over the two ends and counts the zero diagonal;
        ours is the mean over ends and pairs, hence the factor `2 (1 − 1/batch)`.

        Args:
            rows: observed rows, of which a share is held out.
            steps: gradient steps, over which the one cycle of the learning rate is stretched.

        Returns:
            The configuration.
        """
        fitted = self.fitted_rows(rows, ki.FitConfig().validation)
        batch = min(self.batch_size, fitted)
        return ki.FitConfig(
            observables=self.observables,
            architecture="mlp",
            hidden=self.hidden,
            operator="generator",
            normalization=ki.NormalizationConfig(
                dimension=self.dimension, whiten=0.0, scale=100 / (fitted * self.dimension) ** 0.5, align=True
            ),
            pairs="endpoints",
            isometry="all_pairs",
            isometry_weight=2 * self.isometry * (1 - 1 / batch),
            steps=steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            operator_rate=1.0,
            clip=None,
            weight_decay=5e-4,
            schedule="cyclic",
            cycle=steps,
            warm_start=False,
            evaluate_every=max(1, steps // 10),
            patience=None,
        )

    def tap(self, model: nn.Module) -> ki.Tap:
        """Attach to the two ends of the residual stream, one unit of time apart.

        The paper's K is `exp(A / k)` and is taken k times: `exp(A)` over the span. Ours is `exp(t A)`, so
        with the span as the unit of time the two share A, and the paper's K is ours at time 1 / k. With times
        0 and k our A would be the paper's over k, and AdamW, whose steps do not know the scale of a gradient,
        would move the paper's A k times as fast.
        """
        sites = ki.attach(model).sites
        return ki.attach(model, [sites[0], sites[-1]], times=(0.0, 1.0))


@dataclass(frozen=True)
class Look:
    """What was seen at one look: step, seconds on the clock, in-place accuracy where it was asked for."""

    step: int
    seconds: float
    accuracy: float | None


@dataclass
class FitRecord:
    """Clock of one fit.

    Attributes:
        setup: seconds from the call to the first step: split, normalisation, warm start.
        step_seconds: seconds of each step.
        evaluation: seconds spent looking, which count for nothing.
        seconds: of the whole fit without looking.
        looks: what was seen on the way.
    """

    setup: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    evaluation: float = 0.0
    seconds: float = 0.0
    looks: list[Look] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.step_seconds)

    @property
    def mean_step(self) -> float:
        """Mean seconds of a step."""
        return sum(self.step_seconds) / max(1, self.steps)

    @property
    def clock(self) -> float:
        """Seconds so far: setup and steps."""
        return self.setup + sum(self.step_seconds)


class WatchedTrainer(Trainer):
    """A Trainer that writes a FitRecord and can stop by the clock or at a goal.

    Args:
        *built: what Trainer takes.
        record: where to write.
        started: `time.perf_counter()` when the fit was called.
        accuracy: judged at each look, or None.
        goal: accuracy at which to stop, or None.
        most_seconds: of the clock, at which to stop, or None.
    """

    def __init__(
        self,
        *built: Any,
        record: FitRecord,
        started: float,
        accuracy: Accuracy | None,
        goal: float | None,
        most_seconds: float | None,
    ) -> None:
        super().__init__(*built)
        self.record, self.accuracy, self.goal, self.most_seconds = record, accuracy, goal, most_seconds
        record.setup = time.perf_counter() - started

    def _descend(self, step: int) -> None:
        started = time.perf_counter()
        super()._descend(step)
        self.record.step_seconds.append(time.perf_counter() - started)

    def _look(self, bar: Any) -> None:
        started = time.perf_counter()
        super()._look(bar)
        with self.averaged_weights():
            seen = None if self.accuracy is None else self.accuracy(self.surrogate)
        self.record.looks.append(Look(self.progress.step, self.record.clock, seen))
        self.record.evaluation += time.perf_counter() - started

    def _steps(self, bar: Any) -> Iterator[int]:
        for step in super()._steps(bar):
            yield step
            looked = self.record.looks[-1]
            if looked.step == step and self.goal is not None and (looked.accuracy or 0.0) >= self.goal:
                return
            if self.most_seconds is not None and self.record.clock > self.most_seconds:
                if looked.step != step:
                    self._look(bar)
                return


def watched_fit(
    trajectories: ki.Trajectories,
    config: ki.FitConfig,
    *,
    accuracy: Accuracy | None = None,
    goal: float | None = None,
    most_seconds: float | None = None,
) -> tuple[ki.KoopmanAutoencoder, FitRecord]:
    """Run `ki.fit` on a stopwatch.

    Args:
        trajectories: what to fit.
        config: how.
        accuracy: judged at each look, off the clock.
        goal: accuracy at which to stop.
        most_seconds: on the clock, after which to stop.

    Returns:
        The surrogate and the record.
    """
    record, started = FitRecord(), time.perf_counter()
    watching = {"accuracy": accuracy, "goal": goal, "most_seconds": most_seconds}
    trainer = partial(WatchedTrainer, record=record, started=started, **watching)
    with mock.patch.object(fitting, "Trainer", trainer):
        koopman = ki.fit(trajectories, config)
    record.seconds = time.perf_counter() - started - record.evaluation
    return koopman, record


def seconds_per_step(trajectories: ki.Trajectories, config: ki.FitConfig) -> float:
    """Time a few steps on a few rows: the median of the later ones, with K already off the identity."""
    few = trajectories[: max(CALIBRATION_ROWS, 4 * config.batch_size)]
    short = replace(
        config,
        steps=CALIBRATION_STEPS,
        evaluate_every=CALIBRATION_STEPS,
        schedule="constant",
        warm_start=False,
        patience=None,
    )
    _, record = watched_fit(few, short)
    return median(record.step_seconds[CALIBRATION_STEPS // 2 :])


def paper_fit(
    recipe: PaperRecipe,
    trajectories: ki.Trajectories,
    minutes: float,
    *,
    epochs: float | None = None,
    looks: int = 10,
    accuracy: Accuracy | None = None,
    goal: float | None = None,
) -> tuple[ki.KoopmanAutoencoder, FitRecord]:
    """Fit by the paper's recipe, for as many of its epochs as a budget of time holds.

    The steps are measured first, and the one cycle of the learning rate is stretched over those that fit in.

    Args:
        recipe: the paper's settings.
        trajectories: two sites, one unit of time apart.
        minutes: the budget.
        epochs: fewer epochs than the paper's.
        looks: how often to look.
        accuracy: judged at each look, off the clock.
        goal: accuracy at which to stop.

    Returns:
        The surrogate and the record.
    """
    rows = len(trajectories)
    pace = seconds_per_step(trajectories, recipe.config(rows, CALIBRATION_STEPS))
    wanted = round((epochs or recipe.epochs) * recipe.steps_per_epoch(rows))
    steps = max(1, min(wanted, int(60 * minutes / pace)))
    config = replace(recipe.config(rows, steps), evaluate_every=max(1, steps // looks))
    most = PATIENCE_ON_CLOCK * 60 * minutes
    return watched_fit(trajectories, config, accuracy=accuracy, goal=goal, most_seconds=most)


def add_data_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options that every benchmark on MNIST has."""
    parser.add_argument("--mnist", default=default_mnist(), help="folder or Hub name (default: %(default)s)")
    parser.add_argument("--slice", type=int, metavar="N", help="use N training rows: a smoke run")
    parser.add_argument("--host", type=Path, help="safetensors of the MNIST host, to read or to write")
    parser.add_argument("--seed", type=int, default=0, help="of host, batches and fits")
    out = Path(__file__).resolve().parent / "results" / f"{name}.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")


def machine() -> dict[str, Any]:
    """Describe where this ran."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_gb() -> float:
    """Return the largest resident size of this process so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def percent(value: float | None) -> str:
    """Show a share in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.2f}"
