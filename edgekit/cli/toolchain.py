"""Commands on the environments that converters run in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.console import open_terminal, print_json
from edgekit.cli.flags import Json


def listed(as_json: Json = False) -> None:
    """List the toolchains, and whether they are installed."""
    from edgekit import toolchains

    rows = [
        {"name": name, "description": chain.description, "state": toolchains.problem(name) or "installed"}
        for name, chain in toolchains.known().items()
    ]
    if as_json:
        print_json({"toolchains": rows})
    else:
        for row in rows:
            sys.stdout.write(f"{row['name']}: {row['state']}; {row['description']}\n")


def install(
    name: Annotated[str, typer.Argument(help="See `edgekit toolchain list`.", metavar="NAME")],
    wheels: Annotated[
        Path | None, typer.Option("--wheels", help="Install from this folder of wheels, without any network.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a toolchain's environment, anew where there is one."""
    from edgekit import toolchains
    from edgekit.progress import OnConsole

    python = toolchains.ensure(name, OnConsole(open_terminal().err), wheels, again=True)
    if as_json:
        print_json({"name": name, "python": str(python)})
