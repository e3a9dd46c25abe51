"""The section of a page that shows what a lens reads.

Knows nothing of lenses beyond the numbers that a reading gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from koopman_interp.report.parts import figure, number, percent, section, table

READ = 24
"""Samples that the page lists; the numbers hold all of them."""


def lens_sections(lens: Mapping[str, Any] | None, figures: Mapping[str, str]) -> list[str]:
    """Tabulate what a lens reads: all samples by depth, and the first of them one by one."""
    if lens is None:
        return []
    sites, top, kl = lens["sites"], lens["top"], lens["kl"]
    depths, samples = range(len(sites)), range(len(lens["inputs"]))
    agreeing = [[top[depth][one][0] == top[-1][one][0] for one in samples] for depth in depths]
    whole = [
        ["KL to host, nats", *(number(float(np.mean(kl[depth])), 3) for depth in depths)],
        ["agreement %", *(percent(float(np.mean(agreeing[depth]))) for depth in depths)],
    ]
    said, chance = lens["names"], lens["probability"]
    shown = [
        [lens["inputs"][one], *(f"{said[str(top[depth][one][0])]} {chance[depth][one][0]:.2f}" for depth in depths)]
        for one in samples[:READ]
    ]
    return [
        section(
            "lens",
            "What the host would say if its motion were linear from each depth on",
            f"<p>{len(samples):,} samples through the {escape(lens['lens'])}: a state is advanced by K to the last "
            "site, decoded, and read by the host's own head.</p>",
            table("Mean over all samples.", ["from", *sites], whole),
            figure(figures, "lens", f"The likeliest output by depth, for the first {len(shown)} samples.")
            if "lens" in figures
            else "",
            table(f"The likeliest output and its probability, first {len(shown)} samples.", ["input", *sites], shown),
        )
    ]
