"""How many random features a fit by least squares is to take: held-out error and seconds by their number.

On hosts of four kinds: Yin-Yang, digits 8×8, MNIST of width 256 (a slice) and the language model stories260K. `fraction
of variance unexplained` is of rows that no fit saw: the mean over all pairs of depths, over single steps, and of the
whole span. The first row has no features; "as in 0.3.0" is the size that least squares took before it had a rule of its
own; the default is what `ki.fit(…, method="least_squares")` takes now.

    python benchmarks/random_features.py
    python benchmarks/random_features.py --hosts yin-yang        # smoke
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import default_data, default_model, machine, mnist_host
from common import mnist as mnist_rows
from datasets import load_dataset
from digits import digits_setting
from transformers import AutoModelForCausalLM, AutoTokenizer

import koopman_interp as ki
from koopman_interp.files import write_json
from koopman_interp.fitting.sizes import sizes
from koopman_interp.tables import table
from koopman_interp.testing import ResidualMLP, train_classifier, yin_yang

Observed = tuple[ki.Trajectories, ki.Trajectories]
"""Rows to fit, and rows to judge by."""


@dataclass(frozen=True)
class Row:
    """One fit.

    Attributes:
        host: whose motion.
        name: of the size.
        observables: width of the observable space.
        pairs, step, whole: fractions of variance unexplained.
        seconds: of the fit.
    """

    host: str
    name: str
    observables: int
    pairs: float
    step: float
    whole: float
    seconds: float


def yin_yang_host() -> Observed:
    """The paper's small network."""
    (x, y), (x_test, _) = yin_yang(5000), yin_yang(2000, seed=1)
    torch.manual_seed(0)
    model = train_classifier(ResidualMLP(inputs=4, width=10, blocks=5, outputs=3), x, y, epochs=40, peak_rate=1e-2)
    tap = ki.attach(model)
    return tap.observe(x, progress=False), tap.observe(x_test, progress=False)


def digits_host() -> Observed:
    """The setting of `digits.py`."""
    setting = digits_setting(0)
    tap = ki.attach(setting.model)
    return tap.observe(setting.x, progress=False), tap.observe(setting.x_test, progress=False)


def mnist_slice() -> Observed:
    """A network of width 256 on 6,000 rows."""
    data = mnist_rows(str(default_data("mnist")), 6000)
    tap = ki.attach(mnist_host(data, None, epochs=4, seed=0))
    return tap.observe(data.x, progress=False), tap.observe(data.x_test, progress=False)


def stories_host() -> Observed:
    """A language model, on 260 stories that it has told, and 40 others."""
    folder = str(default_model("stories260K"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    stories, tap = load_dataset(str(default_data("stories-sampled"))), ki.attach(model, skip=1)
    train, test = (
        [tokenizer(text)["input_ids"] for text in stories[split][:count]["text"]]
        for split, count in (("train", 260), ("test", 40))
    )
    return tap.observe(train, batch_size=16, progress=False), tap.observe(test, batch_size=16, progress=False)


HOSTS: dict[str, Callable[[], Observed]] = {
    "yin-yang": yin_yang_host,
    "digits": digits_host,
    "mnist": mnist_slice,
    "stories260K": stories_host,
}


@torch.no_grad()
def unexplained(koopman: ki.KoopmanAutoencoder, held_out: ki.Trajectories) -> tuple[float, float, float]:
    """Return fractions of variance unexplained in normalised states: of all pairs, of single steps, of the whole."""
    states = [koopman.normalization.normalize(rows, depth) for depth, rows in enumerate(held_out.states)]
    found = dict[tuple[int, int], float]()
    for i, j in itertools.combinations(range(len(states)), 2):
        z = koopman.operator.advance(koopman.encoder(states[i]), koopman.steps(i, j))
        left = (koopman.decoder(z) - states[j]).square().sum()
        found[i, j] = float(left / (states[j] - states[j].mean(0)).square().sum())
    steps = [value for (i, j), value in found.items() if j == i + 1]
    return sum(found.values()) / len(found), sum(steps) / len(steps), found[0, len(states) - 1]


def measured(host: str) -> list[Row]:
    """Fit one host's motion at each size."""
    fitted, held_out = HOSTS[host]()
    plain = ki.FitConfig(hidden=())
    dimension = ki.fit(fitted, plain, method="least_squares").config.dimension
    before = sizes(ki.FitConfig(), dimension, len(fitted), fitted.depths)
    configs = {
        "states alone": plain,
        "as in 0.3.0": ki.FitConfig(observables=before.observables, hidden=before.hidden),
        "256": ki.FitConfig(observables=256, hidden=(256,)),
        "the default": ki.FitConfig(),
        "1,024": ki.FitConfig(observables=1024, hidden=(1024,)),
    }
    rows = []
    for name, config in configs.items():
        if name == "256" and dimension >= 256:
            continue
        started = time.perf_counter()
        koopman = ki.fit(fitted, config, method="least_squares", progress=False)
        seconds = time.perf_counter() - started
        rows.append(Row(host, name, koopman.config.observables, *unexplained(koopman, held_out), seconds))
    return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", choices=list(HOSTS), default=list(HOSTS))
    out = Path(__file__).resolve().parent / "results" / "random_features.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON to write (default: %(default)s)")
    given = parser.parse_args()
    found = []
    for host in given.hosts:
        rows = measured(host)
        found += rows
        body = [
            [row.name, f"{row.observables:,}"]
            + [f"{value:.4f}" for value in (row.pairs, row.step, row.whole)]
            + [f"{row.seconds:.1f}"]
            for row in rows
        ]
        header = ["", "observables", "all pairs", "one step", "whole span", "s"]
        print(f"== {host} ==\n{table(header, body)}\n", flush=True)
    write_json(given.out, {"machine": machine(), "rows": [asdict(row) for row in found]})


if __name__ == "__main__":
    main()
