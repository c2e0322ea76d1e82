"""The virtual board from a shell:

python -m tests.virtual_board build
python -m tests.virtual_board run [--core cortex-a72] -- python3 -c 'print("on the board")'
python -m tests.virtual_board serve [--target raspberry-pi-5]    until Ctrl-C; prints how to deploy to it
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from contextlib import suppress

from tests.virtual_board import server, sysroot
from tests.virtual_board.cpus import CORE_OF_TARGET, CORES
from tests.virtual_board.packages import Unavailable


def main() -> int:
    """The exit status: that of what was run, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="download and unpack; again only where a package has a new version")
    run = verbs.add_parser("run", help="run one program")
    run.add_argument("--core", choices=sorted(CORES), default="cortex-a76")
    run.add_argument("command", nargs="+")
    serve = verbs.add_parser("serve", help="switch the board on, with sshd")
    serve.add_argument("--target", choices=sorted(CORE_OF_TARGET), default="raspberry-pi-5")
    asked = parser.parse_args()
    try:
        if asked.verb == "build":
            print(sysroot.build().folder)
            return 0
        board = sysroot.built()
        if asked.verb == "run":
            return subprocess.run(sysroot.emulated(board, asked.core, asked.command), check=False).returncode
        with server.switched_on(board, CORE_OF_TARGET[asked.target], asked.target) as running:
            print(f"edgekit deploy MODEL --target {asked.target} --host virtual --lab {running.lab} ...", flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
        return 0
    except Unavailable as reason:
        print(reason, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
