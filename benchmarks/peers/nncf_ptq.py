"""NNCF's post-training quantization of a model, calibrated with the samples that edgekit would use.

    python -m benchmarks.peers.nncf_ptq MODEL SAMPLES.npz OUT.xml [--transformer] [--preset mixed] [--control DIR]

SAMPLES.npz holds the model's inputs by name, the first axis counting samples, as ``edgekit deploy --data`` takes it.
With ``--control`` it is NNCF's quantization with accuracy control: layers go back to float until the metric has dropped
by no more than ``--max-drop`` on the evaluation samples in DIR (see `benchmarks.peers.samples`).
Runs in a process of its own: nncf's pins and its logging stay away from whoever compares against it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}
"""What `command` needs: in the environment with nncf, this repository is not installed."""

TRANSFORMER = {"minilm": (True,), "pp-ocr-rec": (False, True)}
"""Which of NNCF's two ways suits a model of the zoo; where that is not clear, both. Others: the plain one."""


def command(
    model: Path, samples: Path, out: Path, python: Path | None = None, transformer: bool = False, *more: str | Path
) -> list[str]:
    """What `quantize` runs. ``more`` are further options."""
    found = [str(python or sys.executable), "-m", "benchmarks.peers.nncf_ptq", str(model), str(samples), str(out)]
    return found + (["--transformer"] if transformer else []) + [str(one) for one in more]


def quantize(model: Path, samples: Path, out: Path, python: Path | None = None, transformer: bool = False) -> Path:
    """Write the quantized OpenVINO IR of ``model`` to ``out`` (.xml, its .bin beside it) and return ``out``.

    ``transformer`` tells NNCF that the model is one, as its documentation asks for: it loses 22 dB on MiniLM without.
    ``python`` is the interpreter of an environment with benchmarks/requirements.txt (default: this one). Raises
    RuntimeError with the end of what the process said when it fails.
    """
    called = command(model, samples, out, python, transformer)
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(called, cwd=Path.cwd(), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"NNCF failed on {model.name}: {done.stderr.strip()[-400:]}")
    return out


def validation(folder: Path) -> tuple[Any, Callable[[Any, Iterable[int]], float]]:
    """The evaluation samples as NNCF takes them, and the entry's metric over some of them, higher being better."""
    import nncf

    from benchmarks.peers.samples import read_evaluation
    from edgekit.recipes.metrics import metric, rows_of

    judged = read_evaluation(folder)
    scorer = metric(judged.metric, judged.metadata)
    names = list(judged.references)

    def score(compiled: Any, indices: Iterable[int]) -> float:
        request = compiled.create_infer_request()

        def one(index: int) -> tuple[dict[str, np.ndarray[Any, Any]], object, dict[str, np.ndarray[Any, Any]]]:
            request.infer(judged.sample(index))
            outputs = {name: request.get_output_tensor(i).data.copy() for i, name in enumerate(names)}
            return outputs, judged.label(index), judged.reference(index)

        value = scorer.aggregate(rows_of(scorer, (one(index) for index in indices)))
        return value if scorer.higher_is_better else -value

    # Of one sample some metrics have no value; NNCF ranks layers by the outputs then, for which it needs the inputs.
    return nncf.Dataset(range(len(judged)), judged.sample), score


def main() -> int:
    parser = argparse.ArgumentParser(description="NNCF's post-training quantization.")
    for name in ("model", "samples", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--transformer", action="store_true")
    parser.add_argument("--preset", choices=("performance", "mixed"))
    parser.add_argument("--control", type=Path, metavar="DIR")
    parser.add_argument("--max-drop", type=float, default=0.01)
    arguments = parser.parse_args()

    import nncf
    import openvino as ov

    core = ov.Core()
    model = core.read_model(arguments.model)
    with np.load(arguments.samples, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "labels"}
    for port in model.inputs:
        name = port.get_any_name()
        if arrays[name].ndim == len(port.partial_shape):  # samples without their leading 1
            arrays[name] = arrays[name][:, None]
    # Frozen as edgekit freezes them: both sides optimise the same problem.
    model.reshape({name: list(array.shape[1:]) for name, array in arrays.items()})
    count = len(next(iter(arrays.values())))
    samples = nncf.Dataset([{name: array[index] for name, array in arrays.items()} for index in range(count)])
    options = {
        "subset_size": count,
        "model_type": nncf.ModelType.TRANSFORMER if arguments.transformer else None,
        "preset": nncf.QuantizationPreset(arguments.preset) if arguments.preset else None,
    }
    if arguments.control:
        judged, score = validation(arguments.control)
        quantized = nncf.quantize_with_accuracy_control(
            model, samples, judged, score, max_drop=arguments.max_drop, **options
        )
    else:
        quantized = nncf.quantize(model, samples, **options)
    ov.save_model(quantized, arguments.out, compress_to_fp16=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
