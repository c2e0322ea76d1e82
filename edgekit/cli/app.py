"""The ``edgekit`` command: its commands in the order of ``--help``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
import typer.core

from edgekit import __version__
from edgekit.cli import boards, bundles, models, sweep, toolchain
from edgekit.cli.console import one_line_errors


class Commands(typer.core.TyperGroup):
    """The commands, each of whose errors ends in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with one_line_errors():
            return super().invoke(ctx)


app = typer.Typer(
    help="From a trained model to a board: within its latency, memory and accuracy budget, proven before it ships.",
    epilog=(
        "Exit codes: 0 done · 2 bad usage or input · 3 no plan fits the budget · 4 a toolchain or extra is missing · "
        "5 device or transport failed · 6 a guard refused · 7 bundle does not verify · 130 interrupted"
    ),
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"edgekit {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


for command in (
    *(models.deploy, models.plan, models.predict, boards.profile, models.inspect, models.diagnose, boards.targets),
    *(bundles.bench, bundles.verify, bundles.report, sweep.sweep),
):
    app.command()(command)

_toolchain = typer.Typer(
    help="The environments that converters run in; made on first use, or ahead of time.",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
)
_toolchain.command("list")(toolchain.listed)
_toolchain.command("install")(toolchain.install)
app.add_typer(_toolchain, name="toolchain")
