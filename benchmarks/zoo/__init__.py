"""Real public models with real data, as folders that edgekit can deploy; each comes out of published packages.

    python -m benchmarks.zoo [NAME ...] --out DIR

Every entry's metric notices damage: labels of one's own where there are any, agreement with the float model where not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path

TRAINED = ("imu-cnn", "mobilenetv2-like", "resnet18-like")
"""The entries that are trained here; beside each model lie ``torch_model.py`` and ``weights.safetensors``."""

NAMES = ("pp-ocr-rec", "pp-ocr-det", "efficientnet-lite0", "minilm", "silero-vad", "blazeface", *TRAINED)

_STAMP = "prepared.sha256"

METRICS = Path(__file__).resolve().parent / "metrics.py"
"""The metrics of the entries that need one of their own, given to edgekit as ``metrics.py:name``."""


@dataclass(frozen=True)
class ZooEntry:
    """A model, its samples and how to score it.

    ``data`` calibrates and ``eval`` scores; both are what ``--data`` takes: a folder, or an .npz whose keys are input
    names. ``recipe`` is None for an .npz. ``metric`` is what ``--metric`` takes. ``shapes`` holds the shape of every
    model input that the model itself leaves open.
    """

    name: str
    model: Path
    data: Path
    eval: Path | None
    recipe: str | None
    metric: str
    shapes: dict[str, tuple[int, ...]]

    def arguments(self) -> list[str]:
        """The entry as arguments of ``edgekit deploy``, target and budgets excepted."""
        found = [str(self.model), "--data", str(self.data), "--metric", self.metric]
        if self.eval:
            found += ["--eval", str(self.eval)]
        if self.recipe:
            found += ["--recipe", self.recipe]
        for name, shape in self.shapes.items():
            found += ["--shape", f"{name}={'x'.join(map(str, shape))}"]
        return found


def prepare(name: str, out: Path) -> ZooEntry:
    """Make the entry ``name`` under ``out/name`` and return it; what a finished run made before is used again.

    Raises ValueError for an unknown name, PackageError when a package cannot be fetched.
    """
    if name not in NAMES:
        raise ValueError(f"no model {name!r} in the zoo: {', '.join(NAMES)}")
    module = importlib.import_module(f"benchmarks.zoo.{name.replace('-', '_')}")
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    entry: ZooEntry = module.prepare(folder)
    return entry


def stamped(folder: Path, *sources: str) -> bool:
    """Whether ``folder`` was finished by these source files (``__file__`` of the entry and of what it uses), whatever
    has changed of their comments, docstrings and layout.
    """
    try:
        return (folder / _STAMP).read_text() == _identity(sources)
    except OSError:
        return False


def stamp(folder: Path, *sources: str) -> None:
    """Mark ``folder`` as finished by these source files; to be called last."""
    (folder / _STAMP).write_text(_identity(sources))


def _identity(sources: tuple[str, ...]) -> str:
    texts = [_code(Path(source)) for source in (*sources, str(Path(__file__).with_name("sources.py")))]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _code(source: Path) -> str:
    """What a file does, without what it says about it."""
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, field, None), list):
                block[:] = [one for one in block if not _says(one)]
    return ast.unparse(tree)


def _says(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
