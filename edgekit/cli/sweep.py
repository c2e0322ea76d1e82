"""The command that deploys many models to many boards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.console import open_terminal, print_json
from edgekit.cli.flags import Json, Lab, Overlay


def sweep(
    file: Annotated[
        Path, typer.Argument(help="The sweep: a TOML file with targets, [[model]] and [[budget]].", metavar="FILE")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Where the table and the bundles go.", metavar="DIR", show_default=False)
    ],
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            help="Run on the workers of this Dask scheduler instead of here, as in tcp://10.0.0.1:8786. A board is a "
            "resource of its worker: dask worker ADDRESS --nthreads 1 --resources board:NAME=1.",
            metavar="ADDRESS",
        ),
    ] = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Deploy every model to every target within every budget; write one table and one report.

    edgekit sweep sweep.toml --out sweep

    A cell that cannot is a row with its error. Run it again to resume. Exit code: 0 if every cell is done, else that of
    the worst, by the order 1 (crashed), 5, 4, 2, 7, 6, 3.
    """
    from edgekit.reporting import sweeps
    from edgekit.sweep import run_sweep
    from edgekit.sweeping import table

    terminal = open_terminal()
    found = run_sweep(file, out, scheduler=scheduler, lab=lab, overlays=overlay or (), progress=terminal.progress)
    if as_json:
        print_json(table.to_json(found))
    else:
        sweeps.print_sweep(found, terminal.out, str(out))
    if found.exit_code:
        raise typer.Exit(found.exit_code)
