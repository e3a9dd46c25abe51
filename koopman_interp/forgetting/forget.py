"""forget(): try the edits that forget a class on a held-out split, and keep the one nearest to what was asked.

Each candidate costs one pass of the host over the split; the closed forms themselves cost milliseconds. What is chosen
on a split looks better there than elsewhere: report figures from other rows (`audit`). Knows the host by its patch and
its output only, so it cannot tell suppression from removal: a logit mask, which does no removing, stands in the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from koopman_interp.divergence import kullback_leibler
from koopman_interp.edits.edit_set import EditSet, each_site
from koopman_interp.edits.erase import erase_class
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.edits.redirect import EQUALITY, redirect
from koopman_interp.errors import InputError
from koopman_interp.files import write_json
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED
from koopman_interp.observing.batches import calls
from koopman_interp.observing.outputs import Output
from koopman_interp.patching.motion import Mode
from koopman_interp.patching.options import At
from koopman_interp.patching.patch import patched
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import table
from koopman_interp.trajectories import Trajectories

Edit = OperatorEdit | EditSet
Candidates = Iterable[Edit | Callable[[], Edit]]

STRENGTHS = (1.0, 1.25, 1.5)
STRENGTHS_EACH = (0.75, 1.0, 1.25)
"""At each of several sites: what one leaves, the next takes."""
WEIGHTS = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Tried:
    """One way of forgetting, on the held-out split.

    Attributes:
        name: what it does.
        site: where, empty for the host and the mask.
        at: how it is patched; see `patched`.
        forgotten: share of the class's rows that are still predicted as it.
        retained: accuracy on the other rows.
        kl: mean `KL(this ‖ host)` on the other rows, in nats.
        refused: why the edit does not exist, else empty; the figures are then those of the host.
    """

    name: str
    site: str
    at: At
    forgotten: float
    retained: float
    kl: float
    refused: str = ""


@dataclass(frozen=True, repr=False)
class Forgetting:
    """What `forget` chose, and what it passed over.

    Attributes:
        label: the class.
        edit: the edit.
        chosen: its row.
        tried: all rows: the host, the logit mask, then the candidates in the order they were tried.
        asked: the trade-off, in words.
        met: whether the edit keeps what was asked.
        forget_rows: rows of the class in the split.
        retain_rows: rows of the others.
    """

    label: int
    edit: Edit = field(compare=False)
    chosen: Tried
    tried: tuple[Tried, ...]
    asked: str
    met: bool
    forget_rows: int
    retain_rows: int

    @property
    def at(self) -> At:
        """How the edit is to be patched: `patched(model, koopman, found.edit, at=found.at)`."""
        return self.chosen.at

    def __repr__(self) -> str:
        missed = "" if self.met else "; what was asked was NOT reached"
        return (
            f"Forgetting({self.chosen.name}: {self.chosen.forgotten:.1%} of class {self.label} still recognised, "
            f"{self.chosen.retained:.2%} of the rest right{missed})"
        )

    def __str__(self) -> str:
        body = []
        for row in self.tried:
            figures = [f"{100 * row.forgotten:.2f}", f"{100 * row.retained:.2f}", f"{row.kl:.4f}"]
            mark = "chosen" if row is self.chosen else ""
            body.append([row.name, row.site, *(["–"] * 3 if row.refused else figures), mark])
        shown = table(["%", "site", "forgotten", "retained", "KL to host", ""], body)
        met = "reached" if self.met else "NOT reached: the nearest is shown"
        return (
            f"{shown}\nAsked: {self.asked}: {met}. On {self.forget_rows:,} rows of class {self.label} and "
            f"{self.retain_rows:,} others, which chose the edit: report it on other rows."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; the edit's own file is written by `edit.save`."""
        values = {name: getattr(self, name) for name in ("label", "asked", "met", "forget_rows", "retain_rows")}
        rows = [asdict(row) for row in self.tried]
        return {**values, "chosen": asdict(self.chosen), "tried": rows, "edit": self.edit.as_dict()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON."""
        write_json(path, self.as_dict())


@torch.no_grad()
def forget(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories,
    *,
    label: int,
    held_out: Any,
    most: float = 0.01,
    weight: float | None = None,
    candidates: Candidates | None = None,
    mode: Mode = "delta",
    skip: int = 0,
    batch_size: int = 512,
) -> Forgetting:
    """Choose the edit that forgets a class.

    Args:
        model: the host.
        koopman: the surrogate, fitted with labels.
        trajectories: labelled rows that redirections are solved on: those that the surrogate was fitted on.
        label: the class to forget, an output of the host.
        held_out: inputs and labels of all classes to choose on, `(x, y)` or batches of such pairs, as `Tap.observe`
            takes them; neither the rows fitted nor those to be reported.
        most: the largest share of the class that may still be recognised; among edits that keep it, the one that
            retains most is chosen, and among equals the one nearest to the host.
        weight: instead of `most`, what a share of retained accuracy is worth in shares forgotten: the least
            `forgotten + weight · (host's retained − retained)` is chosen.
        candidates: edits, or functions that make them; None tries erasers of three strengths at two sites and at each
            site past the first, redirections of three weights, the equality form, other targets, and the combination.
        mode: how edits are patched. In `delta` a set of edits is tried carried by K and in place at each site.
        skip: leading positions of each sequence to leave out, as in `attach`; they are not patched either.
        batch_size: for inputs that come uncut.

    Returns:
        The edit and the table.

    Raises:
        InputError: the split lacks the class or the others, or no candidate exists.
    """
    host = host_for(model)
    batches = list(calls(host, held_out if _is_batches(held_out) else [held_out], batch_size=batch_size))
    if any(y is None for _, y in batches):
        raise InputError("forget() chooses on pairs of inputs and labels: held_out=(x, y), or batches of such pairs.")
    plain, labels = _outputs(host, batches, skip, nullcontext())
    _require_classes(labels, plain.shape[1], label)
    judge = partial(_judged, plain=plain, labels=labels, label=label)
    mask = plain.clone()
    mask[:, label] = -torch.inf
    rows = [judge("host", "", "target", plain), judge("logit mask", "", "target", mask.log_softmax(1))]
    found: list[tuple[Edit, Tried]] = []
    positions = slice(skip, None) if skip else None
    for make in _default(koopman, trajectories, label) if candidates is None else candidates:
        try:
            edit = make() if callable(make) and not isinstance(make, OperatorEdit | EditSet) else make
        except InputError as error:
            name = getattr(make, "__name__", "") or repr(make)
            rows.append(Tried(name, "", "target", rows[0].forgotten, rows[0].retained, 0.0, str(error)))
            continue
        if not isinstance(edit, OperatorEdit | EditSet):
            raise InputError(f"A candidate is an edit, or a function that makes one; got {type(edit).__name__}.")
        for at, site in _ways(edit, mode):
            logp, _ = _outputs(host, batches, skip, patched(host, koopman, edit, mode=mode, at=at, positions=positions))
            rows.append(judge(edit.description, site, at, logp))
            found.append((edit, rows[-1]))
    if not found:
        reasons = "; ".join(row.refused for row in rows if row.refused) or "there were none"
        raise InputError(f"No candidate makes an edit: {reasons}.")
    edit, chosen, asked, met = _nearest(found, most, weight)
    gone = labels == label
    return Forgetting(label, edit, chosen, tuple(rows), asked, met, int(gone.sum()), int((~gone).sum()))


def _default(koopman: KoopmanAutoencoder, trajectories: Trajectories, label: int) -> Iterator[Callable[[], Edit]]:
    """Make the candidates, each when its turn comes."""
    quietest = erase_class(koopman, label=label)
    last = len(koopman.sites) - 1
    for depth in (quietest.depth, last):
        for strength in STRENGTHS:
            yield partial(erase_class, koopman, label=label, site=depth, strength=strength)
    for strength in STRENGTHS_EACH:
        erase = partial(_erased, koopman, label, strength)
        yield partial(each_site, koopman, erase, range(1, len(koopman.sites)))
    solve = partial(redirect, koopman, trajectories, label=label)
    for depth in (quietest.depth, last):
        for weight in WEIGHTS:
            yield partial(solve, weight=weight, site=depth)
    yield partial(solve, weight=EQUALITY, site=last)
    yield partial(solve, targets="similar", site=last)
    yield partial(solve, targets="retained_mean", site=last)
    for depth in (quietest.depth, last):
        yield partial(_combined, koopman, solve, label, depth)


def _erased(koopman: KoopmanAutoencoder, label: int, strength: float, depth: int) -> OperatorEdit:
    return erase_class(koopman, label=label, site=depth, strength=strength)


def _combined(koopman: KoopmanAutoencoder, solve: Callable[..., OperatorEdit], label: int, depth: int) -> OperatorEdit:
    return solve(after=erase_class(koopman, label=label, site=depth))


def _ways(edit: Edit, mode: Mode) -> list[tuple[At, str]]:
    """Say how an edit is tried, and what to call its sites then."""
    if isinstance(edit, OperatorEdit):
        return [("target", edit.site)]
    carried: list[tuple[At, str]] = [("target", f"{len(edit)} sites")]
    return carried if mode == "replace" else [*carried, ("each site", f"{len(edit)} sites, in place")]


def _outputs(
    host: Host, batches: Sequence[tuple[Any, Any]], skip: int, patch: AbstractContextManager[Any]
) -> tuple[Float[Tensor, "sample class"], Int[Tensor, " sample"]]:
    """Return log-probabilities and labels of all judged rows."""
    parts, found = [], []
    with patch:
        for x, y in batches:
            output = Output.of(host, x, skip)
            labels = output.samples.labels(y)
            parts.append(output.logp[labels != IGNORED])
            found.append(labels[labels != IGNORED])
    return torch.cat(parts), torch.cat(found)


def _judged(
    name: str,
    site: str,
    at: At,
    logp: Float[Tensor, "sample class"],
    *,
    plain: Float[Tensor, "sample class"],
    labels: Int[Tensor, " sample"],
    label: int,
) -> Tried:
    gone, guess = labels == label, logp.argmax(1)
    return Tried(
        name=name,
        site=site,
        at=at,
        forgotten=float((guess[gone] == label).double().mean()),
        retained=float((guess[~gone] == labels[~gone]).double().mean()),
        kl=float(kullback_leibler(logp[~gone], plain[~gone]).mean()),
    )


def _nearest(found: Sequence[tuple[Edit, Tried]], most: float, weight: float | None) -> tuple[Edit, Tried, str, bool]:
    if weight is not None:
        edit, row = min(found, key=lambda one: (one[1].forgotten - weight * one[1].retained, one[1].kl))
        return edit, row, f"least forgotten + {weight:g} × retained lost", True
    asked = f"at most {most:.2%} of the class recognised, the most retained"
    keeping = [one for one in found if one[1].forgotten <= most]
    if keeping:
        edit, row = min(keeping, key=lambda one: (-one[1].retained, one[1].kl))
        return edit, row, asked, True
    edit, row = min(found, key=lambda one: (one[1].forgotten, -one[1].retained))
    return edit, row, asked, False


def _is_batches(held_out: Any) -> bool:
    """Whether several batches were given, rather than one pair of inputs and labels."""
    return not (isinstance(held_out, tuple) and len(held_out) == 2 and not isinstance(held_out[0], tuple))


def _require_classes(labels: Int[Tensor, " sample"], outputs: int, label: int) -> None:
    if not 0 <= label < outputs:
        raise InputError(f"Class {label} is not among the host's {outputs} outputs.")
    gone = int((labels == label).sum())
    if not 0 < gone < len(labels):
        raise InputError(
            f"The held-out split needs rows of class {label} and of others; it has {gone} and {len(labels) - gone}."
        )
