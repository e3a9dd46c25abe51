"""audit(): what an edit really did, beside what is easy.

"None of the class recognised, the rest kept" is done by masking one logit. So an edit is shown beside the host, a
logit mask, mean-difference projection at the last site and, where given, a model retrained without the class, by
what a probe and a few shots can still find in the representation. The retrained model is the yardstick, not chance.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from koopman_interp.autoencoder import KoopmanAutoencoder
from koopman_interp.batches import calls
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.files import write_json
from koopman_interp.hosts import Host, host_for
from koopman_interp.layouts import from_rows, to_rows
from koopman_interp.motion import Mode
from koopman_interp.outputs import Output
from koopman_interp.patching import patched
from koopman_interp.probes import probe_accuracy, prototype_recall
from koopman_interp.samples import Samples
from koopman_interp.tables import table
from koopman_interp.trajectories import IGNORED, whole_numbers

SHOTS = 10
_LEAST_ROWS = 2 * SHOTS
_BATCH = 512

Labelled = tuple[Any, Any] | Iterable[Any]
"""Inputs and labels, or several batches of them, in the forms that `Tap.observe` takes."""


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
    skip: int = 0,
    seed: int = 0,
) -> Audit:
    """Judge an edit on held-out rows, beside the baselines.

    Of tokens, each real one is a row, and its labels may be one a sequence or one a token, with -100 where it is to be
    left out. Where the host gives one row of logits an input, the probes read the mean state of the input's tokens.

    Args:
        model: the host.
        koopman: the surrogate.
        edit: the edit, or several.
        forget: held-out inputs and labels of the forgotten class.
        retain: held-out inputs and labels of the other classes.
        mode: how the edit is patched.
        retrained: a model of the same architecture trained without the class, as the yardstick.
        skip: leading positions of each sequence to leave out, as in `attach`; they are not patched either.
        seed: of the probes' splits and the prototypes' draws.

    Returns:
        One row each for the host, the logit mask, the mean difference, the retrained model (if given) and the edit.

    Raises:
        InputError: too few rows, or forgotten rows of several classes.
    """
    host = host_for(model)
    gone, kept = _gather_batches(host, forget), _gather_batches(host, retain)
    label = _only_label(gone)
    if any(bool((whole_numbers(y) == label).any()) for _, y in kept):
        raise InputError(f"The retained rows hold rows of class {label}, the one to forget. Take them out.")
    edits = (edit,) if isinstance(edit, OperatorEdit) else tuple(edit)
    last = koopman.sites[-1]

    def seen(host: Host, patch: AbstractContextManager[Any]) -> _Seen:
        return _Seen.of(host, last, (*gone, *kept), skip, patch)

    plain = seen(host, nullcontext())
    _require_rows(plain, label)
    mask = _masked(plain, label)
    difference = _mean_difference(plain, label)
    ways: list[tuple[str, Callable[[], _Seen]]] = [
        ("host", lambda: plain),
        ("logit mask", lambda: mask),
        ("mean difference", lambda: seen(host, host.hooked({last: difference}))),
    ]
    if retrained is not None:
        ways.append(("retrained", lambda: seen(host_for(retrained), nullcontext())))
    name = f"edit ({mode})"
    positions = slice(skip, None) if skip else None
    ways.append((name, lambda: seen(host, patched(host, koopman, edits, mode=mode, positions=positions))))
    rows = tuple(_judged(name, way(), plain, label, seed) for name, way in ways)
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
        cls, host: Host, site: str, batches: Sequence[tuple[Any, Any]], skip: int, patch: AbstractContextManager[Any]
    ) -> _Seen:
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        found: list[Tensor] = []

        def read(state: Tensor) -> None:
            # The copy matters: an in-place activation further on would write into what was kept.
            found[:] = [state.detach().clone()]

        with ExitStack() as stack:
            stack.enter_context(patch)
            # Entered after the patch, this hook sees the state that the patch has written.
            stack.enter_context(host.hooked({site: read}))
            for x, y in batches:
                output = Output.of(host, x, skip)
                parts.append(_aligned(found.pop(), y, output, skip))
        states, logp, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(states, logp, labels)


def _aligned(state: Tensor, y: Any, output: Output, skip: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bring the state, log-probabilities and labels of one pass to the same rows, those to ignore left out."""
    samples = Samples.of(state.shape, output.tokens, skip)
    rows = samples.take(to_rows(state)).to("cpu", torch.float64)
    of_states = samples.labels(y)
    labels = output.labels(of_states, samples)
    if labels is None:
        raise InputError(
            f"An audit needs one label a row of logits; got {len(of_states)} labelled rows of states and "
            f"{len(output.logp)} rows of logits, and the rows of one input differ in their labels."
        )
    if len(output.logp) != len(rows):
        weights = (of_states != IGNORED).double()
        counts = torch.zeros(samples.inputs, dtype=torch.float64).index_add(0, samples.entry, weights)
        sums = rows.new_zeros(samples.inputs, rows.shape[1]).index_add(0, samples.entry, rows * weights[:, None])
        rows = sums / counts.clamp_min(1)[:, None]
    judged = labels != IGNORED
    return rows[judged], output.logp[judged], labels[judged]


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


def _gather_batches(host: Host, data: Labelled) -> list[tuple[Any, Any]]:
    """Bring a pair of inputs and labels, or batches, to what to call the host with, and labels."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Mapping):
        data = [data]
    elif isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], tuple):
        x, y = data
        if len(x) != len(y):
            raise InputError(f"Expected one label an input; got {len(x)} inputs and {len(y)} labels.")
        data = [(x[start : start + _BATCH], y[start : start + _BATCH]) for start in range(0, len(x), _BATCH)]
    found = list(calls(host, data, batch_size=_BATCH))
    if any(y is None for _, y in found):
        raise InputError("An audit takes pairs of inputs and labels: (x, y), or batches of such pairs.")
    return found


def _only_label(gone: Sequence[tuple[Any, Any]]) -> int:
    labels = torch.cat([whole_numbers(y) for _, y in gone]) if gone else torch.empty(0)
    classes = torch.unique(labels[labels != IGNORED])
    if len(classes) != 1:
        raise InputError(f"The rows to forget should be of one class; they are of {classes.tolist()}.")
    return int(classes)


def _require_rows(plain: _Seen, label: int) -> None:
    if not 0 <= label < plain.logp.shape[1]:
        raise InputError(f"Class {label} is not among the host's {plain.logp.shape[1]} outputs.")
    for c in torch.unique(plain.labels).tolist():
        count = int((plain.labels == c).sum())
        if count < _LEAST_ROWS:
            raise InputError(
                f"Class {c} has {count} held-out rows; probes and {SHOTS}-shot prototypes need {_LEAST_ROWS} or more."
            )
    if len(torch.unique(plain.labels)) < 2:
        raise InputError(f"All held-out rows are of class {label}; an audit needs retained rows too.")
