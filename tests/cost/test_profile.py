from __future__ import annotations

import math
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.profiles.published import published, tables
from edgekit.catalog import device_profiles, structure
from edgekit.cost.profile import REACH, cost_table, predict_from_profile, predict_work
from edgekit.cost.table import predict_ms
from edgekit.cost.work import FEATURES, MAC_KINDS, Work, macs_by_kind, work_of
from edgekit.entries import Costs, DeviceProfile, Memory, Processor
from edgekit.errors import InputError
from edgekit.graph import Graph, load
from edgekit.types import Figure, Kind, Precision
from tests.zoo import Net

FP32, FP16, INT8, W8 = Precision.FP32, Precision.FP16, Precision.INT8, Precision.W8
FACTORS = dict(zip(FEATURES, [0.1, 0.01, 0.005, 2.0, 2.5, 2.0, 5.0, *[2.0] * 4, 1.5, 1.5], strict=True))


def costs(precision: Precision, scale: float = 1.0, **other: object) -> Costs:
    covariance = tuple("0 " * i + "0.04" for i in range(len(FEATURES)))
    given = Costs(
        "tflite",
        "cpu",
        precision,
        12,
        f"12 rows in {precision.value}",
        {name: scale * factor for name, factor in FACTORS.items()},
        covariance,
        0.15,
        1.7,
        ("conv", "conv3x3", "pointwise", "depthwise", "matmul"),
        (1e6, 1e9),
        (1e4, 1e7),
        4,
    )
    return replace(given, **other)


def profile(*some: Costs) -> DeviceProfile:
    part = Processor("four cores", "cpu", "core", {FP32: 30.0, INT8: 60.0}, 4)
    return DeviceProfile("board", "", "", memory=Memory(10.0, (1024,)), processors=(part,), costs=some)


BOARD = profile(costs(FP32), costs(INT8))
KERNEL = Work("a", "conv3x3", 10**7, 10**5, 10**4, 10**5)


def ask(work: list[Work], precision: Precision = FP32, board: DeviceProfile = BOARD, **how: object) -> Figure:
    layers = dict.fromkeys([w.layer for w in work] or ["a"], precision)
    return predict_work(work, layers, board, **{"runtime": "tflite", "threads": 4, **how})


@st.composite
def networks(draw: st.DrawFn) -> list[Work]:
    sizes = st.integers(10**3, 10**6)
    kinds = st.sampled_from(["conv", "conv3x3", "pointwise", "depthwise", "matmul"])
    kernel = st.builds(Work, st.just("l"), kinds, st.integers(10**6, 10**7), sizes, sizes, sizes)
    found = draw(st.lists(kernel, min_size=1, max_size=8))
    return [replace(w, layer=f"l{i}") for i, w in enumerate(found)]


@given(networks(), st.sampled_from([FP32, INT8]))
def test_the_interval_contains_the_value(work: list[Work], precision: Precision) -> None:
    figure = ask(work, precision)
    assert figure.kind is Kind.PREDICTED
    assert 0 < figure.low < figure.value < figure.high
    assert figure.high / figure.value == pytest.approx(figure.value / figure.low)
    assert "12 rows" in figure.source
    assert "board" in figure.source


@given(
    networks(), st.integers(0, 7), st.integers(0, 10**6), st.sampled_from(["macs", "input_elements", "output_elements"])
)
def test_more_work_is_never_predicted_faster(work: list[Work], place: int, more: int, what: str) -> None:
    place %= len(work)
    larger = [replace(w, **{what: getattr(w, what) + more}) if i == place else w for i, w in enumerate(work)]
    assert ask(larger).value >= ask(work).value
    assert ask([*work, KERNEL]).value > ask(work).value


@given(networks(), st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 10**6))
def test_a_mixed_plan_lies_between_the_uniform_ones_but_for_its_crossings(
    work: list[Work], choice: list[bool], crossed: int
) -> None:
    board = profile(costs(FP32), costs(INT8, 0.4))
    plan = {w.layer: INT8 if int8 else FP32 for w, int8 in zip(work, choice, strict=False)}
    mixed = predict_work(work, plan, board, "tflite", 4).value
    low, high = sorted((ask(work, INT8, board).value, ask(work, FP32, board).value))
    assert low * (1 - 1e-9) <= mixed <= high * (1 + 1e-9)
    assert predict_work(work, plan, board, "tflite", 4, crossed_elements=crossed).value >= mixed


def test_the_arithmetic() -> None:
    """One kernel by hand: 10 MMAC at 30 GMAC/s, 0.8 MB of activations and 40 kB of weights at 10 GB/s."""
    wanted = 0.1 + 0.01 + 2.0 * 1e7 / 30e6 + 1.5 * 8e5 / 1e7 + 1.5 * 4e4 / 1e7
    assert ask([KERNEL]).value == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        (ask([KERNEL], FP16), "fp16"),
        (ask([KERNEL], W8), "w8"),
        (ask([KERNEL], runtime="tensorrt"), "tensorrt"),
        (ask([KERNEL], threads=3), "3 threads"),
        (ask([KERNEL], processor="gpu"), "gpu"),
        (ask([replace(KERNEL, kind="recurrent")]), "recurrent"),
        (ask([replace(KERNEL, kind="recurrent", layer="b")]), "recurrent"),
        (ask([replace(KERNEL, kind="attention", macs=2 * 10**6), KERNEL]), "attention"),
        (ask([replace(KERNEL, macs=int(1e9 * REACH * 1.01))]), "MACs"),
        (ask([replace(KERNEL, macs=int(1e6 / REACH * 0.99))]), "MACs"),
        (ask([replace(KERNEL, output_elements=int(1e7 * REACH * 1.01))]), "elements"),
        (ask([replace(KERNEL, kind="move", macs=0)]), "none at all"),
        (ask([KERNEL], board=profile()), "nothing was measured"),
        (predict_work([], {}, BOARD, "tflite", 4), "without layers"),
    ],
)
def test_what_was_not_measured_gets_no_number(figure: Figure, reason: str) -> None:
    assert figure.kind is Kind.NONE
    assert (figure.value, figure.low, figure.high) == (None, None, None)
    assert reason in figure.source


def test_a_little_of_an_unknown_kind_is_allowed() -> None:
    assert ask([KERNEL, replace(KERNEL, kind="attention", macs=10**6)]).kind is Kind.PREDICTED


def test_kinds_alike_to_a_measured_one_are_predicted_with_the_doubt_said() -> None:
    board = profile(costs(FP32, kinds=("pointwise",)), costs(INT8, kinds=("depthwise",)))
    figure = ask([KERNEL], board=board)
    assert figure.kind is Kind.PREDICTED
    assert "no row has conv3x3" in figure.source
    assert ask([replace(KERNEL, kind="depthwise")], board=board).kind is Kind.NONE
    assert ask([KERNEL], INT8, board).kind is Kind.NONE


def test_the_interval_widens_with_the_distance_from_what_was_measured() -> None:
    def width(macs: float) -> float:
        figure = ask([replace(KERNEL, macs=int(macs))])
        return math.log(figure.high / figure.low)

    widths = [width(macs) for macs in (1e9, 2e9, 4e9, 7.9e9)]
    assert widths == sorted(widths)
    assert widths[-1] > 1.5 * widths[0]


def test_costs_with_other_factors_are_refused() -> None:
    bad = costs(FP32, factors={"call": 1.0}, covariance=("1.0",))
    with pytest.raises(InputError, match="factors: must be call, layer"):
        ask([KERNEL], board=profile(bad))


DOCUMENT = """
name = "b"
description = ""
evidence = ""
[memory]
bandwidth_gbs = 10
sizes_mb = [1024]
[[processors]]
name = "four cores"
kind = "cpu"
architecture = "core"
cores = 4
peak_gmacs = { fp32 = 30 }
[[costs]]
runtime = "tflite"
processor = "cpu"
precision = "fp32"
threads = 4
rows = 1
evidence = "one row"
factors = { call = 1.0, layer = 0.5 }
covariance = ["0.1", "0.0 0.1"]
spread = 0.2
interval = 1.7
kinds = ["conv"]
macs = [1, 2]
elements = [1, 2]
"""


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ('precision = "fp32"', 'precision = "fp31"', "must be one of fp32"),
        (
            'covariance = ["0.1", "0.0 0.1"]',
            'covariance = ["0.1", "0.1"]',
            "covariance: must have a text for each factor",
        ),
        (
            'covariance = ["0.1", "0.0 0.1"]',
            'covariance = ["0.1", "0.0 x"]',
            "covariance: must have a text for each factor",
        ),
        ("call = 1.0", "call = -1.0", "factors: must hold positive numbers"),
        ("macs = [1, 2]", "macs = [2, 1]", "macs: must be [lowest, highest]"),
        ("macs = [1, 2]", "macs = [1]", "macs: must be [lowest, highest]"),
        ('processor = "cpu"', 'processor = "gpu"', "costs: need a processor of kind gpu"),
        ("[memory]\nbandwidth_gbs = 10\nsizes_mb = [1024]\n", "", "memory: is needed by the costs"),
        ("bandwidth_gbs = 10", "bandwidth_gbs = 0", "bandwidth_gbs: must be positive"),
        ("peak_gmacs = { fp32 = 30 }", "peak_gmacs = { fp32 = 0 }", "peak_gmacs: must hold positive numbers"),
        ("peak_gmacs = { fp32 = 30 }", "peak_gmacs = { fp31 = 30 }", "must be one of fp32"),
        ("spread = 0.2", "spred = 0.2", "did you mean 'spread'"),
        ("rows = 1", 'rows = "1"', "must be a whole number"),
    ],
)
def test_bad_costs_are_refused_with_their_place(good: str, bad: str, told: str) -> None:
    assert structure(tomllib.loads(DOCUMENT), DeviceProfile, "b.toml").costs[0].covariance_rows() == (
        (0.1,),
        (0.0, 0.1),
    )
    assert good in DOCUMENT
    with pytest.raises(InputError) as caught:
        structure(tomllib.loads(DOCUMENT.replace(good, bad)), DeviceProfile, "b.toml")
    assert str(caught.value).startswith("b.toml: ")
    assert told in f"{caught.value} | {caught.value.hint}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """conv, its activation, a depthwise, a pointwise with a residual, a global pool and a classifier."""
    net = Net(0)
    x = net.input("x", [1, 16, 56, 56])
    a = net.op("Relu", net.conv(x, 16, 32, 3))
    b = net.op("Relu", net.conv(a, 32, 32, 3, group=32))
    c = net.op("Add", net.conv(b, 32, 32, 1), a)
    d = net.op("Flatten", net.op("GlobalAveragePool", c))
    y = net.op("MatMul", d, net.weight(net.rng.normal(size=(32, 10))))
    path: Path = tmp_path_factory.mktemp("net") / "small.onnx"
    onnx.save(net.model([y]), path)
    return load(path)


def test_the_kernels_of_a_graph(small: Graph) -> None:
    found = work_of(small)
    assert [w.kind for w in found] == ["conv3x3", "depthwise", "pointwise", "elementwise", "pool", "matmul"]
    assert macs_by_kind(found) == {
        "conv3x3": 32 * 16 * 9 * 56 * 56,
        "depthwise": 32 * 9 * 56 * 56,
        "pointwise": 32 * 32 * 56 * 56,
        "matmul": 320,
    }
    layers = [layer.name for layer in small.layers]
    assert [w.layer for w in found] == [*layers[:3], layers[2], layers[2], layers[3]]


def test_a_table_for_the_planner(small: Graph) -> None:
    table = cost_table(small, BOARD, "tflite", 4)
    assert table is not None
    assert table.base is FP32
    names = [layer.name for layer in small.layers]
    for precision in (FP32, INT8):
        plan = dict.fromkeys(names, precision)
        figure = predict_from_profile(small, plan, BOARD, "tflite", 4)
        total = sum(table.latency_ms[name][precision] for name in names)
        assert total == pytest.approx(table.anchors_ms[precision])
        assert predict_ms(table, small.edges, plan).value == pytest.approx(
            figure.value + (table.boundary_ms_per_element * 16 * 56 * 56 if precision is INT8 else 0), rel=0.25
        )
        assert table.interval >= figure.high / figure.value - 1 - 1e-9
    assert table.boundary_ms_per_element > 0
    assert cost_table(small, BOARD, "tflite", 2) is None
    assert cost_table(small, profile(costs(INT8)), "tflite", 4) is None


SHIPPED = {name: found for name, found in device_profiles().items() if found.costs}


def test_what_is_shipped_covers_the_boards_that_were_promised() -> None:
    names = set(device_profiles())
    promised = {"raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2w", "coral-dev-board"}
    promised |= {f"jetson-{name}" for name in ("nano", "tx2", "xavier-nx", "agx-xavier", "orin-nano", "orin-nx")}
    promised |= {"jetson-agx-orin", "jetson-agx-thor", "intel-atom-x6425e", "intel-n100", "intel-n200"}
    assert promised <= names
    assert promised <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_costs_are_sound(name: str) -> None:
    board = SHIPPED[name]
    assert board.sources
    for cost in board.costs:
        assert tuple(cost.factors) == FEATURES
        assert set(cost.kinds) <= set(MAC_KINDS)
        lower = np.zeros((len(FEATURES), len(FEATURES)))
        for i, row in enumerate(cost.covariance_rows()):
            lower[i, : i + 1] = row
        values = np.linalg.eigvalsh(lower + np.tril(lower, -1).T)
        assert values.min() > -1e-3  # rounded to four digits
        assert cost.evidence
        assert (cost.rows == 0) == cost.evidence.startswith("no published rows")


def test_no_runtime_lends_its_rows_to_another() -> None:
    for name, board in SHIPPED.items():
        for cost in board.costs:
            own = [
                one
                for one in published()
                if one.runtime == cost.runtime
                and (one.row.cell.device, one.row.cell.processor) == (name, cost.processor)
                and (one.row.cell.precision, one.row.cell.threads) == (cost.precision, cost.threads)
            ]
            assert cost.rows == len(own)
            assert any(one.runtime == cost.runtime for one in published())


def test_two_networks_on_every_board_in_two_seconds() -> None:
    """Reading the profiles included; every runtime that edgekit compiles for, in every precision and thread count."""
    works = [tables()["resnet18", "1x3x224x224"], tables()["MobileNet-v2 1.0", "1x3x224x224"]]
    begun = time.process_time()
    asked = 0
    for board in device_profiles().values():
        for cost in board.costs:
            if cost.runtime in ("tflite", "openvino", "tensorrt", "edgetpu"):
                for work in works:
                    predict_work(work, {"": cost.precision}, board, cost.runtime, cost.threads, cost.processor)
                    asked += 1
    assert asked > 200
    assert time.process_time() - begun < 2.0


def test_the_rows_lie_in_the_intervals_of_the_profiles_that_they_made() -> None:
    """Not proof of anything on rows that were not seen, but of files that were written and read back right."""
    inside, errors = [], []
    for one in published():
        board = SHIPPED.get(one.row.cell.device)
        if board is None:
            continue
        cell = one.row.cell
        work = tables()[one.model, one.shape]
        figure = predict_work(work, {"": cell.precision}, board, one.runtime, cell.threads, cell.processor)
        assert figure.kind is Kind.PREDICTED, (one.model, figure.source)
        inside.append(figure.low <= one.row.latency_ms <= figure.high)
        errors.append(abs(figure.value / one.row.latency_ms - 1))
    assert len(inside) > 1000
    assert np.mean(inside) > 0.95
    assert np.median(errors) < 0.12
