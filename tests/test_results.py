"""The document of a deployment: its shape is a promise, and it survives the way through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import results
from edgekit.errors import InputError
from edgekit.types import Candidate, Conformance, Figure, Kind, Mismatch, Plan, Precision
from tests.reporting.sample_result import pruned_result, sample_result, with_conditions

GOLDEN = Path(__file__).parent / "reporting/golden/deploy.json"
# Fields that came after the first documents were written: who wrote those knew nothing of them.
ADDED = {
    "": ("warnings", "groups", "fixed", "prices", "conditions", "vectors", "demand", "plan_demand"),
    "device": ("power_mode",),
    "plan": ("groups", "compressed"),
    "layers": ("mask",),
    "conformance": ("unknown",),
    "pareto": ("pruned_channels",),
    "rounds": ("predicted_loss", "measured_loss"),
    "candidates": ("speedup_ci", "energy_mj", "peak_memory_bytes"),
}
ADDED_TO_LATENCIES = ("p50_low", "p50_high", "p90_low", "p90_high", "p99_low", "p99_high")


def shape(document: Any, path: str = "") -> dict[str, str]:
    """Path -> JSON type of every field that is not null; lists and mappings by precision or package are one entry."""
    if isinstance(document, dict):
        counted = ("versions", "candidates[].precisions", "layers[].latency_ms", "layers[].loss", "conditions.missing")
        by_name = path in counted
        parts = [shape(value, f"{path}.{'*' if by_name else key}".lstrip(".")) for key, value in document.items()]
    elif isinstance(document, list):
        parts = [shape(value, f"{path}[]") for value in document]
    else:
        kinds = {bool: "bool", int: "number", float: "number", str: "text"}
        parts = [] if document is None else [{path: kinds[type(document)]}]
    return {key: kind for part in parts for key, kind in part.items()}


def complete_result() -> results.DeployResult:
    """One in which no list is empty."""
    mismatch = Mismatch("/backbone/blocks.0/pointwise_conv/Conv_0", Precision.INT8, "f32")
    return replace(with_conditions(pruned_result()), conformance=Conformance(47, 46, (mismatch,)))


def test_the_shape_is_the_one_that_was_promised() -> None:
    """A field that is gone, renamed or of another type breaks who reads `--json`: then `SCHEMA` must change too."""
    document = json.loads(json.dumps(results.to_json(complete_result()), allow_nan=False))
    assert {"schema": results.SCHEMA, "fields": shape(document)} == json.loads(GOLDEN.read_text())


def test_the_design_s_fields_are_there() -> None:
    document = results.to_json(sample_result())
    assert document["model"]["sha256"] == sample_result().model.sha256
    assert document["plan"]["digest"] == sample_result().plan.digest
    assert set(document["plan"]["layers"][0]) == {"name", "op_type", "precision", "keep", "mask"}
    assert {"value", "low", "high"} <= set(document["plan"]["predicted"]["latency_ms"])
    assert {"p50", "p90", "p99", "n"} <= set(document["candidates"][0]["latency_ms"])
    assert {"planned", "matched", "mismatches"} <= set(document["conformance"])
    assert [candidate["name"] for candidate in document["candidates"]][:2] == ["float", "int8"]


finite = st.floats(allow_nan=False, allow_infinity=False)
candidates = st.builds(Candidate, sqnr_db=finite | st.just(math.inf))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_json_and_back_changes_nothing(data: st.DataObject) -> None:
    st.register_type_strategy(float, finite)
    result = data.draw(
        st.builds(
            results.DeployResult,
            candidates=st.lists(candidates, max_size=2).map(tuple),
            layers=st.lists(st.builds(results.LayerDetail), max_size=2).map(tuple),
            plan=st.builds(Plan),
            schema=st.just(results.SCHEMA),
        )
    )
    text = json.dumps(results.to_json(result), allow_nan=False)
    assert results.from_json(json.loads(text)) == result
    assert json.dumps(results.to_json(results.from_json(json.loads(text))), allow_nan=False) == text


def test_what_is_not_finite_is_null_and_numpy_is_plain() -> None:
    plain = sample_result()
    odd = replace(
        plain.candidates[1],
        weight_bytes=np.int64(5),  # type: ignore[arg-type]
        sqnr_db=np.float64(9.5),
        drop=Figure(Kind.MEASURED, math.nan, -math.inf, math.inf),
    )
    document = results.to_json(replace(plain, candidates=(plain.candidates[0], odd)))
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again["candidates"][0]["sqnr_db"] is None
    assert again["candidates"][1]["drop"] == {
        "kind": "measured",
        "value": None,
        "low": None,
        "high": None,
        "source": "",
    }
    assert (again["candidates"][1]["weight_bytes"], again["candidates"][1]["sqnr_db"]) == (5, 9.5)
    assert results.from_json(again).candidates[0].sqnr_db == math.inf


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        (("target",), 3, "result.target"),
        (("device", "threads"), "1", "result.device.threads"),
        (("device", "threads"), True, "result.device.threads"),
        (("budget", "latency_ms"), "10", "result.budget.latency_ms"),
        (("candidates", 1, "weight_bytes"), 2.5, "result.candidates[1].weight_bytes"),
        (("candidates", 1, "latency_ms", "p50"), "fast", "result.candidates[1].latency_ms.p50"),
        (("candidates", 1, "latency_ms", "p50"), True, "result.candidates[1].latency_ms.p50"),
        (("candidates", 1, "kind"), "guessed", "result.candidates[1].kind"),
        (("plan", "layers", 4, "precision"), "int3", "result.plan.layers[4].precision"),
        (("plan", "layers"), None, "result.plan.layers"),
        (("plan",), [], "result.plan"),
        (("warnings",), "careful", "result.warnings"),
        (("layers",), {}, "result.layers"),
        (("pareto",), "", "result.pareto"),
        (("layers", 0, "latency_ms"), {"int3": 1.0}, "result.layers[0].latency_ms"),
        (("schema",), "edgekit/deploy/9", "edgekit/deploy/1"),
        (("plan", "digest"), "0" * 64, "plan.digest"),
        (("plan", "layers", 4, "keep"), 0.5, "plan.digest"),
        (("plan", "groups", 0, "kept"), 16, "plan.digest"),
        (("plan", "groups"), None, "result.plan.groups"),
        (("groups", 0, "channels"), 2.5, "result.groups[0].channels"),
        (("groups", 1, "producers"), "conv", "result.groups[1].producers"),
        (("groups", 1, "options", 0, "loss"), "low", "result.groups[1].options[0].loss"),
        (("prices", 0, "then"), "less", "result.prices[0].then"),
        (("fixed", 0, "reason"), None, "result.fixed[0].reason"),
    ],
)
def test_a_wrong_field_is_named(where: tuple[str | int, ...], value: object, named: str) -> None:
    document = json.loads(json.dumps(results.to_json(pruned_result())))
    inside: Any = document
    for key in where[:-1]:
        inside = inside[key]
    inside[where[-1]] = value
    with pytest.raises(InputError) as caught:
        results.from_json(document)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", sorted({*results.to_json(sample_result())} - {*ADDED[""]}))
def test_a_missing_field_is_an_error(field: str) -> None:
    document = results.to_json(sample_result())
    del document[field]
    with pytest.raises(InputError):
        results.from_json(document)


def test_documents_of_before_pruning_are_read() -> None:
    document = json.loads(json.dumps(results.to_json(sample_result())))
    for where, fields in ADDED.items():
        inside = document[where] if where else document
        for row in inside if isinstance(inside, list) else [inside]:
            for field in fields:
                del row[field]
    for row in document["candidates"]:
        for field in ADDED_TO_LATENCIES:
            del row["latency_ms"][field]
    found = results.from_json(document)
    assert found == replace(sample_result(), warnings=())
    assert (found.groups, found.fixed, found.prices, found.plan.groups) == ((), (), (), ())
    assert found.plan.digest == document["plan"]["digest"], "what prunes nothing has the digest it always had"


def test_channels_are_part_of_the_decisions() -> None:
    decisions, measurements = results.split(results.to_json(pruned_result()))
    assert [row["kept"] for row in decisions["plan"]["groups"]] == [24, 96, 64]
    assert {"groups", "fixed", "prices"} <= set(measurements), "what they are made of was measured"
    plan = pruned_result().plan
    whole = tuple(replace(group, kept=group.channels) for group in plan.groups)
    assert replace(plan, groups=whole).digest == replace(plan, groups=()).digest != plan.digest


@pytest.mark.parametrize("junk", [None, 1, "text", [], {}, {"schema": results.SCHEMA}, {"schema": ["x"]}])
def test_junk_is_no_result(junk: object) -> None:
    with pytest.raises(InputError):
        results.from_json(junk)


def test_keys_of_a_later_version_are_ignored() -> None:
    document = results.to_json(sample_result())
    document["moon_phase"] = "full"
    document["device"]["colour"] = "green"
    assert results.from_json(document) == sample_result()


def test_decisions_hold_nothing_measured_and_the_halves_make_the_whole() -> None:
    result = sample_result()
    decisions, measurements = results.split(results.to_json(result))
    assert not set(decisions) & set(measurements)
    assert not {"created", "device", "candidates", "chosen", "prediction", "bundle"} & set(decisions)
    assert result.bundle not in json.dumps(measurements)
    assert results.join(decisions, measurements, "elsewhere") == replace(result, bundle="elsewhere")


@pytest.mark.parametrize(
    ("changed", "value"), [("count", 0), ("count", 10**12), ("macs", -1), ("precision", "int3"), ("count", 1.5)]
)
def test_a_demand_of_another_kind_is_refused(changed: str, value: object) -> None:
    """What is looked at kernel by kernel, and priced, is what a network can have."""
    kernel = results.KernelCount("conv", 2, 10, 10, 10, 10, precision=Precision.INT8)
    asked = results.Demand((kernel,), 0)
    document = json.loads(json.dumps(results.to_json(replace(sample_result(), demand=asked, plan_demand=asked))))
    assert results.from_json(document).plan_demand == asked
    document["plan_demand"]["kernels"][0][changed] = value
    with pytest.raises(InputError, match=r"plan_demand\.kernels\[0\]") as caught:
        results.from_json(document)
    assert "\n" not in str(caught.value)
    document["plan_demand"] = {"kernels": [], "int8_crossing_elements": -1}
    with pytest.raises(InputError, match=r"invalid value @ result\.plan_demand"):
        results.from_json(document)
