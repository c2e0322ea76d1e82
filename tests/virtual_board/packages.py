"""Debian packages of any architecture, resolved and downloaded by apt in a folder of its own: no root, and nothing of
the system's apt changes. apt checks signatures and digests as always.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Later than what the system's own configuration says, of which the network's part is kept (proxies, certificates).
_CONFIG = """\
{network}
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""


class Unavailable(Exception):
    """Why this machine cannot have the virtual board."""


def require_apt() -> None:
    """Raise `Unavailable` where apt, dpkg-deb or Debian's keys are missing."""
    for program in ("apt-get", "apt-config", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Unavailable(f"no {program} here: the virtual board is made of Debian packages")
    if not KEYRING.exists():
        raise Unavailable("no keys of Debian here: apt install debian-archive-keyring")


def host_architecture() -> str:
    """What dpkg calls this machine's architecture."""
    return _run(["dpkg", "--print-architecture"]).strip()


def download(names: Sequence[str], architecture: str, suite: str, folder: Path) -> list[Path]:
    """The packages with all that they depend on, in ``folder``, sorted by name. Raises `Unavailable`."""
    require_apt()
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(_sources(suite))
    network = _run(["apt-config", "dump", "Acquire"])
    config = folder / "apt.conf"
    config.write_text(_CONFIG.format(network=network, architecture=architecture, folder=folder))
    environment = {**os.environ, "APT_CONFIG": str(config), "DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "-q", "update"], environment)
    _run(["apt-get", "-q", "-y", "--download-only", "install", *names], environment)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _sources(suite: str) -> str:
    """The mirrors that this system's own apt is set to, for packages of any architecture. Raises `Unavailable`."""
    rows = _run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)"]).splitlines()
    mirrors = sorted({row for row in rows if row.endswith(" main") and row.split()[1].split("-")[0] == suite})
    if not mirrors:
        raise Unavailable(f"apt here knows no mirror of Debian {suite}")
    return "".join(f"deb [signed-by={KEYRING}] {mirror}\n" for mirror in mirrors)


def unpack(packages: Sequence[Path], root: Path) -> None:
    """Their files, without running any script of theirs."""
    root.mkdir(parents=True, exist_ok=True)
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as reading:
            command = ["tar", "-x", "--no-same-owner", "--keep-directory-symlink", "-C", root]
            subprocess.run(command, stdin=reading.stdout, check=True)
        if reading.returncode != 0:
            raise Unavailable(f"{package.name} cannot be unpacked")


def _run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise Unavailable(f"{command[0]} {command[-1]}: {' '.join(lines[:3])}")
    return done.stdout
