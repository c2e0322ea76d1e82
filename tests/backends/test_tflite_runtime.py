from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekit import toolchains
from edgekit.backends import Artifact, tflite
from edgekit.errors import MissingToolError
from edgekit.types import Precision
from tests.backends.tflite_cases import FP32, INT8, RUNNER, W4, W8, hub, offered
from tests.quantized import Case, case, sqnr_db


@pytest.fixture(scope="session")
def converter() -> None:
    """The toolchain in the cache of whoever runs the tests, made where it is not there."""
    toolchains.ensure("tflite")


@pytest.fixture(scope="module")
def old_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with tflite-runtime, whose wheels need Python 3.9 to 3.11 and NumPy 1."""
    try:
        base = toolchains.find_python((3, 9), (3, 12))
    except MissingToolError as reason:
        pytest.skip(str(reason))
    place = tmp_path_factory.mktemp("old") / "environment"
    subprocess.run([base, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "tflite-runtime==2.14.0", "numpy<2"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"tflite-runtime cannot be installed here: {done.stderr.strip()[-200:]}")
    return python


@pytest.mark.slow
class TestOldRuntime:
    """tflite-runtime 2.14.0 itself, with the real runner."""

    def outputs(self, python: Path, made: Artifact, source: Case) -> tuple[dict[str, np.ndarray], str]:
        folder = made.path.parent
        np.savez(folder / "in.npz", **source.data.sample(0))  # type: ignore[arg-type]
        program = f"""
import sys
sys.path.insert(0, {str(RUNNER.parent)!r})
import numpy as np, tflite_runner
try:
    made = tflite_runner.load({{"path": {str(made.path)!r}}}, 1)
except tflite_runner.Unusable as reason:
    sys.exit(str(reason))
tflite_runner.fill(made, {str(folder / "in.npz")!r}, 0)
made.invoke()
np.savez({str(folder / "out.npz")!r}, **{{r["name"]: made.get_tensor(r["index"]) for r in made.get_output_details()}})
"""
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
        if done.returncode:
            return {}, (done.stderr.strip().splitlines() or [""])[-1]
        with np.load(folder / "out.npz") as arrays:
            return {name: arrays[name] for name in arrays.files}, ""

    @pytest.mark.parametrize(("name", "precision"), [("inverted_residual", W8), ("transformer", INT8)])
    def test_computes_what_litert_does(
        self, name: str, precision: Precision, old_runtime: Path, converter: None, tmp_path: Path
    ) -> None:
        source = case(name)
        made = tflite.convert(hub(source, offered(source, precision)), tmp_path, FP32)
        found, refused = self.outputs(old_runtime, made, source)
        assert not refused
        assert sqnr_db(found, tflite.session(made, 1, list(found))(source.data.sample(0))) > 30

    def test_refuses_what_it_cannot(self, old_runtime: Path, converter: None, tmp_path: Path) -> None:
        source = case("conv_net")
        made = tflite.convert(hub(source, offered(source, W4)), tmp_path, FP32)
        assert self.outputs(old_runtime, made, source)[1] == "tflite-runtime 2.14.0 has no 4-bit weights"
        # And it is so: without the runner the interpreter fails.
        alone = f"from tflite_runtime.interpreter import Interpreter as I; I({str(made.path)!r}).allocate_tensors()"
        done = subprocess.run([old_runtime, "-c", alone], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "dequantize" in done.stderr
