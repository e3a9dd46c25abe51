"""Verbs that ask a language model what it says before and under an edit."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from koopman_interp.cli.classes import token_of
from koopman_interp.cli.data import DATA, DataName
from koopman_interp.cli.hints import example, in_run, say_next
from koopman_interp.cli.models import MODEL, ModelName
from koopman_interp.cli.paths import IN_FILE, OUT_FILE, SETTINGS, SURROGATE
from koopman_interp.cli.printing import WIDTH, Printing, printed
from koopman_interp.cli.run_folder import adds_to_run, keep
from koopman_interp.cli.taking import Taking, takes
from koopman_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from koopman_interp.auditing.language import LanguageAudit
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

_ASKED = ("edited", "rephrased", "unrelated", "text", "samples")


@click.command(
    "audit-language",
    epilog=example(
        'koopman-interp audit-language gpt2 koopman edit.safetensors --text other.txt --samples "Once upon a time"',
        "koopman-interp audit-language gpt2 koopman edit.safetensors --each-site --unwanted Lily --checks checks.json",
    ),
)
@click.argument("model", type=MODEL)
@click.argument("koopman", type=SURROGATE)
@click.argument("edit", type=IN_FILE)
@click.option("--unwanted", multiple=True, help="Token that should no longer follow; by default those EDIT forgets.")
@click.option("--edited", multiple=True, help="Prompt that the edit is about; repeatable.")
@click.option("--rephrased", multiple=True, help="Prompt that asks for the same; repeatable.")
@click.option("--unrelated", multiple=True, help="Prompt whose answer should stay what it is; repeatable.")
@click.option("--samples", multiple=True, help="Prompt to go on from; repeatable.")
@click.option("--text", "data", type=DATA, help="Unrelated texts, for the perplexity.")
@click.option("--checks", type=SETTINGS, help='JSON of lists by these names: {"edited": [...], "samples": [...]}.')
@click.option("--new-tokens", type=click.IntRange(min=1), default=24, show_default=True, help="Length of a sample.")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--each-site", is_flag=True, help="Write the edits in place at each of their sites.")
@click.option("--out", type=OUT_FILE, help="JSON to write.")
@adds_to_run
@printed
@takes()
def audit_language_(
    model: ModelName,
    koopman: Path,
    edit: Path,
    unwanted: tuple[str, ...],
    data: DataName | None,
    checks: dict[str, Any] | None,
    new_tokens: int,
    out: Path | None,
    run: Path | None,
    printing: Printing,
    taking: Taking,
    **asked: Any,
) -> None:
    """Ask MODEL the same before and under EDIT of KOOPMAN: perplexity, samples, and answers to prompts."""
    how = {name: asked.pop(name) for name in ("mode", "each_site")}
    prompts = _prompts(checks or {}, asked)
    if data is None and not any(prompts.values()):
        raise InputError("There is nothing to ask: give --text, prompts (--edited, --samples, …) or --checks.")
    host, (rows,) = taking.all(model, data, labelled=False)
    if data is not None:
        prompts["text"] = (*prompts["text"], *rows.as_texts(data))
    surrogate, found = _asked(host, koopman, edit, unwanted, prompts, new_tokens, taking.batch_size, **how)
    if out is not None:
        found.save(out)
    printing.show(found)
    keep(run, surrogate, language=[found])
    say_next("generate", model, koopman, edit, "PROMPT", *(["--each-site"] if how["each_site"] else []), *in_run(run))


@click.command(
    epilog=example(
        'koopman-interp generate gpt2 koopman edit.safetensors "Once upon a time" --new-tokens 40',
        "koopman-interp generate path/to/model koopman edit.safetensors --each-site --data prompts.txt",
    )
)
@click.argument("model", type=MODEL)
@click.argument("koopman", type=SURROGATE)
@click.argument("edit", type=IN_FILE)
@click.argument("prompts", nargs=-1)
@click.option("--data", type=DATA, help="Prompts, in place of PROMPTS.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=40, show_default=True, help="How far to go on.")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--each-site", is_flag=True, help="Write the edits in place at each of their sites.")
@click.option("--out", type=OUT_FILE, help="JSON to write.")
@adds_to_run
@printed
@takes()
def generate(
    model: ModelName,
    koopman: Path,
    edit: Path,
    prompts: tuple[str, ...],
    data: DataName | None,
    new_tokens: int,
    mode: Any,
    each_site: bool,
    out: Path | None,
    run: Path | None,
    printing: Printing,
    taking: Taking,
) -> None:
    """Go on from PROMPTS with MODEL, without and under EDIT of KOOPMAN, side by side; the likeliest token each time."""
    if bool(prompts) == (data is not None):
        raise click.UsageError("Give PROMPTS, or --data with them; one of the two.")
    host, (rows,) = taking.all(model, data, labelled=False)
    asked = {"samples": rows.as_texts(data) if data else prompts}
    how = {"mode": mode, "each_site": each_site}
    surrogate, found = _asked(host, koopman, edit, (), asked, new_tokens, taking.batch_size, **how)
    if out is not None:
        found.save(out)
    if printing.as_json or printing.wide:
        printing.show(found)
    else:
        click.echo(side_by_side(found))
    keep(run, surrogate, language=[found])
    again = ["--each-site"] * each_site + in_run(run)
    say_next("audit-language", model, koopman, edit, "--text", "DATA", *again)


def side_by_side(found: LanguageAudit, width: int = WIDTH) -> str:
    """Set what the base model says beside what the edited one says, a prompt after the other."""
    (before, one), *_, (after, other) = found.rows.items()
    half = (width - 3) // 2
    lines = [f"{before:<{half}} | {after}", f"{'-' * half}-+-{'-' * half}"]
    for left, right in zip(one.samples, other.samples, strict=True):
        columns = [_folded(text, half) for text in (left, right)]
        height = max(map(len, columns))
        padded = [column + [""] * (height - len(column)) for column in columns]
        lines += [f"{a:<{half}} | {b}".rstrip() for a, b in zip(*padded, strict=True)]
        lines.append(f"{'-' * half}-+-{'-' * half}")
    return "\n".join([found.edit, *found.notes()[-1:], "", *lines[:-1]])


def _folded(text: str, width: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""]]


def _prompts(checks: dict[str, Any], asked: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Join what a file asks with what the options ask."""
    for name, value in checks.items():
        if name not in _ASKED:
            raise InputError(f"{name} is nothing that a language model is asked. {nearest(name, _ASKED)}")
        if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise InputError(f'{name} is a list of texts: {{"{name}": ["one", "another"]}}.')
    return {name: (*checks.get(name, ()), *asked.get(name, ())) for name in _ASKED}


def _asked(
    model: Any,
    koopman: Path,
    edit: Path,
    unwanted: tuple[str, ...],
    prompts: dict[str, tuple[str, ...]],
    new_tokens: int,
    batch_size: int,
    *,
    mode: Any,
    each_site: bool,
) -> tuple[KoopmanAutoencoder, LanguageAudit]:
    """Ask a model before and under an edit of a surrogate, which is returned too."""
    from koopman_interp.auditing.language import LanguageChecks, audit_language
    from koopman_interp.edits.edit_set import EditSet
    from koopman_interp.patching.patch import patched
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    edits = EditSet.load(edit)
    tokens = tuple(token_of(each, model) for each in unwanted) or edits.labels
    checks = LanguageChecks(unwanted=tokens, new_tokens=new_tokens, **prompts)
    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    patch = patched(model, surrogate, edits, mode=mode, at="each site" if each_site else "target")
    return surrogate, audit_language(patch, checks, batch_size=batch_size)
