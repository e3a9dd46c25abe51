"""The folder that a surrogate is saved to, or its repository on the Hub.

`model.safetensors` holds all of it and is all that is read; `config.json` says its configuration to other readers, and
`README.md`, the model card, says to people what it is.
Knows nothing of what the configuration means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from koopman_interp.errors import FileFormatError
from koopman_interp.files import Json, json_text, read_json, read_tensors, write_tensors
from koopman_interp.hub import fetched

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"

_KIND = "surrogate"


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Json], record: Json, card: str
) -> None:
    """Write weights with what is said of them, and the same beside them.

    A kill leaves the old weights or the new ones, and a configuration and a card that are theirs or none.
    """
    header = {"config": config, "record": record}
    beside = {folder / CONFIG_FILE: json_text(_said_beside(header)), folder / CARD_FILE: card}
    write_tensors(folder / WEIGHTS_FILE, tensors, kind=_KIND, header=header, beside=beside)


def weights_of(where: str, **download: Any) -> Path:
    """Find the weights of a folder, or download those of a repository on the Hub.

    Raises:
        FileNotFoundError: there is neither.
    """
    if Path(where).is_dir():
        return Path(where) / WEIGHTS_FILE
    if where.count("/") != 1:
        raise FileNotFoundError(f"There is no folder {where!r}; a name on the Hub would be owner/name.")
    try:
        return fetched(where, WEIGHTS_FILE, **download)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no folder {where!r}. {error}") from error


def read_weights(weights: Path) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Read weights and what is said of them.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is truncated or foreign, or the configuration beside it is of other weights.
    """
    tensors, header = read_tensors(weights, kind=_KIND)
    if not isinstance(header.get("config"), dict) or not isinstance(header.get("record"), dict):
        raise misdescribed(weights)
    config = weights.with_name(CONFIG_FILE)
    if config.is_file() and read_json(config) != _said_beside(header):
        raise FileFormatError(
            f"{config} is not of the {WEIGHTS_FILE} beside it: one of the two was copied from elsewhere or changed. "
            f"The weights carry their own configuration: delete {CONFIG_FILE} to load them, or copy both from one "
            "place."
        )
    return tensors, header


def misdescribed(weights: Path) -> FileFormatError:
    """Return the error of weights that are not those of their header."""
    return FileFormatError(
        f"{weights} does not hold the surrogate that its header describes. Write it again from its source."
    )


def _said_beside(header: Mapping[str, Json]) -> Json:
    return {**header["config"], "record": header["record"]}
