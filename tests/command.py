"""The real ``edgekit`` command in a process of its own, and the small files that it is given."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests import zoo

EDGEKIT = Path(sysconfig.get_path("scripts")) / "edgekit"
INVALID = Path(__file__).parent / "invalid"

# Stages that `edgekit deploy` says it enters, the end of each, and notes.
_PROGRESS = re.compile(r".* \.\.\.$|✓ .* [\d.]+ s$|.*: \d+ of \d+$|· .*")

# Like the host, without the float precisions that are raced first: half the time, and always the same float precision.
QUICK_TARGET = 'extends = "host"\nprecisions = ["fp32", "int8", "w8"]\n'


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def complaint(self) -> list[str]:
        """What stderr holds beside progress."""
        return [line for line in self.err.splitlines() if line and not _PROGRESS.match(line)]


@dataclass(frozen=True)
class Desk:
    """A folder to work in, a cache, and a folder for temporary files that every command must leave empty."""

    folder: Path
    cache: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def environment(self) -> dict[str, str]:
        self.temporary.mkdir(exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("EDGEKIT_")}
        own = {
            "EDGEKIT_CACHE": str(self.cache),
            "EDGEKIT_DATA": str(self.folder / "data"),
            "TMPDIR": str(self.temporary),
            "COLUMNS": "120",
        }
        return {**kept, **own, **self.variables}

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """The command in a session of its own, both outputs as pipes unless ``options`` say otherwise."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [str(EDGEKIT), *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment(), text=True, start_new_session=True, **options
        )

    def run(self, *arguments: object, timeout_s: float = 180) -> Finished:
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            finally:
                process.kill()
        assert "Traceback" not in err, err
        assert list(self.temporary.iterdir()) == [], "temporary files are left"
        return Finished(process.returncode, out, err)

    def succeed(self, *arguments: object, timeout_s: float = 180) -> Finished:
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.code == 0, done.err
        return done


def fill(folder: Path) -> None:
    """The files that the tests deploy: a model, samples for it, and an overlay with a target that is measured soon."""
    onnx.save(zoo.conv_net(), folder / "model.onnx")
    np.savez(folder / "data.npz", **samples())
    np.savez(folder / "eval.npz", **samples(16, seed=1))
    write_target(folder / "overlay", "quick", QUICK_TARGET)


def samples(count: int = 24, seed: int = 0) -> dict[str, Any]:
    """Inputs of `zoo.conv_net`."""
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)}


def write_target(overlay: Path, name: str, text: str) -> None:
    folder = overlay / "targets" / name
    folder.mkdir(parents=True)
    (folder / "target.toml").write_text(text)


def bundle_files(bundle: Path) -> dict[str, bytes]:
    """What the same inputs must reproduce: every file but the measurements, what shows them, and their digests."""
    measured = {"measurements.json", "report.html", "manifest.json", "manifest.sha256"}
    return {p.name: p.read_bytes() for p in sorted(bundle.iterdir()) if p.name not in measured}
