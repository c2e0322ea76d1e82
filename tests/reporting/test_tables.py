"""What the shorter commands print: every figure with its kind, whole at 80 columns, names as they are."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

import edgekit
from edgekit import catalog, releases
from edgekit.api import BenchResult
from edgekit.graph import Tensor
from edgekit.inspection import Inspection, LayerReport
from edgekit.outcome import PlanResult
from edgekit.prediction import Evidence, LayerCost, PredictedCost
from edgekit.reporting import tables
from edgekit.types import Figure, Kind, Latency, Precision
from tests.reporting.sample_result import pruned_result, sample_result

GOLDEN = Path(__file__).parent / "golden/plan.txt"
HOSTILE = ("[red]x[/red]", "[/]", ":warning:", "a\x1b[2Jb", "x\\")


def printed(show: Callable[..., None], *found: Any, width: int = 80) -> str:
    target = io.StringIO()
    show(*found, Console(file=target, width=width, no_color=True))
    return target.getvalue()


def squeezed(text: str) -> str:
    return " ".join(text.split())


def plan_result(name: str = "") -> PlanResult:
    sample = sample_result()
    rows = tuple(replace(row, name=row.name + name) for row in sample.layers)
    return PlanResult(
        target="host",
        device=sample.device,
        model=replace(sample.model, name=f"model{name}.onnx"),
        data=sample.data,
        recipe=sample.recipe,
        budget=sample.budget,
        plan=sample.plan,
        metric=sample.candidates[0].metric,
        drop=0.0033,
        layers=rows,
        options_dropped=sample.options_dropped,
        pareto=sample.pareto,
        warnings=(f"a warning{name}",),
    )


def pruned_plan_result(name: str = "") -> PlanResult:
    sample = pruned_result()
    groups = tuple(
        replace(
            group,
            name=group.name + name,
            reason=group.reason + name,
            producers=tuple(layer + name for layer in group.producers),
            consumers=tuple(layer + name for layer in group.consumers),
        )
        for group in sample.groups
    )
    return replace(
        plan_result(name),
        plan=sample.plan,
        layers=tuple(replace(row, name=row.name + name) for row in sample.layers),
        pareto=sample.pareto,
        groups=groups,
        fixed=tuple(replace(one, reason=one.reason + name) for one in sample.fixed),
        prices=sample.prices,
        rounds=tuple(replace(row, action=row.action + name) for row in sample.rounds),
    )


def prediction(layers: int = 60, name: str = "") -> PredictedCost:
    return PredictedCost(
        model=f"model{name}.onnx",
        target="host",
        latency_ms=Figure(Kind.PREDICTED, 9.05, 8.3, 9.8, "profiles"),
        weight_bytes=3_214_336,
        peak_activation_bytes=2_211_840,
        layers=tuple(LayerCost(f"conv{n}{name}", "Conv", Precision.INT8, n / 100) for n in range(layers)),
        profile=Evidence("host", f"measured here{name}"),
        notes=(f"conv3{name} keeps fp32",),
    )


def inspection(name: str = "") -> Inspection:
    tensor = Tensor(f"x{name}", (1, 3, 8, 8), "float32")
    layer = LayerReport(f"conv{name}", "Conv", 64, 1_234_567, 4321, (Precision.FP32, Precision.INT8))
    return Inspection(f"model{name}.onnx", "ab" * 32, (tensor,), (tensor,), {"Conv": 1}, (layer,), 1_234_567, 4321, 99)


def bench(name: str = "") -> BenchResult:
    after = {"cpu": f"cpu{name}", "runtime": f"openvino{name}", "governor": "", "temperature_c": None, "load_1min": 0.5}
    return BenchResult(f"out{name}", Latency(9.31, 9.62, 10.88, 801), 1, {"before": after, "after": after})


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Figure(Kind.PREDICTED, 9.05, 8.3, 9.8), "9.05 ms (predicted, 90 % interval 8.3..9.8)"),
        (Figure(Kind.MEASURED, 9.05, 8.3, 9.8), "9.05 ms (measured, 8.3..9.8)"),
        (Figure(Kind.COUNTED, 12.0), "12 ms (counted)"),
        (Figure(Kind.NONE, source="no device at hand"), "none (no device at hand)"),
    ],
)
def test_figures_carry_their_kind(figure: Figure, text: str) -> None:
    assert tables.figure(figure, "ms") == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (1_234_567, "1.23 M"), (5.5e9, "5.5 G")]
)
def test_counts(value: float, text: str) -> None:
    assert tables.count(value) == text


def test_inspection_of_a_real_model(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="[bold]first", pads=[1, 1, 1, 1])
    ends = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 8, 8, 8]))
    ]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "net.onnx")
    text = printed(tables.print_inspection, edgekit.inspect(tmp_path / "net.onnx"))
    assert "in   x  float32 1x3x8x8" in text
    assert "1 layers · 13.8 k MACs · 864B weights" in text
    assert "[bold]first" in text
    assert "may try" not in text  # nothing is known without a target
    assert "may try" in printed(tables.print_inspection, edgekit.inspect(tmp_path / "net.onnx", target="host"))


def test_targets_that_ship() -> None:
    found = catalog.targets()
    text = printed(tables.print_targets, found.values())
    for name in found:
        assert name in text
    for target in found.values():
        profile = catalog.device_profile(target.device_profile)
        lacking = releases.lacking(target, profile)
        shown = squeezed(printed(tables.print_target, target, profile, lacking))
        for option, why in lacking.items():
            assert f"{option}: {why[:20]}" in shown
        assert ("not offered" in shown) == bool(lacking)
        assert ("runs on dla" in shown) == bool(target.accelerator)
        assert f"prediction 90 % interval of ±{profile.prediction_error:.0%}" in shown
        assert squeezed(profile.evidence)[:40] in shown
        for source in profile.sources:
            assert source[:30] in shown


def test_prediction_shows_the_dearest_layers() -> None:
    text = printed(tables.print_prediction, prediction())
    assert "9.05 ms (predicted, 90 % interval 8.3..9.8)" in text
    assert "conv59" in text
    assert "conv3 keeps fp32" in text
    assert "conv10 " not in text
    assert text.index("conv59") < text.index("conv58")
    assert f"and {60 - tables.MOST_ROWS} cheaper layers" in text


def test_plan_says_what_was_decided_and_why() -> None:
    text = squeezed(printed(tables.print_plan, plan_result(), width=140))
    for said in (
        "latency 9.05 ms (predicted, 90 % interval 8.3..9.8)",
        "metric ctc-exact: float 0.9300, the plan loses +0.0033 (measured on 300 samples)",
        "proof optimal within 0.0042 %; binding budgets: max_drop",
        "38 int8",
        "9 fp32",
        "dropped bf16: takes 1.69x",
        "warning a warning",
    ):
        assert said in text
    for row in sample_result().layers:
        assert row.name in text
    assert "int8 costs accuracy" in text


def test_plan_of_channels_is_the_one_that_was_seen_to_read_well() -> None:
    """What a change of wording does to it is looked at, then ``golden/plan.txt`` is written anew."""
    short = replace(pruned_plan_result(), layers=pruned_plan_result().layers[:6])
    text = printed(tables.print_plan, short, width=100)
    assert [line.rstrip() for line in text.splitlines()] == GOLDEN.read_text().splitlines()


def test_plan_without_channels_does_not_speak_of_them() -> None:
    text = printed(tables.print_plan, plan_result(), width=140)
    for word in ("channel", "pruning", "keep", "fixed", "price", "round"):
        assert word not in text


def test_plan_without_losses_or_with_odd_ones() -> None:
    found = plan_result()
    rows = tuple(
        replace(row, loss={row.precision: loss})
        for row, loss in zip(found.layers, (0.0, float("nan"), float("inf"), 1e-30, -1.0), strict=False)
    )
    assert printed(tables.print_plan, replace(found, layers=rows, options_dropped=(), warnings=()))


def test_bench_says_how_it_was_measured() -> None:
    text = squeezed(printed(tables.print_bench, bench()))
    assert "out: p50 9.31 ms, p90 9.62 ms, p99 10.9 ms (measured, 801 runs, 1 thread)" in text
    assert "governor not readable, temperature not readable, load 0.5" in text
    warm = bench()
    warm.device["after"] |= {"governor": "performance", "temperature_c": 71.3}
    assert "performance, 71 °C" in squeezed(printed(tables.print_bench, replace(warm, threads=4)))


SHOWN: tuple[tuple[Callable[..., None], Callable[[str], Any]], ...] = (
    (tables.print_inspection, inspection),
    (tables.print_plan, plan_result),
    (tables.print_plan, pruned_plan_result),
    (tables.print_prediction, lambda name: prediction(5, name)),
    (tables.print_bench, bench),
)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize(("show", "make"), SHOWN)
def test_names_are_shown_as_they_are(show: Callable[..., None], make: Callable[[str], Any], hostile: str) -> None:
    text = printed(show, make(hostile), width=250)
    clean = printed(show, make("clean"), width=250)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert text.count(hostile.replace("\x1b", "�")) == clean.count("clean") > 0


@pytest.mark.parametrize(("show", "make"), SHOWN)
def test_fits_80_columns_with_long_names(show: Callable[..., None], make: Callable[[str], Any]) -> None:
    text = printed(show, make("/block" * 30))
    assert max(map(len, text.splitlines())) <= 80


def test_cells_take_no_markup() -> None:
    rows = tables.table(("[red]a", "b"), ("b",))
    tables.add(rows, "[bold]x", ":smile:", style="bold")
    target = io.StringIO()
    Console(file=target, width=80, no_color=True).print(rows)
    assert [line.split() for line in target.getvalue().splitlines()] == [["[red]a", "b"], ["[bold]x", ":smile:"]]
