"""The whole way: observe, fit, read, edit, audit and the page, of one model and two sets of rows.

What the demo and `koopman-interp run` have in common. Costs what its steps cost; how long each took stands in the page.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.shapes.topology import topology
from koopman_interp.analysis.shapes.topology_bands import TopologyBands, topology_bands
from koopman_interp.analysis.spectra.decomposing import spectrum
from koopman_interp.analysis.substitutes.fidelity import fidelity
from koopman_interp.analysis.substitutes.lens import koopman_lens
from koopman_interp.auditing.audit import LEAST_ROWS, Retrained, audit
from koopman_interp.auditing.language import LanguageChecks, audit_language
from koopman_interp.auditing.result import Audit
from koopman_interp.edits.concept import erase_concept
from koopman_interp.edits.edit_set import EditSet, each_site
from koopman_interp.edits.erase import erase_class
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.fit import fit
from koopman_interp.fitting.sizes import Method
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.attaching import attach
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.next_tokens import labelled_by_next_token
from koopman_interp.observing.outputs import Output
from koopman_interp.observing.tap import Tap
from koopman_interp.patching.motion import Mode
from koopman_interp.patching.options import CARRIED, IN_PLACE, At
from koopman_interp.patching.patch import patched
from koopman_interp.report.run import write_run
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import in_percent
from koopman_interp.trajectories import Trajectories

_LENS_TOKENS = 16
"""Tokens of a text that the lens is shown on; a page has no room for many more."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of a run.

    Attributes:
        label: the class to forget, or a token id where each token is labelled by the next.
        name: what to call it in words; empty is by its number.
        config: of the fit.
        method: of the fit.
        sites: as in `attach`.
        skip: as in `attach`.
        next_token: label each token of a language model by the one that follows it.
        at_output: fit what the model says too.
        strength: of the edit; 1 erases.
        at: where edits are written; None is in place at each site where inputs have positions, as attention needs, and
            else carried by K to the target.
        modes: of the patches that are audited, the first of which the page's summary is of; those in place are deltas.
        retrained: a model trained without the class, as the reference, or a function that trains and returns one.
        classes: whether the model's outputs are the classes of the labels, so that accuracies have a meaning. Without,
            a language model is asked what `checks` hold.
        checks: what to ask a language model.
        class_names: of the labels from 0 on, or by label, for figures and tables.
        bands: how many subsets of how many rows Betti numbers are taken of, for bands; None is of all rows, once.
        text: a text that the lens is shown on; empty for none.
        batch_size: of inputs that are to be cut.
    """

    label: int
    name: str = ""
    config: FitConfig = field(default_factory=FitConfig)
    method: Method = "gradient"
    sites: Any = None
    skip: int = 0
    next_token: bool = False
    at_output: bool = False
    strength: float = 1.0
    at: At | None = None
    modes: tuple[Mode, ...] = ("delta",)
    retrained: Retrained | None = None
    classes: bool = True
    checks: LanguageChecks | None = None
    class_names: Sequence[str] | Mapping[int, str] = ()
    bands: tuple[int, int] | None = None
    text: str = ""
    batch_size: int = BATCH_SIZE


def run_pipeline(
    folder: str | os.PathLike[str],
    model: nn.Module | Host,
    plan: Plan,
    *,
    train: Any,
    test: Any,
    title: str,
    command: str = "",
    facts: Mapping[str, object] | None = None,
    seconds: dict[str, float] | None = None,
    say: Callable[[object], None] = lambda _: None,
) -> Path:
    """Go the whole way, and write it to a folder with its page.

    Args:
        folder: where the run goes.
        model: the model.
        plan: what is asked.
        train: labelled inputs to fit on, as `Tap.observe` takes them, which the model was trained on.
        test: others, which all figures are of.
        title: of the page.
        command: what was typed, or the call that was made.
        facts: on the model and the data, by name.
        seconds: time of what came before, by name.
        say: called with each result or sentence as it is found.

    Returns:
        The path of the page.

    Raises:
        InputError: the rows have no labels, or too few of the class or of others.
    """
    seconds = {} if seconds is None else seconds
    with _timed("observe", seconds):
        tap = attach(model, plan.sites, skip=plan.skip)
        rows, held = _labelled(tap.host, plan, train, 1), _labelled(tap.host, plan, test, LEAST_ROWS)
        trajectories = tap.observe(rows, batch_size=plan.batch_size)
        held_out = tap.observe(held, batch_size=plan.batch_size)
    say(repr(trajectories))
    _require_rows(trajectories, held_out, plan)
    facts = dict(facts or {})
    if both := _seen(trajectories, held_out):
        facts["not held out"] = both
        say(both)
    with _timed("fit", seconds):
        given: dict[str, Any] = {"model": tap.host, "batches": rows} if plan.at_output else {}
        koopman = fit(trajectories, plan.config, method=plan.method, **given)
    # Kept at once: what comes next takes a while, and can be interrupted.
    write_run(folder, koopman, title=title, command=command, trajectories=held_out, facts=facts, seconds=seconds)
    say(repr(koopman))
    with _timed("edit", seconds):  # before what takes longer, since it can be refused
        edit = _edited(koopman, plan, trajectories, held_out)
    say(edit)
    say(_null_edit(tap.host, koopman, held, plan.batch_size))
    with _timed("read", seconds):
        read = _read(tap, koopman, plan, trajectories, held_out, held)
    say(read["spectrum"])
    for name, shapes in read["topologies"].items():
        say(f"Of the {name}:")
        say(shapes)
    say(read["fidelity"])
    with _timed("audit", seconds):
        judged = _judged(tap.host, koopman, edit, plan, (rows, held), say)
    return write_run(
        folder,
        koopman,
        title=title,
        command=command,
        trajectories=held_out,
        edit=edit,
        facts=facts,
        seconds=seconds,
        class_names=plan.class_names,
        **read,
        **judged,
    )


def _labelled(host: Host, plan: Plan, rows: Any, least: int) -> Any:
    """Label rows by next tokens where that is asked for; those that follow less often than `least` are left out."""
    if not plan.next_token:
        return rows
    return labelled_by_next_token(host, rows, skip=plan.skip, least=least, batch_size=plan.batch_size)


def _require_rows(trajectories: Trajectories, held_out: Trajectories, plan: Plan) -> None:
    """Refuse before the fit what the audit would refuse after it."""
    for rows, what in ((trajectories, "to fit on"), (held_out, "to judge by")):
        if rows.labels is None:
            raise InputError(
                f"The rows {what} have no labels, by which a class is forgotten. Give them, or label each token of a "
                "language model by the one that follows: next_token."
            )
        if plan.label not in rows.classes:
            shown = ", ".join(map(str, rows.classes[:10])) + (", …" if len(rows.classes) > 10 else "")
            raise InputError(f"None of the rows {what} is of class {plan.label}; they are of {shown}.")
    few = int(torch.as_tensor(held_out.labels == plan.label).sum())
    if few < LEAST_ROWS:
        raise InputError(f"{few} rows of class {plan.label} are too few to judge by; {LEAST_ROWS} are needed.")


def _seen(fitted: Trajectories, held_out: Trajectories) -> str:
    """Say how many of the rows to judge by are of inputs that were fitted on; empty where none are."""
    share = float(torch.isin(held_out.digests, fitted.digests).double().mean())
    if not share:
        return ""
    return (
        f"{in_percent(share, 1)} of the rows to judge by are of inputs that were fitted on, so figures of them "
        "flatter. Judge by other rows."
    )


def _read(
    tap: Tap, koopman: KoopmanAutoencoder, plan: Plan, fitted: Trajectories, held_out: Trajectories, rows: Any
) -> dict[str, Any]:
    """Read the surrogate, by the names that a run has for what is read."""
    # Labels of a language model that are no tokens say nothing of its outputs.
    judged = rows if plan.classes else [x for x, _ in calls(tap.host, rows, batch_size=plan.batch_size)]
    read: dict[str, Any] = {
        "spectrum": spectrum(koopman, held_out),
        "topologies": {"model": _shapes(held_out, plan), "surrogate": _shapes(held_out, plan, koopman)},
        "fidelity": fidelity(
            tap.host,
            koopman,
            held_out=judged,
            fitted=fitted,
            spans="to_target",
            next_token=not plan.classes,
            batch_size=plan.batch_size,
        ),
    }
    if plan.text:
        shown = slice(plan.skip, plan.skip + _LENS_TOKENS)
        read["lens"] = koopman_lens(tap.host, koopman, [plan.text], positions=shown)
    return read


def _shapes(rows: Trajectories, plan: Plan, koopman: KoopmanAutoencoder | None = None) -> Topology | TopologyBands:
    if plan.bands is None:
        return topology(rows, koopman)
    subsets, points = plan.bands
    return topology_bands(rows, koopman, subsets=subsets, points=points)


def _edited(
    koopman: KoopmanAutoencoder, plan: Plan, fitted: Trajectories, held_out: Trajectories
) -> OperatorEdit | EditSet:
    """Erase the class; a token, of which there are more than observables, as what is so or not of each row."""
    erase: Callable[..., OperatorEdit]
    if plan.next_token:
        erase = partial(_erased_token, koopman, plan, fitted)
    else:
        erase = partial(erase_class, koopman, label=plan.label, strength=plan.strength, held_out=held_out)
    in_place = bool(held_out.position.any()) if plan.at is None else plan.at == IN_PLACE
    return each_site(koopman, lambda depth: erase(site=depth)) if in_place else erase()


def _erased_token(
    koopman: KoopmanAutoencoder, plan: Plan, fitted: Trajectories, site: int | None = None
) -> OperatorEdit:
    follows = torch.as_tensor(fitted.labels == plan.label).long()
    name = f"{plan.name or f'token {plan.label}'} as the next token"
    made = erase_concept(koopman, fitted, attribute=follows, site=site, strength=plan.strength, name=name)
    return replace(made, labels=(plan.label,))


def _null_edit(host: Host, koopman: KoopmanAutoencoder, rows: Any, batch_size: int) -> str:
    """Say whether a patch without an edit changes what the model says of the first batch."""
    x, _ = next(iter(calls(host, rows, batch_size=batch_size)))
    with torch.no_grad():
        plain = Output.of(host, x).logp
        with patched(host, koopman):
            same = torch.equal(Output.of(host, x).logp, plain)
    return f"Patched without an edit, the logits are {'bit-identical' if same else 'NOT bit-identical'}."


def _judged(
    host: Host,
    koopman: KoopmanAutoencoder,
    edit: OperatorEdit | EditSet,
    plan: Plan,
    rows: tuple[Any, Any],
    say: Callable[[object], None],
) -> dict[str, Any]:
    """Audit the edit in each mode, as it is to be written; what is found, by the names that a run has for it."""
    train, held_out = rows
    at, modes = (IN_PLACE, ("delta",)) if isinstance(edit, EditSet) else (CARRIED, plan.modes)
    patches = [patched(host, koopman, edit, mode=mode, at=at) for mode in modes]
    reference = plan.retrained
    if reference is not None and not isinstance(reference, (nn.Module, Host)):
        reference = reference()  # once, for all modes
    if not plan.classes:
        if plan.checks is None:
            return {}
        spoken = audit_language(patches[0], plan.checks, batch_size=plan.batch_size)
        say(spoken)
        return {"language": [spoken]}
    audits = list[Audit]()
    for patch in patches:
        audits.append(
            audit(
                patch,
                held_out=held_out,
                training=train,
                label=plan.label,
                retrained=reference,
                language=plan.checks,
                batch_size=plan.batch_size,
            )
        )
        say(audits[-1])
    return {"audits": audits}


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
