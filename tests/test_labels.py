"""Labels in any form become whole numbers, and values in any form one a sample."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from koopman_interp.errors import InputError
from koopman_interp.labels import Form, forms_of, spread, spread_labels, whole_numbers

SEQUENCE = torch.tensor([0, 0, 1, 3])
"""Four samples of four inputs, one of which has none."""


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([1, 0, 1]),
        torch.tensor([[1], [0], [1]], dtype=torch.uint8),
        torch.tensor([True, False, True]),
        [1, 0, 1],
        [[1], [0, 1]],
        [torch.tensor([1, 0]), [torch.tensor(True)]],
        np.array([1, 0, 1], dtype=np.int16),
        pd.Series([1, 0, 1], index=[7, 8, 9]),
        datasets.Dataset.from_dict({"label": [1, 0, 1]})["label"],
        iter((1, 0, 1)),
    ],
)
def test_labels_in_any_form_are_the_same_whole_numbers(labels):
    assert whole_numbers(labels).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (torch.eye(3), r"y\.argmax\(1\)"),
        (torch.ones(2, 3), r"attribute=y\[:, column\]"),
        (np.array([0.0, 2.0]), r"Give y\.long\(\)"),
        ([0.5, 1.5], "erase_concept"),
        (["yin", "yang"], r"names\.index\(name\)"),
        (np.array(["yin", "yang"]), r"names\.index\(name\)"),
        ([None, 1], "got list"),
    ],
)
def test_labels_that_are_no_whole_numbers_are_refused_with_a_remedy(labels, remedy):
    with pytest.raises(InputError, match=rf"^Labels are whole numbers, one a class;.*{remedy}"):
        whole_numbers(labels)


@pytest.mark.parametrize("columns", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.long, torch.float64, torch.bool])
def test_values_go_to_the_samples_of_what_they_are_of(columns, dtype):
    forms = (*forms_of(torch.tensor([0, 0, 2, 2, 2])), Form("a place", 7, torch.tensor([6, 5, 4, 3, 2])))
    for form in forms:
        values = torch.arange(form.count * 2).reshape(form.count, 2)[:, : columns[0] if columns else 1].to(dtype)
        values = values if columns else values.squeeze(1)
        rows = range(5) if form.index is None else form.index.tolist()
        assert torch.equal(spread(values, forms), torch.stack([values[row] for row in rows]))


def test_a_number_that_fits_several_forms_is_of_the_first():
    assert spread(torch.arange(4), forms_of(SEQUENCE)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (torch.zeros(3), r"Expected 5 scores, one a sample, or 2 scores, one an observed input; got 3\."),
        (torch.zeros(()), r"got the shape \(\)"),
        (torch.zeros(5, 1, 1), r"got the shape \(5, 1, 1\)"),
    ],
)
def test_what_fits_no_form_is_refused_with_all_that_would(values, sentence):
    with pytest.raises(InputError, match=sentence):
        spread(values, forms_of(torch.tensor([0, 0, 0, 1, 1])), "scores")


def test_a_column_a_class_is_told_what_to_give():
    with pytest.raises(InputError, match=r"shape \(4, 3\), whose rows each have a single 1.*y\.argmax\(1\)"):
        spread_labels(torch.eye(3, dtype=torch.long)[[0, 1, 2, 0]], forms_of(SEQUENCE))
