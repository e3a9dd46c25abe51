"""Verbs about what is installed and what can be set, and the demo and the page, which need nothing else."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import click

from koopman_interp.cli.hints import example, say_next
from koopman_interp.cli.installed import parts, usable
from koopman_interp.cli.models import MODEL, ModelName
from koopman_interp.cli.paths import OUT_FOLDER
from koopman_interp.cli.printing import Printing, laid_out, printed
from koopman_interp.cli.settings import settings_of
from koopman_interp.cli.taking import Taking, takes


@click.command(epilog=example("koopman-interp demo --out koopman-run --label 2"))
@click.option("--out", type=OUT_FOLDER, default=Path("koopman-run"), show_default=True, help="Run folder to write.")
@click.option("--label", type=int, default=2, show_default=True, help="Class to erase: 0 yin, 1 yang, 2 dot.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="1 erases; more pushes beyond.")
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: Path, label: int, strength: float, seed: int) -> None:
    """Yin-Yang end to end: train, observe, fit, read, erase, audit. No download."""
    import torch

    from koopman_interp.demo import run_demo

    command = f"koopman-interp demo --out {out} --label {label} --strength {strength:g} --seed {seed}"

    def say(found: object) -> None:
        click.echo(f"{laid_out(found)}\n")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its matrices are too small to be worth sharing out
    try:
        page = run_demo(out, label=label, strength=strength, seed=seed, say=say, command=command)
    finally:
        torch.set_num_threads(threads)
    click.echo(f"Report: {page}")
    say_next("sites", "MODEL")


@click.command(epilog=example("koopman-interp doctor"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Say what is installed, what is missing and the line to get it; exit with 0 if fits can be made, else 1."""
    found = parts()
    if as_json:
        click.echo(json.dumps([part.as_dict() for part in found]))
    else:
        kind, name = (max(len(getattr(part, each)) for part in found) for each in ("kind", "name"))
        for part in found:
            remedy = f"; to get it: {part.remedy}" if part.remedy else ""
            click.echo(f"{part.kind:<{kind}}  {part.name:<{name}}  {part.found}{remedy}")
        click.echo("Usable." if usable(found) else "NOT usable: see above.")
    if not usable(found):
        return 1
    say_next("demo")
    return 0


@click.command("config", epilog=example("koopman-interp config", "koopman-interp config steps normalization.dimension"))
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config_(names: tuple[str, ...], as_json: bool) -> None:
    """List the settings of a fit, or those NAMES of them: default and meaning, for fit --set and --config.

    Values are JSON, in which None is null and True is true; a word needs no quotation marks.
    """
    from koopman_interp.errors import InputError, nearest
    from koopman_interp.fitting.config import FitConfig

    settings = {setting.name: setting for setting in settings_of(FitConfig())}
    if unknown := [name for name in names if name not in settings]:
        raise InputError(f"{unknown[0]} is no setting of a fit. {nearest(unknown[0], settings)}")
    chosen = [settings[name] for name in names] or list(settings.values())
    if as_json:
        told = {each.name: {"default": each.default, "meaning": each.meaning} for each in chosen}
        click.echo(json.dumps(told))
    else:
        width = min(shutil.get_terminal_size((100, 24)).columns, 100)
        for setting in chosen:
            nested = isinstance(setting.default, dict)  # whose parts have lines of their own
            click.echo(f"{setting.name}.…" if nested else f"{setting.name}={json.dumps(setting.default)}")
            click.echo(textwrap.fill(setting.meaning, width, initial_indent="    ", subsequent_indent="    "))
    say_next("fit", "TRAJECTORIES", "--out", "koopman", "--set", "steps=2000")


@click.command(epilog=example("koopman-interp hosts"))
def hosts() -> None:
    """List the host adapters that are installed."""
    from koopman_interp.hosts.finding import adapters

    for adapter in adapters():
        click.echo(f"{adapter.adapter}  {adapter.__module__}:{adapter.__qualname__}")
    say_next("sites", "MODEL")


@click.command(
    "sites", epilog=example("koopman-interp sites my:model", "koopman-interp sites path/to/hugging/face/folder")
)
@click.argument("model", type=MODEL)
@printed
@takes(data=False)
def sites_(model: ModelName, printing: Printing, taking: Taking) -> None:
    """List the sites of MODEL, and which of them are taken unless told otherwise."""
    from koopman_interp.observing.attaching import sites

    printing.show(sites(taking.model(model)))
    say_next("observe", model, "DATA", "--out", "trajectories.safetensors")


@click.command(
    epilog=example("koopman-interp completion bash", "koopman-interp completion zsh"),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete verbs and options, for the file that it reads at its start.

    For bash, add it to ~/.bashrc by >> ~/.bashrc; for zsh to ~/.zshrc; for fish, write it to
    ~/.config/fish/completions/koopman-interp.fish.
    """
    from click.shell_completion import get_completion_class

    kind, root = get_completion_class(shell), ctx.find_root()
    assert kind is not None  # it is one of those that click has
    name = root.info_name or "koopman-interp"
    click.echo(kind(root.command, {}, name, f"_{name}_COMPLETE".replace("-", "_").upper()).source())
