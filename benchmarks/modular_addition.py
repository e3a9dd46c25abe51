"""A network that adds modulo a prime: its frequencies by the clock, its MLP substituted, a frequency of the sum erased.

The network is an embedding, one residual block and an unembedding, and uses a handful of frequencies, which are known
from its logits. Asked, for each seed:

- substituted: accuracy with the surrogate in the place of the block, on pairs that it was not fitted on, beside the
  best affine map;
- read: how well phases of the sum can be read by a linear map of the states before the block, of the same lifted, and
  of the states after the block (R² on pairs held out), for frequencies that the network uses and for one it does not;
- clock: with a → a + 1 as time, which frequencies of the trusted modes are those used, and which are none of them;
- erased: each frequency of the sum in turn, and all but two at once: the power it has left in the logits, the least
  share that the others keep, and the accuracy, beside theory, which takes off the logits what is linear in the phases.

Erasers beside the operator's, taught on the same rows: LEACE (package concept-erasure) and the orthogonal projection of
the directions in which the phases' means differ, on the raw states before the block and after it.

    OMP_NUM_THREADS=1 python benchmarks/modular_addition.py
    python benchmarks/modular_addition.py --seeds 0 --steps 100 --fit-steps 20 --features 64        # smoke
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from jaxtyping import Bool, Float, Int
from torch import Tensor

import koopman_interp as ki
from koopman_interp.auditing.baselines import has_leace
from koopman_interp.files import write_json
from koopman_interp.tables import table
from koopman_interp.testing.modular import (
    ModularAdder,
    frequency_powers,
    modular_pairs,
    phases,
    train_modular_adder,
    without_frequencies,
)

USED = 0.01
"""Share of the logits' power from which on a frequency counts as used."""
NEAR = 0.1
"""Turns a period up to which a mode's frequency is one of those used."""
SHRINKAGE = 1e-6

Rows = Float[Tensor, "sample width"]


@dataclass(frozen=True)
class Network:
    """A trained network, all that it can be asked, and what it uses."""

    model: ModularAdder
    prime: int
    pairs: Int[Tensor, "pair 2"]
    sums: Int[Tensor, " pair"]
    trained: Bool[Tensor, " pair"]
    logits: Float[Tensor, "pair prime"]
    used: list[int]
    unused: int

    @classmethod
    def of(cls, prime: int, seed: int, steps: int) -> Network:
        """Train one."""
        model, trained = train_modular_adder(prime, steps=steps, seed=seed)
        pairs, sums = modular_pairs(prime)
        logits = model(pairs)
        power = frequency_powers(logits, prime)[1:]
        order = (power.argsort(descending=True) + 1).tolist()
        used = [k for k in order if power[k - 1] > USED * power.sum()]
        return cls(model, prime, pairs, sums, trained, logits, used or order[:1], order[-1])

    def accuracy(self, logits: Tensor, rows: Tensor | slice = slice(None)) -> float:
        """Share of right answers."""
        return float((logits.argmax(1) == self.sums)[rows].double().mean())

    def phases(self, frequencies: Sequence[int]) -> Float[Tensor, "pair column"]:
        """Phases of the sum."""
        return phases(self.sums, self.prime, frequencies)


def readable(states: Rows, wanted: Tensor, fitted: Tensor) -> float:
    """R² of a ridge regression on rows fitted, judged on the others."""
    x, mean = states.double(), states[fitted].double().mean(0)
    gram = (x[fitted] - mean).T @ (x[fitted] - mean)
    gram += 1e-6 * torch.diag(gram.diagonal()) + 1e-12 * gram.trace() * torch.eye(len(gram), dtype=gram.dtype)
    level = wanted[fitted].mean(0)
    weights = torch.linalg.solve(gram, (x[fitted] - mean).T @ (wanted[fitted] - level))
    missed = wanted[~fitted] - level - (x[~fitted] - mean) @ weights
    return float(1 - missed.square().sum() / (wanted[~fitted] - wanted[~fitted].mean(0)).square().sum())


def affine(network: Network, before: Rows, after: Rows, fitted: Tensor) -> float:
    """Accuracy, on rows not fitted, with the best affine map in the place of the block."""
    x = torch.cat([before, torch.ones(len(before), 1)], 1).double()
    made = x @ torch.linalg.lstsq(x[fitted], after[fitted].double(), driver="gelsd").solution
    return network.accuracy(network.model.unembed(made.float()), ~fitted)


# --- the clock ----------------------------------------------------------------------------------------------


def clock(network: Network, ticks: int, limit: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Observe the state after the block at a, a + 1, a + 2 …, and read the frequencies of the trusted modes that turn.

    Returns:
        For each fit what was found, which of the used frequencies were missed, and what is none of them.
    """
    steps = [(network.pairs + torch.tensor([tick, 0])) % network.prime for tick in range(ticks)]
    orbit = ki.orbit(network.model, steps, site="block", period=network.prime, batch_size=4096, progress=False)
    told = {}
    trained = ki.FitConfig(validation=0.2, **limit)
    # Without features: as many as least squares takes by itself would leave fewer than ten rows a mode.
    linear = replace(trained, hidden=())
    for name, method, config in (("trained", "gradient", trained), ("linear", "least_squares", linear)):
        koopman = ki.fit(orbit, config, method=method, progress=False)
        spectrum = ki.spectrum(koopman, orbit[koopman.is_held_out(orbit)])
        turning = spectrum.operator_eigenvalues.imag > 0
        found = np.abs(spectrum.turns_a_period[spectrum.trusted & turning]).tolist()
        others = spectrum.residuals[~spectrum.trusted & turning]
        told[name] = {
            "found": sorted(found),
            "missed": [k for k in network.used if all(abs(turn - k) > NEAR for turn in found)],
            "false": [turn for turn in found if all(abs(turn - k) > NEAR for k in network.used)],
            "residuals, largest trusted": float(spectrum.residuals[spectrum.trusted & turning].max(initial=0)),
            "residuals, least other": float(others.min(initial=np.inf)),
            "samples": spectrum.samples,
        }
        print(f"the clock, {name}: {spectrum!r}", flush=True)
    return told


# --- erasing ------------------------------------------------------------------------------------------------


Eraser = Callable[[Sequence[int]], Float[Tensor, "pair prime"]]
"""From frequencies of the sum to the logits without them."""


def carried(network: Network, koopman: ki.KoopmanAutoencoder, trajectories: ki.Trajectories) -> Eraser:
    """Erase in the lifted state before the block, and let K carry it to the state after."""
    fitted = ~koopman.is_held_out(trajectories)

    def erase(frequencies: Sequence[int]) -> Tensor:
        wanted = network.phases(frequencies)[fitted]
        edit = ki.erase_concept(
            koopman, trajectories[fitted], attribute=wanted, site=0, cost="rows", shrinkage=SHRINKAGE
        )
        with ki.patched(network.model, koopman, edit, source=0):
            return network.model(network.pairs)

    return erase


def raw(network: Network, states: Rows, fitted: Tensor, *, after: bool, leace: bool) -> Eraser:
    """Erase from the raw states before or after the block, in place; the network does the rest."""
    rows = states[fitted].double()

    def erase(frequencies: Sequence[int]) -> Tensor:
        wanted = network.phases(frequencies)[fitted]
        if leace:
            eraser = importlib.import_module("concept_erasure").LeaceEraser.fit(rows, wanted)
        else:
            cross = (rows - rows.mean(0)).T @ (wanted - wanted.mean(0))
            basis = torch.linalg.qr(cross).Q

            def eraser(x: Tensor) -> Tensor:
                return x - (x - rows.mean(0)) @ basis @ basis.T

        block = network.model.block
        if after:
            handle = block.register_forward_hook(lambda _, __, out: eraser(out.double()).float())
        else:
            handle = block.register_forward_pre_hook(lambda _, args: (eraser(args[0].double()).float(),))
        try:
            return network.model(network.pairs)
        finally:
            handle.remove()

    return erase


def erased(network: Network, erase: Eraser) -> dict[str, float]:
    """Judge an eraser: one frequency at a time, and all but two at once."""
    before = frequency_powers(network.logits, network.prime)
    left, kept, off = [], [], []
    for k in network.used:
        logits = erase([k])
        power = frequency_powers(logits, network.prime) / before
        left.append(float(power[k]))
        kept += [float(power[other]) for other in network.used if other != k]
        theory = network.accuracy(without_frequencies(network.logits, network.prime, [k]))
        off.append(network.accuracy(logits) - theory)
    several = network.used[:-2] or network.used
    logits = erase(several)
    return {
        "own power left": max(left),
        "others' power, least": min(kept, default=1.0),
        "others' power, mean": float(np.mean(kept)) if kept else 1.0,
        "accuracy − theory, worst": max(off, key=abs),
        "all but two": network.accuracy(logits),
        "all but two, theory": network.accuracy(without_frequencies(network.logits, network.prime, several)),
    }


# --- one seed -----------------------------------------------------------------------------------------------


def judged(network: Network, features: int, ticks: int, steps: int | None) -> dict[str, Any]:
    """Ask everything of one network."""
    model, pairs = network.model, network.pairs
    trajectories = ki.attach(model, ["block:input", "block"]).observe(pairs, batch_size=4096, progress=False)
    limit: dict[str, int] = {} if steps is None else {"steps": steps}
    fits = {
        "random features": (ki.FitConfig(observables=features), "least_squares"),
        "trained": (ki.FitConfig(**limit), "gradient"),
    }
    found: dict[str, Any] = {"used": network.used, "network": network.accuracy(network.logits, ~network.trained)}
    erasers: dict[str, Eraser] = {}
    before, after = trajectories.states
    for name, (config, method) in fits.items():
        started = time.perf_counter()
        koopman = ki.fit(trajectories, config, method=method, progress=False)
        held_out = koopman.is_held_out(trajectories)
        with ki.patched(model, koopman, mode="replace"):
            substituted = network.accuracy(model(pairs), held_out)
        lifted = koopman.encode(before, 0)
        found[name] = {
            "seconds": time.perf_counter() - started,
            "substituted": substituted,
            "read, lifted": [readable(lifted, network.phases([k]), ~held_out) for k in network.used],
            "read, lifted, unused": readable(lifted, network.phases([network.unused]), ~held_out),
        }
        pairs_of = ki.transfer_modes(koopman, trajectories[held_out])
        found[name]["pairs trusted"], found[name]["of variance"] = (
            int(pairs_of.trusted.sum()),
            float(pairs_of.share[pairs_of.trusted].sum()),
        )
        erasers[f"carried by K, {name}"] = carried(network, koopman, trajectories)
    found["affine map"] = affine(network, before, after, ~held_out)
    for where, states in (("before", before), ("after", after)):
        found[f"read, {where}"] = [readable(states, network.phases([k]), ~held_out) for k in network.used]
        kinds = {"LEACE": True} if has_leace() else {}
        for name, leace in (kinds | {"projection": False}).items():
            erasers[f"{name}, states {where} the block"] = raw(
                network, states, ~held_out, after=where == "after", leace=leace
            )
    found["erased"] = {name: erased(network, eraser) for name, eraser in erasers.items()}
    found["clock"] = clock(network, ticks, limit)
    return found


def report(seeds: dict[int, dict[str, Any]]) -> None:
    """Print the tables."""
    rows = []
    for seed, found in seeds.items():
        for name in ("random features", "trained"):
            own = found[name]
            cells = [own["substituted"], found["affine map"], *map(least, (found["read, before"], own["read, lifted"]))]
            cells += [own["read, lifted, unused"], least(found["read, after"])]
            rows.append([f"{seed}, {name}", *(f"{cell:.3f}" for cell in cells), f"{own['seconds']:.0f}"])
    header = ["seed, surrogate", "substituted", "affine map", "R² before", "lifted", "unused", "after", "fit, s"]
    print("\nThe block substituted, on pairs held out; least R² of the sum's phases over the frequencies used")
    print(table(header, rows))
    rows = []
    for seed, found in seeds.items():
        for name, own in found["clock"].items():
            cells = [listed(found["used"]), listed(own["found"], 2), listed(own["missed"]), listed(own["false"], 2)]
            ends = (own["residuals, largest trusted"], own["residuals, least other"])
            rows.append([f"{seed}, {name}", *cells, *(f"{end:.2f}" for end in ends)])
    print("\nThe clock, a → a + 1, after the block: turns a period of the trusted modes that turn, and residuals")
    print(table(["seed, fit", "used", "found", "missed", "false", "largest trusted", "least other"], rows))
    rows = [
        [f"{seed}, {name}", *(f"{100 * value:.1f}" for value in own.values())]
        for seed, found in seeds.items()
        for name, own in found["erased"].items()
    ]
    names = list(next(iter(next(iter(seeds.values()))["erased"].values())))
    print("\nA frequency of the sum erased, each in turn, then all but two at once, %")
    print(table(["seed, eraser", *names], rows))


def least(values: Sequence[float]) -> float:
    """The least of some values."""
    return min(values)


def listed(values: Sequence[float], digits: int = 0) -> str:
    """Numbers in a cell."""
    return " ".join(f"{value:.{digits}f}" for value in sorted(values)) or "none"


@torch.no_grad()
def main() -> None:
    """Train, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prime", type=int, default=59)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500, help="of the network's training")
    parser.add_argument("--fit-steps", type=int, help="of the trained surrogate, at most; a smoke run")
    parser.add_argument("--features", type=int, default=1536, help="observables of the surrogate of random features")
    parser.add_argument("--ticks", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "modular_addition.json")
    told = parser.parse_args()
    seeds = {}
    for seed in told.seeds:
        started = time.perf_counter()
        with torch.enable_grad():
            network = Network.of(told.prime, seed, told.steps)
        print(f"seed {seed}: trained in {time.perf_counter() - started:.0f} s, uses {network.used}", flush=True)
        seeds[seed] = judged(network, told.features, told.ticks, told.fit_steps)
    report(seeds)
    write_json(told.out, {"machine": machine(), "prime": told.prime, "seeds": seeds})


if __name__ == "__main__":
    main()
