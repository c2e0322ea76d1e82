"""Commands on boards: what is known of them, and measuring it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.console import open_terminal, print_json
from edgekit.cli.flags import Host, Json, Lab, Overlay, Threads, require_alone
from edgekit.errors import InputError


def targets(
    name: Annotated[str | None, typer.Argument(help="Show everything about this one.", metavar="[NAME]")] = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """List the boards that --target knows, or show one with its device profile."""
    from edgekit import catalog, releases, results
    from edgekit.reporting import tables

    overlays = overlay or ()
    if name is not None:
        target = releases.offered(catalog.target(name, overlays))
        profile = catalog.device_profile(target.device_profile, overlays)
        lacking = releases.lacking(target, profile)
        if as_json:
            both = {"target": results.unstructure(target), "device_profile": results.unstructure(profile)}
            print_json({**both, "lacking": lacking})
        else:
            tables.print_target(target, profile, lacking, open_terminal().out)
            file = catalog.profile_file(target.device_profile, overlays)
            if file.parent == catalog.own_profiles():
                more = f"edgekit profile --diff --target {name}"
                sys.stdout.write(f"the device profile is your own: {file}; {more} shows what it changes\n")
        return
    known = catalog.targets(overlays)
    if as_json:
        print_json({"targets": [results.unstructure(target) for target in known.values()]})
    else:
        tables.print_targets(known.values(), open_terminal().out)


def profile(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="With --diff: two device profiles.", metavar="[A B]", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="The board: see `edgekit targets`.", metavar="NAME")
    ] = None,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write the profile to this file; default: among your own, which every command takes in place of the "
            "shipped one of that name.",
            metavar="FILE",
        ),
    ] = None,
    diff: Annotated[
        bool,
        typer.Option("--diff", help="Show what your own profile of --target changed, or what differs from A to B."),
    ] = False,
    host: Host = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Measure what a board costs in some minutes, so that latencies on it can be predicted; or compare profiles.

    edgekit profile --target host

    edgekit profile --diff --target host
    """
    if diff:
        _print_profile_difference(context, files or [], target, overlay, as_json)
        return
    if files or target is None:
        problem = f"profile takes no file {files[0]}" if files else "profile needs --target"
        raise InputError(problem, "write edgekit profile --target NAME, or edgekit profile --diff A B")
    from edgekit import api, results
    from edgekit.reporting.profiles import print_profile

    terminal = open_terminal()
    found = api.profile(
        target,
        threads=threads,
        out=out,
        overlays=overlay or (),
        progress=terminal.progress,
        host=host,
        lab=lab,
    )
    if as_json:
        print_json(results.unstructure(found))
    else:
        print_profile(found, terminal.out)


def _print_profile_difference(
    context: typer.Context, files: list[Path], target: str | None, overlay: list[Path] | None, as_json: bool
) -> None:
    from edgekit import api, results
    from edgekit.reporting.profiles import print_profile_difference

    if len(files) == 2 and target is None:
        found = api.diff_profiles(files[0], files[1], overlay or ())
    elif not files and target is not None:
        found = api.profile_changes(target, overlay or ())
    else:
        raise InputError(
            f"profile --diff with {len(files)} files" + (" and --target" if target else ""),
            "write edgekit profile --diff --target NAME, or edgekit profile --diff A B",
        )
    require_alone(context, "diff", "as_json", "overlay", "target", "files")
    if as_json:
        print_json(results.unstructure(found))
    else:
        print_profile_difference(found, open_terminal().out)
