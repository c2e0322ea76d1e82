"""Commands on a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.console import Terminal, open_terminal, print_json
from edgekit.cli.flags import Bundle, Host, Json, Lab, Overlay
from edgekit.errors import DeviceError

if TYPE_CHECKING:
    from edgekit.api import HostsBench
    from edgekit.results import DeployResult


def bench(
    bundle: Bundle,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=600, help="How long to measure.")] = 3.0,
    host: Host = None,
    lab: Lab = None,
    overlay: Overlay = None,
    as_json: Json = False,
) -> None:
    """Verify a bundle and measure its latency again: on this machine, or on one or several boards at once.

    edgekit bench bundle --host pi@192.168.1.20,pi@192.168.1.21
    """
    from edgekit import api, results
    from edgekit.reporting import tables

    terminal = open_terminal()
    if host is not None and "," in host:
        ran = on_hosts(bundle, host, lab, overlay, terminal, seconds)
        if as_json:
            print_json(results.unstructure(ran))
        finish_hosts(ran, terminal, as_json)
        return
    with terminal.progress.stage(f"measure {bundle}"):
        found = api.bench(bundle, seconds, overlay or (), host, lab, terminal.progress)
    if as_json:
        print_json(results.unstructure(found))
    else:
        tables.print_bench(found, terminal.out)


def verify(bundle: Bundle, overlay: Overlay = None, as_json: Json = False) -> None:
    """Recompute every digest of a bundle and run its test vectors on this machine."""
    from edgekit import api, results

    found = api.verify(bundle, overlay or ())
    if as_json:
        print_json({"schema": "edgekit/verify/1", "ok": True, **results.unstructure(found)})
    else:
        open_terminal().out.print(
            f"{bundle}: {found.files} files, {found.total_bytes / 1e6:.1f} MB, every digest holds; test vectors pass",
            highlight=False,
        )


def report(bundle: Bundle, as_json: Json = False) -> None:
    """Print the report of a bundle; the long form is report.html in it."""
    from edgekit import api, results

    result = api.report(bundle)
    if as_json:
        print_json(results.to_json(result))
    else:
        print_summary(result, open_terminal())


def on_hosts(
    bundle: Path, host: str, lab: Path | None, overlay: list[Path] | None, terminal: Terminal, seconds: float
) -> HostsBench:
    """Run a bundle on the boards of ``host``."""
    from edgekit import api

    with terminal.progress.stage(f"run {bundle} on {host}"):
        return api.bench_hosts(bundle, host, seconds, overlay or (), lab, terminal.progress)


def finish_hosts(ran: HostsBench, terminal: Terminal, as_json: bool) -> None:
    """Print what the boards did, unless it was as JSON, and fail where one of them did."""
    from edgekit.reporting.hosts import print_hosts

    if not as_json:
        print_hosts(ran, terminal.out)
    if ran.failed:
        names = ", ".join(row.host for row in ran.failed)
        raise DeviceError(f"{len(ran.failed)} of {len(ran.hosts)} boards failed: {names}", ran.failed[0].hint)


def print_summary(result: DeployResult, terminal: Terminal) -> None:
    """What a deployment came to, with its table."""
    from edgekit.reporting.terminal import print_summary

    print_summary(result, terminal.out)
