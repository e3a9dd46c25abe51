"""A run's folder: where each part of a run lies in it, and the run as a value that is read from there.

Each result is kept by its own `save`, what is said of the run in one JSON file beside them. Knows nothing of how a page
looks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.shapes.topology_bands import TopologyBands
from koopman_interp.analysis.spectra.mode_meanings import ModeMeanings
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.auditing.language import LanguageAudit
from koopman_interp.auditing.result import Audit
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.errors import FileFormatError
from koopman_interp.files import Json, read_json
from koopman_interp.report.swapping import recover
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

KIND = "koopman-interp run"
METRICS = "metrics.json"
FIGURES = "figures"
KOOPMAN = "koopman"
EDIT = "edit.safetensors"
LENS = "lens.safetensors"
SPECTRUM = "spectrum.safetensors"
TRAJECTORIES = "trajectories.safetensors"
PAGE = "report.html"

_TOPOLOGY = re.compile(r"topology-\d+\.safetensors\Z")
_FIGURE = re.compile(r"[a-z0-9-]+\Z")


def topology_file(index: int) -> str:
    """Name the file of a topology by its place among those of the run."""
    return f"topology-{index}.safetensors"


def is_part(name: str) -> bool:
    """Whether a name in a run's folder is of something that runs write, so that the next run replaces it."""
    parts = (METRICS, FIGURES, KOOPMAN, EDIT, LENS, SPECTRUM, TRAJECTORIES, PAGE)
    return name in parts or bool(_TOPOLOGY.match(name))


@dataclass(frozen=True)
class Run:
    """What one run made and says of itself.

    Attributes:
        title: of its page.
        command: what was typed, or the call that was made.
        facts: on the model and the data, by name.
        seconds: time of each stage, by name.
        koopman: the surrogate, with the record of its fit; None where there is none.
        trajectories: the states in one line; None where none were kept.
        spectrum: of the surrogate.
        topologies: by what they are of.
        fidelity: of the surrogate.
        lens: what a lens reads.
        edits: the edits, one a site.
        audits: of the edits; the first is the one in the summary.
        figures: SVG files by name.
        modes: what modes of the surrogate mean; None where nobody asked.
        language: what a language model says before and under edits.
        made: when, by what and on what the run was written, by name.
        class_names: by label, where they are known.
    """

    title: str
    command: str
    facts: Mapping[str, Json]
    seconds: Mapping[str, float]
    koopman: KoopmanAutoencoder | None
    trajectories: str | None
    spectrum: Spectrum | None
    topologies: Mapping[str, Topology | TopologyBands]
    fidelity: Fidelity | None
    lens: LensReading | None
    edits: EditSet | None
    audits: tuple[Audit, ...]
    figures: Mapping[str, bytes]
    modes: ModeMeanings | None = None
    language: tuple[LanguageAudit, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    class_names: Mapping[int, str] = field(default_factory=dict)


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run from its folder.

    Raises:
        FileNotFoundError: there are no numbers, or a figure or a value that they name is missing.
        FileFormatError: a file is not whole, not of a run, or incomplete.
    """
    recover(folder)
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
    figures = {name: _svg(folder, name) for name in values["figures"]}
    topologies = enumerate(values["topologies"].items())
    return Run(
        title=values["title"],
        command=values["command"],
        facts=values["facts"],
        seconds=values["seconds"],
        koopman=None if values["surrogate"] is None else KoopmanAutoencoder.from_pretrained(folder / KOOPMAN),
        trajectories=values["trajectories"],
        spectrum=None if values["spectrum"] is None else Spectrum.load(folder / SPECTRUM),
        topologies={name: _topology(folder / topology_file(index), each) for index, (name, each) in topologies},
        fidelity=None if values["fidelity"] is None else Fidelity.from_dict(values["fidelity"]),
        lens=None if values["lens"] is None else LensReading.load(folder / LENS),
        edits=None if values["edits"] is None else EditSet.load(folder / EDIT),
        audits=tuple(map(Audit.from_dict, values["audits"])),
        figures=figures,
        modes=None if values.get("modes") is None else ModeMeanings.from_dict(values["modes"]),
        language=tuple(map(LanguageAudit.from_dict, values.get("language", ()))),  # runs of 0.5 and before have neither
        made=values.get("made", {}),  # runs of 0.4 and before say neither
        class_names={int(label): name for label, name in values.get("class_names", {}).items()},
    )


def _topology(path: Path, values: Mapping[str, Json]) -> Topology | TopologyBands:
    return TopologyBands.load(path) if "runs" in values else Topology.load(path)


def _svg(folder: Path, name: str) -> bytes:
    if not _FIGURE.match(name):
        raise ValueError(f"{name!r} is no name of a figure")
    path = folder / FIGURES / f"{name}.svg"
    if not path.is_file():
        raise FileNotFoundError(f"There is no figure {path}, which {METRICS} names. Write the run again.")
    return path.read_bytes()
