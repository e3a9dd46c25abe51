"""The verb that goes the whole way at once, from a model and two sets of rows to the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from koopman_interp.cli.classes import label_of
from koopman_interp.cli.data import DATA, DataName
from koopman_interp.cli.hints import example, say_next
from koopman_interp.cli.models import MODEL, ModelName
from koopman_interp.cli.paths import EDIT, KOOPMAN, OUT_FOLDER, SETTINGS
from koopman_interp.cli.printing import laid_out
from koopman_interp.cli.rows import Rows, require_class
from koopman_interp.cli.run_folder import typed
from koopman_interp.cli.settings import ASSIGNMENT, Assignment, assigned
from koopman_interp.cli.taking import Taking, takes
from koopman_interp.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from koopman_interp.auditing.language import LanguageChecks

_TEXTS, _SAMPLES, _WORDS = 32, 2, 6
"""Of held-out texts: how many the perplexity is of, how many are gone on from, and after how many words."""


@click.command(
    epilog=example(
        "koopman-interp run my:model --train my:training --test my:held_out --label 4 --out run",
        "koopman-interp run path/to/model --train path/to/data --test path/to/data --label negative --out run",
        "koopman-interp run gpt2 --train a.txt --test b.txt --next-token --label Lily --set steps=2000 --out run",
    )
)
@click.argument("model", type=MODEL)
@click.option("--train", type=DATA, required=True, help="Rows to fit on, of those that MODEL was trained on.")
@click.option("--test", type=DATA, required=True, help="Other rows, which all figures are of.")
@click.option("--label", required=True, help="Class to forget, by number or name; a token with --next-token.")
@click.option("--out", type=OUT_FOLDER, default=Path("koopman-run"), show_default=True, help="Run folder to write.")
@click.option("--next-token", is_flag=True, help="Of a language model: label each token by the one that follows.")
@click.option("--site", "sites", multiple=True, help="Site name or glob; several are allowed.")
@click.option("--skip", type=int, default=0, show_default=True, help="Leading positions of sequences to leave out.")
@click.option("--config", type=SETTINGS, help="JSON with settings of the fit; `koopman-interp config` lists them.")
@click.option("--set", "assignments", type=ASSIGNMENT, multiple=True, help="One setting, over --config; repeatable.")
@click.option("--method", type=click.Choice(["gradient", "least_squares"]), default="gradient", show_default=True)
@click.option(
    "--at-output/--states-alone",
    default=None,
    help="Fit what MODEL says too, or states alone; by default the first of language models.",
)
@click.option(
    "--strength", type=float, default=1.0, show_default=True, help="Of the edit: 1 erases, more pushes beyond."
)
@click.option(
    "--each-site/--carried",
    default=None,
    help="Write the edit in place at each site, or carried by K; by default the first where inputs have positions.",
)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(["delta", "replace"]),
    multiple=True,
    default=("delta",),
    show_default=True,
    help="Of the patches audited; repeatable.",
)
@click.option("--retrained", type=MODEL, help="The same model trained without the class: the reference.")
@takes()
def run(
    model: ModelName,
    train: DataName,
    test: DataName,
    label: str,
    out: Path,
    next_token: bool,
    sites: tuple[str, ...],
    skip: int,
    config: dict[str, Any] | None,
    assignments: tuple[Assignment, ...],
    method: Any,
    at_output: bool | None,
    strength: float,
    each_site: bool | None,
    modes: tuple[Any, ...],
    retrained: ModelName | None,
    taking: Taking,
) -> None:
    """Go the whole way with MODEL: observe, fit, read, edit, audit, and write a run folder with its page.

    What MODEL and data may be, `koopman-interp observe --help` says; a data set without a split gives `train` to
    --train and `test` (or `validation`) to --test. Texts need labels, or --next-token.
    """
    from koopman_interp.cli.hugging_face import says_tokens
    from koopman_interp.fitting.config import FitConfig
    from koopman_interp.pipeline import Plan, run_pipeline

    settings = FitConfig.from_dict(assigned(config or {}, assignments))
    reference = None if retrained is None else retrained.prepared()
    host, (fitted, held_out) = taking.all(model, train, test, labelled=not next_token, roles=("training", "test"))
    speaks = says_tokens(host)
    number = label_of(label, fitted.names, host, next_token=next_token)
    if not next_token:
        _require_labels(fitted, train, speaks)
        require_class(number, fitted, str(train))
        require_class(number, held_out, str(test))
    names = {number: _token(number, host)} if next_token else dict(enumerate(fitted.names))
    named = f"token {names[number]!r}" if next_token else _named(number, names)
    plan = Plan(
        label=number,
        name=named,
        config=settings,
        method=method,
        sites=sites or None,
        skip=skip,
        next_token=next_token,
        at_output=_hears(speaks, method, settings.aim) if at_output is None else at_output,
        strength=strength,
        at=None if each_site is None else "each site" if each_site else "target",
        modes=tuple(dict.fromkeys(modes)),
        retrained=None if reference is None else lambda: reference.model(taking.device, taking.dtype),
        classes=next_token or not speaks,
        class_names=names,
        checks=_checks(held_out, number, next_token=next_token) if speaks else None,
        text=held_out.texts[0] if speaks and held_out.texts else "",
        batch_size=taking.batch_size,
    )
    page = run_pipeline(
        out,
        host,
        plan,
        train=fitted.given,
        test=held_out.given,
        title=f"{model} without {named}",
        command=typed(),
        facts={
            "model": f"{model} ({type(host).__name__})",
            "fitted on": fitted.told or str(train),
            "held out": held_out.told or str(test),
        },
        say=lambda found: click.echo(f"{laid_out(found)}\n"),
    )
    click.echo(f"Report: {page}")
    in_place = ["--each-site"] if each_site or (each_site is None and fitted.texts) else []
    if speaks:
        say_next("generate", model, out / KOOPMAN, out / EDIT, "PROMPT", *in_place, "--run", out)
    else:
        how = [*in_place, "--training", train, "--relearn"]
        say_next("audit", model, test, out / KOOPMAN, out / EDIT, *how, "--run", out)


def _hears(speaks: bool, method: str, aim: str) -> bool:
    """Whether a fit hears what the model says, where it is not told: of language models, where it can."""
    return speaks and method == "gradient" and aim == "prediction"


def _require_labels(rows: Rows, source: DataName, speaks: bool) -> None:
    """Refuse columns without labels before the model is run; what a function gives is looked at when it is observed.

    Raises:
        InputError: there are none.
    """
    if rows.told and rows.labels is None:
        tokens = " With --next-token each token is labelled by the one that follows." if speaks else ""
        raise InputError(f"{source} has no labels that are known as such: name their column, --labels.{tokens}")


def _checks(held_out: Rows, label: int, *, next_token: bool) -> LanguageChecks | None:
    """What to ask a language model: the perplexity of held-out texts, and how some of them go on."""
    from koopman_interp.auditing.language import LanguageChecks

    if not held_out.texts:
        return None
    starts = dict.fromkeys(" ".join(text.split()[:_WORDS]) for text in held_out.texts)
    checks = LanguageChecks(text=held_out.texts[:_TEXTS], samples=tuple(starts)[:_SAMPLES])
    return replace(checks, unwanted=(label,)) if next_token else checks


def _token(number: int, model: nn.Module) -> str:
    """Name a token as its model's tokenizer does."""
    from koopman_interp.hosts.finding import host_for
    from koopman_interp.hosts.tokens import token_names

    return token_names(host_for(model).tokenizer)(number)


def _named(number: int, names: Mapping[int, str]) -> str:
    """Name a class in a title."""
    name = names.get(number, "")
    return f"class {number} ({name})" if name and name != str(number) else f"class {number}"
