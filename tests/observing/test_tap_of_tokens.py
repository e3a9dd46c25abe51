"""Tokens are samples: the same ones however they are batched, padded, cached or fed, and each leads to its text."""

import copy
import inspect
import os
import weakref
from collections import UserDict
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VOCABULARY = 40


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=3, n_head=2, bos_token_id=1, eos_token_id=None,
        pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=None, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module", params=[gpt2, llama], ids=["gpt2", "llama"])
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param().eval()


@pytest.fixture(scope="module")
def sequences():
    """Token ids of 20 sequences, 3 to 9 long."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 10, (20,), generator=generator).tolist()
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def padded(sequences, side="right"):
    """By hand, with a place for each token as `generate` gives it."""
    longest = max(map(len, sequences))
    ids, mask = torch.zeros(len(sequences), longest, dtype=torch.long), torch.zeros(len(sequences), longest)
    for row, sequence in enumerate(sequences):
        at = slice(0, len(sequence)) if side == "right" else slice(longest - len(sequence), longest)
        ids[row, at], mask[row, at] = torch.tensor(sequence), 1
    mask = mask.long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


@pytest.fixture(scope="module")
def alone(model, sequences):
    """Each sequence observed by itself, without padding."""
    return ki.attach(model).observe([torch.tensor([one]) for one in sequences], progress=False)


def agree(ours, theirs, atol=2e-5):
    """Whether two hold the same samples, in any order."""
    keys = [torch.argsort(one.sequence * 1000 + one.position) for one in (ours, theirs)]
    ours, theirs = ours[keys[0]], theirs[keys[1]]
    assert torch.equal(ours.sequence, theirs.sequence)
    assert torch.equal(ours.position, theirs.position)
    assert torch.equal(ours.tokens, theirs.tokens)
    for own, other in zip(ours.states, theirs.states, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=atol)
    return True


def test_a_sample_is_a_token_with_its_id_and_place(alone, sequences):
    assert alone.tokens.tolist() == [token for sequence in sequences for token in sequence]
    assert alone.position.tolist() == [place for sequence in sequences for place in range(len(sequence))]
    assert alone.sequence.tolist() == [row for row, sequence in enumerate(sequences) for _ in sequence]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_padding_and_batch_size_do_not_matter(model, sequences, alone, size, side):
    batches = [padded(sequences[start : start + size], side) for start in range(0, len(sequences), size)]
    assert agree(ki.attach(model).observe(batches, progress=False), alone)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_sequences_of_any_length_are_padded(model, sequences, alone, size):
    tap = ki.attach(model)
    assert agree(tap.observe(sequences, batch_size=size, progress=False), alone)
    assert agree(tap.observe([torch.tensor(one) for one in sequences], batch_size=size, progress=False), alone)
    batches = [sequences[start : start + size] for start in range(0, len(sequences), size)]
    assert agree(tap.observe(batches, progress=False), alone)
    # As a tokenizer without return_tensors gives them: several texts, and one alone.
    assert agree(tap.observe([{"input_ids": batch} for batch in batches], progress=False), alone)
    assert agree(tap.observe([UserDict(input_ids=one) for one in sequences], progress=False), alone)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("skip", [1, 4])
def test_skipped_positions_count_from_the_first_real_token(model, sequences, alone, skip, side):
    seen = ki.attach(model, skip=skip).observe([padded(sequences, side)], progress=False)
    assert agree(seen, alone[alone.position >= skip])
    tap = ki.attach(model, skip=skip)
    with tap, torch.no_grad():
        for start in range(0, 20, 4):
            model(**padded(sequences[start : start + 4], side))
    assert agree(tap.trajectories, alone[alone.position >= skip])


@pytest.mark.parametrize("skip", [0, 2])
def test_generate_gives_the_rows_of_one_pass_over_what_it_wrote(model, sequences, skip):
    prompt = padded(sequences[:3], "left")
    tap = ki.attach(model, skip=skip)
    with tap:
        written = model.generate(
            prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=6, do_sample=False
        )
    # The last token was written and never read.
    whole = [row[mask == 0].tolist() for row, mask in zip(written[:, :-1], _left_of(prompt, 5), strict=True)]
    assert [len(one) for one in whole] == [len(one) + 5 for one in sequences[:3]]
    expected = ki.attach(model, skip=skip).observe([torch.tensor([one]) for one in whole], progress=False)
    assert agree(tap.trajectories, expected)


def _left_of(prompt, more):
    """One at padding, for a prompt to which some tokens were added."""
    return torch.nn.functional.pad(1 - prompt["attention_mask"], (0, more))


def _cache_argument(model):
    parameters = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def test_a_cache_of_other_sequences_does_not_join_them(model, sequences):
    ids = torch.tensor([sequences[0][:3]])
    tap = ki.attach(model)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        with tap:
            model(torch.tensor([[5, 6]]))
            model(torch.tensor([[7, 8]]), **{_cache_argument(model): cache})
    assert tap.trajectories.sequence.tolist() == [0, 0, 1, 1]
    assert tap.trajectories.position.tolist() == [0, 1, 3, 4]


def test_no_samples_left_is_said(model):
    tap = ki.attach(model, skip=5)
    with pytest.raises(InputError, match=r"all 5 tokens .* first 5 of their sequences, which skip=5"):
        tap.observe([[2, 3], [2, 3, 4]], progress=False)
    with tap, torch.no_grad():
        model(torch.tensor([[2, 3]]))
    with pytest.raises(InputError, match="skip=5"):
        _ = tap.trajectories
    # A batch without samples is no reason to stop: batches of 1 give what batches of 64 give.
    seen = tap.observe([[2, 3], [2, 3, 4, 5, 6, 7]], labels=[3, 4], batch_size=1, progress=False)
    assert (seen.position.tolist(), seen.sequence.tolist(), seen.labels.tolist()) == ([5], [1], [4])


# --- labels -------------------------------------------------------------------------------------------------


def label_forms(sequences):
    """The same labels, the token's id modulo 3, in every form; and where they are given."""
    per_token = [[token % 3 for token in sequence] for sequence in sequences]
    batch = padded(sequences)
    per_position = torch.where(batch["attention_mask"] == 1, batch["input_ids"] % 3, -100)
    flat = [label for labels in per_token for label in labels]
    kept = [label for labels in per_token for label in labels[1:]]
    return {
        "a position": ([batch], per_position),
        "a token": ([batch], flat),
        "a token, nested": ([batch], per_token),
        "a kept row": ([batch], kept),
        "pairs": ([(batch, per_position)], None),
        "pairs of lists": ([(sequences, per_token)], None),
        "a column": ([batch | {"labels": per_position}], None),
        "a column of lists": ([{"input_ids": sequences, "label": per_token}], None),
        "a data set": (datasets.Dataset.from_dict({"input_ids": sequences, "labels": per_token}), None),
    }


@pytest.mark.parametrize("form", list(label_forms([[2, 3]])))
def test_labels_of_tokens_in_every_form(model, sequences, alone, form):
    batches, labels = label_forms(sequences)[form]
    seen = ki.attach(model, skip=1).observe(batches, labels, progress=False)
    assert torch.equal(seen.labels, seen.tokens % 3)
    assert agree(seen, alone[alone.position >= 1])


@pytest.mark.parametrize("inside", [False, True])
def test_labels_of_sequences(model, sequences, inside):
    labels = torch.arange(20) % 4
    batches = [padded(sequences[:11], "left"), padded(sequences[11:], "left")]
    if inside:
        batches = [(batches[0], labels[:11]), (batches[1], labels[11:])]
    seen = ki.attach(model, skip=2).observe(batches, None if inside else labels, progress=False)
    assert torch.equal(seen.labels, labels[seen.sequence])


def test_samples_to_ignore_are_left_out(model, sequences, alone):
    batch = padded(sequences)
    labels = torch.where(batch["input_ids"] % 2 == 0, -100, batch["input_ids"])
    seen = ki.attach(model).observe([batch], labels, progress=False)
    assert torch.equal(seen.labels, seen.tokens)
    assert agree(seen, alone[alone.tokens % 2 == 1])
    with pytest.raises(InputError, match="all are labelled -100"):
        ki.attach(model).observe([batch], torch.full_like(labels, -100), progress=False)


def test_labels_of_no_fitting_number_name_all_that_would_fit(model):
    with pytest.raises(InputError, match=r"Expected 3 labels, one a sample, or 2 .* input, or 5 .* token, or 6 .* pos"):
        ki.attach(model, skip=1).observe([[2, 3], [4, 5, 6]], [1, 2, 3, 4], progress=False)


# --- streams ------------------------------------------------------------------------------------------------


def test_a_stream_is_what_observe_joins_and_leaves_no_hook_between(model, sequences):
    labels = torch.arange(20) % 2
    batches = [(padded(sequences[start : start + 6]), labels[start : start + 6]) for start in range(0, 20, 6)]
    tap = ki.attach(model)
    whole = tap.observe(batches, progress=False)
    parts = []
    for part in tap.stream(batches, progress=False):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        parts.append(part)
    assert [len(torch.unique(part.sequence)) for part in parts] == [6, 6, 6, 2]
    joined = ki.Trajectories.concatenate(parts)
    assert agree(joined, whole, atol=0)
    assert torch.equal(joined.labels, whole.labels)


def test_a_stream_keeps_nothing_of_earlier_batches(model, sequences):
    held = []
    for part in ki.attach(model).stream(sequences, batch_size=5, progress=False):
        assert sum(one() is not None for one in held) <= 1  # the one before, which the loop has just let go of
        held.append(weakref.ref(part.states[0]))
    assert len(held) == 4


# --- texts --------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer of Hugging Face's kind: one id a word."""

    pad_token_id = eos_token_id = None

    def __init__(self, words):
        self.words = words

    def __call__(self, texts):
        return {"input_ids": [[self.words.index(word) for word in text.split()] for text in texts]}

    def decode(self, ids):
        return " ".join(self.words[token] for token in ids)


WORDS = Words(["the", "a", "cat", "dog", "bird", "sat", "ran", "on", "under", "mat", "tree", "and", "slept", "there"])
TEXTS = ["the cat sat on the mat", "a dog ran", "the bird slept under a tree and the dog ran there"]


@pytest.fixture
def speaking(model):
    model.tokenizer = WORDS
    yield model
    del model.tokenizer


def text_forms():
    return {
        "texts": (TEXTS, {}),
        "texts cut": (TEXTS, {"batch_size": 2}),
        "a generator": (iter(TEXTS), {"batch_size": 2}),
        "batches": ([TEXTS[:2], TEXTS[2:]], {}),
        "a column": (datasets.Dataset.from_dict({"text": TEXTS}), {"inputs": "text", "batch_size": 2}),
        "the column itself": (datasets.Dataset.from_dict({"text": TEXTS})["text"], {}),
    }


@pytest.mark.parametrize("form", list(text_forms()))
@pytest.mark.parametrize("given", [False, True])
def test_texts_are_tokenised_by_the_host_or_by_what_is_given(request, model, form, given):
    batches, arguments = text_forms()[form]
    model = model if given else request.getfixturevalue("speaking")
    arguments |= {"tokenizer": WORDS} if given else {}
    seen = ki.attach(model).observe(batches, progress=False, **arguments)
    expected = ki.attach(model).observe(WORDS(TEXTS)["input_ids"], progress=False)
    assert agree(seen, expected)


def test_texts_take_labels(speaking):
    tap = ki.attach(speaking)
    for batches, labels in (
        (TEXTS, [4, 5, 6]),
        ([(TEXTS[:2], [4, 5]), (TEXTS[2:], torch.tensor([6]))], None),
        ([{"text": TEXTS, "label": [4, 5, 6]}], None),
    ):
        inputs = "text" if isinstance(batches[0], dict) else None
        seen = tap.observe(batches, labels, inputs=inputs, progress=False)
        assert torch.equal(seen.labels, seen.sequence + 4)


def test_a_row_leads_back_to_its_text(speaking):
    seen = ki.attach(speaking).observe(TEXTS, progress=False)
    row = int(((seen.sequence == 2) & (seen.position == 5)).nonzero())
    assert seen.text(row, WORDS) == "the bird slept under a⟦ tree⟧ and the dog ran there"


def test_a_tokenizer_that_is_missing_is_said(model):
    with pytest.raises(InputError, match=r"no tokenizer.*tokenizer="):
        ki.attach(model).observe(TEXTS, progress=False)


def test_texts_without_tokens_are_refused(speaking):
    with pytest.raises(InputError, match="Text 1 of a batch gives no tokens: '  '"):
        ki.attach(speaking).observe(["the cat", "  "], progress=False)
    with pytest.raises(InputError, match="Sequence 1 of a batch has no tokens"):
        ki.attach(speaking).observe([[2], []], progress=False)


def test_a_column_of_texts_that_is_not_chosen_is_named(speaking):
    with pytest.raises(InputError, match=r"Column 'text' holds texts.*inputs='text'"):
        ki.attach(speaking).observe([{"text": TEXTS, "stars": [3, 4, 5], "label": [0, 1, 2]}], progress=False)


def test_one_sequence_of_ids_is_told_where_to_go(model):
    with pytest.raises(InputError, match=r"the number 5, .* observe\(\[ids\]\)"):
        ki.attach(model).observe([5, 6, 7], progress=False)


def test_two_rows_of_ids_are_not_taken_for_inputs_and_labels(model):
    rows = [torch.tensor([2, 3, 4]), torch.tensor([5, 6, 7])]
    with pytest.raises(InputError, match="two sequences of token ids, or inputs with labels"):
        ki.attach(model).observe([rows], progress=False)
    assert len(ki.attach(model).observe([[[2, 3, 4], [5, 6, 7]]], progress=False)) == 6


# --- what is judged on tokens -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(model):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (60, 8), generator=generator)
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    return data, ki.fit(data, ki.FitConfig(observables=24), method="least_squares")


def skipping(koopman, skip):
    """A surrogate as if it had been fitted without so many leading positions."""
    koopman = copy.deepcopy(koopman)
    koopman.config = replace(koopman.config, skip=skip)
    return koopman


@pytest.mark.parametrize("skip", [0, 1])
def test_fidelity_is_over_real_tokens_only(model, sequences, fitted, skip):
    data, koopman = fitted[0], skipping(fitted[1], skip)
    single = [torch.tensor([one]) for one in sequences]
    expected = ki.fidelity(model, koopman, held_out=single, fitted=data)
    assert expected.rows == sum(len(one) - skip for one in sequences)
    assert all(row.accuracy is None for row in expected.outputs)
    for batches in ([padded(sequences, "left")], [padded(sequences[:9]), padded(sequences[9:])], sequences):
        found = ki.fidelity(model, koopman, held_out=batches, fitted=data)
        assert found.rows == expected.rows
        for ours, theirs in zip(found.outputs, expected.outputs, strict=True):
            assert ours.agreement == pytest.approx(theirs.agreement, abs=1e-9)
            assert ours.kl == pytest.approx(theirs.kl, rel=1e-3, abs=1e-7)
        for ours, theirs in zip(found.depths, expected.depths, strict=True):
            assert ours.fvu["surrogate"] == pytest.approx(theirs.fvu["surrogate"], rel=1e-3)
            assert ours.isometry == pytest.approx(theirs.isometry, rel=1e-2)


def test_samples_that_do_not_differ_have_no_fidelity(model, fitted):
    with pytest.raises(InputError, match="All 2 held-out samples have the same state at"):
        ki.fidelity(model, fitted[1], held_out=[[2, 3], [2, 3]], fitted=fitted[0])


def test_fidelity_counts_the_tokens_that_are_predicted_rightly(model, sequences, fitted):
    koopman = skipping(fitted[1], 0)
    batch = padded(sequences)
    following = torch.nn.functional.pad(batch["input_ids"][:, 1:], (0, 1))
    labels = torch.where(torch.nn.functional.pad(batch["attention_mask"][:, 1:], (0, 1)) == 1, following, -100)
    found = ki.fidelity(model, koopman, held_out=[batch | {"labels": labels}])
    with torch.no_grad():
        right = (model(**batch).logits.argmax(-1) == labels)[labels != -100]
    assert found.rows == len(right)
    assert found.outputs[0].accuracy == pytest.approx(float(right.double().mean()))


def test_next_tokens_are_labels_but_for_the_last_of_a_sequence(model, sequences, fitted):
    data, koopman = fitted
    batch = padded(sequences)
    found = ki.fidelity(model, koopman, held_out=[batch], fitted=data, next_token=True)
    with torch.no_grad():
        logp = model(**batch).logits.double().log_softmax(-1)[:, 1:-1].flatten(0, 1)
    following = batch["input_ids"][:, 2:].flatten()
    there = batch["attention_mask"][:, 2:].flatten() == 1
    expected = -logp[range(len(following)), following][there].mean()
    assert found.outputs[0].cross_entropy == pytest.approx(float(expected), rel=1e-6)
    assert found.outputs[0].accuracy == pytest.approx(float((logp.argmax(1) == following)[there].double().mean()))
    assert found.rows == sum(len(one) - 1 for one in sequences)


def test_skipped_positions_keep_the_hosts_own_states(model, fitted):
    koopman = skipping(fitted[1], 2)
    # All but the last position is skipped and so untouched: only the last row can differ from the host.
    rows = [[2, 3, 4], [5, 6, 7]]
    found = ki.fidelity(model, koopman, held_out=rows)
    with torch.no_grad():
        own = model(torch.tensor(rows)).logits[:, -1].double().log_softmax(1)
        with ki.patched(model, koopman, mode="replace", positions=[2]):
            put = model(torch.tensor(rows)).logits[:, -1].double().log_softmax(1)
    assert found.rows == 2
    assert found.outputs[1].kl == pytest.approx(float((own.exp() * (own - put)).sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize("form", ["a token", "a sequence"])
def test_an_audit_of_padded_tokens_is_that_of_unpadded_ones(model, form):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(4, 9, (50,), generator=generator).tolist()
    rows = [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    groups = {1: rows[:25], 3: rows[25:]}
    data = ki.attach(model, skip=1).observe(rows, torch.tensor([1] * 25 + [3] * 25), progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=24), method="least_squares")
    edit = ki.erase_class(koopman, label=1)

    def batches(label, pad):
        found = groups[label]
        if form == "a sequence":
            labels = [[label]] * 25 if not pad else [[label] * 25]
        else:
            labels = [[label] * len(one) for one in found]
            labels = [[one] for one in labels] if not pad else [labels]
        inputs = [torch.tensor([one]) for one in found] if not pad else [padded(found, "left")]
        return [(x, y) for x, y in zip(inputs, labels, strict=True)]

    patch = ki.patched(model, koopman, edit)
    audits = [ki.audit(patch, held_out=[*batches(1, pad), *batches(3, pad)]) for pad in (False, True)]
    assert audits[0].forget_rows == audits[1].forget_rows == sum(len(one) - 1 for one in groups[1])
    assert audits[0].retain_rows == audits[1].retain_rows == sum(len(one) - 1 for one in groups[3])
    for ours, theirs in zip(*(audit.rows for audit in audits), strict=True):
        assert ours.forget_accuracy == pytest.approx(theirs.forget_accuracy, abs=0.01)
        assert ours.kl == pytest.approx(theirs.kl, rel=1e-2, abs=1e-6)
        assert ours.linear_probe == pytest.approx(theirs.linear_probe, abs=0.05)


def test_an_audit_of_one_row_of_logits_an_input_probes_the_mean_of_its_tokens():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=32, num_labels=3, pad_token_id=0,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config).eval()
        ids = torch.randint(2, VOCABULARY, (90, 6))
    labels = torch.arange(90) % 3
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    data = ki.attach(model).observe([{"input_ids": ids, "attention_mask": mask}], labels, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=24), method="least_squares")
    edit = ki.erase_class(koopman, label=1)

    rows = {"input_ids": ids, "attention_mask": mask}
    found = ki.audit(ki.patched(model, koopman, edit), held_out=(rows, labels))
    assert (found.forget_rows, found.retain_rows) == (30, 60)
    faith = ki.fidelity(model, koopman, held_out=[{"input_ids": ids, "attention_mask": mask}], labels=labels)
    with torch.no_grad():
        guess = model(input_ids=ids, attention_mask=mask).logits.argmax(1)
    assert faith.outputs[0].accuracy == pytest.approx(float((guess == labels).double().mean()))
    assert faith.rows == int(mask.sum())


# --- real weights -------------------------------------------------------------------------------------------


def _stories():
    beside = Path(__file__).resolve().parents[3] / "shared" / "models"
    data = os.environ.get("KOOPMAN_INTERP_DATA")
    for folder in (beside, Path(data).parent / "models" if data else beside):
        if (folder / "stories260K").is_dir():
            return folder / "stories260K"
    pytest.skip("stories260K is not here")


def test_stories_are_observed_by_their_own_tokenizer_and_lead_back_to_their_text():
    folder = _stories()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = ["Once upon a time, there was a little girl named Lily.", "Tom had a big red ball.", "The end."]
    seen = ki.attach(model, skip=1).observe(texts, batch_size=2, progress=False)
    assert seen.depths == 6
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row in (0, 5, len(seen) - 1):
        shown = seen.text(row, tokenizer, around=100)
        marked = tokenizer.decode([int(seen.tokens[row])]).strip()
        assert shown.removeprefix("… ").replace("⟦", "").replace("⟧", "").strip() == texts[int(seen.sequence[row])]
        assert shown.split("⟦")[1].split("⟧")[0].strip() == marked
    with torch.no_grad():
        single = tokenizer(texts[1], return_tensors="pt")
        hidden = model(**single, output_hidden_states=True).hidden_states
    own = seen[seen.sequence == 1]
    torch.testing.assert_close(own.states[2], hidden[2][0, 1:], rtol=1e-4, atol=2e-5)
    assert torch.equal(own.tokens, single["input_ids"][0, 1:])
