"""What comes from a file is what its annotations say, axes of one name as long as each other, or is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

import koopman_interp as ki
from koopman_interp.annotations import as_annotated
from koopman_interp.errors import FileFormatError
from koopman_interp.files import read_tensors, write_tensors


@dataclass(frozen=True)
class Part:
    count: int


@dataclass(frozen=True)
class Whole:
    rows: Float[Tensor, "row width"]
    labels: Int[ndarray, " row"] | None
    names: tuple[str, ...]
    pair: tuple[int, float]
    share: float
    way: Literal["a", "b"]
    said: Mapping[str, int | float]
    settings: dict[str, Any]
    part: Part
    is_kept: bool


RIGHT = Whole(torch.zeros(3, 2), np.zeros(3, int), ("a",), (1, 2.0), 1, "a", {"x": 1}, {"y": None}, Part(1), True)
WRONG = [
    ("rows", torch.zeros(3)),
    ("rows", torch.zeros(3, 2, dtype=torch.int64)),
    ("rows", "x"),
    ("labels", np.zeros(4, int)),
    ("labels", np.zeros(3)),
    ("names", ("a", 1)),
    ("names", ["a"]),
    ("pair", (1,)),
    ("pair", (1.5, 2.0)),
    ("share", "x"),
    ("share", True),
    ("way", "c"),
    ("said", {"x": "y"}),
    ("said", []),
    ("part", {"count": 1}),
    ("part", None),
    ("is_kept", 1),
]


def test_what_is_as_annotated_is_given_back():
    assert as_annotated(RIGHT) is RIGHT
    assert as_annotated(bare := replace(RIGHT, labels=None)) is bare


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_what_is_otherwise_is_refused_by_the_name_of_its_field(name, value):
    wrong = replace(RIGHT, **{name: value})
    # An axis may be told by the field that came first.
    with pytest.raises(TypeError, match=r"labels of Whole" if name == "labels" else rf"{name} of Whole"):
        as_annotated(wrong)


@pytest.mark.usefixtures("unchecked")
def test_a_part_of_a_part_is_looked_at_too():
    with pytest.raises(TypeError, match="count of Part"):
        as_annotated(replace(RIGHT, part=Part("x")))


def test_a_file_of_another_shape_is_refused_with_its_path(tmp_path, surrogate, trajectories):
    path = tmp_path / "spectrum.safetensors"
    ki.spectrum(surrogate, trajectories).save(path)
    tensors, header = read_tensors(path, kind="spectrum")
    header = {name: value for name, value in header.items() if name not in ("kind", "version")}
    for changed, said in (
        (tensors | {"residuals": tensors["residuals"][:-1]}, header),
        (tensors, header | {"samples": "many"}),
    ):
        write_tensors(path, changed, kind="spectrum", header=said)
        with pytest.raises(FileFormatError, match=r"spectrum\.safetensors lacks parts of a spectrum"):
            ki.Spectrum.load(path)
