"""Prepare zoo entries and print, for each, the arguments that deploy it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.zoo import NAMES, prepare
from examples.packages import PackageError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description="Prepare real models with real data.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets one folder per model")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"no model {unknown[0]!r} in the zoo: {', '.join(NAMES)}")
    for name in arguments.names or NAMES:
        try:
            entry = prepare(name, arguments.out)
        except (PackageError, OSError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            hint = "pip install -r benchmarks/requirements.txt"
            print(f"error: {name}: the Python package {error.name} is missing: {hint}", file=sys.stderr)
            return 4
        print(f"edgekit deploy {shlex.join(entry.arguments())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
