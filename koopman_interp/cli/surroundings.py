"""Verbs about what is installed, and the demo and the page, which need nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import click

from koopman_interp.cli.names import FOLDER, called


@click.command()
@click.option("--out", type=FOLDER, default=Path("koopman-run"), show_default=True, help="Run folder to write.")
@click.option("--label", type=int, default=2, show_default=True, help="Class to erase: 0 yin, 1 yang, 2 dot.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="1 erases; more pushes beyond.")
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: Path, label: int, strength: float, seed: int) -> None:
    """Yin-Yang end to end: train, observe, fit, read, erase, audit. No download."""
    import torch

    from koopman_interp.demo import run_demo

    command = f"koopman-interp demo --out {out} --label {label} --strength {strength:g} --seed {seed}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its matrices are too small to be worth sharing out
    try:
        page = run_demo(out, label=label, strength=strength, seed=seed, say=click.echo, command=command)
    finally:
        torch.set_num_threads(threads)
    click.echo(f"Report: {page}")


@click.command()
def hosts() -> None:
    """List the host adapters that are installed."""
    from koopman_interp.hosts.finding import adapters

    for adapter in adapters():
        click.echo(f"{adapter.adapter}  {adapter.__module__}:{adapter.__qualname__}")


@click.command("sites")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sites_(model: str, as_json: bool) -> None:
    """List the sites of MODEL, module:callable, and which of them are taken unless told otherwise."""
    from koopman_interp.observing.tap import sites

    table = sites(called(model))
    click.echo(json.dumps(table.as_dict()) if as_json else str(table))


@click.command()
@click.argument("folder", type=FOLDER)
def report(folder: Path) -> None:
    """Build the page of a run FOLDER anew from its metrics and figures."""
    from koopman_interp.report.page import build_page

    click.echo(f"Report: {build_page(folder)}")
