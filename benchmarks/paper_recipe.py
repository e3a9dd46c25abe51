"""The recipe of arXiv 2505.12809 in our terms, and a fit by it within a budget of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stopwatch import CALIBRATION_STEPS, Accuracy, FitClock, seconds_per_step, watched_fit
from torch import nn

import koopman_interp as ki

PATIENCE_ON_CLOCK = 1.2
"""A fit is stopped when it takes this many times the seconds that its calibration promised."""


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
            averaging=0.0,
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


def paper_fit(
    recipe: PaperRecipe,
    trajectories: ki.Trajectories,
    minutes: float,
    *,
    epochs: float | None = None,
    looks: int = 10,
    accuracy: Accuracy | None = None,
    goal: float | None = None,
) -> tuple[ki.KoopmanAutoencoder, FitClock]:
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
