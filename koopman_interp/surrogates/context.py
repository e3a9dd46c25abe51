"""Context: what an encoder gathers from the earlier rows of a sequence, by causal attention.

    h₀ = x Wᵢₙ + b,   h ← h + attention(norm(h)),   h ← h + mlp(norm(h)),   z = E_token(x) + norm(h) Wₒᵤₜ

Blocks of a transformer with norms first (Xiong et al., arXiv 2002.04745), and places told by rotation of queries and
keys (RoPE; Su et al., arXiv 2104.09864), so that only how far apart two rows stand matters. `Wₒᵤₜ` starts at zero: at
the start the encoder is the token-wise one. Costs the blocks a row, and attention with the square of the longest
sequence. Knows nothing of hosts or caches; what it has seen is a value that a caller may keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from koopman_interp.errors import InputError
from koopman_interp.files import Json
from koopman_interp.sequences import Sequences
from koopman_interp.surrogates.networks import LinearPlusNonlinear, PlainMLP

_ROTARY_BASE = 10_000.0
_MLP_WIDTH = 2


@dataclass(frozen=True)
class ContextShape:
    """Sizes of a causal context.

    Attributes:
        blocks: of attention and MLP.
        width: between them; `heads` parts of an even width.
        heads: of attention.
    """

    blocks: int
    width: int
    heads: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Json] | None) -> ContextShape | None:
        """Rebuild from what `dataclasses.asdict` and JSON made of it."""
        return None if values is None else cls(**values)


@dataclass(frozen=True, eq=False)
class Past:
    """What attention needs of columns that went before: keys, rotated, and values, of all blocks side by side.

    Attributes:
        keys: `[sequence, block·head, column, size]`.
        values: the same shape.
        real: `[sequence, column]`, where there was a row.
    """

    keys: Float[Tensor, "sequence heads column size"]
    values: Float[Tensor, "sequence heads column size"]
    real: Bool[Tensor, "sequence column"]

    def then(self, later: Past) -> Past:
        """Put columns that follow behind."""
        return Past(
            torch.cat([self.keys, later.keys], 2),
            torch.cat([self.values, later.values], 2),
            torch.cat([self.real, later.real], 1),
        )


class ContextBlock(nn.Module):
    """Attention over earlier rows, then an MLP, each added to what it reads.

    Args:
        width: of the rows.
        heads: of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, _MLP_WIDTH * width), nn.GELU(), nn.Linear(_MLP_WIDTH * width, width))

    def forward(
        self,
        h: Float[Tensor, "batch column width"],
        turn: tuple[Tensor, Tensor],
        seen: Bool[Tensor, "batch 1 column key"],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Float[Tensor, "batch column width"], Tensor, Tensor]:
        """Return rows, and their own keys and values."""
        split = self.query_key_value(self.before_attention(h)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        query, key, value = split.chunk(3, 1)
        query, key = _turned(query, turn), _turned(key, turn)
        keys, values = (key, value) if past is None else (torch.cat([past[0], key], 2), torch.cat([past[1], value], 2))
        found = scaled_dot_product_attention(query, keys, values, attn_mask=seen)
        h = h + self.out(found.transpose(1, 2).flatten(2))
        return h + self.mlp(self.before_mlp(h)), key, value


class CausalContext(nn.Module):
    """Features of each row and the earlier ones of its sequence.

    Args:
        inputs: width of the rows.
        shape: sizes.

    Raises:
        InputError: the heads do not divide the width into even parts.
    """

    def __init__(self, inputs: int, shape: ContextShape) -> None:
        super().__init__()
        if shape.width % (2 * shape.heads):
            raise InputError(
                f"The heads of a context are of an even width: expected a width that {2 * shape.heads} divides, for "
                f"{shape.heads} heads; got {shape.width}."
            )
        self.enter: nn.Module = nn.Linear(inputs, shape.width)
        self.blocks = nn.ModuleList(ContextBlock(shape.width, shape.heads) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width)
        self.heads = shape.heads

    def forward(
        self, entered: Float[Tensor, "*batch row width"], sequences: Sequences, past: Past | None = None
    ) -> tuple[Float[Tensor, "*batch row width"], Past]:
        """Return the features of rows that have gone through `enter`, and what later columns need of these.

        Args:
            entered: rows; leading axes are apart from each other (depths), and there is none where a past is given.
            sequences: how the rows follow each other.
            past: of the columns before these.

        Returns:
            Features, zero for rows that stand in no column; and keys and values of these columns alone.
        """
        sequences = sequences.to(entered.device)
        laid = sequences.take(entered)
        batches = laid.shape[:-2]
        several = laid[..., 0, 0].numel() // len(sequences.rows) if len(sequences.rows) else 1
        h = laid.reshape(-1, *laid.shape[-2:])
        turn = _turn(sequences.place, h.shape[-1] // self.heads // 2, several, h.dtype)
        seen = _seen(sequences.real, None if past is None else past.real).repeat(several, 1, 1, 1)
        keys, values = [], []
        for number, block in enumerate(self.blocks):
            own = slice(number * self.heads, (number + 1) * self.heads)
            before = None if past is None else (past.keys[:, own], past.values[:, own])
            h, key, value = block(h, turn, seen, before)
            keys.append(key)
            values.append(value)
        features = sequences.give(self.norm(h).reshape(*batches, *h.shape[-2:]), entered.shape[-2])
        return features, Past(torch.cat(keys, 1), torch.cat(values, 1), sequences.real.repeat(several, 1))


class CausalEncoder(nn.Module):
    """An encoder of rows in sequences: the token-wise one, and what the context adds.

    Args:
        token: the token-wise encoder.
        inputs: width in.
        outputs: width out.
        shape: sizes of the context.
    """

    def __init__(self, token: LinearPlusNonlinear | PlainMLP, inputs: int, outputs: int, shape: ContextShape) -> None:
        super().__init__()
        self.token = token
        self.context = CausalContext(inputs, shape)
        self.leave = nn.Linear(shape.width, outputs, bias=False)
        nn.init.zeros_(self.leave.weight)

    def forward(
        self, x: Float[Tensor, "*batch row inputs"], sequences: Sequences | None = None
    ) -> Float[Tensor, "*batch row outputs"]:
        """Map rows.

        Raises:
            InputError: it is not told how they follow each other.
        """
        if sequences is None:
            raise InputError(NEEDS_SEQUENCES)
        if (told := int(sequences.real.sum())) != x.shape[-2]:
            raise InputError(
                f"Sequences tell how {told} rows follow each other, and there are {x.shape[-2]}. Take the sequences of "
                "the very trajectories that the rows are from: trajectories.in_sequence()."
            )
        if not torch.is_grad_enabled() and not self.leave.weight.any():
            return self.token(x)  # as at the start of a fit, where it is all there is
        return self.look_back(x, sequences)[0]

    def look_back(
        self, x: Float[Tensor, "*batch row inputs"], sequences: Sequences, past: Past | None = None
    ) -> tuple[Float[Tensor, "*batch row outputs"], Past]:
        """Map rows that may follow columns seen before; see `CausalContext`. Rows in no column are seen alone."""
        features, seen = self.context(self.context.enter(x), sequences, past)
        return self.token(x) + self.leave(features), seen

    def layers_out(self) -> list[nn.Linear]:
        """The layers whose sum is the output."""
        return [*self.token.layers_out(), self.leave]


NEEDS_SEQUENCES = (
    "This surrogate was fitted with context='causal': its encoder looks back on the earlier rows of a sequence, so "
    "rows alone are not enough. Say how they follow each other: koopman.predict(trajectories.states[0], 0, -1, "
    "sequences=trajectories.in_sequence()), or koopman.encode(…, sequences=…)."
)


def _seen(real: Tensor, before: Tensor | None) -> Bool[Tensor, "sequence 1 column key"]:
    """Mark what each column attends to: real ones up to itself, and itself in any case, so that there is something."""
    columns = real.shape[1]
    own = torch.ones(columns, columns, dtype=torch.bool, device=real.device)
    seen = (own.tril() & real[:, None]) | torch.eye(columns, dtype=torch.bool, device=real.device)
    if before is not None:
        seen = torch.cat([before[:, None].expand(-1, columns, -1), seen], 2)
    return seen[:, None]


def _turn(
    place: Int[Tensor, "sequence column"], half: int, several: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch 1 column half"], Float[Tensor, "batch 1 column half"]]:
    """Cosine and sine of the angles of each place; the angles are taken in float64, since places can be large."""
    frequencies = _ROTARY_BASE ** -(torch.arange(half, dtype=torch.float64, device=place.device) / half)
    angles = (place[:, None, :, None] * frequencies).repeat(several, 1, 1, 1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = turn
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
