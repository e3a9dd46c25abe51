"""A run's folder: where each part of a run lies in it, and the run as a value that is read from there.

Each result is kept by its own `save`, what is said of the run in one JSON file beside them. Knows nothing of how a page
looks.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.auditing.result import Audit
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.errors import FileFormatError
from koopman_interp.files import Json, read_json
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

KIND = "koopman-interp run"
METRICS = "metrics.json"
FIGURES = "figures"
KOOPMAN = "koopman"
EDIT = "edit.safetensors"
LENS = "lens.safetensors"
SPECTRUM = "spectrum.safetensors"
TRAJECTORIES = "trajectories.safetensors"


def topology_file(index: int) -> str:
    """Name the file of a topology by its place among those of the run."""
    return f"topology-{index}.safetensors"


@dataclass(frozen=True)
class Run:
    """What one run made and says of itself.

    Attributes:
        title: of its page.
        command: what was typed, or the call that was made.
        facts: on the model and the data, by name.
        seconds: time of each stage, by name.
        koopman: the surrogate, with the record of its fit.
        trajectories: the states in one line; None where none were kept.
        spectrum: of the surrogate.
        topologies: by what they are of.
        fidelity: of the surrogate.
        lens: what a lens reads.
        edits: the edits, one a site.
        audits: of the edits; the first is the one in the summary.
        figures: images by name, as they stand in a page.
    """

    title: str
    command: str
    facts: Mapping[str, Json]
    seconds: Mapping[str, float]
    koopman: KoopmanAutoencoder
    trajectories: str | None
    spectrum: Spectrum | None
    topologies: Mapping[str, Topology]
    fidelity: Fidelity | None
    lens: LensReading | None
    edits: EditSet | None
    audits: tuple[Audit, ...]
    figures: Mapping[str, str]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run from its folder.

    Raises:
        FileNotFoundError: there are no numbers, or a figure or a value that they name is missing.
        FileFormatError: a file is not whole, not of a run, or incomplete.
    """
    source = Path(folder) / METRICS
    values = read_json(source)
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise FileFormatError(f"{source} does not hold the numbers of a {KIND}. Write the run again.")
    try:
        return _read(Path(folder), values)
    except FileFormatError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{source} is incomplete: {type(error).__name__} {error}, reading the run. Write the run again."
        ) from error


def _read(folder: Path, values: Mapping[str, Json]) -> Run:
    figures = {name: _image(folder / FIGURES / f"{name}.svg") for name in values["figures"]}
    topologies = enumerate(values["topologies"])
    return Run(
        title=values["title"],
        command=values["command"],
        facts=values["facts"],
        seconds=values["seconds"],
        koopman=KoopmanAutoencoder.from_pretrained(folder / KOOPMAN),
        trajectories=values["trajectories"],
        spectrum=None if values["spectrum"] is None else Spectrum.load(folder / SPECTRUM),
        topologies={name: Topology.load(folder / topology_file(index)) for index, name in topologies},
        fidelity=None if values["fidelity"] is None else Fidelity.from_dict(values["fidelity"]),
        lens=None if values["lens"] is None else LensReading.load(folder / LENS),
        edits=None if values["edits"] is None else EditSet.load(folder / EDIT),
        audits=tuple(map(Audit.from_dict, values["audits"])),
        figures=figures,
    )


def _image(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"There is no figure {path}, which {METRICS} names. Write the run again.")
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
