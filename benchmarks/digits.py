"""The setting of digits 8×8: models that others measure edits on, and the audit of the default edit in it.

scikit-learn's 1,797 digits, half to train and half held out; a residual MLP of 5 blocks of width 64; class 4 is to be
forgotten; the retrained reference is the same network trained without it, and a second one from other initial weights
says how far two of its kind lie apart. A setting costs some seconds, its audit half a minute.

    python benchmarks/digits.py                      # three seeds
    python benchmarks/digits.py --seeds 0 --quick    # smoke
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import machine
from sklearn.datasets import load_digits
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.divergence import jensen_shannon
from koopman_interp.files import jsonable, write_json
from koopman_interp.tables import table
from koopman_interp.testing import ResidualMLP, train_classifier

LABEL = 4
EPOCHS = 10
CONFIG = ki.FitConfig(observables=128, pairs="all", steps=600, evaluate_every=150)
STRENGTHS = (1.0, 1.5, 2.0)


@dataclass(frozen=True, eq=False)
class Setting:
    """One seed's data and networks.

    Attributes:
        x, y: training rows.
        x_test, y_test: held-out rows.
        model: the base model.
        retrained: the same architecture, initial weights and recipe, without class `LABEL`.
        other: as `retrained`, from other initial weights and batches.
        seed: of all this.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    model: nn.Module
    retrained: nn.Module
    other: nn.Module
    seed: int

    def audited(self, patch: ki.Patch, **settings: Any) -> ki.Audit:
        """Audit a patch of the model on the held-out rows, beside the training rows and the retrained reference."""
        return ki.audit(
            patch,
            held_out=(self.x_test, self.y_test),
            training=(self.x, self.y),
            retrained=self.retrained,
            seed=self.seed,
            **settings,
        )


def digits_setting(seed: int, *, epochs: int = EPOCHS) -> Setting:
    """Split the digits and train the three networks."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    kept = train[y[train] != LABEL]

    def trained(rows: Tensor, own: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(own)
            model = ResidualMLP(inputs=64, width=64, blocks=5, outputs=10)
        return train_classifier(model, x[rows], y[rows], epochs=epochs, batch_size=64, seed=own)

    return Setting(
        x=x[train],
        y=y[train],
        x_test=x[test],
        y_test=y[test],
        model=trained(train, seed),
        retrained=trained(kept, seed),
        other=trained(kept, seed + 100),
        seed=seed,
    )


def observed_and_fitted(setting: Setting) -> tuple[ki.Trajectories, ki.KoopmanAutoencoder]:
    """Observe the model on its training rows, and fit a surrogate by the setting's seed."""
    trajectories = ki.attach(setting.model).observe(setting.x, setting.y, progress=False)
    return trajectories, ki.fit(trajectories, replace(CONFIG, seed=setting.seed), progress=False)


def audited(setting: Setting, *, quick: bool = False) -> list[ki.Audit]:
    """Audit the default edit at each strength; the first audit has probes by depth and relearning too."""
    tap = ki.attach(setting.model)
    trajectories = tap.observe(setting.x, setting.y, progress=False)
    koopman = ki.fit(trajectories, CONFIG, method="least_squares" if quick else "gradient", progress=False)
    found = []
    for strength in STRENGTHS[: 1 if quick else None]:
        edit = ki.erase_class(koopman, label=LABEL, strength=strength)
        full: dict[str, Any] = {"depths": "all", "relearn": ki.Relearning()} if strength == 1 else {}
        patch = ki.patched(setting.model, koopman, edit)
        found.append(setting.audited(patch, probes=("linear", "rbf", "mlp"), **full))
    return found


def other_seed(setting: Setting) -> float:
    """Jensen-Shannon divergence in bits between the two retrained networks on held-out rows of the class."""
    x = setting.x_test[setting.y_test == LABEL]
    with torch.no_grad():
        first, second = (net(x).double().log_softmax(1) for net in (setting.retrained, setting.other))
    return float(jensen_shannon(first, second).mean() / math.log(2))


MEASURES = {
    "forget ↓": lambda row: row.forget_accuracy,
    "retain ↑": lambda row: row.retain_accuracy,
    "linear": lambda row: row.linear_probe,
    "RBF": lambda row: row.rbf_probe,
    "MLP": lambda row: row.mlp_probe,
    "1-shot": lambda row: row.one_shot,
    "5-shot": lambda row: row.five_shot,
    "10-shot": lambda row: row.prototype,
    "JS to retrained": lambda row: row.retrained_js,
    "membership: loss": lambda row: row.membership.loss,
    "confidence": lambda row: row.membership.confidence,
}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="least squares and one strength: a smoke run")
    out = Path(__file__).resolve().parent / "results" / "digits.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")
    given = parser.parse_args()
    audits, others = [], []
    for seed in given.seeds:
        setting = digits_setting(seed)
        found = audited(setting, quick=given.quick)
        others.append(other_seed(setting))
        audits.append(found)
        print(f"== Seed {seed} ==\n{found[0]}\n")
    print("Medians over the seeds, %:")
    print(medians(audits))
    print(
        f"retrained reference, other seed: JS to retrained {100 * statistics.median(others):.0f} "
        f"(each seed: {', '.join(f'{100 * other:.0f}' for other in others)})"
    )
    write_json(
        given.out,
        jsonable(
            {
                "machine": machine(),
                "seeds": given.seeds,
                "other_seed_js": others,
                "audits": [[audit.as_dict() for audit in found] for found in audits],
            }
        ),
    )


def medians(audits: list[list[ki.Audit]]) -> str:
    """Tabulate the methods, with the edit at each strength, as medians over the seeds."""
    lines: list[list[str]] = []
    for place, of_strength in enumerate(zip(*audits, strict=True)):
        for index, row in enumerate(of_strength[0].rows):
            ours = index == len(of_strength[0].rows) - 1
            if place and not ours:
                continue
            name = of_strength[0].edit if ours else row.name
            of_seeds = [audit.rows[index] for audit in of_strength]
            lines.append([name, *(f"{100 * statistics.median(map(read, of_seeds)):.1f}" for read in MEASURES.values())])
    return table(["", *MEASURES], lines)


if __name__ == "__main__":
    main()
