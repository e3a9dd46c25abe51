"""One table over many hosts: what a fit with `FitConfig()` alone is worth, and whether its spectrum can be believed.

Every host is fitted with the same unchanged settings, by each seed, and judged on rows that it was not fitted on: FVU
at the last depth and figures at the model's output, beside the best linear map, kernel ridge regression and one K per
depth on the same rows; the share of the variance of observables that trusted modes explain; and, where the host's
eigenvalues are known, how far the trusted modes' are from them. Data are read below KOOPMAN_INTERP_DATA; hosts are
trained here, apart from those that come as weights. A host whose data or weights are not at hand is left out, and said
so. Cost: some hours on one core, most of it for MNIST.

    OMP_NUM_THREADS=1 python benchmarks/zoo.py --seeds 0 1 2
    python benchmarks/zoo.py --smoke                             # smoke
    python benchmarks/zoo.py --hosts linear slow-manifold        # some of them
    python benchmarks/zoo.py --hosts digits --config '{"aim": "spectrum"}'        # other settings than the defaults
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from common import default_model, machine, predictions, share
from paper_recipe import paper_fit
from paper_settings import SETTINGS
from zoo_hosts import HOSTS, Case, Known

import koopman_interp as ki
from koopman_interp.files import jsonable, write_json
from koopman_interp.tables import number, percent, table

BESIDE = ("endpoint linear", "kernel ridge", "K per depth")
PAPER = "paper's recipe"


@dataclass(frozen=True)
class Row:
    """Figures of one host and seed; None where there are none.

    Attributes:
        host: its name.
        seed: of host and fit.
        fvu: of the surrogate at the last depth, and of what stands beside it, by name.
        base: accuracy of the model.
        in_place: accuracy with each substituted for the whole span, by name.
        kl: to the model, by name, in nats.
        modes: modes of K.
        trusted: of these.
        variance: share of the observables' variance that trusted modes explain.
        strictly: the same at half the tolerance.
        vamp: modes that the VAMP-2 score bears out.
        wrong: largest distance of a trusted mode's λ from the nearest known one.
        missed: largest distance of a known leading λ from the nearest mode.
        seconds: of the fit.
        notes: coordinates, and what else the fit chose.
    """

    host: str
    seed: int
    fvu: dict[str, float | None]
    base: float | None
    in_place: dict[str, float | None]
    kl: dict[str, float | None]
    modes: int
    trusted: int
    variance: float
    strictly: float
    vamp: int
    wrong: float | None
    missed: float | None
    seconds: float
    notes: str


def measured(name: str, case: Case, config: ki.FitConfig) -> Row:
    """Fit a host, and judge the surrogate on held-out rows."""
    started = time.perf_counter()
    koopman = ki.fit(case.fitted, config, progress=False)
    seconds = time.perf_counter() - started
    spectrum = ki.spectrum(koopman, case.held_out)
    wrong, missed = distances(spectrum, case.known)
    paper = None if case.next_token or not isinstance(case.inputs, tuple) else by_paper(name, case, seconds)
    faith = ki.fidelity(case.model, koopman, held_out=case.inputs, fitted=case.fitted, next_token=case.next_token)
    base, *substituted = faith.outputs or (None,)
    return Row(
        host=name,
        seed=config.seed,
        fvu=faith.depths[-1].fvu,
        base=None if base is None else base.accuracy,
        in_place={row.name: row.accuracy for row in substituted} | {PAPER: paper},
        kl={row.name: row.kl for row in substituted},
        modes=len(spectrum.eigenvalues),
        trusted=int(spectrum.trusted.sum()),
        variance=spectrum.variance_in(),
        strictly=replace(spectrum, tolerance=spectrum.tolerance / 2).variance_in(),
        vamp=ki.vamp_score(koopman, case.held_out).modes,
        wrong=wrong,
        missed=missed,
        seconds=seconds,
        notes=str(koopman.config.coordinates),
    )


def by_paper(name: str, case: Case, seconds: float) -> float | None:
    """Return the accuracy in place of a fit by the paper's recipe in as many seconds.

    Its MNIST settings go with the width, where the paper has none for a host. None where widths differ, or where there
    are fewer rows than the components that it keeps, which are all.
    """
    ends = replace(
        case.fitted,
        sites=(case.fitted.sites[0], case.fitted.sites[-1]),
        states=(case.fitted.states[0], case.fitted.states[-1]),
        shapes=(case.fitted.shapes[0], case.fitted.shapes[-1]),
        times=(0.0, 1.0),
    )
    recipe, width = SETTINGS["yin-yang" if name == "yin-yang" else "mnist"].recipe, ends.widths[0]
    if recipe.dimension != width:
        wider = width / recipe.dimension
        hidden = tuple(round(wider * each) for each in recipe.hidden)
        recipe = replace(recipe, dimension=width, hidden=hidden, observables=round(wider * recipe.observables))
    if len(set(ends.widths)) > 1 or recipe.fitted_rows(len(ends), ki.FitConfig().validation) <= width:
        return None
    koopman, _ = paper_fit(recipe, ends, seconds / 60, epochs=10**6, looks=1)
    x, y = case.inputs
    with torch.no_grad(), ki.patched(case.model, koopman, mode="replace"):
        return share(predictions(case.model, x) == y)


def distances(spectrum: ki.Spectrum, known: Known | None) -> tuple[float | None, float | None]:
    """Return how far trusted eigenvalues are from known ones, and known leading ones from the nearest found."""
    if known is None or not spectrum.in_host_units:
        return None, None
    found = spectrum.eigenvalues
    missed = float(max(min(abs(found - one)) for one in known.leading))
    if known.every is None:
        return None, missed
    wrong = [min(abs(value - one) for one in known.every) for value in found[spectrum.trusted]]
    return float(max(wrong, default=0.0)), missed


def shown(rows: list[Row]) -> str:
    """Tabulate medians over seeds, one line a host."""
    header = [
        "host",
        "FVU",
        *BESIDE,
        "base %",
        "in place %",
        "paper %",
        "KL",
        "trusted",
        "of variance %",
        "at half",
        "VAMP",
        "λ wrong",
    ]
    lines = []
    for name in dict.fromkeys(row.host for row in rows):
        own = [row for row in rows if row.host == name]
        lines.append(
            [
                name,
                *(number(middle([row.fvu[each] for row in own]), 2, "e") for each in ("surrogate", *BESIDE)),
                percent(middle([row.base for row in own])),
                percent(middle([row.in_place.get("surrogate") for row in own])),
                percent(middle([row.in_place.get(PAPER) for row in own])),
                number(middle([row.kl.get("surrogate") for row in own]), 4),
                f"{median(row.trusted for row in own):g}/{own[0].modes}",
                percent(middle([row.variance for row in own]), 1),
                percent(middle([row.strictly for row in own]), 1),
                f"{median(row.vamp for row in own):g}",
                number(middle([row.wrong for row in own]), 1, "e"),
                number(middle([row.missed for row in own]), 1, "e"),
                number(middle([row.seconds for row in own]), 1),
            ]
        )
    return table([*header, "λ missed", "fit s"], lines)


def middle(values: list[float | None]) -> float | None:
    """Return the median of the values there are."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def main() -> None:
    """Run the hosts, print the table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--hosts", nargs="+", choices=list(HOSTS), default=list(HOSTS), help="default: all")
    parser.add_argument("--smoke", action="store_true", help="few rows, few steps, one seed")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON of settings other than the defaults")
    parser.add_argument("--models", type=Path, default=default_model(""), help="folder of weights")
    parser.add_argument("--keep", type=Path, help="folder to keep trained hosts in, or to read them from")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "zoo.json")
    given = parser.parse_args()
    config = ki.FitConfig.from_dict({"steps": 20, **given.config} if given.smoke else given.config)
    rows, left_out = list[Row](), dict[str, str]()
    for name in given.hosts:
        for seed in given.seeds[: 1 if given.smoke else None]:
            try:
                case = HOSTS[name](seed=seed, smoke=given.smoke, models=given.models, keep=given.keep)
            except (FileNotFoundError, ImportError) as missing:
                left_out[name] = str(missing).splitlines()[0]
                break
            rows.append(measured(name, case, replace(config, seed=seed)))
            # After each, so that hours of it are not lost with the last.
            done = {
                "machine": machine(),
                "settings": given.config,
                "rows": [vars(row) for row in rows],
                "left out": left_out,
            }
            write_json(given.out, jsonable(done))
            print(
                f"{name}, seed {seed}: {rows[-1].trusted} of {rows[-1].modes} modes trusted, {rows[-1].notes}",
                flush=True,
            )
    print(f"\n{shown(rows)}\n")
    for name, why in left_out.items():
        print(f"{name} is left out: {why}")


if __name__ == "__main__":
    main()
