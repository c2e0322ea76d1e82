from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from edgekit.backends import Artifact, openvino
from edgekit.cost import measured
from edgekit.cost.measured import Build, MeasuredCosts, measure_costs, rank_float_precisions
from edgekit.errors import DeviceError
from edgekit.types import Precision
from tests.quantized import Case, case, host

FP32, INT8, W8 = Precision.FP32, Precision.INT8, Precision.W8


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real measurements, only shorter: what is tested is not how exact they are."""
    monkeypatch.setattr(measured, "_PROFILE_S", 0.02)
    monkeypatch.setattr(measured, "_RACE_S", 0.2)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(number) for number in range(10**6))  # type: ignore[return-value]


def builder(source: Case, folders: Iterator[Path]) -> Build:
    return lambda plan, base: openvino.convert(source.write(plan), next(folders), base)


def measure(source: Case, build: Build, *offered: Precision, weight_only: bool = False) -> MeasuredCosts:
    return measure_costs(source.graph, host(), build, FP32, offered=offered, weight_only=weight_only, interval=0.1)


def offered_in(costs: MeasuredCosts, precision: Precision) -> set[str]:
    return {name for name, row in costs.table.latency_ms.items() if precision in row}


@pytest.mark.slow
def test_a_convolutional_net_has_every_option_and_adds_up(folders: Iterator[Path]) -> None:
    source = case("conv_net")
    costs = measure(source, builder(source, folders), FP32, INT8, W8, weight_only=True)
    table = costs.table
    assert list(table.latency_ms) == source.names
    assert offered_in(costs, FP32) == offered_in(costs, INT8) == offered_in(costs, W8) == set(source.names)
    assert costs.dropped == ()
    for precision in (FP32, INT8, W8):
        total = sum(row[precision] for row in table.latency_ms.values())
        assert total == pytest.approx(table.anchors_ms[precision], rel=1e-6)
        assert total > 0
    assert all(ms >= 0 for row in table.latency_ms.values() for ms in row.values())
    assert table.boundary_ms_per_element >= 0
    assert (table.base, table.interval) == (FP32, 0.1)


@pytest.mark.slow
def test_weight_only_that_gains_nothing_is_dropped_with_a_line(folders: Iterator[Path]) -> None:
    source = case("inverted_residual")  # weights are unpacked at load: as fast as float, never 3 % faster
    costs = measure(source, builder(source, folders), FP32, INT8, W8)
    if offered_in(costs, W8):  # this machine was disturbed for the whole race: then it must look like a gain
        assert costs.table.anchors_ms[W8] < 0.97 * costs.table.anchors_ms[FP32]
        return
    (line,) = [row for row in costs.dropped if row.option == "w8"]
    assert line.scope == "model"
    assert "x the time of fp32" in line.reason
    assert W8 not in costs.table.anchors_ms


@pytest.mark.slow
def test_nothing_but_float_offered(folders: Iterator[Path]) -> None:
    source = case("conv_transpose")
    costs = measure(source, builder(source, folders), FP32)
    assert {tuple(row) for row in costs.table.latency_ms.values()} == {(FP32,)}
    assert list(costs.table.anchors_ms) == [FP32]
    assert costs.table.boundary_ms_per_element == 0
    assert costs.dropped == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept_float"), [("lstm", {"LSTM_4"}), ("gru", {"GRU_10"}), ("transformer", {"MatMul_24", "MatMul_36"})]
)
def test_layers_without_a_true_int8_are_dropped_one_by_one(
    name: str, kept_float: set[str], folders: Iterator[Path]
) -> None:
    source = case(name)
    costs = measure(source, builder(source, folders), FP32, INT8, W8, weight_only=True)
    recurrent = kept_float if name != "transformer" else set()
    assert {row.scope for row in costs.dropped if row.option == "int8"} == kept_float
    assert {row.scope for row in costs.dropped if row.option == "w8"} == recurrent
    assert all(row.reason for row in costs.dropped)
    assert offered_in(costs, INT8) == set(source.names) - kept_float
    assert offered_in(costs, W8) == {layer.name for layer in source.graph.layers if layer.weights} - recurrent
    assert offered_in(costs, FP32) == set(source.names)


def failing(source: Case, folders: Iterator[Path], kinds: set[str], how: str) -> Build:
    """A runtime that refuses models with int8 layers of some kinds: the file does not compile, or not convert."""
    types = {layer.name: layer.op_type for layer in source.graph.layers}
    build = builder(source, folders)

    def refuse(plan: Mapping[str, Precision], base: Precision) -> Artifact:
        bad = any(precision is INT8 and types[name] in kinds for name, precision in plan.items())
        if bad and how == "convert":
            return openvino.convert(b"not a model", next(folders), base)
        artifact = build(plan, base)
        if bad:
            artifact.path.write_text(artifact.path.read_text().replace('type="FakeQuantize"', 'type="FakeNews"'))
        return artifact

    return refuse


@pytest.mark.slow
@pytest.mark.parametrize("how", ["convert", "compile"])
def test_a_kind_of_layer_that_does_not_compile_in_int8_stays_float(how: str, folders: Iterator[Path]) -> None:
    source = case("conv_transpose")
    costs = measure(source, failing(source, folders, {"ConvTranspose"}, how), FP32, INT8)
    kinds = {layer.name: layer.op_type for layer in source.graph.layers}
    assert {kinds[name] for name in offered_in(costs, INT8)} == {"Conv"}
    assert {kinds[row.scope] for row in costs.dropped} == {"ConvTranspose"}
    assert all("refuses the model" in row.reason and "\n" not in row.reason for row in costs.dropped)


@pytest.mark.slow
def test_no_int8_at_all_where_nothing_compiles(folders: Iterator[Path]) -> None:
    source = case("conv_transpose")
    costs = measure(source, failing(source, folders, {"Conv", "ConvTranspose"}, "compile"), FP32, INT8)
    assert offered_in(costs, INT8) == set()
    assert {row.scope for row in costs.dropped} == set(source.names)
    assert INT8 not in costs.table.anchors_ms


def test_a_float_model_that_does_not_run_is_an_error(folders: Iterator[Path]) -> None:
    source = case("conv_net")
    build = builder(source, folders)

    def broken(plan: Mapping[str, Precision], base: Precision) -> Artifact:
        artifact = build(plan, base)
        artifact.path.write_text("<net/>")
        return artifact

    with pytest.raises(DeviceError):
        measure(source, broken, FP32, INT8)


@pytest.mark.slow
def test_float_precisions_are_raced_and_fp32_always_stays(folders: Iterator[Path]) -> None:
    source = case("conv_net")
    build = builder(source, folders)
    every = (Precision.BF16, Precision.FP16)
    ratios, dropped = rank_float_precisions(host(), build, every)
    assert ratios[FP32] == 1.0
    assert list(ratios.values()) == sorted(ratios.values())
    assert {*ratios, *(Precision(row.option) for row in dropped)} == {FP32, *every}
    assert all(ratio <= 0.97 for precision, ratio in ratios.items() if precision is not FP32)
    assert all("x the time of fp32" in row.reason for row in dropped)
    assert rank_float_precisions(host(), build, ()) == ({FP32: 1.0}, ())


@pytest.mark.slow
@pytest.mark.parametrize("base", [Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("name", ["conv_transpose", "lstm", "gru"])
def test_a_layer_without_a_16_bit_kernel_is_offered_what_it_really_executes_in(
    folders: Iterator[Path], name: str, base: Precision
) -> None:
    source = case(name)
    costs = measure_costs(
        source.graph,
        host(),
        builder(source, folders),
        base,
        offered=(FP32, base, INT8),
        weight_only=False,
        interval=0.1,
    )
    floats = costs.table.floats
    assert set(floats) == set(source.names)
    for layer, row in costs.table.latency_ms.items():
        assert set(row) <= {floats[layer], INT8}
    rows = host().profile({"float": openvino.convert(source.write({}), next(folders), base)}, 0.02, 1)["float"]
    executed = measured.executed_precisions(openvino.executed_nodes(rows, source.graph))
    assert all(openvino.executes_as(floats[layer], executed[layer]) for layer in source.names)
