"""Contrast: prompts that differ in one attribute of two values and in nothing else, by which a concept is taught.

Templates are filled in once for each value; rows are the last tokens that all prompts of a template share, so that
within a group (a template and a place) only the attribute varies. Knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from koopman_interp.edits.concept import pooled_rows
from koopman_interp.errors import InputError
from koopman_interp.observing.tap import Tap
from koopman_interp.trajectories import Trajectories

LAST = 4
"""Positions from the end of a prompt that rows are taken at, at most."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Prompts, each of one of two values of an attribute.

    Attributes:
        ids: token ids of each prompt.
        value: `[prompt]`, 0 or 1.
        template: `[prompt]`, which template each fills in.

    Raises:
        InputError: the three differ in length, or one of the values is missing.
    """

    ids: tuple[tuple[int, ...], ...]
    value: Int[Tensor, " prompt"]
    template: Int[Tensor, " prompt"]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.value) == len(self.template):
            raise InputError(
                f"Expected a value and a template a prompt; got {len(self.value)} and {len(self.template)} of "
                f"{len(self.ids)} prompts."
            )
        if (values := sorted(set(self.value.tolist()))) != [0, 1]:
            raise InputError(f"Prompts that teach a contrast are of the values 0 and 1, both; got {values}.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        ones, templates = int(self.value.sum()), len(self.template.unique())
        return f"Contrast({len(self)} prompts, {len(self) - ones} of 0 and {ones} of 1, from {templates} templates)"

    @classmethod
    def filled(
        cls,
        tokenizer: Any,
        templates: Sequence[str],
        fillings: tuple[Sequence[Mapping[str, str]], Sequence[Mapping[str, str]]],
    ) -> Contrast:
        """Fill templates in, as `str.format` does: each once with each filling of either value.

        Args:
            tokenizer: of Hugging Face's kind.
            templates: texts such as `"A {kind} named {name} woke up."`.
            fillings: what to fill in for the value 0, and for the value 1.

        Returns:
            The prompts.
        """
        filled = [
            (tuple(tokenizer(template.format(**filling))["input_ids"]), value, index)
            for index, template in enumerate(templates)
            for value, own in enumerate(fillings)
            for filling in own
        ]
        if not filled:
            raise InputError("There are no prompts: give a template or more, and fillings of both values.")
        ids, value, template = zip(*filled, strict=True)
        return cls(ids, torch.tensor(value), torch.tensor(template))

    def __getitem__(self, chosen: Bool[Tensor, " prompt"]) -> Contrast:
        """Take some of the prompts."""
        places = chosen.nonzero().flatten()
        return Contrast(tuple(self.ids[place] for place in places.tolist()), self.value[places], self.template[places])

    def rows(self, tap: Tap, last: int = LAST) -> ContrastRows:
        """Observe the last tokens that the prompts of a template share.

        Args:
            tap: of the model.
            last: of them, at most so many.

        Raises:
            InputError: the prompts of a template do not end in the same token.
        """
        seen = tap.observe([list(ids) for ids in self.ids], progress=False)
        lengths = torch.tensor([len(ids) for ids in self.ids])
        from_end = lengths[seen.sequence] - 1 - seen.position
        kept = from_end < self._shared(last)[seen.sequence]
        prompt = seen.sequence[kept]
        return ContrastRows(seen[kept], self.value[prompt], self.template[prompt] * last + from_end[kept], prompt)

    def _shared(self, last: int) -> Int[Tensor, " prompt"]:
        """Count the tokens at the end that all prompts of a template share, for each prompt."""
        shared = torch.zeros(len(self), dtype=torch.long)
        for index in self.template.unique().tolist():
            own = self.template == index
            ends = [ids[::-1] for ids, mine in zip(self.ids, own.tolist(), strict=True) if mine]
            alike = [len(set(places)) == 1 for places in zip(*ends, strict=False)]
            shared[own] = min(last, alike.index(False) if False in alike else len(alike))
            if not int(shared[own][0]):
                raise InputError(
                    f"The prompts of template {index} do not end in the same token, so there is no place at which they "
                    "differ in the attribute alone. End each template in words of its own."
                )
        return shared


@dataclass(frozen=True, eq=False)
class ContrastRows:
    """What a model's states are at the ends of contrasting prompts.

    Attributes:
        trajectories: the rows.
        value: `[row]`, 0 or 1.
        group: `[row]`, the template and the place; within one only the attribute varies.
        prompt: `[row]`, which prompt each is of.
    """

    trajectories: Trajectories
    value: Int[Tensor, " row"]
    group: Int[Tensor, " row"]
    prompt: Int[Tensor, " row"]

    def pooled(self, rows: Float[Tensor, "row width"]) -> tuple[Float[Tensor, "prompt width"], Int[Tensor, " prompt"]]:
        """Return the mean of each prompt's rows, and its value."""
        kept, place = self.prompt.unique(return_inverse=True)
        value = torch.zeros(len(kept), dtype=torch.long)
        value[place] = self.value
        return pooled_rows(rows, self.prompt), value
