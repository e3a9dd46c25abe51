"""audit(): what an edit really did, beside what is easy.

"None of the class recognised, the rest kept" is done by masking one logit. So an edit is shown beside the host, a
logit mask, mean-difference projection at the last site and, where given, a model retrained without the class, by
what a probe and a few shots can still find in the representation. The retrained model is the yardstick, not chance.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from koopman_interp.autoencoder import KoopmanAutoencoder
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.files import write_json
from koopman_interp.hosts import Host, host_for, logits_of
from koopman_interp.layouts import from_rows, to_rows
from koopman_interp.patching import Mode, patched
from koopman_interp.probes import probe_accuracy, prototype_recall
from koopman_interp.tables import table

SHOTS = 10
_LEAST_ROWS = 2 * SHOTS

Labelled = tuple[Tensor, Tensor] | Sequence[tuple[Any, Tensor]]
"""Inputs and labels, or several batches of them."""


@dataclass(frozen=True)
class AuditRow:
    """One way of forgetting, judged on held-out rows. Shares lie between 0 and 1.

    Attributes:
        name: of the way.
        forgotten: share of the forgotten class's rows that are still predicted as it.
        retained: accuracy on the other rows.
        kl: mean `KL(this ‖ host)` on the other rows, in nats; in this direction, since a masked logit leaves a
            probability of zero.
        linear_probe: accuracy of a balanced linear probe for the class on the last site's states; chance is 0.5.
        rbf_probe: the same with an RBF kernel.
        prototype: recall of the class by nearest 10-shot class prototypes.
    """

    name: str
    forgotten: float
    retained: float
    kl: float
    linear_probe: float
    rbf_probe: float
    prototype: float


@dataclass(frozen=True, repr=False)
class Audit:
    """What `audit` found: one row a way of forgetting.

    Attributes:
        label: the forgotten class.
        edit: description of the edit.
        rows: the ways, the host first and the edit last.
        forget_rows: held-out rows of the forgotten class.
        retain_rows: held-out rows of the others.
    """

    label: int
    edit: str
    rows: tuple[AuditRow, ...]
    forget_rows: int
    retain_rows: int

    def __getitem__(self, name: str) -> AuditRow:
        """Return the row of a name."""
        return next(row for row in self.rows if row.name == name)

    def __repr__(self) -> str:
        ours = self.rows[-1]
        return (
            f"Audit({self.edit}: {ours.forgotten:.1%} of class {self.label} still recognised, "
            f"{ours.retained:.2%} of the rest right; a linear probe still finds it at {ours.linear_probe:.1%})"
        )

    def __str__(self) -> str:
        body = [
            [
                row.name,
                f"{100 * row.forgotten:.2f}",
                f"{100 * row.retained:.2f}",
                f"{row.kl:.4f}",
                f"{100 * row.linear_probe:.1f}",
                f"{100 * row.rbf_probe:.1f}",
                f"{100 * row.prototype:.1f}",
            ]
            for row in self.rows
        ]
        header = [
            "%",
            "forgotten",
            "retained",
            "KL to host",
            "linear probe",
            "RBF probe",
            f"{SHOTS}-shot prototype",
        ]
        return (
            f"{table(header, body)}\n"
            f"Held-out rows: {self.forget_rows:,} of class {self.label}, {self.retain_rows:,} of the others. "
            "Probes read the last site; their chance is 50 %.\n"
            "No closed-form edit removes what the weights know: this is reversible suppression."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        write_json(path, self.as_dict())


@torch.no_grad()
def audit(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    edit: OperatorEdit | Sequence[OperatorEdit],
    *,
    forget: Labelled,
    retain: Labelled,
    mode: Mode = "delta",
    retrained: nn.Module | None = None,
    seed: int = 0,
) -> Audit:
    """Judge an edit on held-out rows, beside the baselines.

    Args:
        model: the host.
        koopman: the surrogate.
        edit: the edit, or several.
        forget: held-out inputs and labels of the forgotten class.
        retain: held-out inputs and labels of the other classes.
        mode: how the edit is patched.
        retrained: a model of the same architecture trained without the class, as the yardstick.
        seed: of the probes' splits and the prototypes' draws.

    Returns:
        One row each for the host, the logit mask, the mean difference, the retrained model (if given) and the edit.

    Raises:
        InputError: too few rows, or forgotten rows of several classes.
    """
    host = host_for(model)
    gone, kept = _gather_batches(forget), _gather_batches(retain)
    label = _only_label(gone)
    if any(bool((y == label).any()) for _, y in kept):
        raise InputError(f"The retained rows hold rows of class {label}, the one to forget. Take them out.")
    edits = (edit,) if isinstance(edit, OperatorEdit) else tuple(edit)
    last = koopman.sites[-1]
    plain = _Seen.of(host, last, gone, kept, nullcontext())
    _require_rows(plain, label)
    mask = _masked(plain, label)
    difference = _mean_difference(plain, label)
    ways: list[tuple[str, Callable[[], _Seen]]] = [
        ("host", lambda: plain),
        ("logit mask", lambda: mask),
        ("mean difference", lambda: _Seen.of(host, last, gone, kept, host.hooked({last: difference}))),
    ]
    if retrained is not None:
        ways.append(("retrained", lambda: _Seen.of(host_for(retrained), last, gone, kept, nullcontext())))
    name = f"edit ({mode})"
    ways.append((name, lambda: _Seen.of(host, last, gone, kept, patched(host, koopman, edits, mode=mode))))
    rows = tuple(_judged(name, seen(), plain, label, seed) for name, seen in ways)
    described = ", then ".join(one.description for one in edits)
    retained = int((plain.labels != label).sum())
    return Audit(label, described, rows, len(plain.labels) - retained, retained)


@dataclass(frozen=True)
class _Seen:
    """What came out of a host for all rows: states at the last site, log-probabilities, labels."""

    states: Tensor
    logp: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls,
        host: Host,
        site: str,
        gone: Sequence[tuple[Any, Tensor]],
        kept: Sequence[tuple[Any, Tensor]],
        patch: AbstractContextManager[Any],
    ) -> _Seen:
        states: list[Tensor] = []
        logp: list[Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(patch)
            # Entered after the patch, this hook sees the state that the patch has written.
            stack.enter_context(
                host.hooked({site: lambda state: states.append(to_rows(state).to("cpu", torch.float64, copy=True))})
            )
            for x, _ in (*gone, *kept):
                logp.append(log_softmax(logits_of(host.call(x)).flatten(0, -2).double().cpu(), dim=1))
        labels = torch.cat([y.flatten().cpu() for _, y in (*gone, *kept)])
        found = cls(torch.cat(states), torch.cat(logp), labels)
        if not len(found.states) == len(found.logp) == len(labels):
            raise InputError(
                f"An audit needs one label a row of logits and of states; got {len(labels)} labels, "
                f"{len(found.logp)} rows of logits and {len(found.states)} of states."
            )
        return found


def _judged(name: str, seen: _Seen, plain: _Seen, label: int, seed: int) -> AuditRow:
    gone = seen.labels == label
    guess = seen.logp.argmax(1)
    # 0 · log 0 = 0, where a class has no probability at all.
    terms = torch.where(seen.logp.isneginf(), 0.0, seen.logp.exp() * (seen.logp - plain.logp))
    return AuditRow(
        name=name,
        forgotten=float((guess[gone] == label).double().mean()),
        retained=float((guess[~gone] == seen.labels[~gone]).double().mean()),
        kl=float(terms[~gone].sum(1).mean()),
        linear_probe=probe_accuracy(seen.states, gone, kernel="linear", seed=seed),
        rbf_probe=probe_accuracy(seen.states, gone, kernel="rbf", seed=seed),
        prototype=prototype_recall(seen.states, seen.labels, label, shots=SHOTS, seed=seed),
    )


def _masked(plain: _Seen, label: int) -> _Seen:
    """Forbid the class at the logits; the representation is the host's."""
    masked = plain.logp.clone()
    masked[:, label] = -torch.inf
    return _Seen(plain.states, log_softmax(masked, dim=1), plain.labels)


def _mean_difference(plain: _Seen, label: int) -> Callable[[Tensor], Tensor]:
    """Project out the difference of the two means at the last site; fitted on every other row."""
    states, labels = plain.states[::2], plain.labels[::2]
    centre = states[labels != label].mean(0)
    direction = states[labels == label].mean(0) - centre
    direction = direction / direction.norm()

    def project(state: Tensor) -> Tensor:
        rows = to_rows(state)
        d, c = direction.to(rows), centre.to(rows)
        return from_rows(rows - ((rows - c) @ d)[:, None] * d, tuple(state.shape))

    return project


def _gather_batches(data: Labelled) -> list[tuple[Any, Tensor]]:
    """Bring a pair of tensors, or batches, to a list of batches."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor) and isinstance(data[1], Tensor):
        if len(data[0]) != len(data[1]):
            raise InputError(f"Expected one label an input; got {len(data[0])} inputs and {len(data[1])} labels.")
        return list(zip(data[0].split(512), data[1].split(512), strict=True))
    return list(_pairs(data))


def _pairs(data: Any) -> Iterator[tuple[Any, Tensor]]:
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InputError("An audit takes pairs of inputs and labels: (x, y), or batches of such pairs.")
        yield batch[0], torch.as_tensor(batch[1])


def _only_label(gone: Sequence[tuple[Any, Tensor]]) -> int:
    classes = torch.unique(torch.cat([y.flatten().cpu() for _, y in gone])) if gone else torch.empty(0)
    if len(classes) != 1:
        raise InputError(f"The rows to forget should be of one class; they are of {classes.tolist()}.")
    return int(classes)


def _require_rows(plain: _Seen, label: int) -> None:
    for c in torch.unique(plain.labels).tolist():
        count = int((plain.labels == c).sum())
        if count < _LEAST_ROWS:
            raise InputError(
                f"Class {c} has {count} held-out rows; probes and {SHOTS}-shot prototypes need {_LEAST_ROWS} or more."
            )
    if len(torch.unique(plain.labels)) < 2:
        raise InputError(f"All held-out rows are of class {label}; an audit needs retained rows too.")
