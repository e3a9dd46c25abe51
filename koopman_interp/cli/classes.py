"""Classes and tokens as they are named on the command line, brought to their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from koopman_interp.cli.rows import number_of
from koopman_interp.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from koopman_interp.cli.data import DataName
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder


def label_of(label: str, names: Sequence[str] | Mapping[int, str], model: nn.Module, *, next_token: bool) -> int:
    """Return the number of a class, or of a token where each is labelled by the next.

    Args:
        label: a number, the name of a class, or a token as text.
        names: of the classes, in the order of their numbers or by these.
        model: whose tokenizer knows tokens.
        next_token: whether labels are tokens.
    """
    return token_of(label, model) if next_token else number_of(label, names)


def foreseen(labels: Sequence[str], names: Mapping[int, str], data: DataName, *, next_token: bool) -> tuple[int, ...]:
    """Return the numbers of classes where they are known before data is read, which may have names of its own.

    Args:
        labels: numbers, or names of classes.
        names: that a run has for classes.
        data: to be read; what a function gives has no names.
        next_token: whether labels are tokens, which are not named so.

    Returns:
        One number a label; nothing where not all are known yet.
    """
    unnamed = next_token or data.kind == "callable"
    sure = unnamed and all(label.isdecimal() or label in names.values() for label in labels)
    return tuple(number_of(label, names) for label in labels) if sure else ()


def token_of(text: str, model: nn.Module) -> int:
    """Return the id of a token that is given by it, or as text.

    Raises:
        InputError: the text is several tokens, or the model has no tokenizer.
    """
    if text.isdecimal():
        return int(text)
    from koopman_interp.hosts.finding import host_for

    tokenizer = host_for(model).tokenizer
    if tokenizer is None:
        raise InputError(f"The model has no tokenizer that knows {text!r}: give the id of the token.")
    # As a text, behind a blank, and as the tokenizer itself writes tokens.
    forms = {form: tokenizer(form, add_special_tokens=False)["input_ids"] for form in (text, f" {text.strip()}")}
    found = {ids[0] for ids in forms.values() if len(ids) == 1}
    known = tokenizer.get_vocab().get(text)
    if known is not None:
        found = {known}
    if len(found) == 1:
        return int(found.pop())
    pieces = "; ".join(f"{form!r} is {tokenizer.convert_ids_to_tokens(ids)}" for form, ids in forms.items())
    raise InputError(f"{text!r} is not one token: {pieces}. Give one of its tokens, or its id.")


def require_class(label: int, classes: Iterable[int], koopman: str) -> None:
    """Check that a surrogate was fitted on rows of a class.

    Raises:
        InputError: it was not.
    """
    if label not in classes:
        known = ", ".join(map(str, classes))
        seen = f"rows of the classes {known}" if known else "rows without labels"
        raise InputError(f"{koopman} was fitted on {seen}, so it has no class {label}. Observe labelled rows of it.")


def require_same(asked: tuple[int, ...], forgotten: tuple[int, ...], edit: str) -> None:
    """Refuse to judge an edit by other classes than it forgets: it would be blamed for doing its job.

    Raises:
        InputError: it forgets others, or nothing says which.
    """
    from koopman_interp.labels import classes_named

    if not asked and not forgotten:
        raise InputError(f"{edit} does not say which class it forgets: give --label.")
    if asked and forgotten and set(asked) != set(forgotten):
        raise InputError(
            f"{edit} forgets {classes_named(forgotten)}, and --label says {classes_named(asked)}. Leave out --label, "
            "or audit an edit of these."
        )


def by_next_token(model: Any, texts: Any, koopman: KoopmanAutoencoder, least: int = 1) -> list[tuple[Any, Any]]:
    """Label texts by next tokens, of the positions that the surrogate was fitted on."""
    from koopman_interp.hosts.finding import host_for
    from koopman_interp.observing.next_tokens import labelled_by_next_token

    host = host_for(model, koopman.config.layout)
    return labelled_by_next_token(host, texts, skip=koopman.config.skip, least=least)
