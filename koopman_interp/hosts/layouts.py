"""States in a host's own shape, and the same states as rows.

A host may hand out `[batch, width]`, `[batch, position, width]` or `[batch, channel, height, width]`. The
rest of the package knows only rows `[sample, width]`: one sample per batch entry, per token, or per image
(whose channels and pixels then make up the width, so that depths of different resolution stay aligned).
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, arange

from koopman_interp.errors import InputError, UnsupportedHostError

_SPELT = "[batch, width], [batch, position, width] or [batch, channel, height, width]"


def require_plain(state: Tensor) -> None:
    """Check that a state is one tensor of one shape.

    Raises:
        UnsupportedHostError: it is nested.
    """
    if state.is_nested:
        raise UnsupportedHostError(
            "A site gave a nested tensor, which torch's encoder makes of padded inputs. Make it with "
            "nn.TransformerEncoder(…, enable_nested_tensor=False)."
        )


def to_rows(state: Float[Tensor, "..."]) -> Float[Tensor, "sample width"]:
    """Flatten a state to one row a sample.

    >>> import torch
    >>> to_rows(torch.zeros(2, 5, 8)).shape, to_rows(torch.zeros(2, 3, 4, 4)).shape
    (torch.Size([10, 8]), torch.Size([2, 48]))

    Raises:
        UnsupportedHostError: the state has another number of axes.
    """
    require_plain(state)
    match state.ndim:
        case 2:
            return state
        case 3:
            return rearrange(state, "batch position width -> (batch position) width")
        case 4:
            return rearrange(state, "batch channel height width -> batch (channel height width)")
    if state.ndim < 2:
        raise UnsupportedHostError(
            f"A state of shape {tuple(state.shape)} has no axis for the batch; known are {_SPELT}. Give inputs with "
            "one: x[None] for a single input."
        )
    raise UnsupportedHostError(
        f"A state of shape {tuple(state.shape)} has {state.ndim} axes; known are {_SPELT}. "
        "Say what its axes are, as in attach(model, sites, layout='batch position head width'), or choose other sites."
    )


def from_rows(rows: Float[Tensor, "sample width"], shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """Undo `to_rows` for a state of the given shape; the batch size is taken from the rows."""
    match shape:
        case (_, width):
            return rows.reshape(-1, width)
        case (_, positions, _):
            return rearrange(rows, "(batch position) width -> batch position width", position=positions)
        case (_, channels, height, width):
            return rearrange(
                rows,
                "batch (channel height width) -> batch channel height width",
                channel=channels,
                height=height,
                width=width,
            )
    raise UnsupportedHostError(f"A state of shape {shape} is none of {_SPELT}.")


def shaped_like(
    rows: Float[Tensor, "sample width"], state: Float[Tensor, "..."], shape: tuple[int, ...]
) -> Float[Tensor, "..."]:
    """Give rows the shape of one sample's state, with batch, positions, dtype and device of another state.

    >>> import torch
    >>> shaped_like(torch.zeros(6, 4), torch.zeros(2, 3, 8), (4,)).shape
    torch.Size([2, 3, 4])
    """
    batch = state.shape[:2] if state.ndim == 3 else state.shape[:1]
    return from_rows(rows, (*batch, *shape)).to(state)


def row_origins(shape: tuple[int, ...]) -> tuple[Int[Tensor, " sample"], Int[Tensor, " sample"]]:
    """Say for each row of `to_rows` which batch entry and which position it came from.

    >>> entry, position = row_origins((2, 3, 8))
    >>> entry.tolist(), position.tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    """
    positions = shape[1] if len(shape) == 3 else 1
    rows = arange(shape[0] * positions)
    return rows // positions, rows % positions


@dataclass(frozen=True)
class Layout:
    """The axes of a state by name, in einops' words: `position batch width`, `batch position head width`.

    With `batch` and `position` among them, every other axis is part of the width; without `position` a state is one
    sample an entry of the batch.

    Attributes:
        pattern: the names, with blanks between.

    Raises:
        InputError: the names are not words, or `batch` is not among them.
    """

    pattern: str

    def __post_init__(self) -> None:
        names = self.pattern.split()
        if "batch" not in names or len(set(names)) != len(names) or not all(name.isidentifier() for name in names):
            raise InputError(
                f"A layout names the axes of a state, each once, 'batch' among them; got {self.pattern!r}. Write for "
                "example layout='batch position head width' or layout='position batch width'."
            )

    @property
    def _rest(self) -> list[str]:
        return [name for name in self.pattern.split() if name not in ("batch", "position")]

    @property
    def _rows(self) -> str:
        leading = "batch position" if "position" in self.pattern.split() else "batch"
        return f"{leading} ({' '.join(self._rest)})"

    def standard(self, state: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Bring a state to `[batch, position, width]`, or to `[batch, width]` without positions.

        >>> import torch
        >>> Layout("position batch head width").standard(torch.zeros(5, 2, 4, 8)).shape
        torch.Size([2, 5, 32])

        Raises:
            UnsupportedHostError: the state has another number of axes.
        """
        names = self.pattern.split()
        if state.ndim != len(names):
            raise UnsupportedHostError(
                f"layout={self.pattern!r} names {len(names)} axes; the state has the shape {tuple(state.shape)}."
            )
        return rearrange(state, f"{self.pattern} -> {self._rows}")

    def back(self, standard: Float[Tensor, "..."], state: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Undo `standard`, with the sizes that the axes have in another state of this layout."""
        sizes = dict(zip(self.pattern.split(), state.shape, strict=True))
        return rearrange(standard, f"{self._rows} -> {self.pattern}", **{name: sizes[name] for name in self._rest})
