"""Verbs that make pages of runs: of one, and of two side by side."""

from __future__ import annotations

from pathlib import Path

import click

from koopman_interp.cli.hints import example, say_next
from koopman_interp.cli.paths import IN_FOLDER, OUT_FILE


@click.command(epilog=example("koopman-interp report koopman-run"))
@click.argument("folder", type=IN_FOLDER)
def report(folder: Path) -> None:
    """Build the page of a run FOLDER anew from its metrics and figures."""
    from koopman_interp.report.page import build_page

    click.echo(f"Report: {build_page(folder)}")
    say_next("compare", folder, "OTHER_RUN", "--out", "compared.html")


@click.command(epilog=example("koopman-interp compare koopman-run other-run --out compared.html"))
@click.argument("run_a", type=IN_FOLDER)
@click.argument("run_b", type=IN_FOLDER)
@click.option("--out", type=OUT_FILE, required=True, help="Page to write (.html).")
def compare(run_a: Path, run_b: Path, out: Path) -> None:
    """Show two runs, RUN_A and RUN_B, side by side on one page, with all that differs marked."""
    from koopman_interp.report.comparing import compare_runs

    click.echo(f"Report: {compare_runs(run_a, run_b, out)}")
