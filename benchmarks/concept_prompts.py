"""The prompts that teach, choose and judge the gender of a name, and the stories that say what it costs.

Templates and names of the three are disjoint. Knows nothing of edits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import koopman_interp as ki


def words(line: str) -> list[str]:
    """Split a line into words."""
    return line.split()


OPENINGS = (
    "One day, a {kind} named {name} went to the park.",
    "A {kind} called {name} lived in a small house.",
    "There once was a small {kind} and the name of the {kind} was {name}.",
    "In the garden there was a {kind} named {name}.",
    "One morning a {kind} named {name} woke up early.",
    "{name} was a kind {kind}.",
    "Mom gave a toy to a {kind} named {name}.",
    "It was a sunny day and a {kind} named {name} was in the yard.",
    "Long ago there lived a {kind} named {name}.",
    "Once there was a brave {kind} called {name}.",
)
MIDDLES = (
    "{name} saw a big dog.",
    "{name} found a red ball.",
    "{name} loved to run and jump.",
    "{name} wanted to eat a cake.",
    "{name} looked out of the window.",
    "{name} had a big box of toys.",
    "{name} smiled and said thank you.",
    "{name} was sad.",
    "{name} went to the store.",
    "{name} played with a friend.",
)
TAUGHT = (
    words("Fred Leo Billy Joe Mike Jim Alex Dave Andy Timmy Johnny Bobby Jimmy Rob"),
    words("Jane Mary Kate Zoe Rose Lisa Molly Sally Daisy Lola Nina Bella Jenny Nancy Polly Annie"),
)
"""Boys and girls: 0 and 1."""
CHOOSING_OPENINGS = (
    "There lived a {kind} named {name} in a big town.",
    "One day, there was a {kind} and people called the {kind} {name}.",
    "Near the sea there was a young {kind} named {name}.",
    "Every day a {kind} called {name} went for a walk.",
    "Once there was a small {kind}, {name}.",
)
CHOOSING_MIDDLES = (
    "{name} was kind and nice.",
    "{name} had a good friend.",
    "{name} liked the sun.",
    "{name} was tired.",
    "{name} wanted a new toy.",
)
CHOOSING = (words("Mark Peter Roy Tommy"), words("Ella Susie"))
TEMPLATES = (
    "There was a {kind} named {name}. {name} was very happy.",
    "Once upon a time, there was a little {kind} named {name}. {name} liked to play.",
)
NAMES = (words("Tim Tom Ben Max Jack Sam Bob John"), words("Lily Mia Sue Anna Emma Sara Lucy Amy"))
GENDERED = {
    *words("she he her him his hers himself herself girl boy girls boys lady man woman men women sir miss mr mrs"),
    *words("mom dad mommy daddy mother father mum mama papa grandma grandpa grandmother grandfather aunt uncle"),
    *words("brother sister brothers sisters son daughter queen king prince princess"),
}


def prompts(tokenizer: Any, templates: Sequence[str], names: tuple[list[str], list[str]]) -> ki.Contrast:
    """Fill in templates; boys are 0 and girls 1."""
    boys, girls = names
    fillings = ([{"kind": "boy", "name": n} for n in boys], [{"kind": "girl", "name": n} for n in girls])
    return ki.Contrast.filled(tokenizer, templates, fillings)


def sentences(openings: Sequence[str], middles: Sequence[str]) -> list[str]:
    """Join each opening with each sentence that follows it."""
    return [" ".join(pair) for pair in product(openings, middles)]


@dataclass(frozen=True)
class Stories:
    """Token ids of stories, and which tokens lie in a sentence without a word of `GENDERED`."""

    ids: list[list[int]]
    free: list[list[bool]]

    @classmethod
    def of(cls, tokenizer: Any, texts: Sequence[str]) -> Stories:
        """Tokenise stories, and mark their tokens."""
        marked = [free_of_gender(tokenizer, text) for text in texts]
        return cls([ids for ids, _ in marked], [free for _, free in marked])


def free_of_gender(tokenizer: Any, text: str) -> tuple[list[int], list[bool]]:
    """Tokenise a story, and mark the tokens that lie in a sentence without a word of `GENDERED`."""
    found = tokenizer(text, return_offsets_mapping=True)
    free = [False] * len(found["input_ids"])
    for sentence in re.finditer(r'[^.!?\n]+[.!?\n"]*\s*', text):
        if not GENDERED & set(re.findall(r"[a-z]+", sentence.group().lower())):
            for index, (start, stop) in enumerate(found["offset_mapping"]):
                # A token may begin with the space before its sentence.
                free[index] |= stop > start >= sentence.start() - 1 and stop <= sentence.end()
    return found["input_ids"], free
