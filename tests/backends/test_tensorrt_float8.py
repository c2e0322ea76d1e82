"""fp8 for Jetson Thor: what the file holds, who refuses it, and what TensorRT for RTX makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest

from edgekit import backends, releases
from edgekit.backends import trtexec_output
from edgekit.backends.proxy import capability, compile_proxy
from edgekit.backends.tensorrt import TensorRT
from edgekit.errors import InputError
from edgekit.toolchains import problem
from edgekit.types import Precision
from tests.backends.test_tensorrt import NANO, ORIN, XAVIER, answers, build_of, hub, matrices
from tests.quantized import Case, case_of, run, sqnr_db
from tests.zoo import Net

FP8, INT8, FP16, FP32, W4 = Precision.FP8, Precision.INT8, Precision.FP16, Precision.FP32, Precision.W4
THOR = ("jetpack-7.0", "jetpack-7.2.2")


def adapter(names: tuple[str, ...] = THOR, compute: str = "11.0") -> TensorRT:
    known = releases.releases()
    return TensorRT(tuple(known[name] for name in names), compute)


def attention(tokens: int = 32, width: int = 64) -> Case:
    """Scores of queries and keys, and what they weigh: products with weights and of two activations."""
    net = Net()
    x = net.op("Relu", net.input("x", [2, tokens, width]))
    query, key, value = (net.op("MatMul", x, net.random(width, width)) for _ in range(3))
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1]))
    weighed = net.op("MatMul", net.op("Softmax", net.op("Mul", scores, net.weight(0.01)), axis=-1), value)
    return case_of(net.model([net.op("MatMul", weighed, net.random(width, width))]))


def planned(source: Case) -> dict[str, Precision]:
    return dict.fromkeys(backends.able(source.graph, adapter(), FP8), FP8)


@pytest.mark.parametrize("base", [FP32, FP16])
def test_values_and_exact_sizes(base: Precision, tmp_path: Path) -> None:
    source, backend = matrices(256, 192), adapter()
    content = hub(source, source.uniform(FP8), {})
    made = backend.convert(content, tmp_path, base)
    pairs = run(content, source.data.sample(0))
    assert sqnr_db(answers(backend, made, source), pairs) > (100 if base is FP32 else 45)
    model, build = onnx.load(made.path), build_of(made)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == build["opset"] == 19
    codes = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT8E4M3FN and one.dims]
    assert [list(one.dims) for one in codes] == [[256, 192], [64, 192]]
    width = 4 if base is FP32 else 2
    # Codes, the bias, and a scale and a zero point for each of two weights and two activations.
    assert made.weight_bytes == 256 * 192 + 64 * 192 + 64 * width + 4 * (width + 1)
    assert [row["precision"] for row in build["layers"]] == ["fp8", "fp8"]
    assert build["flags"] == {"fp16": base is FP16, "int8": False, "sparsity": False}
    assert [row["name"] for row in build["releases"]] == list(THOR)


def test_beside_int8_four_bits_and_halves(tmp_path: Path) -> None:
    net = Net()
    y = net.input("x", [4, 64])
    for _ in range(4):
        y = net.op("Relu", net.op("MatMul", y, net.random(64, 64)))
    source, backend = case_of(net.model([y])), adapter()
    plan = dict(zip(source.names, (FP8, INT8, W4, FP16), strict=True))
    content = hub(source, plan, {})
    made = backend.convert(content, tmp_path, FP16)
    assert [row["precision"] for row in build_of(made)["layers"]] == ["fp8", "int8", "w4", "fp16"]
    kind = onnx.TensorProto
    types = sorted(one.data_type for one in onnx.load(made.path).graph.initializer if len(one.dims) == 2)
    assert types == sorted([kind.FLOAT8E4M3FN, kind.INT8, kind.INT4, kind.FLOAT16, kind.FLOAT16])  # and w4's scales
    assert sqnr_db(answers(backend, made, source), run(content, source.data.sample(0))) > 40


@pytest.mark.parametrize(
    ("names", "compute", "reason"),
    [
        (NANO, "5.3", r"TensorRT 8\.0\.1 has no fp8 \(node MatMul_\d+\).*TensorRT 8\.2\.1 has no fp8"),
        (XAVIER, "7.2", r"TensorRT 8\.5\.2 has no fp8"),
        (
            ORIN,
            "8.7",
            r"jetpack-6\.1: fp8 needs compute capability 8\.9 \(TensorRT support matrix\) \(node MatMul_\d+\)",
        ),
    ],
)
def test_who_refuses_it(names: tuple[str, ...], compute: str, reason: str, tmp_path: Path) -> None:
    source = matrices()
    with pytest.raises(InputError, match=reason):
        adapter(names, compute).convert(hub(source, source.uniform(FP8), {}), tmp_path, FP16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [(256, 192, 2), (256, 200, 0), (250, 192, 1)],  # the second product's sizes are 192 and 64
)
def test_only_sizes_that_kernels_read(inner: int, outer: int, expected: int) -> None:
    assert len(backends.able(matrices(inner, outer).graph, adapter(), FP8)) == expected


def test_only_matrix_products() -> None:
    net = Net()
    y = net.op("Flatten", net.conv(net.input("x", [1, 16, 4, 4]), 16, 16))
    source = case_of(net.model([net.op("MatMul", net.op("MatMul", y, net.random(256, 32)), net.random(32))]))
    assert [name.split("_")[0] for name in planned(source)] == ["MatMul"], "no convolution, and no vector"
    assert len(planned(attention())) == 6


def test_what_a_board_reports() -> None:
    assert trtexec_output.type_word("Row major linear FP8 format") == "fp8"
    assert trtexec_output.executes_as(FP8, "fp8")
    assert not trtexec_output.executes_as(FP8, "fp16")
    assert not trtexec_output.executes_as(INT8, "fp8")


def test_the_proxy_is_of_the_board_s_generation() -> None:
    assert [capability({"compute": word}) for word in ("11.0", "8.7", "7.2", "5.3")] == ["12.0", "8.6", "8.6", "8.6"]


def every_other(plan: Mapping[str, Precision]) -> dict[str, Precision]:
    return {name: (FP8, FP16, INT8)[place % 3] for place, name in enumerate(plan)}


@pytest.mark.slow
@pytest.mark.skipif(bool(problem("tensorrt-rtx")), reason="the toolchain tensorrt-rtx is not installed")
@pytest.mark.parametrize("base", [FP32, FP16])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("source", [matrices(), attention()], ids=["matrices", "attention"])
def test_tensorrt_for_rtx_multiplies_in_fp8(source: Case, mixed: bool, base: Precision, tmp_path: Path) -> None:
    plan = every_other(planned(source)) if mixed else planned(source)
    plan = {name: base if precision is FP16 else precision for name, precision in plan.items()}
    report = compile_proxy(adapter().convert(hub(source, plan, {}), tmp_path, base))
    assert report.accepted, report.reason
    assert report.layers == {name: precision.value for name, precision in plan.items()}
    assert report.conformance.matched == report.conformance.planned == len(source.names)


@pytest.mark.slow
@pytest.mark.skipif(bool(problem("tensorrt-rtx")), reason="the toolchain tensorrt-rtx is not installed")
def test_ampere_has_no_fp8(tmp_path: Path) -> None:
    """What the facts say of compute capability 8.7 is what the compiler says of 8.6."""
    source = matrices()
    made = adapter().convert(hub(source, source.uniform(FP8), {}), tmp_path, FP16)
    build = made.path.with_name("build.json")
    build.write_text(build.read_text().replace('"11.0"', '"8.7"'))
    report = compile_proxy(made)
    assert not report.accepted
    assert "fp8_e4m3" in report.reason
