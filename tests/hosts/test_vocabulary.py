"""Tokens are found by what a user writes for them, or it is asked which is meant."""

import pytest

from koopman_interp.errors import InputError
from koopman_interp.hosts.tokens import token_names
from koopman_interp.hosts.vocabulary import token_ids

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is missing")
transformers = pytest.importorskip("transformers", reason="transformers is missing")


def byte_level():
    """Pieces as GPT-2 has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("s", "he"), ("Ġ", "she"), ("Ã", "©"), ("Ġ", "he")]
    pieces = [*alphabet, *(a + b for a, b in merges)]
    made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def sentence_pieces():
    """Pieces as Llama has them: a text begins with a space of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", "▁she", "she", "▁he", "▁", "s", "h", "e", "ball", "he"]
    merges = [("h", "e"), ("s", "he"), ("▁", "she"), ("▁", "he")]
    made = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate([*pieces, "he"])}, merges, unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def test_a_leading_space_is_the_token_that_begins_a_word():
    for words in (byte_level(), sentence_pieces()):
        vocabulary = words.get_vocab()
        begins = vocabulary.get("Ġshe", vocabulary.get("▁she"))
        assert token_ids(" she", words) == (begins,)
        assert token_ids([" she", begins, token_names(words)(begins)], words) == (begins,) * 3


def test_a_text_is_the_token_that_the_tokenizer_makes_of_it():
    words = byte_level()
    assert token_ids("she", words) == (words.get_vocab()["she"],)
    assert token_ids("é", words) == (words.get_vocab()["Ã©"],)
    assert token_ids("\n", words) == (words.get_vocab()["Ċ"],)


def test_what_can_be_read_in_two_ways_is_asked():
    words = sentence_pieces()
    with pytest.raises(InputError, match=r"'she' is two tokens: '▁she' \(id 1\).*within a word \(id 2\)"):
        token_ids("she", words)
    assert token_ids("▁she", words) == (1,)


def test_what_is_no_single_token_is_refused(unchecked):
    words = byte_level()
    with pytest.raises(InputError, match=r"' sheh' is 2 tokens \('▁she', 'h'\); expected one"):
        token_ids(" sheh", words)
    with pytest.raises(InputError, match=r"no tokenizer to read 'she'.*tokenizer="):
        token_ids("she", None)
    with pytest.raises(InputError, match="got none"):
        token_ids([], words)
    with pytest.raises(InputError, match="expected an id from 0 to 9"):
        token_ids([10], words, 10)
    for wrong in (True, 1.5):
        with pytest.raises(InputError, match="a text or an id; got"):
            token_ids([wrong], words)


def test_names_are_readable_and_those_past_the_vocabulary_are_numbers():
    words = byte_level()
    name, vocabulary = token_names(words), words.get_vocab()
    assert name(vocabulary["Ġshe"]) == "▁she"
    assert name(vocabulary["Ã©"]) == "é"
    assert name(vocabulary["Ã"]) == "Ã", "half a letter stays as it is written"
    assert name(vocabulary["Ċ"]) == "Ċ"
    assert name(len(vocabulary) + 5) == str(len(vocabulary) + 5)
