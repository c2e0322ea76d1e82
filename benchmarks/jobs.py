"""Entries of the zoo as jobs of edgekit, and the options that the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo import NAMES, ZooEntry
from edgekit.job import Job, prepare
from edgekit.progress import OnConsole
from edgekit.types import Budget

OVERLAYS = Path(__file__).resolve().parent / "overlays"


def open_job(entry: ZooEntry, target: str, overlays: Sequence[Path], progress: OnConsole, max_drop: float) -> Job:
    """The job that `edgekit.deploy` would work on."""
    return prepare(
        entry.model,
        target,
        data=entry.data,
        evaluation=entry.eval,
        recipe=entry.recipe or "npz",
        metric_name=entry.metric,
        budget=Budget(max_drop=max_drop),
        shapes=entry.shapes,
        overlays=overlays,
        progress=progress,
    )


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Names of entries, target and overlays, and where the results go."""
    made = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    made.add_argument("--zoo", type=Path, default=Path("build/zoo"), help="where models and data are or are made")
    made.add_argument("--target", default="host", metavar="NAME")
    made.add_argument("--overlay", type=Path, action="append", default=[], metavar="DIR", help="may be repeated")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return made


def names_of(arguments: argparse.Namespace, made: argparse.ArgumentParser) -> list[str]:
    """The entries asked for, or all. Ends the program for an unknown one."""
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        made.error(f"no model {unknown[0]!r} in the zoo: {', '.join(NAMES)}")
    return arguments.names or list(NAMES)
