"""The command line: the same steps as in Python, on files and importable models.

A model or data set is named as `module:callable`, which is imported and called without arguments; the working
directory is on the path. Nothing heavy is imported before a command runs. Exit codes: 0 done, 1 refused or failed,
2 wrong usage. A traceback is shown only with --traceback.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="koopman-interp")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def cli(traceback: bool) -> None:
    """Fit, read and edit the Koopman operator of a network's depth."""


@cli.command()
@click.option("--out", type=FOLDER, default=Path("koopman-run"), show_default=True, help="Run folder to write.")
@click.option("--label", type=int, default=2, show_default=True, help="Class to erase: 0 yin, 1 yang, 2 dot.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="1 erases; more pushes beyond.")
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: Path, label: int, strength: float, seed: int) -> None:
    """Yin-Yang end to end: train, observe, fit, read, erase, audit. No download."""
    import torch

    from koopman_interp.demo import run_demo

    command = f"koopman-interp demo --out {out} --label {label} --strength {strength:g} --seed {seed}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its matrices are too small to be worth sharing out
    try:
        page = run_demo(out, label=label, strength=strength, seed=seed, say=click.echo, command=command)
    finally:
        torch.set_num_threads(threads)
    click.echo(f"Report: {page}")


@cli.command()
def hosts() -> None:
    """List the host adapters that are installed."""
    from koopman_interp.hosts.finding import adapters

    for adapter in adapters():
        click.echo(f"{adapter.adapter}  {adapter.__module__}:{adapter.__qualname__}")


@cli.command("sites")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sites_(model: str, as_json: bool) -> None:
    """List the sites of MODEL, module:callable, and which of them are taken unless told otherwise."""
    from koopman_interp.observing.tap import sites

    table = sites(_called(model))
    click.echo(json.dumps(table.as_dict()) if as_json else str(table))


@cli.command()
@click.argument("model")
@click.argument("data")
@click.option("--site", "sites", multiple=True, help="Site name or glob; several are allowed.")
@click.option("--skip", type=int, default=0, show_default=True, help="Leading positions to leave out from here on.")
@click.option("--out", type=FILE, required=True, help="Trajectories to write (.safetensors).")
def observe(model: str, data: str, sites: tuple[str, ...], skip: int, out: Path) -> None:
    """Record MODEL on DATA, both as module:callable; DATA gives batches, of pairs (inputs, labels) for labels."""
    from koopman_interp.observing.tap import attach

    trajectories = attach(_called(model), sites or None, skip=skip).observe(_called(data))
    trajectories.save(out)
    click.echo(repr(trajectories))


@cli.command("fit")
@click.argument("trajectories", type=FILE)
@click.option("--out", type=FOLDER, required=True, help="Folder for the surrogate.")
@click.option("--config", type=FILE, help="JSON with settings of FitConfig.")
@click.option("--method", type=click.Choice(["gradient", "least_squares"]), default="gradient", show_default=True)
@click.option("--model", nargs=2, metavar="MODEL DATA", help="Fit what MODEL says of DATA too, both module:callable.")
@click.option("--checkpoint", type=FILE, help="File that holds the fit's state.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
def fit_(trajectories: Path, out: Path, config: Path | None, model: tuple[str, str] | None, **options: Any) -> None:
    """Fit a surrogate to TRAJECTORIES."""
    from koopman_interp.files import read_json
    from koopman_interp.fitting.config import FitConfig
    from koopman_interp.fitting.fit import fit
    from koopman_interp.trajectories import Trajectories

    settings = FitConfig.from_dict(read_json(config)) if config else FitConfig()
    called = dict(zip(("model", "batches"), map(_called, model or ()), strict=False))
    koopman = fit(Trajectories.load(trajectories), settings, **called, **options)
    koopman.save_pretrained(out)
    click.echo(f"{koopman!r}\n{koopman.record!r}")


@cli.command("spectrum")
@click.argument("koopman", type=FOLDER)
@click.argument("trajectories", type=FILE)
@click.option("--modes", type=click.IntRange(min=1), default=10, show_default=True, help="How many to print.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def spectrum_(koopman: Path, trajectories: Path, modes: int, as_json: bool) -> None:
    """Eigenvalues of KOOPMAN with residuals on TRAJECTORIES."""
    from koopman_interp.analysis.spectra.decomposing import spectrum
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    found = spectrum(KoopmanAutoencoder.from_pretrained(koopman), Trajectories.load(trajectories))
    click.echo(json.dumps(found.as_dict()) if as_json else found.head(modes))


@cli.command("topology")
@click.argument("trajectories", type=FILE)
@click.option("--koopman", type=FOLDER, help="Take this surrogate's iterates in place of the model's states.")
@click.option("--points", type=int, default=400, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def topology_(trajectories: Path, koopman: Path | None, points: int, as_json: bool) -> None:
    """Betti numbers of TRAJECTORIES by depth."""
    from koopman_interp.analysis.shapes.topology import topology
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    surrogate = None if koopman is None else KoopmanAutoencoder.from_pretrained(koopman)
    found = topology(Trajectories.load(trajectories), surrogate, points=points)
    click.echo(json.dumps(found.as_dict()) if as_json else str(found))


@cli.command("fidelity")
@click.argument("model")
@click.argument("data")
@click.argument("koopman", type=FOLDER)
@click.option("--fitted", type=FILE, help="Trajectories that KOOPMAN was fitted on: adds the best linear maps.")
@click.option("--spans", type=click.Choice(["given", "to_target", "all"]), default="given", show_default=True)
@click.option("--next-token", is_flag=True, help="Judge by the tokens that follow, in place of labels.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fidelity_(
    model: str, data: str, koopman: Path, fitted: Path | None, spans: Any, next_token: bool, as_json: bool
) -> None:
    """Judge KOOPMAN in MODEL on held-out DATA: inputs, or pairs of inputs and labels."""
    from koopman_interp.analysis.substitutes.fidelity import fidelity
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    judged = fidelity(
        _called(model),
        KoopmanAutoencoder.from_pretrained(koopman),
        held_out=_called(data),
        fitted=None if fitted is None else Trajectories.load(fitted),
        spans=spans,
        next_token=next_token,
    )
    click.echo(json.dumps(judged.as_dict()) if as_json else str(judged))


@cli.command()
@click.argument("model")
@click.argument("koopman", type=FOLDER)
@click.argument("texts", nargs=-1, required=True)
@click.option("--out", type=FILE, help="Reading to write (.safetensors).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lens(model: str, koopman: Path, texts: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Show what MODEL would say to TEXTS if its motion were KOOPMAN's from each depth on."""
    from koopman_interp.analysis.substitutes.lens import koopman_lens
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    reading = koopman_lens(_called(model), KoopmanAutoencoder.from_pretrained(koopman), list(texts))
    if out is not None:
        reading.save(out)
    click.echo(json.dumps(reading.as_dict()) if as_json else str(reading))


@cli.command()
@click.argument("koopman", type=FOLDER)
@click.option("--label", "labels", type=int, multiple=True, required=True, help="Class to forget; several are allowed.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="1 erases; more pushes beyond.")
@click.option("--site", help="Site to erase at; by default where the classes are read best.")
@click.option("--each-site", is_flag=True, help="Erase at each site past the first, to be written in place.")
@click.option("--held-out", type=FILE, help="Held-out trajectories to measure the drift on.")
@click.option("--out", type=FILE, required=True, help="Edit to write (.safetensors).")
def edit(
    koopman: Path,
    labels: tuple[int, ...],
    strength: float,
    site: str | None,
    each_site: bool,
    held_out: Path | None,
    out: Path,
) -> None:
    """Erase classes from KOOPMAN; needs no data."""
    from koopman_interp.edits.edit_set import each_site as at_each
    from koopman_interp.edits.erase import erase_class
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    if each_site and site is not None:
        raise click.UsageError("Give --site or --each-site, not both.")
    surrogate = KoopmanAutoencoder.from_pretrained(koopman)
    rows = None if held_out is None else Trajectories.load(held_out)
    erase = partial(erase_class, surrogate, label=labels, strength=strength, held_out=rows)
    made = at_each(surrogate, lambda depth: erase(site=depth)) if each_site else erase(site=site)
    made.save(out)
    click.echo(repr(made))


@cli.command("forget")
@click.argument("model")
@click.argument("data")
@click.argument("koopman", type=FOLDER)
@click.argument("trajectories", type=FILE)
@click.option("--label", type=int, required=True, help="Class to forget.")
@click.option("--most", type=float, default=0.01, show_default=True, help="Share of it that may still be recognised.")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--out", type=FILE, required=True, help="Edit to write (.safetensors).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forget_(
    model: str,
    data: str,
    koopman: Path,
    trajectories: Path,
    label: int,
    most: float,
    mode: Any,
    out: Path,
    as_json: bool,
) -> None:
    """Try edits of KOOPMAN in MODEL on DATA, and write the one that forgets a class best.

    DATA are rows to choose on, other than those of TRAJECTORIES, which KOOPMAN was fitted on, and than those to be
    reported.
    """
    from koopman_interp.forgetting.forget import forget
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
    from koopman_interp.trajectories import Trajectories

    chosen = forget(
        _called(model),
        KoopmanAutoencoder.from_pretrained(koopman),
        fitted=Trajectories.load(trajectories),
        held_out=_labelled(data),
        label=label,
        most=most,
        mode=mode,
    )
    chosen.edit.save(out)
    click.echo(json.dumps(chosen.as_dict()) if as_json else str(chosen))


@cli.command("audit")
@click.argument("model")
@click.argument("data")
@click.argument("koopman", type=FOLDER)
@click.argument("edit", type=FILE)
@click.option("--label", type=int, multiple=True, help="Class to forget, repeatable (default: what EDIT says).")
@click.option("--mode", type=click.Choice(["delta", "replace"]), default="delta", show_default=True)
@click.option("--each-site", is_flag=True, help="Write the edits in place at each of their sites.")
@click.option("--training", help="Rows that MODEL was trained on, as module:callable: accuracy and membership.")
@click.option("--retrained", help="The same model trained without the class, as module:callable: the reference.")
@click.option("--depths", type=click.Choice(["last", "all"]), default="last", show_default=True, help="Sites to probe.")
@click.option("--mlp", is_flag=True, help="Add a probe with a hidden layer.")
@click.option("--relearn", is_flag=True, help="Try to bring the class back by fine-tuning; needs --training.")
@click.option("--out", type=FILE, help="JSON to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit_(
    model: str,
    data: str,
    koopman: Path,
    edit: Path,
    label: tuple[int, ...],
    mode: Any,
    each_site: bool,
    training: str | None,
    retrained: str | None,
    depths: Any,
    mlp: bool,
    relearn: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge EDIT of KOOPMAN in MODEL on held-out DATA, beside the baselines."""
    from koopman_interp.auditing.audit import audit
    from koopman_interp.auditing.relearning import Relearning
    from koopman_interp.edits.edit_set import EditSet
    from koopman_interp.files import jsonable
    from koopman_interp.patching.patch import patched
    from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

    held_out = _labelled(data)
    edits = EditSet.load(edit)
    if not label and not any(one.labels for one in edits):
        raise click.UsageError(f"{edit} does not say which class it forgets: give --label.")
    found = audit(
        patched(
            _called(model),
            KoopmanAutoencoder.from_pretrained(koopman),
            edits,
            mode=mode,
            at="each site" if each_site else "target",
        ),
        held_out=held_out,
        training=None if training is None else _labelled(training),
        label=label or None,
        retrained=None if retrained is None else partial(_called, retrained),
        probes=("linear", "rbf", "mlp") if mlp else ("linear", "rbf"),
        depths=depths,
        relearn=Relearning() if relearn else None,
    )
    if out is not None:
        found.save(out)
    click.echo(json.dumps(jsonable(found.as_dict())) if as_json else str(found))


@cli.command()
@click.argument("folder", type=FOLDER)
def report(folder: Path) -> None:
    """Build the page of a run FOLDER anew from its metrics and figures."""
    from koopman_interp.report.page import build_page

    click.echo(f"Report: {build_page(folder)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with 0, 1 or 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(given, prog_name="koopman-interp", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as error:
        # Click puts this in the place of a KeyboardInterrupt; a fit's own says what was kept.
        _fail(str(error.__cause__ or "") or "Interrupted.", error, given)
    except Exception as error:
        # Ours come with a sentence; of others the kind is told, and where they came from on request.
        from koopman_interp.errors import KoopmanInterpError

        ours = isinstance(error, (KoopmanInterpError, FileNotFoundError))
        _fail(str(error) if ours else f"{type(error).__name__}: {error}", error, given)


def _fail(sentence: str, error: BaseException, arguments: Sequence[str]) -> None:
    if "--traceback" in arguments:
        raise error
    click.echo(f"koopman-interp: {sentence}", err=True)
    sys.exit(1)


def _called(name: str) -> Any:
    """Import `module:callable` and call it."""
    module, colon, attribute = name.partition(":")
    if not colon:
        raise click.BadParameter(f"{name!r} is not of the form module:callable.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise click.BadParameter(f"{name!r} could not be imported: {error}.") from error
    finally:
        sys.path.pop(0)
    if not callable(target):
        raise click.BadParameter(f"{name!r} is a {type(target).__name__}, which cannot be called.")
    return target()


def _labelled(name: str) -> tuple[Tensor, Tensor]:
    """Gather inputs and labels of a data set given as module:callable."""
    import torch

    found = _called(name)
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], torch.Tensor):
        return found
    pairs = list(found) if isinstance(found, Iterable) else []
    if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise click.BadParameter(f"{name!r} must give one or more pairs of inputs and labels.")
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
