"""edgekit beside other tools, each in an environment of its own, on the same models, samples and threads.

    python -m benchmarks.peers [NAME ...] --zoo DIR --out DIR [--nncf-python PATH] [--mct-python PATH]
                               [--json FILE] [--picture FILE.png]

Every tool starts from the same model and calibrates on the same samples; edgekit is `edgekit deploy --max-drop 1%` with
an empty cache, and it and NNCF's accuracy control both judge by the same evaluation samples. What comes out races
interleaved in one run beside the unmodified model, in single precision, in the runtime's default and in what is fastest
here, and is scored on these evaluation samples. Wall time and memory are those of the tool's process, from its start.
FILE keeps what an earlier run found on models that are not named now. PATH are the Pythons of environments with
benchmarks/requirements.txt (NNCF) and benchmarks/requirements-peers-mct.txt.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cattrs
from rich.console import Console

from benchmarks.jobs import names_of, open_job, parser
from benchmarks.peers import picture
from benchmarks.peers.contest import hold
from benchmarks.peers.rows import FLOAT, Missing, Row, Verdict, geometric_mean, verdict
from benchmarks.peers.table import lines, table
from benchmarks.peers.tools import EDGEKIT, MAX_DROP, TOOLS, UNASKED, Setting
from benchmarks.zoo import prepare
from edgekit import catalog
from edgekit.conditions import Conditions
from edgekit.errors import EdgekitError, InputError
from edgekit.files import replacing
from edgekit.progress import OnConsole
from edgekit.results import DeviceInfo, unstructure
from edgekit.types import Figure
from edgekit.workbench.stages import Workbench
from examples.packages import PackageError

SCHEMA = "edgekit/peers/1"


@dataclass
class Found:
    """What is known so far."""

    target: str
    device: DeviceInfo | None = None
    rows: list[Row | Missing] = field(default_factory=list)
    conditions: dict[str, Conditions] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, target: str, but: Collection[str]) -> Found:
        """What the document at ``path`` holds on other models than these. Raises InputError where it is none, or of
        another target.
        """
        try:
            document = json.loads(path.read_text())
            if document["schema"] != SCHEMA or document["target"] != target:
                raise ValueError(f"it is of schema {document['schema']}, target {document['target']}")
            found = cls(target, cattrs.structure(document["device"], DeviceInfo | None))
            for key, kind in (("rows", Row), ("missing", Missing)):
                found.rows += [cattrs.structure(one, kind) for one in document[key] if one["model"] not in but]
            kept = {model: one for model, one in document["conditions"].items() if model not in but}
            found.conditions = cattrs.structure(kept, dict[str, Conditions])
        except (OSError, ValueError, KeyError, TypeError, cattrs.BaseValidationError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: no earlier comparison on {target}: {reason}", hint="name another file") from None
        return found

    def verdicts(self) -> tuple[list[Verdict], Figure]:
        """On each model and on all."""
        measured = [row for row in self.rows if isinstance(row, Row)]
        models = dict.fromkeys(row.model for row in self.rows)
        found = [verdict(model, measured, EDGEKIT) for model in models]
        return found, geometric_mean(found)

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        verdicts, mean = self.verdicts()
        return {
            "schema": SCHEMA,
            "target": self.target,
            "device": None if self.device is None else unstructure(self.device),
            "conditions": {model: unstructure(one) for model, one in self.conditions.items()},
            "rows": [unstructure(row) for row in self.rows if isinstance(row, Row)],
            "missing": [unstructure(row) for row in self.rows if isinstance(row, Missing)],
            "verdicts": [unstructure(one) for one in verdicts],
            "geometric_mean": unstructure(mean),
        }


def _parser() -> argparse.ArgumentParser:
    made = parser("python -m benchmarks.peers", __doc__ or "")
    keys = list(dict.fromkeys(key for tools in TOOLS.values() for key in tools))
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets what the tools make, by model")
    made.add_argument("--nncf-python", type=Path, metavar="PATH")
    made.add_argument("--mct-python", type=Path, metavar="PATH")
    made.add_argument(
        "--tools",
        nargs="+",
        choices=keys,
        metavar="TOOL",
        help=f"of {', '.join(keys)}; default: all but {', '.join(UNASKED)}",
    )
    made.add_argument("--seconds", type=float, default=30.0, help="time of each race (default: 30)")
    made.add_argument(
        "--limit", type=float, default=900.0, metavar="S", help="seconds each tool may take (default: 900)"
    )
    made.add_argument("--picture", type=Path, metavar="FILE", help="draw the speed-ups there, .png or .svg")
    return made


def _check(arguments: argparse.Namespace, made: argparse.ArgumentParser) -> list[str]:
    """The keys of the tools to run. Ends the program for what cannot be used, before the long work."""
    for path in (arguments.nncf_python, arguments.mct_python):
        if path is not None and not path.is_file():
            made.error(f"{path}: there is no such Python")
    if arguments.picture is not None and arguments.picture.suffix not in picture.FORMS:
        made.error(f"--picture {arguments.picture}: its name has to end in {' or '.join(picture.FORMS)}")
    for path in (arguments.json, arguments.picture):
        if path is not None:
            replacing.require_writable(path)
    backend = catalog.target(arguments.target, arguments.overlay).backend
    if backend not in TOOLS:
        made.error(f"target {arguments.target}: there are no peers for {backend}")
    tools = arguments.tools or [key for key in TOOLS[backend] if key not in UNASKED]
    unfit = [key for key in tools if key not in TOOLS[backend]]
    if unfit:
        made.error(f"--tools {unfit[0]}: not for {backend}, which has {', '.join(TOOLS[backend])}")
    return tools


def compare(found: Found, name: str, arguments: argparse.Namespace, tools: list[str], log: Console) -> None:
    """Add what one model shows to ``found``."""
    try:
        entry = prepare(name, arguments.zoo)
        job = open_job(entry, arguments.target, arguments.overlay, OnConsole(log), MAX_DROP)
        bench = Workbench(job)
        setting = Setting(
            entry, bench, arguments.out.resolve() / name, arguments.overlay, arguments.nncf_python, arguments.mct_python
        )
        rows, conditions = hold(setting, tools, arguments.seconds, arguments.limit)
    except (EdgekitError, PackageError, ImportError, OSError, RuntimeError) as error:
        log.print(f"{name}: {error}", markup=False)
        found.rows.append(Missing(name, FLOAT, " ".join(str(error).split())))
        return
    found.device = bench.device_info
    found.rows += rows
    if conditions is not None:
        found.conditions[name] = conditions


def main() -> int:
    made = _parser()
    arguments = made.parse_args()
    log, console = Console(stderr=True), Console(width=200)
    found = Found(arguments.target)
    status = 0
    try:
        tools, names = _check(arguments, made), names_of(arguments, made)
        if arguments.json and arguments.json.exists():
            found = Found.read(arguments.json, arguments.target, names)
        for name in names:
            compare(found, name, arguments, tools, log)
            _write(found, arguments)  # after each model: it takes long
    except EdgekitError as error:
        log.print(f"{error}\n{error.hint}".strip(), markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        log.print("interrupted")
        status = 130
    if found.rows:
        console.print(table(found.rows, found.target, found.device))
        for line in lines(found.rows, *found.verdicts()):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    failed = any(isinstance(row, Missing) and row.asked for row in found.rows)
    return status or int(failed)


def _write(found: Found, arguments: argparse.Namespace) -> None:
    if arguments.json:
        replacing.write_text(arguments.json, json.dumps(found.document(), indent=1, allow_nan=False) + "\n")
    measured = [row for row in found.rows if isinstance(row, Row)]
    if arguments.picture and measured:
        replacing.write_bytes(arguments.picture, picture.draw(measured, arguments.picture.suffix))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs, as Ctrl-C does
    sys.exit(main())
