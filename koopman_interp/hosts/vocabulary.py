"""Tokens by what a user writes for them: strings or ids to ids of a tokenizer of Hugging Face's kind.

Knows the two ways in which vocabularies write a leading space, and nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

from koopman_interp.errors import InputError
from koopman_interp.hosts.tokens import Tokenizer, token_names

Token = str | int
"""A token by its id, by a text that is one token, or by its name in the vocabulary (`▁she`, `Ġshe`)."""

_SPACES = ("▁", "Ġ")


def token_ids(tokens: Token | Sequence[Token], tokenizer: Tokenizer, outputs: int | None = None) -> tuple[int, ...]:
    """Resolve tokens to their ids.

    A text with a leading space is the token that begins a word. A text without one is the token that the tokenizer
    makes of it; where the vocabulary has another one of the very same name, within words, it is asked which is meant.

    Args:
        tokens: one, or several.
        tokenizer: of Hugging Face's kind; None where there are ids alone.
        outputs: how many outputs the model has; None where it is not known.

    Returns:
        An id for each.

    Raises:
        InputError: a text is not one token, or two of them; there is no tokenizer for it; or an id is no output.
    """
    given = [tokens] if isinstance(tokens, (str, int)) else list(tokens)
    if not given:
        raise InputError("Expected one token or more; got none.")
    ids = tuple(_id(token, tokenizer) for token in given)
    wrong = [number for number in ids if number < 0 or (outputs is not None and number >= outputs)]
    if wrong:
        among = "an id that is not negative" if outputs is None else f"an id from 0 to {outputs - 1:,}"
        raise InputError(f"Token {wrong[0]} is no output of the model; expected {among}.")
    return ids


def _id(token: object, tokenizer: Tokenizer) -> int:
    if isinstance(token, bool) or not isinstance(token, (str, int)):
        raise InputError(f"A token is a text or an id; got {type(token).__name__}.")
    if isinstance(token, int):
        return token
    if not callable(tokenizer):
        raise InputError(
            f"There is no tokenizer to read {token!r} with. Give the token's id, or a tokenizer: tokenizer=…."
        )
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    if token[:1] in (" ", *_SPACES):
        found = {vocabulary[name] for name in (space + token[1:] for space in _SPACES) if name in vocabulary}
        if len(found) == 1:
            return int(found.pop())
    pieces = list(tokenizer(token, add_special_tokens=False)["input_ids"])
    named = vocabulary.get(token)
    if named is not None and hasattr(tokenizer, "decode") and "\ufffd" in str(tokenizer.decode([named])):
        named = None  # one byte of a letter, which byte-level vocabularies write as another letter
    if named is None and len(pieces) == 1 and pieces[0] == getattr(tokenizer, "unk_token_id", None):
        raise InputError(f"{token!r} is not in the vocabulary: the tokenizer reads it as an unknown token.")
    if len(pieces) == 1 and named in (None, pieces[0]):
        return int(pieces[0])
    name = token_names(tokenizer)
    if len(pieces) == 1:
        raise InputError(
            f"{token!r} is two tokens: {name(pieces[0])!r} (id {pieces[0]}), which it is as a text, and {token!r} "
            f"within a word (id {named}). Give {name(pieces[0])!r}, or an id."
        )
    if named is not None:
        return int(named)
    shown = ", ".join(repr(name(piece)) for piece in pieces[:5]) + (", …" if len(pieces) > 5 else "")
    raise InputError(
        f"{token!r} is {len(pieces)} tokens ({shown or 'none'}); expected one. Give one of them, by name or id."
    )
