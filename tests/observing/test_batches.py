"""The forms in which people have their data: each is observed rightly, or refused with the line to write."""

from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

import koopman_interp as ki
from koopman_interp.errors import InputError
from tests.hosts.situations import refused, right


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.fc(x))


class Rows(nn.Module):
    """A classifier of rows of 4 numbers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(Block(6) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Conditioned(Rows):
    """A model that computes with its labels."""

    def forward(self, x, labels):
        return super().forward(x + labels[:, None])


class MayBeConditioned(Rows):
    """A model that computes with labels where it has any."""

    def forward(self, x, labels=None):
        return super().forward(x if labels is None else x + labels[:, None])


class TokenRows(nn.Module):
    """A model of tokens, with its mask by keyword."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(20, 6)
        self.blocks = nn.ModuleList(Block(6) for _ in range(2))

    def forward(self, input_ids, attention_mask=None):
        x = self.wte(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


class Words:
    """A tokenizer: one id a word."""

    pad_token_id = eos_token_id = None
    known = ("a", "cat", "dog", "sat", "ran", "here")

    def __call__(self, texts):
        return {"input_ids": [[1 + self.known.index(word) for word in text.split()] for text in texts]}


X = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)
IDS = [[2, 3, 4], [5, 6], [7, 8, 9, 10]]
PADDED = torch.tensor([[2, 3, 4, 0], [5, 6, 0, 0], [7, 8, 9, 10]])
TEXTS = ["a cat sat", "a dog ran here"]
NAMES = ["yin", "yang", "dot"]


def made(kind, **attributes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().eval()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def observe(model, *data, **how):
    return ki.attach(model).observe(*data, progress=False, **how)


def split(**columns):
    return datasets.Dataset.from_dict(columns)


def halved(rows):
    """A transform of a data set, which computes what it hands out."""
    return {"x": [torch.tensor(row) / 2 for row in rows["x"]], "label": rows["label"]}


# --- rows of numbers ----------------------------------------------------------------------------------------

WITH_LABELS = {
    "tensors": (X, Y),
    "arrays": (X.numpy(), Y.numpy()),
    "an array in float64": (X.double().numpy(), Y.numpy()),
    "a tensor in float64": (X.double(), Y),
    "an array that cannot be written": (np.broadcast_to(X.numpy(), X.shape), Y.numpy()),
    "series": (X, pd.Series(Y.numpy())),
    "lists": (X.tolist(), Y.tolist()),
    "a tuple": ((X, Y),),
    "a tuple of arrays": ((X.numpy(), Y.numpy()),),
    "a tuple of lists": ((X.tolist(), Y.tolist()),),
    "a tuple with a column of labels": ((X, Y[:, None]),),
    "a list": ([X, Y],),
    "a list with a column of labels": ([X, Y[:, None]],),
    "labels as a column": (X, Y[:, None]),
    "batches": ([(X[:20], Y[:20]), (X[20:], Y[20:])],),
    "batches of arrays": ([(X[:20].numpy(), Y[:20].numpy()), (X[20:].numpy(), Y[20:].numpy())],),
    "batches with columns of labels": ([[X[:20], Y[:20, None]], [X[20:], Y[20:, None]]],),
    "a DataLoader": (DataLoader(TensorDataset(X, Y), batch_size=20),),
    "columns": ({"x": X, "label": Y},),
    "columns of lists": ({"x": X.tolist(), "label": Y.tolist()},),
    "columns of arrays": ({"x": X.numpy(), "label": Y.numpy()},),
    "columns of a frame": ({"x": list(X), "label": pd.Series(Y.numpy())},),
    "a column by another name": ({"features": X, "label": Y},),
    "a data set": (split(x=X.tolist(), label=Y.tolist()),),
    "a data set by another name": (split(features=X.tolist(), label=Y.tolist()),),
    "a data set in NumPy's format": (split(x=X.tolist(), label=Y.tolist()).with_format("numpy"),),
    "a data set with one column chosen": (
        split(x=X.tolist(), label=Y.tolist(), id=list(range(50))).with_format(None, columns=["x", "label"]),
    ),
    "a data set that computes": (split(x=(2 * X).tolist(), label=Y.tolist()).with_transform(halved),),
    "a data set that is streamed": (split(x=X.tolist(), label=Y.tolist()).to_iterable_dataset(),),
    "a streamed one in torch's format": (
        split(x=X.tolist(), label=Y.tolist()).to_iterable_dataset().with_format("torch"),
    ),
    "a DataLoader of a data set": (
        DataLoader(split(x=X.tolist(), label=Y.tolist()).with_format("torch"), batch_size=20),
    ),
}


@right(
    "Data",
    "inputs and labels as tensors, numpy arrays, lists, pairs, columns, data sets with a transform or format "
    "of their own, loaders",
)
@pytest.mark.parametrize("form", list(WITH_LABELS))
def test_rows_with_labels_are_the_same_in_every_form(form):
    model = made(Rows)
    seen, expected = observe(model, *WITH_LABELS[form], batch_size=20), observe(model, X, Y)
    for ours, theirs in zip(seen.states, expected.states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(seen.labels, Y)
    assert torch.equal(seen.sequence, torch.arange(50))


@right("Data", "float64 rows for a float32 model")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_numbers_come_in_the_dtype_of_the_model(dtype):
    model = made(Rows).to(dtype)
    expected = observe(model, X.to(dtype))
    assert expected.states[0].dtype == dtype
    for numbers in (X.double(), X.double().numpy(), X.tolist(), [{"x": X.double()}]):
        seen = observe(model, numbers)
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float64 else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(seen.states[-1], expected.states[-1], **tolerance)


@right("Data", "truth values as labels: two classes")
def test_truth_values_are_two_classes():
    for data in ((X, Y == 1), ((X, Y == 1),), ([(X, Y == 1)],), (X, (Y == 1).tolist())):
        assert torch.equal(observe(made(Rows), *data).labels, (Y == 1).long())


REFUSED = {
    "one-hot targets": (((X, one_hot(Y, 3).float()),), r"whole numbers.*float32.*y\.argmax\(1\)"),
    "one-hot targets as wide as the inputs": (((X, one_hot(Y, 4).float()),), r"y\.argmax\(1\)"),
    "a list with one-hot targets": (([X, one_hot(Y, 4).float()],), r"y\.argmax\(1\)"),
    "whole one-hot targets": (((X, one_hot(Y, 3)),), r"\(50, 3\).*y\.argmax\(1\)"),
    "one-hot targets of a DataLoader": ((DataLoader(TensorDataset(X, one_hot(Y, 3).float())),), r"y\.argmax\(1\)"),
    "labels in floating point": (((X, Y.float()),), r"float32\. Give y\.long\(\)"),
    "a list with labels in floating point": (([X, Y.float()],), r"Give y\.long\(\)"),
    "a quantity": (((X, X[:, 0]),), r"no class.*erase_concept\(…, attribute=y\)"),
    "a quantity of a DataLoader": ((DataLoader(TensorDataset(X, X[:, :1])),), "no class.*inputs=lambda batch"),
    "two inputs": (((X, X),), r"give batches in a list.*inputs=lambda batch"),
    "texts as labels": (((X, [NAMES[y] for y in Y]),), r"got texts\. Number them: names = sorted\(set\(y\)\)"),
    "texts as labels beside": ((X, np.array(NAMES)[Y]), r"got texts\. Number them"),
    "labels of fewer inputs": (((X, Y[:40]),), r"got 50 inputs and 40 labels.*observe\(\[first, second\]\)"),
    "a mask of positions": (((torch.randn(5, 3, 4), torch.ones(5, 3) > 0),), "looks like a mask"),
    "a data frame": ((pd.DataFrame(X.numpy()),), r"DataFrame.*frame\.to_numpy\(\)"),
    "a data set of frames": ((split(x=[1.0, 2.0]).with_format("pandas"),), r"DataFrame"),
    "splits of a data set": (({"train": split(x=X.tolist()), "test": split(x=X.tolist())},), r"data\['train'\]"),
    "columns of several lengths": (({"x": X, "mask": torch.ones(1, 4)},), r"x: 50, mask: 1.*observe\(\[batch\]\)"),
    "a torch data set": ((TensorDataset(X, Y),), r"TensorDataset.*DataLoader\(dataset, batch_size=64\)"),
    "single samples": ((list(zip(X, Y, strict=True)),), "single number.*DataLoader"),
    "single samples by column": (([{"x": X[0], "label": 2}],), "single number.*DataLoader"),
    "one row": (([0.1, 0.2, 0.3, 0.4],), r"number 0\.1.*observe\(\[row\]\)"),
    "rows of several lengths": (({"x": [[0.1, 0.2], [0.3]]},), "differ in length"),
    "two columns of labels": (({"x": X, "label": Y, "labels": Y},), r"label and labels.*labels='label'"),
    "no column of inputs": (({"label": Y},), "Give inputs too"),
    "a column too many": (
        ({"x": X, "id": torch.arange(50), "label": Y},),
        r"Rows\.forward takes x, and no id.*inputs=lambda batch: \{name: batch\[name\] for name in \('x',\)\}",
    ),
    "columns of other names": (({"p": X, "id": torch.arange(50)},), r"takes x, and no p, id.*inputs='p'"),
    "lists that a DataLoader turned": (
        (DataLoader(split(x=X.tolist()), batch_size=20),),
        r"Column 'x' is a list of 4 tensors of length 20.*give the data set itself",
    ),
    "labels that a DataLoader turned": (
        ([{"x": X[:2], "label": [torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([2, 2])]}],),
        "Column 'label' is a list of 3 tensors",
    ),
}


@refused(
    "Data",
    "float or one-hot targets beside inputs, texts as labels, single samples, columns that the model does not take, …",
    "what can be read in two ways is not guessed; the sentence has the line to write",
)
@pytest.mark.parametrize("form", list(REFUSED))
def test_what_can_be_read_in_two_ways_is_refused_with_the_line_to_write(form):
    data, sentence = REFUSED[form]
    with pytest.raises(InputError, match=sentence):
        observe(made(Rows), *data)


def test_bad_labels_are_refused_before_the_first_pass():
    model = made(Rows)
    model.register_forward_hook(lambda *_: pytest.fail("the model was called"))
    for data in (((X, Y.float()),), ([(X, one_hot(Y, 3).float())],), (TensorDataset(X, Y),), ([X, Y.float()],)):
        with pytest.raises(InputError):
            observe(model, *data)


def test_a_list_of_two_batches_stays_two_batches():
    model = made(Rows)
    for batches in ([X[:25], X[25:]], [X, X[:7]], [one_hot(Y, 4).float(), one_hot(Y, 4).float()]):
        assert torch.equal(observe(model, batches).states[0], observe(model, torch.cat(batches)).states[0])
    tokens = [torch.ones(5, 3, dtype=torch.long), torch.ones(5, 1, dtype=torch.long)]
    assert len(observe(made(TokenRows), tokens)) == 20


# --- columns and arguments ------------------------------------------------------------------------------------


@right("Data", "a column `labels` that is the model's own argument")
def test_a_model_that_computes_with_its_labels_is_told_apart():
    batch = {"x": X, "labels": Y}
    for kind in (Conditioned, MayBeConditioned):
        model = made(kind)
        with pytest.raises(InputError, match=r"'labels' is an argument of .*inputs=lambda batch: batch"):
            observe(model, [batch])
        seen = observe(model, [batch], inputs=lambda batch: batch)
        torch.testing.assert_close(seen.states[0], model.embed(X + Y[:, None]).detach())
        assert torch.equal(seen.labels, Y)
    unconditioned = observe(made(MayBeConditioned), [batch], labels="labels")
    assert torch.equal(unconditioned.states[0], observe(made(Rows), X).states[0])
    with pytest.raises(InputError, match="'labels' is an argument of Conditioned"):
        observe(made(Conditioned), [batch], labels="labels")


def test_labels_that_a_decoder_reads_are_no_labels():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    with torch.random.fork_rng():
        model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.arange(2, 10).reshape(2, 4)
    with pytest.raises(InputError, match=r"decoder of T5.* makes its inputs of the column 'labels'.*decoder_input_ids"):
        observe(model, [{"input_ids": ids, "labels": ids}])
    classifier = made(MayBeConditioned, config=SimpleNamespace(is_encoder_decoder=True))
    assert torch.equal(observe(classifier, [{"x": X, "labels": Y}]).labels, Y)


def test_a_column_of_the_only_argument_may_have_any_name():
    assert torch.equal(observe(made(Rows), [{"pixels": X}]).states[0], observe(made(Rows), X).states[0])


# --- tokens and texts ---------------------------------------------------------------------------------------

TOKENS = {
    "lists": IDS,
    "arrays": [np.array(ids) for ids in IDS],
    "tensors": [torch.tensor(ids) for ids in IDS],
    "a batch of lists": [IDS],
    "columns": {"input_ids": IDS},
    "columns with a mask": {"input_ids": PADDED, "attention_mask": (PADDED > 0).long()},
    "columns of arrays": {"input_ids": PADDED.numpy(), "attention_mask": (PADDED > 0).long().numpy()},
    "columns of tensors": {"input_ids": [torch.tensor(ids) for ids in IDS]},
    "a data set": split(input_ids=IDS),
    "a streamed data set": split(input_ids=IDS).to_iterable_dataset(),
    "a data set of texts": split(text=["a cat dog", "sat ran", "here a cat dog"]),
}


@right("Data", "sequences of token ids in any form")
@pytest.mark.parametrize("form", list(TOKENS))
def test_sequences_of_ids_are_the_same_in_every_form(form):
    model = made(TokenRows)
    if form == "a data set of texts":
        ids = Words()(TOKENS[form]["text"])["input_ids"]
        seen, expected = observe(model, TOKENS[form], tokenizer=Words()), observe(model, ids)
    else:
        seen, expected = observe(model, TOKENS[form]), observe(model, IDS)
        assert seen.tokens.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert torch.equal(seen.sequence, expected.sequence)
    assert torch.equal(seen.tokens, expected.tokens)
    torch.testing.assert_close(seen.states[-1], expected.states[-1])


def test_what_a_tokenizer_gives_for_one_text_is_one_input():
    seen = observe(made(TokenRows), {"input_ids": [2, 3, 4], "attention_mask": [1, 1, 1]})
    assert (seen.tokens.tolist(), seen.sequence.tolist()) == ([2, 3, 4], [0, 0, 0])


@pytest.mark.parametrize(
    ("batches", "labels"),
    [
        ((TEXTS, [4, 5]), [4, 4, 4, 5, 5, 5, 5]),
        ((TEXTS, torch.tensor([4, 5])), [4, 4, 4, 5, 5, 5, 5]),
        ((IDS, [[1, 2, 3], [4, 5], [6, 7, 8, 9]]), list(range(1, 10))),
        ((PADDED, torch.where(PADDED > 0, PADDED, -100)), list(range(2, 11))),
        ((PADDED, PADDED % 2), (PADDED % 2).flatten().tolist()),
        ((PADDED, torch.ones_like(PADDED)), [1] * 12),
        ({"input_ids": PADDED, "labels": (PADDED > 0).long()}, (PADDED > 0).long().flatten().tolist()),
        (({"input_ids": PADDED}, np.array([4, 5, 6])), [4] * 4 + [5] * 4 + [6] * 4),
        ({"text": TEXTS, "label": [4, 5]}, [4, 4, 4, 5, 5, 5, 5]),
        (split(text=TEXTS, label=[4, 5]), [4, 4, 4, 5, 5, 5, 5]),
    ],
)
def test_tokens_with_labels_take_them_from_pairs_and_columns(batches, labels):
    assert observe(made(TokenRows), batches, tokenizer=Words()).labels.tolist() == labels


TOKENS_REFUSED = {
    "one text": ("a cat sat", r"observe\(\[text\]\)"),
    "ids with their mask": (
        (PADDED, (PADDED > 0).long()),
        r"looks like a mask.*\"attention_mask\": mask.*\"labels\": y",
    ),
    "ids with their mask, of a DataLoader": (
        DataLoader(TensorDataset(PADDED, (PADDED > 0).long()), batch_size=3),
        "looks like a mask",
    ),
    "two rows of ids": ((torch.tensor([2, 3]), torch.tensor([4, 5])), "two sequences of token ids, or inputs with"),
    "texts with texts": ((TEXTS, NAMES[:2]), r"two batches, or texts with labels.*observe\(\[\*first, \*second\]\)"),
    "texts beside another column": ([{"text": TEXTS, "stars": [3, 4]}], "inputs='text'"),
    "ids that a DataLoader turned": (
        DataLoader(split(input_ids=[[2, 3, 4], [5, 6, 7]]), batch_size=2),
        "list of 3 tensors of length 2",
    ),
    "a batch that a DataLoader turned": (DataLoader([[2, 3, 4], [5, 6, 7]], batch_size=2), "list of 3 tensors"),
    "ids of several lengths without a mask": (
        [{"tokens": IDS, "position_ids": [[0, 1, 2], [0, 1], [0, 1, 2, 3]]}],
        "forward takes input_ids, attention_mask, and no tokens",
    ),
}


@refused("Data", "pairs of ids that could be two sequences, or ids and mask", "as above")
@pytest.mark.parametrize("form", list(TOKENS_REFUSED))
def test_what_of_tokens_can_be_read_in_two_ways_is_refused(form):
    batches, sentence = TOKENS_REFUSED[form]
    with pytest.raises(InputError, match=sentence):
        observe(made(TokenRows), batches, tokenizer=Words())


def test_a_mask_in_a_pair_is_no_label_where_a_function_calls_the_model():
    pairs = DataLoader(TensorDataset(PADDED, (PADDED > 0).long()), batch_size=2)
    seen = observe(made(TokenRows), pairs, inputs=lambda pair: {"input_ids": pair[0], "attention_mask": pair[1]})
    assert (seen.tokens.tolist(), seen.labels) == (list(range(2, 11)), None)


def test_a_function_that_calls_the_model_may_be_given_anything():
    both = (X, X / 2)
    expected = observe(made(Rows), X * 1.5)
    for batches in (both, [both], DataLoader(TensorDataset(*both), batch_size=20)):
        seen = observe(made(Rows), batches, inputs=sum, batch_size=20)
        torch.testing.assert_close(seen.states[0], expected.states[0])
        assert seen.labels is None
    ids = [torch.tensor([2, 3]), torch.tensor([4, 5])]
    assert observe(made(TokenRows), [ids], inputs=torch.stack).tokens.tolist() == [2, 3, 4, 5]
    joined = {"inputs": lambda pair: [f"{first} {second}" for first, second in zip(*pair, strict=True)]}
    seen = observe(made(TokenRows), [(TEXTS, TEXTS)], tokenizer=Words(), **joined)
    assert seen.sequence.tolist() == [0] * 6 + [1] * 8


@refused("Data", "columns of several lengths without a mask", "which tokens are padding would be guessed")
def test_columns_of_several_lengths_need_a_mask():
    class Open(TokenRows):
        def forward(self, tokens=None, **_):
            return super().forward(tokens)

    with pytest.raises(InputError, match=r"'tokens' holds sequences of different lengths.*inputs='tokens'"):
        observe(made(Open), [{"tokens": IDS, "places": torch.arange(3)}])


def test_a_text_that_is_longer_than_the_positions_of_the_model_is_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    for batches in (["a cat", "a cat sat " * 4], [list(range(1, 13))], [{"input_ids": [[1, 2], list(range(12))]}]):
        with pytest.raises(InputError, match=r"12 tokens; GPT2LMHeadModel takes 8\. Cut it: observe\(\[ids\[:8\]"):
            observe(model, batches, tokenizer=Words())
