"""The sections of a page on trajectories, surrogate, spectrum, topologies and edit: tables and figures of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.shapes.topology_bands import TopologyBands
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.stand_ins import SURROGATE
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.report.parts import Section, figure, paragraphs, section, shown
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Table


def trajectories_section(description: str, figures: Mapping[str, bytes]) -> Section:
    """Show the states themselves."""
    return section(
        "trajectories",
        "Trajectories: how the model moves its states",
        figure(
            figures,
            "trajectories",
            "States in their first two principal components, one panel a depth.",
            "One mark a row, one panel a depth. Each depth has its own plane, turned to lie nearest to the one before; "
            "part of the rows is drawn.",
        ),
        paragraphs(f"{description}."),
    )


def edit_section(edits: EditSet) -> Section:
    """Show what is known of an edit, or of several, a row a site."""
    where = edits[0].site if len(edits) == 1 else f"{len(edits)} sites"
    return section("edit", f"Edit: {edits.description}, at {where}", shown(edit_table(edits)))


def edit_table(edits: EditSet) -> Table:
    """Tabulate what is known of an edit, or of several, a row a site."""
    (table,) = edits[0].tables() if len(edits) == 1 else edits.tables()
    return replace(table, caption="What can be said of the edit without running the model.")


def fidelity_section(fidelity: Fidelity, figures: Mapping[str, bytes]) -> Section:
    """Show the figures at the output, by depth and by span, each with what is drawn of it."""
    at_output = fidelity.tables()[:1] if fidelity.outputs else ()
    return section(
        "fidelity",
        "Fidelity: the surrogate beside baselines",
        paragraphs(
            f"On {fidelity.judged_on}. Identity is the state as it was at the first depth; the mean and the "
            "linear maps were fitted on the surrogate's rows. The output has the last word."
        ),
        *map(_beside_surrogate, at_output),
        figure(figures, "output", "Dot plot of agreement and accuracy by substitute, as in the table above."),
        _beside_surrogate(fidelity.by_depth()),
        paragraphs(
            "Linearity residual: how far observables miss K's step from the depth before. Isometry: quantiles "
            "of the ratio of distances in observables to distances in states; 1 keeps shapes."
        ),
        figure(figures, "fidelity", "FVU over depth, one line a predictor, as in the table above."),
        *map(_beside_surrogate, fidelity.by_span()),
        figure(figures, "spans", "KL to the model by where the span starts, one line a substitute."),
        paragraphs(*fidelity.notes()),
    )


def _beside_surrogate(table: Table) -> str:
    """Show a table with the surrogate's column, where it has one, set off."""
    ours = [place for place, column in enumerate(table.columns) if column.name.endswith(SURROGATE)]
    return shown(table, marked_column=ours[0] if ours else None)


def spectrum_section(spectrum: Spectrum, figures: Mapping[str, bytes]) -> Section:
    """Show the modes, and how far the data bear each out."""
    trusted, modes = int(spectrum.trusted.sum()), len(spectrum.eigenvalues)
    condition = f"{spectrum.condition:.1e}" if math.isfinite(spectrum.condition) else "–"
    text = (
        f"{trusted} of {modes} modes are trusted, with a residual of {spectrum.tolerance:g} or less on "
        f"{spectrum.samples:,} rows; read nothing into the others. Condition number of the eigenvectors: {condition}; "
        "the larger, the farther small changes of K move λ."
    )
    alt = f"Eigenvalues of K in the complex plane with the unit circle: {trusted} trusted of {modes}."
    caption = (
        "Circles: trusted; hollow squares: not trusted. Numbers are those of the table, of a conjugate pair the upper "
        "one's; a pointer that rests on a mark is told of its mode. Black strokes: where the data put |λ| and arg λ of "
        "trusted modes, over resampled inputs."
    )
    return section(
        "spectrum",
        "Spectrum of K",
        paragraphs(text),
        figure(figures, "spectrum", alt, caption),
        *map(shown, spectrum.tables()),
        paragraphs(*spectrum.notes()),
    )


def topology_section(
    name: str, topology: Topology | TopologyBands, index: int, figures: Mapping[str, bytes]
) -> Section:
    """Show Betti curves, and what the diagrams sum up to."""
    drawn = [each for each in figures if each.startswith(f"topology-{index}-")]
    first = topology.runs[0] if isinstance(topology, TopologyBands) else topology
    runs = f", {len(topology.runs)} runs" if isinstance(topology, TopologyBands) else ""
    return section(
        f"topology-{index}",
        f"Topology of the {name}",
        paragraphs(f"{first.points:,} points a depth{runs}, scales in {first.scale_name}."),
        *(figure(figures, each, f"Betti-{each[-1]} curves of the {name}, one panel a depth.") for each in drawn),
        *map(shown, topology.tables()),
    )


def fit_section(koopman: KoopmanAutoencoder, figures: Mapping[str, bytes]) -> Section:
    """Show how the surrogate was fitted."""
    record = koopman.record
    return section(
        "fit",
        "Fit",
        paragraphs(repr(koopman), repr(record), *record.notes()),
        figure(figures, "fit", f"Held-out figures by step. {record!r}"),
    )
