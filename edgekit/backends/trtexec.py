"""What a Jetson is told: trtexec's options for each release of TensorRT, and the file that its shell program reads.

An engine is built on the board, by trtexec, which ends at an option that its release does not know. So the options are
put together here, release by release, and checked against what that release's parser takes
(``targets/releases/trtexec_flags.toml``). The program on the board (``targets/runners/tensorrt.sh``) reads them from
``board.txt``, one word and one argument a line, and picks those of the release that it finds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.releases import trtexec_flags

if TYPE_CHECKING:
    import numpy as np

    from edgekit.backends import Artifact

BOARD_FILE = "board.txt"
SCHEMA = "edgekit/tensorrt/1"

# Timed with data copied to and from the GPU, which trtexec reports apart from computing.
CUDA_GRAPH, SPIN_WAIT, TRANSFERS = True, True, True
WARM_UP_MS = 500
PROFILE_S = 2
WORKSPACE_MIB = 512  # the most that one layer may use beside its tensors
# Set aside for the libraries of CUDA, cuDNN and TensorRT: what NVIDIA names at forums.developer.nvidia.com/t/79158.
LIBRARIES_MIB = 800
_MIB = 1 << 20
# Loading an engine takes it too: from 8 on there is no core unless one is named (include/NvInferRuntime.h, setDLACore).
_DLA_CORE = "--useDLACore=0"
# The kernel takes no longer argument: MAX_ARG_STRLEN, include/uapi/linux/binfmts.h.
_LONGEST_ARGUMENT = 128 << 10

# In the device tree's `compatible`: Linux, Documentation/devicetree/bindings/arm/tegra.yaml.
CHIPS = {"5.3": "tegra210", "6.2": "tegra186", "7.2": "tegra194", "8.7": "tegra234", "11.0": "tegra264"}


def number(version: str) -> tuple[int, int]:
    """Major and minor of a version of TensorRT, as ``8.2`` or ``8.2.1``. Raises `InputError`."""
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", version)
    if not found:
        raise InputError(f"{version!r} is no version of TensorRT", "write it as major.minor.patch")
    return int(found[1]), int(found[2])


def known_releases() -> tuple[str, ...]:
    """The releases whose options are known, as major.minor, oldest first."""
    return tuple(trtexec_flags()["tags"])


def release_of(version: str) -> str:
    """The release whose options count for ``version``: itself, or the newest one before it of the same major number.

    Raises `InputError` where none is known.
    """
    wanted = number(version)
    older = [one for one in known_releases() if number(one) <= wanted and number(one)[0] == wanted[0]]
    if not older:
        raise InputError(
            f"the options of trtexec of TensorRT {version} are not known", f"known are {', '.join(known_releases())}"
        )
    return older[-1]


def flags(version: str) -> frozenset[str]:
    """The options that trtexec takes in this version. Raises `InputError`."""
    table, release = trtexec_flags(), release_of(version)
    here = number(release)
    return frozenset(
        flag
        for flag, (first, last) in table["flags"].items()
        if number(first) <= here <= number(last) and release not in table["gaps"].get(flag, ())
    )


def build_flags(version: str, build: Mapping[str, Any]) -> tuple[str, ...]:
    """What builds the engine of ``build`` (the ``build.json`` of an artifact), relative to the folder of the bundle.

    Raises `InputError` where the release cannot be told what the plan needs.
    """
    has = flags(version)
    chosen = ["--onnx=model.onnx", "--saveEngine=built/engine.part", "--timingCacheFile=built/timing.part"]
    chosen.append("--skipInference" if "--skipInference" in has else "--buildOnly")
    if "--memPoolSize" in has:
        chosen.append(f"--memPoolSize=workspace:{WORKSPACE_MIB}")
    else:
        chosen.append(f"--workspace={WORKSPACE_MIB}")
    if "--profilingVerbosity" in has:
        chosen.append("--profilingVerbosity=detailed")
    allowed = build["flags"]
    if build["typing"] == "flags":
        chosen += [flag for flag in ("--fp16", "--int8") if allowed.get(flag[2:])]
        chosen += _layer_types(version, has, build.get("layer_precisions") or {})
    elif number(version)[0] < 11:  # from 11 on there is nothing else
        chosen.append("--stronglyTyped")
    if allowed.get("sparsity"):
        chosen.append("--sparsity=enable")
    if build.get("accelerator"):  # what it cannot compute falls back to the GPU, which would end the build otherwise
        chosen += [_DLA_CORE, "--allowGPUFallback"]
    return _checked(version, chosen)


def _layer_types(version: str, has: frozenset[str], precisions: Mapping[str, str]) -> list[str]:
    if not precisions:
        return []
    if "--layerPrecisions" not in has:
        raise InputError(
            f"TensorRT {version} cannot be told the types of single layers, as the plan for {min(precisions)} asks",
            "use one float precision for the whole model, or a newer JetPack (TensorRT 8.4 and later)",
        )
    for name in precisions:
        if re.search(r"[,:'*]", name):
            raise InputError(f"trtexec cannot be told the type of layer {name!r}", "rename it: without , : ' and *")
    words = ",".join(f"{name}:{precision}" for name, precision in sorted(precisions.items()))
    return ["--precisionConstraints=obey", f"--layerPrecisions={words}", f"--layerOutputTypes={words}"]


def run_flags(version: str, inputs: str, accelerator: str = "") -> dict[str, tuple[str, ...]]:
    """What the engine is run with: ``check`` (one inference, for its outputs), ``time`` (nothing but latency) and
    ``profile`` (each layer, which slows it down). ``inputs`` is what ``--loadInputs`` takes, ``accelerator`` what the
    engine was built for beside the GPU.
    """
    has = flags(version)
    engine = ["--loadEngine=built/model.engine", *([_DLA_CORE] if accelerator else [])]
    transfers = ["--includeDataTransfers"] if "--includeDataTransfers" in has else []
    graph = [] if "--noCudaGraph" in has else ["--useCudaGraph"]  # from 11 on they are what happens anyway
    spin = [] if "--noSpinWait" in has else ["--useSpinWait"]
    no_graph = ["--noCudaGraph"] if "--noCudaGraph" in has else []
    warm_up = f"--warmUp={WARM_UP_MS}"
    profile = [*engine, warm_up, f"--duration={PROFILE_S}", *transfers, *spin, *no_graph]
    profile.append("--exportProfile=built/profile.json")
    if "--exportLayerInfo" in has:
        profile += ["--exportLayerInfo=built/layers.json", "--profilingVerbosity=detailed"]
    loaded = [f"--loadInputs={inputs}"] if inputs else []
    return {
        "check": _checked(version, [*engine, "--warmUp=0", "--duration=0", "--iterations=1", *transfers, *no_graph]),
        "time": _checked(
            version, [*engine, warm_up, *transfers, *graph, *spin, *loaded, "--exportTimes=built/times.json"]
        ),
        "profile": _checked(version, [*profile, *loaded]),
    }


def _checked(version: str, chosen: Sequence[str]) -> tuple[str, ...]:
    """``chosen``, where the release takes all of it."""
    has = flags(version)
    for argument in chosen:
        name = argument.partition("=")[0]
        if name not in has:
            raise InputError(f"trtexec of TensorRT {version} has no option {name}")
        if len(argument.encode()) >= _LONGEST_ARGUMENT or not argument.isprintable():
            raise InputError(
                f"{name} for trtexec is too long, or holds what a line cannot", "rename the layers: shorter"
            )
    return tuple(chosen)


def forecast(build: Mapping[str, Any], onnx_bytes: int) -> dict[str, int]:
    """KiB of memory and of disk that must be free to build.

    Memory: the libraries, the file and the model parsed from it, the engine's weights, activations where they are
    known, and the workspace (NVIDIA's TensorRT developer guide on memory: a build holds the weights of the network, and
    those of the engine). An estimate to refuse by, not a figure to report. Disk: the engine, twice, and reports.
    """
    activations = build.get("activation_bytes_forecast") or 0
    memory = (LIBRARIES_MIB + WORKSPACE_MIB) * _MIB + 3 * onnx_bytes + activations
    disk = 2 * onnx_bytes + 64 * _MIB
    return {"memory_kib": memory >> 10, "disk_kib": disk >> 10}


def write_board_files(compiled: Artifact, inputs: Sequence[Mapping[str, np.ndarray]], folder: Path) -> dict[str, Path]:
    """`board_files` of an artifact, written into ``folder``: names in the bundle -> files."""
    build = json.loads(compiled.path.with_name("build.json").read_text(encoding="utf-8"))
    found = {}
    for name, content in board_files(build, compiled.path.stat().st_size, inputs).items():
        found[name] = folder / name
        found[name].parent.mkdir(parents=True, exist_ok=True)
        found[name].write_bytes(content)
    return found


def board_files(
    build: Mapping[str, Any], onnx_bytes: int, inputs: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, bytes]:
    """What a bundle holds for the board alone: ``board.txt``, and the inputs of the test vectors as trtexec reads them.

    ``build`` is the artifact's ``build.json``, ``onnx_bytes`` the size of its model, ``inputs`` those of each vector.
    Raises `InputError`.
    """
    import numpy as np

    files: dict[str, bytes] = {}
    loads = []
    types = {row["name"]: row["dtype"] for row in build["inputs"]}
    for index, sample in enumerate(inputs):
        words = []
        for place, name in enumerate(types):
            if re.search(r"[,']", name) or not name.isprintable():
                raise InputError(
                    f"trtexec cannot be given a file for input {name!r}", "rename the input: without , and '"
                )
            file = f"vectors/{index}/{place}.bin"
            files[file] = np.ascontiguousarray(sample[name], dtype=types[name]).tobytes()
            words.append(f"{name}:{file}")
        loads.append(",".join(words))
    files[BOARD_FILE] = _instructions(build, forecast(build, onnx_bytes), loads).encode()
    return files


def _instructions(build: Mapping[str, Any], needs: Mapping[str, int], loads: Sequence[str]) -> str:
    if build["compute"] not in CHIPS:
        raise InputError(
            f"no Jetson has a GPU of compute capability {build['compute']}", f"known are {', '.join(CHIPS)}"
        )
    lines = [f"schema {SCHEMA}", f"chip {CHIPS[build['compute']]}"]
    lines += [f"{word} {kib}" for word, kib in needs.items()]
    lines += [f"vector --loadInputs={one}" for one in loads]
    for release in build["releases"]:
        version = release["tensorrt"]
        lines += [f"release {release['name']}", f"tensorrt {'.'.join(map(str, number(version)))}"]
        lines += [f"l4t {one}" for one in release["l4t"]]
        lines += [f"build {flag}" for flag in build_flags(version, build)]
        told = run_flags(version, loads[0] if loads else "", build.get("accelerator", ""))
        for word, chosen in told.items():
            lines += [f"{word} {flag}" for flag in chosen]
    return "\n".join(lines) + "\n"


__all__ = [
    "BOARD_FILE",
    "CHIPS",
    "WARM_UP_MS",
    "board_files",
    "build_flags",
    "flags",
    "forecast",
    "known_releases",
    "release_of",
    "run_flags",
    "write_board_files",
]
