"""Prepare the detector and print the arguments that deploy it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.detector import SIDE, prepare
from examples.packages import PackageError

LARGEST = 512  # of the photographs that the letters are planted in


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detector", description=__doc__)
    parser.add_argument("folder", type=Path, help="where model and pictures are or are made")
    parser.add_argument("--side", type=int, default=SIDE, help=f"of the pictures, in pixels (default: {SIDE})")
    arguments = parser.parse_args()
    if arguments.side % 32 or not 160 <= arguments.side <= LARGEST:
        parser.error(f"--side is a multiple of 32 from 160 to {LARGEST}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        entry = prepare(arguments.folder, arguments.side)
    except (PackageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"edgekit deploy {shlex.join(entry.arguments())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
