"""What the program on a Jetson brings back (``targets/runners/tensorrt.sh``), as every device's documents look: test
vectors compared, percentiles, conditions, and the engine's types against the plan's.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import Artifact, Backend
from edgekit.backends.trtexec import CUDA_GRAPH, SPIN_WAIT, TRANSFERS
from edgekit.backends.trtexec_output import executes_as, read_outputs, read_times, rows_of
from edgekit.errors import DeviceError, EdgekitError, InputError, MissingToolError, VerifyError
from edgekit.types import Conformance, Mismatch, Precision

if TYPE_CHECKING:
    import numpy as np

SCHEMA = "edgekit/tensorrt-run/1"
BUILD_S = 3600.0  # an engine may take as long
_ERRORS: Mapping[int, type[EdgekitError]] = {2: InputError, 4: MissingToolError, 5: DeviceError, 7: VerifyError}
_DIGITS = 5e-6  # trtexec writes six significant digits: half of the last one, as a share of the value
_NOT_TIMED = "trtexec does not say"
_NO_TYPES = "this release of trtexec does not tell the types of layers"


def reading(run_job: Callable[[Path, dict[str, Any], float], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """``run_job`` of a transport for `targets/runners/tensorrt.sh`, whose documents come out as other runners' do. The
    first job of a bundle builds its engine: that comes on top of the time limit.
    """

    def run(runner: Path, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        return document(run_job(runner, job, timeout_s + (BUILD_S if job["action"] == "bundle" else 0.0)), job)

    return run


def document(raw: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """What the board found, as the other runners say it. Raises what the board failed with."""
    if failed := raw.get("failed"):
        raise _ERRORS.get(failed["exit_code"], DeviceError)(failed["message"], failed["hint"])
    if job["action"] == "probe":
        return {"device": dict(raw["device"]), "capabilities": []}
    if raw.get("schema") != SCHEMA:
        raise DeviceError(f"the board's program says {raw.get('schema')!r:.60}, not {SCHEMA!r}", "deploy again")
    folder = Path(job["folder"])
    vectors = compare_outputs(raw["outputs"], folder)
    found: dict[str, Any] = {
        "ok": vectors["ok"],
        "vectors": vectors,
        "device": raw["device"],
        "release": raw["release"],
        "engine": raw["engine"],
    }
    if "times" in raw:
        build = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        found |= _measured(raw, build.get("names") or {})
        found["conformance"] = conformance(found["nodes"], build["layers"])
        found["executed"] = executed(found["nodes"], build["layers"])
    return found


def executed(rows: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """The engine's layers in the order they run in: what each computes of the plan's, as planned and as executed, and
    how long it takes when each is timed (together they take longer than the engine does by itself).
    """
    planned = {row["name"]: row["precision"] for row in layers}
    return [
        {
            "name": row["name"],
            "planned": {name: planned[name] for name in row["nodes"] if name in planned and not row["moves"]},
            "executed": row["precision"],
            "latency_ms": row["latency_ms"],
        }
        for row in rows
    ]


def conformance(rows: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, str]]) -> Conformance:
    """The planned types of a bundle (``layers`` of its ``build.json``) against those that its engine shows."""
    words: dict[str, str] = {}
    for row in rows:
        if not row["moves"]:
            words |= dict.fromkeys(row["nodes"], row["precision"])
    planned = {row["name"]: Precision(row["precision"]) for row in layers}
    # A region that the compiler fused whole names its first node and its last, and shows no types.
    hidden = any(row["region"] for row in rows)
    if not any(words.get(name) for name in planned):
        unknown = "all layers are in regions that show no types" if hidden else _NO_TYPES
        return Conformance(len(planned), 0, unknown=unknown)
    missing = "not shown" if hidden else "no layer of the engine by that name"
    mismatches = tuple(
        Mismatch(name, precision, words.get(name) or missing)
        for name, precision in planned.items()
        if not executes_as(precision, words.get(name, ""))
    )
    return Conformance(len(planned), len(planned) - len(mismatches), mismatches)


def compare_outputs(reports: Sequence[str], folder: Path) -> dict[str, Any]:
    """The outputs of the test vectors, as trtexec reports them, against those that the bundle expects."""
    outputs = [read_outputs(text) for text in reports]
    digest = hashlib.sha256("".join(reports).encode()).hexdigest()
    return {**_compared(outputs, folder, _DIGITS), "outputs_sha256": digest}


def vectors_here(adapter: Backend, folder: Path, threads: int) -> dict[str, Any]:
    """The test vectors of a bundle with the numerics that its plan promises, on a machine that cannot build it."""
    import numpy as np

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["artifact"]
    artifact = Artifact(folder / manifest["path"], (), Precision(manifest["hint"]), 0)
    with np.load(folder / "vectors.npz", allow_pickle=False) as arrays:
        count = int(arrays["count"])
        samples = [
            {key.removeprefix(f"input/{index}/"): arrays[key] for key in arrays if key.startswith(f"input/{index}/")}
            for index in range(count)
        ]
        names = [key.removeprefix("tolerance/") for key in arrays if key.startswith("tolerance/")]
    run = adapter.session(artifact, threads, names)
    vectors = _compared([run(sample) for sample in samples], folder, 0.0)
    return {"ok": vectors["ok"], "vectors": vectors}


def _compared(found: Sequence[Mapping[str, np.ndarray]], folder: Path, digits: float) -> dict[str, Any]:
    """``digits``: what writing them down may have moved values by, as a share of each."""
    import numpy as np

    worst = 0.0
    with np.load(folder / "vectors.npz", allow_pickle=False) as expected:
        tolerances = {key.removeprefix("tolerance/"): float(expected[key]) for key in expected if "tolerance/" in key}
        if len(found) != int(expected["count"]):
            raise DeviceError(f"{len(found)} of {int(expected['count'])} test vectors came back from the board")
        for index, outputs in enumerate(found):
            for name, tolerance in tolerances.items():
                wanted = expected[f"output/{index}/{name}"].astype(np.float64)
                if name not in outputs or outputs[name].size != wanted.size:
                    raise DeviceError(f"the engine on the board has no output {name} of {wanted.size} values")
                got = np.asarray(outputs[name], np.float64).reshape(wanted.shape)
                off = np.maximum(np.abs(got - wanted) - digits * np.abs(wanted), 0.0) / tolerance
                worst = max(worst, float(np.max(np.where(np.isfinite(off), off, np.inf), initial=0.0)))
    return {"ok": worst <= 1.0, "count": len(found), "worst_error_share": worst}


def _measured(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    _require_settings(raw["settings"])
    timings = read_times(raw["times"])
    before, after = (_facts(raw, raw[key]) for key in ("before", "after"))
    return {
        "threads": 1,
        "results": [
            {
                "name": "bundle",
                "latency_ms": _latency([one.latency_ms for one in timings]),
                "compute_ms": _latency([one.compute_ms for one in timings]),
            }
        ],
        "nodes": rows_of(raw["layers"], raw["profile"], names),
        "before": before,
        "after": after,
        "clocks": raw["clocks"],
        "conditions": _conditions(raw, len(timings), before, after),
    }


def _require_settings(said: str) -> None:
    """trtexec measured with what it was asked to: its defaults turned round with release 11."""
    wanted = {"Data transfers": TRANSFERS, "Spin-wait": SPIN_WAIT, "CUDA Graph": CUDA_GRAPH}
    for name, on in wanted.items():
        found = re.search(rf"{name}: (Enabled|Disabled)", said)
        if found and (found[1] == "Enabled") != on:
            raise DeviceError(f"trtexec measured with {name} {found[1].lower()}, which it was told otherwise")


def _latency(values: Sequence[float]) -> dict[str, float | int | None]:
    """Percentiles with their 95 % confidence intervals, from the binomial distribution alone: David and Nagaraja, Order
    Statistics, 3rd edition, section 7.1.
    """
    import numpy as np
    from scipy.stats import binom

    ordered = np.sort(values)
    count = len(ordered)
    found: dict[str, float | int | None] = {"n": count}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        low, high = int(binom.ppf(0.025, count, share)), int(binom.ppf(0.975, count, share)) + 1
        value = float(np.percentile(ordered, 100 * share))
        found[name] = value
        found[f"{name}_low"] = min(float(ordered[low - 1]), value) if low >= 1 else None
        found[f"{name}_high"] = max(float(ordered[high - 1]), value) if high <= count else None
    return found


def _facts(raw: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    clock, most, hottest, _ = state["sample"]
    return {
        **raw["device"],
        "governor": state["governor"] or None,
        "power_mode": state["power_mode"] or None,
        "clock_mhz": clock / 1e6 or None,
        "max_clock_mhz": most / 1e6 or None,
        "temperature_c": hottest / 1000 or None,
        "load_1min": state["load_1min"],
    }


def _conditions(
    raw: Mapping[str, Any], runs: int, before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    """Clocks are the GPU's, sampled each second; `rounds` are inferences, since trtexec discards none."""
    samples = raw["samples"] or [raw["after"]["sample"]]
    clocks = [row[0] / 1e6 for row in samples if row[0]]
    missing = {"other_load": _NOT_TIMED, "energy_mj": _NOT_TIMED, "memory": _NOT_TIMED}
    if not clocks:
        missing["clock_mhz"] = "the GPU's clock is not readable"
    if before["temperature_c"] is None:
        missing["temperature_c"] = "no thermal zone is readable"
    mode = f"nvpmodel {before['power_mode']}" if before["power_mode"] else ""
    return {
        "governor": before["governor"],
        "power_mode": ", ".join(word for word in (mode, f"clocks {raw['clocks']}") if word),
        "clock_mhz": statistics.median(clocks) if clocks else None,
        "lowest_clock_mhz": min(clocks, default=None),
        "max_clock_mhz": before["max_clock_mhz"],
        "temperature_before_c": before["temperature_c"],
        "temperature_after_c": after["temperature_c"],
        "rounds": runs,
        "throttled": sum(row[3] for row in samples) / len(samples),
        "missing": missing,
    }


__all__ = ["compare_outputs", "conformance", "document", "executed", "reading", "vectors_here"]
