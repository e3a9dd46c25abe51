"""What it costs past one machine's memory: observing to a store, fitting from it, several processes.

Each figure is measured in a process of its own, so that peaks are its own; a peak is what the process held beyond what
it did with the model built and called once. The host is a residual MLP of random weights, 6 sites of width 64, but for
the wide one, 33 of 1,024. Times are by the clock: run it alone on the machine.

    python benchmarks/scale.py --out runs/scale.json            # 20 minutes and 20 GB of disk
    python benchmarks/scale.py --smoke                          # smoke
    python benchmarks/scale.py --only read write                # some of it
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import machine
from torch import Tensor

import koopman_interp as ki
from koopman_interp.fitting.objective import FitObjective
from koopman_interp.fitting.rows import HeldRows
from koopman_interp.processes import Processes
from koopman_interp.sources.protocol import Blocks
from koopman_interp.sources.writing import StoreWriter
from koopman_interp.testing import ResidualMLP

INPUTS, WIDTH, BLOCKS = 8, 64, 5
BATCH = 4096


class Batches:
    """Batches of random inputs, made as they are asked for, with one of four classes each."""

    def __init__(self, rows: int, size: int = BATCH) -> None:
        self.rows, self.size = rows, min(size, rows)

    def __len__(self) -> int:
        return self.rows // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(len(self)):
            x = torch.randn(self.size, INPUTS, generator=torch.Generator().manual_seed(number))
            yield x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def host(width: int = WIDTH, blocks: int = BLOCKS) -> torch.nn.Module:
    """Build a host of random weights."""
    torch.manual_seed(0)
    return ResidualMLP(inputs=INPUTS, width=width, blocks=blocks, outputs=4).eval()


class Peak:
    """Memory that a process comes to hold beyond what it held when this was made."""

    def __init__(self) -> None:
        self._before = self._held()

    def gib(self) -> float:
        """Return the peak since then."""
        return (self._held() - self._before) / 2**20

    def _held(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def attached(width: int = WIDTH, blocks: int = BLOCKS) -> tuple[ki.Tap, Peak]:
    """Attach to a host that was called once, and begin to watch the memory."""
    model = host(width, blocks)
    with torch.no_grad():
        model(torch.randn(BATCH if width == WIDTH else 256, INPUTS))
    return ki.attach(model), Peak()


def timed(task: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a task takes, and what it gives."""
    started = time.perf_counter()
    found = task()
    return time.perf_counter() - started, found


# --- what is measured, each in a process of its own ----------------------------------------------------------


def whole(folder: Path, rows: int) -> dict[str, float]:
    """Observe to a store, fit from it and read the spectrum."""
    tap, peak = attached()
    observing, store = timed(lambda: tap.observe(Batches(rows), store=folder / "states", progress=False))
    peak_observing = peak.gib()
    fitting, koopman = timed(lambda: ki.fit(store, progress=False))
    peak_fitting = peak.gib()
    reading, _ = timed(lambda: ki.spectrum(koopman, store))
    return {
        "rows": rows,
        "raw_gib": rows * store.row_bytes / 2**30,
        "observe_seconds": observing,
        "fit_seconds": fitting,
        "fit_steps": koopman.record.history[-1]["step"],
        "spectrum_seconds": reading,
        "observe_peak_gib": peak_observing,
        "fit_peak_gib": peak_fitting,
        "peak_gib": peak.gib(),
        "fvu": koopman.record.kept["fvu"],
    }


def copies(folder: Path, rows: int) -> dict[str, float]:
    """Observe into memory: how often the states are held at the peak."""
    del folder
    tap, peak = attached()
    raw = (BLOCKS + 1) * WIDTH * 4 * rows / 2**30
    seconds, found = timed(lambda: tap.observe(Batches(rows), progress=False))
    return {"rows": len(found), "raw_gib": raw, "peak_gib": peak.gib(), "copies": peak.gib() / raw, "seconds": seconds}


def wide(folder: Path, rows: int) -> dict[str, float]:
    """Fit 33 sites of width 1,024 from a store."""
    tap, peak = attached(1024, 32)
    observing, store = timed(lambda: tap.observe(Batches(rows, 512), store=folder / "states", progress=False))
    fitting, koopman = timed(lambda: ki.fit(store, progress=False))
    return {
        "rows": rows,
        "raw_gib": rows * store.row_bytes / 2**30,
        "observe_seconds": observing,
        "fit_seconds": fitting,
        "fit_steps": koopman.record.history[-1]["step"],
        "peak_gib": peak.gib(),
        "fvu": koopman.record.kept["fvu"],
    }


def write(folder: Path, rows: int) -> dict[str, float]:
    """Write a store, and as many bytes one after the other, in turns."""
    tap, _ = attached()
    batch = next(iter(tap.stream(Batches(BATCH), progress=False)))
    digests, times = batch.digests, rows // BATCH
    payload = b"".join(bytes(state.numpy().data.cast("B")) for state in batch.states)
    ours, plain = [], []
    for turn in range(5):
        to = folder / f"store-{turn}"

        def store(to: Path = to) -> None:
            writer = StoreWriter(to, {}, {})
            to.mkdir()
            for _ in range(times):
                writer.add(batch, len(digests), digests)
            writer.finish()

        def sequential() -> None:
            with (folder / "plain").open("wb") as opened:
                for _ in range(times):
                    opened.write(payload)
                opened.flush()
                os.fsync(opened.fileno())

        ours.append(timed(store)[0])
        plain.append(timed(sequential)[0])
        shutil.rmtree(to)
    return against(len(payload) * times, ours, plain)


def read(folder: Path, rows: int) -> dict[str, float]:
    """Read a store in a shuffled order, and its files one after the other, in turns; both from the system's cache."""
    tap, _ = attached()
    store = tap.observe(Batches(rows), store=folder / "states", progress=False)
    assert isinstance(store, Blocks)

    def shuffled() -> None:
        for _ in store.batches(shuffle=0):
            pass

    def sequential() -> None:
        for path in sorted((folder / "states").glob("*.safetensors")):
            with path.open("rb") as opened:
                while opened.read(2**22):
                    pass

    sequential()
    ours, plain = [], []
    for _ in range(5):
        ours.append(timed(shuffled)[0])
        plain.append(timed(sequential)[0])
    return against(store.bytes, ours, plain)


def against(size: int, ours: list[float], plain: list[float]) -> dict[str, float]:
    """Return rates and the median of their ratio."""
    ratio = statistics.median(theirs / own for own, theirs in zip(ours, plain, strict=True))
    own, theirs = (size / statistics.median(each) / 1e6 for each in (ours, plain))
    return {"mb": size / 1e6, "mb_per_second": own, "plain_mb_per_second": theirs, "ratio": ratio}


def step(folder: Path, rows: int) -> dict[str, float]:
    """Take training steps, and do the products of matrices that one consists of, in turns."""
    del folder, rows
    torch.set_num_threads(1)
    found = {}
    for width in (64, 256, 784):
        states = torch.randn(6, 4096, width)
        x = torch.randn(400, width)
        tap = ki.attach(host(width))
        koopman = ki.fit(tap.observe(torch.randn(2000, INPUTS), progress=False), ki.FitConfig(steps=1), progress=False)
        del x
        koopman = koopman.train().requires_grad_(True)
        states = states[:, :, : koopman.config.dimension]
        objective = FitObjective(koopman, ki.FitConfig(), HeldRows(states), HeldRows(states[:, :256]), 256)
        parameters = [*koopman.encoder.parameters(), *koopman.operator.parameters(), *koopman.decoder.parameters()]

        def take(objective: FitObjective = objective, parameters: list[Tensor] = parameters) -> None:
            torch.autograd.grad(objective(0, torch.Generator().manual_seed(0)), parameters)

        products = products_of(take)
        tensors = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in products]

        def arithmetic(tensors: list[tuple[Tensor, Tensor]] = tensors) -> None:
            for left, right in tensors:
                torch.mm(left, right)

        ratios = []
        for _ in range(40):
            own, bare = timed(take)[0], timed(arithmetic)[0]
            ratios.append(own / bare)
        found[f"width_{koopman.config.dimension}"] = statistics.median(ratios)
    return found


def products_of(task: Callable[[], None]) -> list[tuple[int, int, int]]:
    """Return the shapes of all products of matrices that a task does, backward ones too."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[tuple[int, int, int]] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.name().split("::")[1].split(".")[0]
            if name in ("mm", "addmm", "bmm"):
                left, right = args[-2:] if name == "addmm" else args[:2]
                many = left.shape[0] if name == "bmm" else 1
                found.extend([(left.shape[-2], left.shape[-1], right.shape[-1])] * many)
            return func(*args, **(kwargs or {}))

    with Watching():
        task()
    return found


def process(folder: Path, rows: int) -> dict[str, float]:
    """Observe and fit in as many processes as `torchrun` started; return rows a second of all of them."""
    torch.set_num_threads(1)
    tap, _ = attached()
    here = Processes.here()
    here.wait()
    observing, store = timed(lambda: tap.observe(Batches(rows), store=folder / "states", progress=False))
    config = ki.FitConfig(steps=400, evaluate_every=400, hidden=(256,), observables=256, batch_size=512)
    stepping: list[float] = []

    class Watch(ki.Callback):
        def on_look(self, step: int, figures: Any) -> None:  # noqa: ARG002 (the callback gives it)
            stepping.append(time.perf_counter())

    fitting, koopman = timed(lambda: ki.fit(store, config, progress=False, callbacks=[Watch()]))
    if not here.is_first:
        return {}
    seconds = stepping[-1] - stepping[0]
    return {
        "ranks": here.ranks,
        "observed_per_second": rows / observing,
        "fitted_per_second": 400 * 512 * here.ranks / seconds,
        "fit_seconds": fitting,
        "fvu": koopman.record.kept["fvu"],
        "trace": float(koopman.moments.covariance.diagonal(dim1=1, dim2=2).sum()),
        "normalization": float(koopman.normalization.maps(0)[1].double().abs().sum()),
    }


REPEATED = {"copies": 5}
"""Measures of which the median of so many processes is given: an allocator keeps more at one time than at another."""

MEASURES = {each.__name__: each for each in (whole, copies, wide, write, read, step, process)}


# --- the table -----------------------------------------------------------------------------------------------


def measured(name: str, rows: int, scratch: Path, ranks: int = 1) -> dict[str, float]:
    """Measure in a process of its own, or in several."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    out = folder / "figures.json"
    start = [sys.executable]
    if ranks > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        subprocess.run(
            [*start, __file__, "--measure", name, "--rows", str(rows), "--folder", str(folder), "--out", str(out)],
            check=True,
            env=environment,
        )
        found: dict[str, float] = json.loads(out.read_text())
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(only: list[str], smoke: bool, scratch: Path) -> dict[str, Any]:
    """Measure all that is asked for, and say each figure as it comes."""
    sizes = {"whole": [100_000, 1_000_000, 10_000_000], "copies": [1_000_000], "wide": [50_000], "write": [800_000]}
    sizes |= {"read": [800_000], "step": [0], "process": [2_000_000]}
    if smoke:
        sizes = {name: [max(each // 200, 20_000) if each else 0 for each in rows[:1]] for name, rows in sizes.items()}
        sizes["wide"] = [2_000]
    found: dict[str, Any] = {}
    for name in only:
        for rows in sizes[name]:
            for ranks in (1, 2) if name == "process" else (1,):
                every = [measured(name, rows, scratch, ranks) for _ in range(1 if smoke else REPEATED.get(name, 1))]
                figures = {one: statistics.median(each[one] for each in every) for one in every[0]}
                key = name if len(sizes[name]) == 1 and ranks == 1 else f"{name}-{ranks if ranks > 1 else rows}"
                found[key] = figures
                print(key, {one: round(figure, 4) for one, figure in figures.items()}, flush=True)
    return found


def main() -> None:
    """Measure one figure, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="what to measure")
    parser.add_argument("--smoke", action="store_true", help="with few rows")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where stores are written")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.measure:
        found: dict[str, Any] = MEASURES[options.measure](options.folder, options.rows)
        if not found:  # of a process that is not the first
            return
    else:
        found = {"machine": machine(), "figures": table(options.only, options.smoke, options.scratch)}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
