"""The record of a fit: what came of it step by step, which inputs it never saw, and what it takes to do it again.

A value that is saved with the surrogate. Knows nothing of how a fit is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.files import Json
from koopman_interp.hashing import Draw
from koopman_interp.results import Result
from koopman_interp.tables import Column, Table, digits, in_percent

Look = Mapping[str, int | float]
"""Held-out figures at one step, by name."""

_HEADINGS = {"step": "step", "loss": "loss", "fvu": "FVU", "stress": "stress", "kl": "KL"}


def _no_inputs() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False, repr=False)
class FitRecord(Result):
    """What is known of how a surrogate was fitted; empty for one that was built by hand.

    Attributes:
        history: held-out figures at each look: `step`, `loss`, `fvu` (fraction of variance unexplained at the last
            depth), `stress` (of distances between samples) and, where the model was given, `kl` (divergence at its
            output, in nats). A fit by least squares has one look and no steps.
        distilled: the same of a distillation that went on from the fit: `step` and `kl` (divergence at the model's
            output, in nats). Several in a row follow one another.
        held_out: digests of the inputs held out, ascending; neither the fit nor a distillation was trained on them.
        bound: of a fit from a source that did not fit into memory: each input was held out whose hash under the seed
            lies below this (see `hashing.Draw`); those named in `held_out` are the ones that sums were taken over.
        method: `gradient` or `least_squares`.
        seed: of the fit.
        validation: share of the inputs held out.
        settings: of the fit, as `FitConfig.from_dict` takes them.
        choices: what was chosen from the data where nothing was asked for, each with its reason, and what came of it.
        versions: of the packages it was made with.
        seconds: wall-clock time of the fit and of distillations.
    """

    history: tuple[Look, ...] = ()
    distilled: tuple[Look, ...] = ()
    held_out: Int[Tensor, " input"] = field(default_factory=_no_inputs)
    bound: int | None = None
    method: str | None = None
    seed: int | None = None
    validation: float | None = None
    settings: dict[str, Json] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __repr__(self) -> str:
        if not self.history:
            return "FitRecord(of no fit)"
        figures = ", ".join(f"held-out {_HEADINGS[name]} {self.kept[name]:.4g}" for name in ("fvu", "stress"))
        step = f"step {self.kept['step']:,.0f}, " if "step" in self.kept else ""
        return f"FitRecord({self.method}, {step}{figures}, {len(self.held_out):,} inputs held out)"

    @property
    def kept(self) -> Look:
        """Held-out figures of the weights that the fit kept: those of its smallest loss.

        Raises:
            InputError: the record is empty.
        """
        if not self.history:
            raise InputError("This surrogate keeps no record of a fit: it was built by hand.")
        return min(self.history, key=lambda look: look.get("loss", 0.0))

    def is_held_out(self, digests: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """Mark the digests that are of inputs held out."""
        known = torch.isin(digests, self.held_out.to(digests.device))
        if self.bound is None or self.seed is None:
            return known
        return known | Draw(self.seed, self.bound)(digests).to(digests.device)

    def tables(self) -> tuple[Table, ...]:
        """Return the held-out figures by step: of the fit and, if there was one, of the distillation."""
        fit = _table(self.history, "The fit, on inputs held out.", self.kept if self.history else None)
        if not self.distilled:
            return (fit,)
        best = min(self.distilled, key=lambda look: look["kl"])
        return (fit, _table(self.distilled, "The distillation, on inputs held out.", best))

    def notes(self) -> tuple[str, ...]:
        """Say how it was fitted, and why so."""
        if not self.history:
            return ()
        made_with = " and ".join(f"{name} {version}" for name, version in self.versions.items())
        share = "" if self.validation is None else f", {in_percent(self.validation, 0)} of all (seed {self.seed})"
        return (
            f"{len(self.held_out):,} inputs were held out{share}. Fitted in {self.seconds:.1f} s with {made_with}.",
            *self.choices,
        )

    def as_dict(self) -> dict[str, Json]:
        """Return plain values for JSON, from which `from_dict` makes the same record."""
        return asdict(replace(self, held_out=_no_inputs())) | {"held_out": self.held_out.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Json]) -> FitRecord:
        """Rebuild from plain values; `held_out` may be a tensor."""
        given = {each.name: values[each.name] for each in fields(cls) if each.name != "bound" or "bound" in values}
        given |= {name: tuple(map(dict, given[name])) for name in ("history", "distilled")}
        given["choices"] = tuple(given["choices"])
        return cls(**(given | {"held_out": torch.as_tensor(given["held_out"], dtype=torch.int64)}))


def _table(looks: tuple[Look, ...], caption: str, best: Look | None) -> Table:
    columns = [
        Column(heading, tuple(look.get(name) for look in looks), "{:,}".format if name == "step" else digits(4))
        for name, heading in _HEADINGS.items()
        if name == "step" or any(name in look for look in looks)
    ]
    marked = next((index for index, look in enumerate(looks) if look is best), None)
    return Table(tuple(columns), caption, marked)
