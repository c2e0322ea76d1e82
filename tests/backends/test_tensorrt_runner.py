"""The program that does trtexec's work through TensorRT's Python module: the options that it takes, and its building
half with a real compiler. The running half: tests/devices/test_jetson_python.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.backends import trtexec
from edgekit.backends.trtexec_output import read_outputs
from edgekit.catalog import data_root
from edgekit.toolchains import problem, toolchain
from tests.trtexec.jetson import add_module, build_json, compile_cuda, float_model, model, release

RUNNERS = data_root() / "targets" / "runners"
RTX = "tensorrt-rtx"
needs_rtx = pytest.mark.skipif(bool(problem(RTX)), reason="the toolchain tensorrt-rtx is not installed")

# TensorRT for RTX has TensorRT's module under another name, and builds without a GPU for one that it is told.
_WITH_RTX = """
import sys, types
sys.path.insert(0, sys.argv[1])
import tensorrt_rtx_bindings
import tensorrt_runner

class Builder(tensorrt_rtx_bindings.Builder):
    def create_builder_config(self):
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(tensorrt_rtx_bindings.ComputeCapability.SM86, 0)
        return config

module = types.SimpleNamespace(**vars(tensorrt_rtx_bindings))
module.Builder, module.__version__ = Builder, sys.argv[2]
sys.exit(tensorrt_runner.main(sys.argv[3:], tensorrt=module))
"""
_PARSE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tensorrt_runner
found = []
for version, words in json.load(sys.stdin):
    try:
        found.append({name: value for name, value in vars(tensorrt_runner.parse(words, version)).items()})
    except tensorrt_runner.Failed as error:
        found.append(str(error))
print(json.dumps(found))
"""


def parsed(rows: list[tuple[str, list[str]]]) -> list[dict[str, object] | str]:
    """What the program makes of options, or what it says to them."""
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, str(RUNNERS)], input=json.dumps(rows), capture_output=True, text=True, check=True
    )
    found: list[dict[str, object] | str] = json.loads(done.stdout)
    return found


def test_every_option_that_edgekit_uses_is_taken() -> None:
    """Of each release from 10 on, with every choice that a build has there."""
    rows: list[tuple[str, list[str]]] = []
    for version in (one for one in trtexec.known_releases() if trtexec.number(one) >= (10, 0)):
        build = build_json([release(f"{version}.0")])
        for sparsity, core, loads in product((False, True), ("", "dla"), ("", "x:vectors/0/0.bin,y:vectors/0/1.bin")):
            chosen = {**build, "flags": {**build["flags"], "sparsity": sparsity}, "accelerator": core}
            rows.append((version, list(trtexec.build_flags(version, chosen))))
            rows += [(version, list(words)) for words in trtexec.run_flags(version, loads, core).values()]
    assert len(rows) > 100
    for (version, words), found in zip(rows, parsed(rows), strict=True):
        assert isinstance(found, dict), (version, words, found)
        assert found["stronglyTyped"] or found["loadEngine"]


def on_stand_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The program with the tests' own module and CUDA."""
    command = [sys.executable, str(RUNNERS / "tensorrt_runner.py"), *words]
    own = {"PYTHONPATH": str(folder / "python"), "LD_LIBRARY_PATH": str(folder / "lib")}
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=60
    )


def layers_of(engine: Path) -> list[dict[str, Any]]:
    """What the stand-in has built."""
    content = engine.read_bytes()
    found: list[dict[str, Any]] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["layers"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a bundle's on a board with one accelerator."""
    add_module(tmp_path, "10.3.0", {"dla_cores": 1})
    compile_cuda(tmp_path / "lib", 1)
    (tmp_path / "built").mkdir()
    (tmp_path / "x.bin").write_bytes(np.linspace(-1, 1, 3 * 16 * 16, dtype=np.float32).tobytes())
    return tmp_path


def test_types_that_the_model_does_not_say(folder: Path) -> None:
    """As targets for accelerators say them in 10 still."""
    (folder / "model.onnx").write_bytes(model(False))
    build = {**build_json([release("8.4.1")]), "layer_precisions": {"fc": "fp32"}}
    done = on_stand_in(folder, *trtexec.build_flags("10.3.0", build))
    assert done.returncode == 0, done.stdout
    types = {layer["nodes"][0]: layer["type"] for layer in layers_of(folder / "built/engine.part")}
    assert types == {"conv1": "fp16", "conv2": "int8", "fc": "fp32"}


def test_on_an_accelerator(folder: Path) -> None:
    """A core is named to build and to run."""
    (folder / "model.onnx").write_bytes(float_model())
    words = trtexec.build_flags("10.3.0", build_json([release("8.4.1")], "dla"))
    done = on_stand_in(folder, *words)
    assert done.returncode == 0, done.stdout
    assert [layer["region"] for layer in layers_of(folder / "built/engine.part")] == [["conv1", "relu1", "conv2", "fc"]]
    (folder / "built/engine.part").rename(folder / "built/model.engine")
    checks = trtexec.run_flags("10.3.0", "", "dla")["check"]
    done = on_stand_in(folder, *checks, "--loadInputs=x:x.bin", "--exportOutput=built/out.json")
    assert done.returncode == 0, done.stdout
    assert read_outputs((folder / "built/out.json").read_text())["y"].shape == (1, 5)
    done = on_stand_in(folder, *(word for word in checks if "DLA" not in word), "--loadInputs=x:x.bin")
    assert "the engine needs a DLA core, and none is set" in done.stdout
    done = on_stand_in(folder, *(word.replace("Core=0", "Core=1") for word in words))
    assert (done.returncode, done.stdout.splitlines()[-1][-42:]) == (1, " Cannot create DLA engine, 1 not available")


def test_defaults_turned_round_with_release_11() -> None:
    engine = "--loadEngine=built/model.engine"
    older, newer, checked = parsed(
        [("10.3.0", [engine]), ("11.1.0", [engine, "--includeDataTransfers"]), ("11.1.0", [engine, "--noCudaGraph"])]
    )
    assert isinstance(older, dict)
    assert isinstance(newer, dict)
    assert (older["useCudaGraph"], older["useSpinWait"], older["warmUp"], older["duration"]) == (False, False, 200, 3)
    assert (newer["useCudaGraph"], newer["useSpinWait"]) == (True, True)
    assert checked == "latency is measured with data transfers here: --includeDataTransfers is missing"


@pytest.mark.parametrize(
    ("version", "words", "message"),
    [
        ("11.1.0", "--stronglyTyped", "Unknown option: --stronglyTyped"),
        ("11.1.0", "--useSpinWait", "Unknown option: --useSpinWait"),
        ("10.3.0", "--noCudaGraph", "Unknown option: --noCudaGraph"),
        ("10.3.0", "--workspace=512", "Unknown option: --workspace 512"),
        ("10.3.0", "--exportTime=x", "Unknown option: --exportTime x"),
        ("10.3.0", "model.onnx", "Unknown option: model.onnx"),
        ("10.3.0", "--duration=x", "argument --duration: invalid float value: 'x'"),
    ],
)
def test_an_option_of_another_release(version: str, words: str, message: str) -> None:
    assert parsed([(version, [words])]) == [message]


def built(folder: Path, content: bytes, *words: str) -> tuple[int, str]:
    """Status and words of a build with TensorRT for RTX."""
    (folder / "model.onnx").write_bytes(content)
    (folder / "built").mkdir(exist_ok=True)
    python = toolchain(RTX).environment / "bin" / "python"
    command = [python, "-IB", "-c", _WITH_RTX, str(RUNNERS), "10.13.0", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout


@needs_rtx
@pytest.mark.slow
def test_a_typed_model_is_built(tmp_path: Path) -> None:
    """With the very options of a board's board.txt; a second build reads the timing cache of the first."""
    words = trtexec.build_flags("10.3.0", build_json([release("10.3.0")]))
    code, said = built(tmp_path, model(True), *words)
    assert code == 0, said
    assert re.search(r"\[I\] Engine built in [0-9.]+ sec\.$", said, re.MULTILINE)
    assert (tmp_path / "built/engine.part").stat().st_size > 10_000
    cache = tmp_path / "built/timing.part"
    assert "Loaded 0 bytes of timing cache" in said
    assert cache.exists()
    code, said = built(tmp_path, model(True), *words)
    assert code == 0, said
    assert f"Loaded {cache.stat().st_size} bytes of timing cache" in said
    cache.write_bytes(b"of nobody's GPU" * 100)
    assert built(tmp_path, model(True), *words)[0] == 0


@needs_rtx
@pytest.mark.slow
def test_what_the_parser_refuses_is_told(tmp_path: Path) -> None:
    words = trtexec.build_flags("10.3.0", build_json([release("10.3.0")]))
    code, said = built(tmp_path, float_model().replace(b"ReduceMean", b"ReduceMoan"), *words)
    assert code == 1
    errors = [line for line in said.splitlines() if "[E]" in line]
    assert "ReduceMoan" in errors[0]
    assert errors[-1].endswith("[E] Failed to parse onnx file")
    assert not (tmp_path / "built/engine.part").exists()
    assert built(tmp_path, b"no model", *words)[0] == 1
