"""Proves that normalising changed nothing: both models on the same random inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import InputError
from edgekit.graph.tidy import first_line

# Largest difference relative to the largest output (at least 1): folding reorders float32 sums, and nothing else.
TOLERANCE = 1e-4


def require_equal(original: bytes, normal: bytes, inputs: list[tuple[str, tuple[int, ...], str]], where: str) -> None:
    """Run the ``original`` file and the ``normal`` form on two random inputs each, in onnxruntime without optimisation.

    ``inputs`` are (name, shape, dtype name). Float inputs are drawn from N(0, 1), then from U(0, 1); integers are 0
    or 1, so that token ids, masks and lengths stay valid. Raises InputError when an output differs by more than
    ``TOLERANCE * max(1, max|output|)``, when NaNs are at other places, or when every output is NaN throughout.
    """
    before, after = _session(original, where), _session(normal, where)
    wanted = {i.name for i in before.get_inputs()}
    for seed, draw in enumerate(("normal", "uniform")):
        feed = {name: _random(np.random.default_rng(seed), draw, shape, dtype) for name, shape, dtype in inputs}
        try:
            expected = before.run(None, {k: v for k, v in feed.items() if k in wanted})
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise InputError(
                f"{where}: the model fails on random inputs of the frozen shapes: {first_line(error)}",
                "Check the input shapes; inputs with special integer values are not supported.",
            ) from None
        try:
            found = after.run([o.name for o in before.get_outputs()], feed)
        except Exception as error:
            raise InputError(f"{where}: the normalised model fails to run: {first_line(error)}", _HINT) from None
        if all(_all_nan(e) for e in expected):
            raise InputError(f"{where}: every output is NaN on random inputs", "The weights or the shapes are wrong.")
        for output, want, got in zip(before.get_outputs(), expected, found, strict=True):
            _compare(output.name, want, got, where)


_HINT = "This is a defect of edgekit or of onnxruntime: please report it with the model."


def _session(model: bytes, where: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise InputError(f"{where}: onnxruntime cannot execute the model: {first_line(error)}", _HINT) from None


def _random(rng: np.random.Generator, draw: str, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = rng.standard_normal(shape) if draw == "normal" else rng.random(shape)
        return np.asarray(values, kind)
    return np.asarray(rng.integers(0, 2, shape), kind)


def _all_nan(values: npt.NDArray[Any]) -> bool:
    return values.dtype.kind == "f" and values.size > 0 and bool(np.isnan(values).all())


def _compare(name: str, want: npt.NDArray[Any], got: npt.NDArray[Any], where: str) -> None:
    message = f"{where}: normalisation changed the outputs: {name!r}"
    if want.shape != got.shape:
        raise InputError(f"{message} has shape {got.shape} instead of {want.shape}", _HINT)
    if want.dtype.kind != "f":
        if not np.array_equal(want, got):
            raise InputError(f"{message} differs", _HINT)
        return
    nan = np.isnan(want)
    finite = np.isfinite(want)
    same_special = np.array_equal(nan, np.isnan(got)) and np.array_equal(want[~finite & ~nan], got[~finite & ~nan])
    if not same_special:
        raise InputError(f"{message} has NaN or infinity at other places", _HINT)
    if finite.any():
        difference = float(np.abs(want[finite] - got[finite]).max())
        limit = TOLERANCE * max(1.0, float(np.abs(want[finite]).max()))
        if not difference <= limit:
            raise InputError(f"{message} differs by {difference:.3g}, {limit:.3g} is allowed", _HINT)
