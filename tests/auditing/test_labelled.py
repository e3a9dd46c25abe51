"""Labelled batches hold the inputs as they were given, and a draw takes each input once, with its labels."""

import pytest
import torch

from koopman_interp.auditing.labelled import drawn, labelled_batches
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for


def test_a_pair_of_any_form_is_cut_as_its_labels_are(model):
    host = host_for(model)
    y = torch.arange(10) % 3
    ids = torch.arange(20).view(10, 2)
    mapping = {"input_ids": ids, "use_cache": False, "attention_mask": torch.ones_like(ids)}
    for x in (ids.float(), mapping):
        batches = labelled_batches(host, (x, y), 4)
        assert [len(labels) for _, labels in batches] == [4, 4, 2]
        assert torch.equal(torch.cat([labels for _, labels in batches]), y)
    assert torch.equal(torch.cat([part["input_ids"] for part, _ in batches]), ids)
    assert all(part["use_cache"] is False and part["attention_mask"].shape == (len(y), 2) for part, y in batches)
    # One label a token cannot be cut with the inputs.
    ((whole, labels),) = labelled_batches(host, (mapping, list(range(20))), 4)
    assert torch.equal(whole["input_ids"], ids)
    assert len(labels) == 20


def test_batches_of_pairs_are_taken_as_they_are(model):
    x, y = torch.randn(7, 4), torch.arange(7)
    (first, _), (second, labels) = labelled_batches(host_for(model), ((x[:3], y[:3]), (x[3:], y[3:])), 2)
    assert torch.equal(torch.cat([first, second]), x)
    assert torch.equal(labels, y[3:])


# --- a few rows for relearning --------------------------------------------------------------------------------


def test_drawn_rows_keep_their_labels_and_are_drawn_once():
    x = torch.arange(30.0)[:, None]
    y = torch.arange(30)
    batches = [(x[:10], y[:10]), (x[10:], y[10:])]

    def labels(**few):
        parts = drawn(batches, [0, *range(20, 30)], **few)
        assert all(torch.equal(part.squeeze(1).long(), labels) for part, labels in parts)
        return torch.cat([labels for _, labels in parts]).tolist() if parts else []

    some = labels(rows=7, beside=3, seed=0)
    assert len(set(some)) == 10
    assert sum(label in (0, *range(20, 30)) for label in some) == 7
    assert labels(rows=7, beside=3, seed=0) == some
    assert labels(rows=7, beside=3, seed=1) != some
    assert sorted(labels(rows=99, beside=99, seed=0)) == y.tolist()
    assert set(labels(rows=99, beside=0, seed=0)) == {0, *range(20, 30)}
    assert drawn([], [1], rows=3, beside=3, seed=0) == []


def test_a_draw_does_not_depend_on_how_rows_are_cut():
    x, y = torch.arange(60.0)[:, None], torch.arange(60) % 4
    draws = [
        drawn(list(zip(x.split(size), y.split(size), strict=True)), [2], rows=5, beside=6, seed=3) for size in (60, 7)
    ]
    # Rows of one form come in one batch, however many they were drawn from.
    assert [len(parts) for parts in draws] == [1, 1]
    whole, cut = (sorted(parts[0][0].squeeze(1).tolist()) for parts in draws)
    assert whole == cut


def test_rows_of_mappings_are_drawn_with_all_their_columns():
    ids = torch.arange(12).view(6, 2)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    ((x, y),) = drawn([(batch, list(range(6)))], [0, 1, 2, 3, 4, 5], rows=3, beside=0, seed=0)
    assert torch.equal(x["input_ids"], ids[y])
    assert x["attention_mask"].shape == (3, 2)
    assert x["use_cache"] is False


def test_a_batch_with_a_label_a_token_is_drawn_whole():
    ids = torch.arange(12).view(6, 2)
    for rows, beside, forget in ((3, 0, [4]), (0, 1, [99])):
        ((x, y),) = drawn([(ids, list(range(12)))], forget, rows=rows, beside=beside, seed=0)
        assert x is ids
        assert y == list(range(12))


def test_a_sequence_is_of_the_classes_if_one_of_its_tokens_is_and_of_none_if_all_are_ignored():
    ids = torch.arange(12).view(4, 3)
    y = torch.tensor([[5, 1, -100], [-100, -100, -100], [1, 1, 1], [2, 2, 5]])
    for labels in (y, y.tolist()):
        few = [drawn([(ids, labels)], [5], rows=rows, beside=beside, seed=0) for rows, beside in ((9, 0), (0, 9))]
        (forget, _), (others, _) = (parts[0] for parts in few)
        assert forget[:, 0].tolist() == [0, 9]
        assert others[:, 0].tolist() == [6]


def test_labels_are_asked_for(model):
    with pytest.raises(InputError, match="pairs of inputs and labels"):
        labelled_batches(host_for(model), [torch.randn(5, 4)], 2)
