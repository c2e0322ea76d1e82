"""A Jetson as its programs see it, around a real sshd: device tree, L4T, TensorRT's packages, sensors, nvpmodel,
jetson_clocks, and trtexec's stand-in at its place, or that of TensorRT's Python module. And a bundle for it.
"""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import bundle, catalog
from edgekit.backends import trtexec
from tests.devices.sshd import TestBoard, busybox, make_board, require_namespaces
from tests.reporting.sample_result import sample_result

# What a Jetson has and this machine has not, put in place in the board's own mount namespace; $1 is its folder.
_BOOT = """
mkdir /run/etc /run/etc-work
mount -t overlay none -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work /etc 2>/dev/null || {
    cp -a /etc /run/etc-copy
    mount --bind /run/etc-copy /etc
}
mount --bind "$1/passwd" /etc/passwd
[ ! -f "$1/jetson/nv_tegra_release" ] || cp "$1/jetson/nv_tegra_release" /etc/
mount -t tmpfs none /usr/src
if [ -f "$1/jetson/trtexec" ]; then
    mkdir -p /usr/src/tensorrt/bin
    cp "$1/jetson/trtexec" "$1/jetson/stand_in.json" /usr/src/tensorrt/bin/
fi
mount -t tmpfs none /sys/firmware
mkdir -p /sys/firmware/devicetree/base
cp "$1/jetson/compatible" "$1/jetson/model" /sys/firmware/devicetree/base/
mount -t tmpfs none /sys/class
cp -a "$1/jetson/class/." /sys/class/
mount --bind "$1/jetson/meminfo" /proc/meminfo
"""
_CLOCKS = """#!/bin/sh
case $1 in
--show) printf 'SOC family:tegra210\\nGPU MinFreq=76800000 %s\\n' "$(cat FOLDER/clocks)" ;;
--store) [ ! -e "$2" ] || exit 1; cp FOLDER/clocks "$2" ;;
--restore) cp "$2" FOLDER/clocks ;;
*) echo highest >FOLDER/clocks ;;
esac
"""
_TOOLS = """awk cat cp cut df dirname grep head id ln mkdir mv readlink rm sed setsid sha256sum sleep sync tail touch tr
uname wc"""


@dataclass(frozen=True)
class Kind:
    """What a Jetson is and runs."""

    l4t: str = "R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64"
    tensorrt: str = "8.2.1"
    chip: str = "tegra210"
    model: str = "NVIDIA Jetson Nano Developer Kit"
    memory_kib: int = 3_000_000
    settings: Mapping[str, Any] = field(default_factory=dict)
    has_trtexec: bool = True
    has_package: bool = True
    module: str = ""  # the version of TensorRT's Python module, '' where there is none
    gpus: int = 1


NANO = Kind()


def release(version: str) -> Kind:
    """A Jetson with that TensorRT and the L4T that goes with it in these tests."""
    l4t = f"R{30 + int(version.split('.')[0])} (release), REVISION: {version.split('.')[1]}.0, GCID: 1, BOARD: x"
    return replace(NANO, l4t=l4t, tensorrt=version)


def model(strong: bool) -> bytes:
    """Conv, Relu, an int8 Conv by Q/DQ pairs, mean, Gemm; in half precision beside int8 where ``strong``."""
    rng = np.random.default_rng(1)
    kind, array_type = (TensorProto.FLOAT16, np.float16) if strong else (TensorProto.FLOAT, np.float32)
    codes = rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
    constants = {
        "w1": rng.normal(0, 0.2, (4, 3, 3, 3)).astype(array_type),
        "codes": codes,
        "scale": np.full(4, 0.004, np.float32),
        "step": np.float32(0.05),
        "zero": np.int8(0),
        "zeros": np.zeros(4, np.int8),
        "w3": rng.normal(0, 0.3, (4, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["a0", "w1"], ["a1"], "conv1", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["a1"], ["a2"], "relu1"),
        helper.make_node("QuantizeLinear", ["a3", "step", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["a4"], "dequantize"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zeros"], ["w2"], "weight", axis=0),
        helper.make_node("Conv", ["a4", "w2"], ["a5"], "conv2", kernel_shape=[3, 3]),
        helper.make_node("ReduceMean", ["a5"], ["a6"], "mean", axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["a6", "w3"], ["y"], "fc"),
    ]
    if strong:
        nodes.insert(0, helper.make_node("Cast", ["x"], ["a0"], "to_half", to=kind))
        nodes.insert(3, helper.make_node("Cast", ["a2"], ["a3"], "to_single", to=TensorProto.FLOAT))
    else:
        nodes[0].input[0] = "x"
        nodes[2].input[0] = "a2"
    body = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return bytes(made.SerializeToString())


def float_model() -> bytes:
    """The model that `model` was made of."""
    made = onnx.load_model_from_string(model(False))
    body = made.graph
    pairs = ("quantize", "dequantize", "weight")
    nodes = [node for node in body.node if node.name not in pairs]
    next(node for node in nodes if node.name == "conv2").input[:] = ["a2", "w2"]
    del body.node[:]
    body.node.extend(nodes)
    rest = [one for one in body.initializer if one.name in ("w1", "w3")]
    del body.initializer[:]
    body.initializer.extend([*rest, numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w2")])
    return bytes(made.SerializeToString())


def build_json(kinds: Sequence[Kind], accelerator: str = "") -> dict[str, Any]:
    """What `edgekit.backends.tensorrt` says of that model, for these boards; all in halves for an accelerator."""
    strong = int(kinds[0].tensorrt.split(".")[0]) >= 10
    planned = {"conv1": "fp16", "conv2": "fp16" if accelerator else "int8", "fc": "fp32" if strong else "fp16"}
    return {
        "schema": 1,
        "base": "fp16",
        "typing": "strong" if strong else "flags",
        "opset": 13,
        "compute": {"tegra210": "5.3", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}[kinds[0].chip],
        "releases": [
            {"name": f"jetpack-of-{kind.tensorrt}", "l4t": [l4t_of(kind)], "tensorrt": kind.tensorrt} for kind in kinds
        ],
        "refused": [],
        "flags": {"fp16": not strong, "int8": not accelerator, "sparsity": False},
        "accelerator": accelerator,
        "layer_precisions": {},
        "layers": [
            {"name": name, "op_type": "Gemm" if name == "fc" else "Conv", "precision": precision, "output": output}
            for (name, precision), output in zip(planned.items(), ("a1", "a5", "y"), strict=True)
        ],
        "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3, 16, 16]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 5]}],
        "weight_bytes": 600,
        "activation_bytes_forecast": None,
    }


def l4t_of(kind: Kind) -> str:
    """ "32.7" of "R32 (release), REVISION: 7.1"."""
    words = kind.l4t.replace("R", "", 1).split(" (release), EVISION: ".replace("E", "RE", 1))
    return f"{words[0]}.{words[1].split('.')[0]}"


def make_bundle(out: Path, kinds: Sequence[Kind] = (NANO,), vectors: int = 2, accelerator: str = "") -> Path:
    """A whole bundle, packed as `edgekit deploy` packs it."""
    import onnxruntime as ort

    build = build_json(kinds, accelerator)
    content = float_model() if accelerator else model(build["typing"] == "strong")
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(2)
    inputs = tuple({"x": rng.normal(0, 1, (1, 3, 16, 16)).astype(np.float32)} for _ in range(vectors))
    expected = tuple({"y": session.run(["y"], dict(one))[0]} for one in inputs)
    with tempfile.TemporaryDirectory() as place:
        files = {
            "model.onnx": content,
            "build.json": (json.dumps(build, sort_keys=True) + "\n").encode(),
            **trtexec.board_files(build, len(content), inputs),
        }
        paths = {}
        for index, (name, data) in enumerate(files.items()):
            paths[name] = Path(place) / str(index)
            paths[name].write_bytes(data)
        return bundle.pack(
            out,
            result=sample_result(),
            artifact=bundle.Artifact("model.onnx", "fp16", 1),
            artifact_files=paths,
            preprocess={"kind": "npz"},
            vectors=bundle.Vectors(inputs, expected, {"y": 1e-3}),
            runner=catalog.runner_files("tensorrt.sh"),
            report_html="<!doctype html><title>report</title>",
        )


@dataclass(frozen=True)
class Jetson:
    """The running board."""

    bench: TestBoard

    @property
    def folder(self) -> Path:
        return self.bench.folder

    @property
    def clocks(self) -> str:
        return (self.folder / "clocks").read_text().strip()

    def command(self, words: str) -> list[str]:
        """ssh to it, as a person would type it."""
        config = str(self.folder / "ssh_config")
        return ["ssh", "-F", config, "-p", str(self.bench.port), "-o", "BatchMode=yes", "127.0.0.1", words]

    def shell(self, words: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command line on it."""
        return subprocess.run(self.command(words), capture_output=True, text=True, check=False, timeout=limit_s)

    def kill(self, process: int, number: int) -> None:
        """A signal to one of its processes."""
        self.shell(f"kill -{number} {process}")

    def put(self, source: Path) -> Path:
        """Copy a bundle to it, by hand."""
        there = Path(tempfile.mkdtemp(dir=self.folder)) / "bundle"
        shutil.copytree(source, there)
        return there

    def settings(self, **changes: Any) -> None:
        """Have its trtexec do something else."""
        module = self.folder / "jetson/python/tensorrt/stand_in.json"
        if module.exists():
            module.write_text(json.dumps(json.loads(module.read_text()) | {"fault": "", "pause_s": 0} | changes))
            return
        text = json.dumps(_settings(NANO, changes))
        done = self.shell(f"cat > /usr/src/tensorrt/bin/stand_in.json <<'END'\n{text}\nEND")
        assert done.returncode == 0, done.stderr


def _settings(kind: Kind, changes: Mapping[str, Any]) -> dict[str, Any]:
    words = {"version": kind.tensorrt, "flags": sorted(trtexec.flags(kind.tensorrt)), **kind.settings}
    return {**words, **changes}


@contextmanager
def running_jetson(kind: Kind = NANO) -> Iterator[Jetson]:
    """A board of that kind, switched off afterwards."""
    require_namespaces()
    with tempfile.TemporaryDirectory(prefix="ekj-") as place:
        bench = make_board(Path(place))
        _furnish(Path(place), kind)
        bench.start()
        try:
            yield Jetson(bench)
        finally:
            bench.switch_off()


def _furnish(folder: Path, kind: Kind) -> None:
    jetson, programs = folder / "jetson", folder / "jetson/bin"
    programs.mkdir(parents=True)
    if kind.l4t:
        (jetson / "nv_tegra_release").write_text(f"# {kind.l4t}\n")
    (jetson / "compatible").write_bytes(f"nvidia,p3450-0000\0nvidia,{kind.chip}\0".encode())
    (jetson / "model").write_bytes(f"{kind.model}\0".encode())
    (jetson / "meminfo").write_text(f"MemTotal: 4000000 kB\nMemAvailable: {kind.memory_kib} kB\nSwapFree: 0 kB\n")
    sensors = {
        "thermal/thermal_zone0/type": "PMIC-Die",
        "thermal/thermal_zone0/temp": "100000",
        "thermal/thermal_zone1/type": "GPU-therm",
        "thermal/thermal_zone1/temp": "41500",
        "thermal/cooling_device0/type": "pwm-fan",
        "thermal/cooling_device0/cur_state": "3",
        "thermal/cooling_device1/type": "gpu-balanced",
        "thermal/cooling_device1/cur_state": "0",
        "devfreq/57000000.gpu/cur_freq": "921600000",
        "devfreq/57000000.gpu/max_freq": "921600000",
    }
    for name, value in sensors.items():
        path = jetson / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    (folder / "clocks").write_text("dynamic\n")
    (folder / "power_mode").write_text("MAXN\n")
    package = f"{'installed' if kind.has_package else 'config-files'} {kind.tensorrt}-1+cuda10.2"
    scripts = {
        "nvpmodel": f'#!/bin/sh\necho "NV Power Mode: $(cat {folder}/power_mode)"\necho 0\n',
        "jetson_clocks": _CLOCKS.replace("FOLDER", str(folder)),
        "dpkg-query": f"#!/bin/sh\ncase $* in *libnvinfer*) echo '{package}' ;; *) exit 1 ;; esac\n",
    }
    for name, text in scripts.items():
        _program(programs / name, text)
    if kind.has_trtexec:
        stand_in = (Path(__file__).parent / "stand_in.py").read_text()
        _program(jetson / "trtexec", f"#!{sys.executable}\n{stand_in}")
    (jetson / "stand_in.json").write_text(json.dumps(_settings(kind, {})))
    (folder / "boot.sh").write_text(_BOOT)
    variables = [f"PATH={programs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]
    if kind.module:
        add_module(jetson, kind.module, kind.settings)
        compile_cuda(jetson / "lib", kind.gpus)
        _program(programs / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        variables += [f"PYTHONPATH={jetson}/python", f"LD_LIBRARY_PATH={jetson}/lib"]
    with (folder / "sshd_config").open("a") as config:
        config.write(f"SetEnv {' '.join(variables)}\n")


def add_module(folder: Path, version: str, settings: Mapping[str, Any] | None = None) -> None:
    """The stand-in for TensorRT's Python module in ``folder``/python."""
    here, module = Path(__file__).parent, folder / "python/tensorrt"
    module.mkdir(parents=True)
    shutil.copy(here / "stand_in_module.py", module / "__init__.py")
    shutil.copy(here / "stand_in.py", module)
    (module / "stand_in.json").write_text(json.dumps({"version": version, "flags": [], **(settings or {})}))


def compile_cuda(folder: Path, gpus: int) -> None:
    """CUDA's runtime in ``folder``, which knows that many GPUs."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    folder.mkdir()
    words = ("-O1", "-Wall", "-shared", "-fPIC", f"-DGPUS={gpus}", "-o", folder / "libcudart.so")
    subprocess.run([compiler, *words, Path(__file__).parent / "cudart.c"], check=True)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def busybox_tools(jetson: Jetson) -> Path:
    """A folder with BusyBox under the name of every tool that the program uses, and the Jetson's own programs."""
    folder = jetson.folder / "tools"
    folder.mkdir()
    for name in _TOOLS.split():
        (folder / name).symlink_to(busybox())
    for program in (jetson.folder / "jetson/bin").iterdir():
        (folder / program.name).symlink_to(program)
    return folder
