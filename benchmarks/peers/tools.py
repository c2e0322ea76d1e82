"""The tools that are compared: what each runs, in which environment, and how its result is read.

A tool is a process of its own, from a model and samples in files to a model in a file.
"""

from __future__ import annotations

import gzip
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import aeq_static, mct_search, metered, nncf_ptq, ort_static
from benchmarks.peers.samples import CALIBRATION, write_calibration, write_evaluation
from benchmarks.zoo import ZooEntry
from edgekit import bundle, toolchains
from edgekit.backends import Artifact
from edgekit.cost.measured import FLOAT_PRECISIONS
from edgekit.types import Precision
from edgekit.workbench.stages import Workbench

MAX_DROP = 0.01
EDGEKIT = "edgekit"


@dataclass(frozen=True)
class Setting:
    """What the tools get: one model, its samples, a folder to work in, and the Pythons of the environments that were
    passed.
    """

    entry: ZooEntry
    bench: Workbench
    folder: Path
    overlays: Sequence[Path]
    nncf_python: Path | None
    mct_python: Path | None

    @property
    def samples(self) -> Path:
        """The folder of the samples; whoever made this removes it before and after."""
        return self.folder / "samples"

    @property
    def calibration(self) -> Path:
        """The calibration samples, written when a tool first asks."""
        found = self.samples / CALIBRATION
        return found if found.exists() else write_calibration(self.bench.job, self.samples)

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation samples, written when a tool first asks."""
        found = self.samples / "evaluation"
        if not found.exists():
            write_evaluation(self.bench.job, self.entry.metric, found)
        return found


class NotHereError(Exception):
    """This tool has nothing to offer for this model, or here; ``asked`` is False where nobody wanted it to."""

    def __init__(self, reason: str, asked: bool = True) -> None:
        super().__init__(reason)
        self.asked = asked


@dataclass(frozen=True)
class Tool:
    """``command`` is given the folder to write into; ``read`` makes an artifact of what it wrote there, to be run with
    that float precision. ``floats`` is False where the result says its own.
    """

    title: str
    command: Callable[[Path], Sequence[str | Path]]
    read: Callable[[Path, Precision], Artifact]
    environment: Callable[[Path], Mapping[str, str]] = field(default=lambda _folder: {})
    floats: bool = True


def make(tool: Tool, folder: Path, limit_s: float) -> metered.Metered:
    """Run a tool into ``folder``, which is its alone. Raises NotHereError with the reason where it fails; then, and
    after an interrupt, the folder holds at most what the tool printed.
    """
    log = folder.with_name(f"{folder.name}.log")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = False
    try:
        found = metered.run(tool.command(folder), log, limit_s, tool.environment(folder))
        if found.status:
            raise NotHereError(f"failed after {found.wall_s:.0f} s: {metered.last_words(log)}")
        whole = True
        return found
    except metered.TooSlowError as error:
        raise NotHereError(str(error)) from None
    except OSError as error:
        raise NotHereError(f"cannot be started: {error}") from None
    finally:
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)


# -- edgekit ----------------------------------------------------------------------------------------------------------


def edgekit(setting: Setting) -> list[Tool]:
    """``edgekit deploy`` as a user calls it, with a cache of its own that is empty."""
    return [_edgekit(setting, EDGEKIT)]


def edgekit_bits(setting: Setting) -> list[Tool]:
    """The same without pruning: what bits alone reach."""
    return [_edgekit(setting, f"{EDGEKIT}, no pruning", "--no-prune")]


def _edgekit(setting: Setting, title: str, *options: str) -> Tool:
    job = setting.bench.job
    arguments = [*setting.entry.arguments(), "--target", job.target.name, "--max-drop", f"{MAX_DROP:.0%}", *options]
    for overlay in setting.overlays:
        arguments += ["--overlay", str(overlay)]

    def command(folder: Path) -> list[str | Path]:
        return [sys.executable, "-m", "edgekit.cli", "deploy", *arguments, "--out", folder / "bundle"]

    return Tool(
        title,
        command,
        lambda folder, _: shipped(setting.bench, folder / "bundle", folder / "model"),
        lambda folder: {"EDGEKIT_CACHE": str(_cache_in(setting.bench, folder)), **nncf_ptq.ENVIRONMENT},
        floats=False,
    )


def _cache_in(bench: Workbench, folder: Path) -> Path:
    """An empty cache, but for the toolchain: other tools find their environments ready too."""
    name = bench.job.device.backend.TOOLCHAIN
    if name:
        toolchains.ensure(name)
        place = folder / "cache" / "toolchains" / name
        place.parent.mkdir(parents=True)
        place.symlink_to(toolchains.toolchain(name).environment, target_is_directory=True)
    return folder / "cache"


def shipped(bench: Workbench, folder: Path, out: Path) -> Artifact:
    """The artifact of a bundle, copied to ``out`` with its weights expanded. Raises as `edgekit.bundle.verify`."""
    bundle.verify(folder)
    artifact = bundle.read_manifest(folder)["artifact"]
    shutil.copytree(folder, out, dirs_exist_ok=True)
    backend = bench.job.device.backend
    for name, entry in artifact.get("expanded", {}).items():
        (out / name).write_bytes(gzip.decompress((out / entry["from"]).read_bytes()))
    hinted = [p for p in FLOAT_PRECISIONS if p in _hinted(bench) and backend.hint(p) == artifact["hint"]]
    if not hinted:
        raise ValueError(f"the bundle runs in {artifact['hint']!r}, which is no precision of {bench.job.target.name}")
    base = hinted[0]
    return backend.artifact(out, base)


def _hinted(bench: Workbench) -> tuple[Precision, ...]:
    return (Precision.FP32, *(p for p in FLOAT_PRECISIONS if p in bench.job.target.precisions))


# -- NNCF -------------------------------------------------------------------------------------------------------------


def _ir(folder: Path, base: Precision) -> Artifact:
    path, weights = folder / "model.xml", folder / "model.bin"
    return Artifact(path, (path, weights), base, weights.stat().st_size)


def _nncf(setting: Setting, title: str, transformer: bool, *options: str | Path) -> Tool:
    if setting.nncf_python is None:
        raise NotHereError("no --nncf-python was passed", asked=False)
    python, model, samples = setting.nncf_python, setting.entry.model, setting.calibration

    def command(folder: Path) -> list[str]:
        return nncf_ptq.command(model, samples, folder / "model.xml", python, transformer, *options)

    return Tool(title, command, _ir, lambda _: nncf_ptq.ENVIRONMENT)


def _ways(setting: Setting) -> tuple[bool, ...]:
    return nncf_ptq.TRANSFORMER.get(setting.entry.name, (False,))


def nncf(setting: Setting) -> list[Tool]:
    """Its post-training quantization; told that it is a transformer where the model is one, or may be one."""
    return [_nncf(setting, "NNCF transformer" if way else "NNCF default", way) for way in _ways(setting)]


def nncf_mixed(setting: Setting) -> list[Tool]:
    """With activations quantized asymmetrically, which it does for transformers anyway."""
    if False not in _ways(setting):
        raise NotHereError("NNCF's transformer mode has the mixed preset already", asked=False)
    return [_nncf(setting, "NNCF mixed", False, "--preset", "mixed")]


def nncf_control(setting: Setting) -> list[Tool]:
    """With accuracy control on the samples that edgekit's own guard judges by."""
    options = ("--max-drop", str(MAX_DROP))
    if setting.nncf_python is None:
        raise NotHereError("no --nncf-python was passed", asked=False)
    return [_nncf(setting, "NNCF accuracy control", _ways(setting)[-1], "--control", setting.evaluation, *options)]


# -- onnxruntime and MCT ----------------------------------------------------------------------------------------------


def _from_onnx(setting: Setting) -> Callable[[Path, Precision], Artifact]:
    def read(folder: Path, base: Precision) -> Artifact:
        content = (folder / "model.onnx").read_bytes()
        return setting.bench.job.device.backend.convert(content, folder / "converted", base)

    return read


def ort(setting: Setting) -> list[Tool]:
    """onnxruntime's static Q/DQ: all operators, and convolutions and matrix products alone."""

    def tool(title: str, matrix: bool) -> Tool:
        model, samples = setting.entry.model, setting.calibration
        return Tool(
            title,
            lambda folder: ort_static.command(model, samples, folder / "model.onnx", matrix),
            _from_onnx(setting),
        )

    return [tool("onnxruntime static", False), tool("onnxruntime static, Conv/Gemm/MatMul", True)]


def mct(setting: Setting) -> list[Tool]:
    """MCT's mixed-precision search, for entries of the zoo that come with a torch module."""
    source = setting.entry.model.with_name("torch_model.py")
    if not source.is_file():
        raise NotHereError("it needs a torch model, and this one is ONNX alone", asked=False)
    if setting.mct_python is None:
        raise NotHereError("no --mct-python was passed", asked=False)
    python, samples = setting.mct_python, setting.calibration
    return [
        Tool(
            "MCT mixed precision",
            lambda folder: mct_search.command(source, samples, folder / "model.onnx", python),
            _from_onnx(setting),
        )
    ]


# -- ai-edge-quantizer ------------------------------------------------------------------------------------------------


def aeq(setting: Setting) -> list[Tool]:
    """ai-edge-quantizer's static int8 of the float .tflite that edgekit starts from too."""
    from benchmarks.tflite import others_artifact

    plain = setting.bench.artifact({}, Precision.FP32)
    samples, python = setting.calibration, toolchains.ensure("tflite")

    return [
        Tool(
            "ai-edge-quantizer int8",
            lambda folder: aeq_static.command(plain.path, samples, folder / "model.tflite", python),
            lambda folder, _: others_artifact(folder),
            floats=False,
        )
    ]


TOOLS: Mapping[str, Mapping[str, Callable[[Setting], list[Tool]]]] = {
    "openvino": {
        EDGEKIT: edgekit,
        "edgekit-bits": edgekit_bits,
        "nncf": nncf,
        "nncf-mixed": nncf_mixed,
        "nncf-control": nncf_control,
        "ort": ort,
        "mct": mct,
    },
    "tflite": {EDGEKIT: edgekit, "edgekit-bits": edgekit_bits, "aeq": aeq},
}
"""By backend, by what ``--tools`` takes. A function gives the tools of one model, or raises NotHereError."""
UNASKED = frozenset({"edgekit-bits"})
"""Run only where ``--tools`` names them."""
