"""The command that the verbs hang on, and how it leaves: 0 done, 1 refused or failed, 2 wrong usage.

A traceback is shown only with --traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from koopman_interp import __version__
from koopman_interp.cli.editing import audit_, edit, forget_
from koopman_interp.cli.hints import example
from koopman_interp.cli.language import audit_language_, generate
from koopman_interp.cli.reading import describe_modes_, fidelity_, lens, spectrum_, topology_
from koopman_interp.cli.recording import fit_, observe
from koopman_interp.cli.reporting import compare, report
from koopman_interp.cli.running import run
from koopman_interp.cli.storing import store_
from koopman_interp.cli.surroundings import completion, config_, demo, doctor, hosts, sites_
from koopman_interp.errors import nearest


class _InOrder(click.Group):
    """Lists its verbs in the order they were added in, which is that of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click gives it)
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(f"No such command {args[0]!r}. {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_InOrder,
    epilog=example(
        "koopman-interp demo",
        "koopman-interp run my:model --train my:training --test my:held_out --label 4 --out run",
        "koopman-interp observe my:model my:training --run run",
        "koopman-interp fit run/trajectories.safetensors --run run",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__)
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def cli(traceback: bool) -> None:
    """Fit, read and edit the Koopman operator of a network's depth."""


_SURROUNDINGS = (doctor, demo, hosts, sites_, run)
_MADE = (observe, store_, config_, fit_)
_READ = (spectrum_, describe_modes_, topology_, fidelity_, lens)
_CHANGED = (edit, forget_, audit_, audit_language_, generate)
for verb in (*_SURROUNDINGS, *_MADE, *_READ, *_CHANGED, report, compare, completion):
    cli.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with 0, 1 or 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(given, prog_name="koopman-interp", standalone_mode=False, obj=given)
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
