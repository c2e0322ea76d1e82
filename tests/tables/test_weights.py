"""What masks and codebooks of the weights offer to a plan, and how they are stored."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import bundle, catalog, differences, results
from edgekit.backends import backend
from edgekit.compress.parameters import weight_array
from edgekit.deployment import _forecast
from edgekit.entries import DeviceProfile
from edgekit.errors import InfeasibleError, InputError
from edgekit.files.deflate import deflate
from edgekit.graph import Graph
from edgekit.guards import Contestant
from edgekit.job import prepare
from edgekit.planner import evaluate, solve
from edgekit.planning import Planned
from edgekit.prediction import read_plan
from edgekit.reporting import channels, html, wording
from edgekit.tables.formulate import Planning, formulate, limits_of, weight_bytes
from edgekit.tables.weights import MaskTables
from edgekit.types import Budget, Mask, Precision
from edgekit.workbench.stages import Workbench
from edgekit.workbench.weights import able_to, can_pay, layer_bytes, masked_bytes
from tests import zoo
from tests.quantized import case
from tests.reporting.sample_result import sample_result
from tests.tables.test_formulate import BITS, planted
from tests.test_bundle import pack, refused, sign, source  # noqa: F401

INT8, W8 = Precision.INT8, Precision.W8
SHARES = {Mask.NONE: 0.9, Mask.HALF: 0.57, Mask.THREE_QUARTERS: 0.35}

sys.path.append(str(catalog.data_root() / "targets" / "runners"))
from expand import expanded  # type: ignore[import-not-found]  # noqa: E402


def plain_bytes(graph: Graph, precision: Precision) -> int:
    return sum(weight_bytes(layer.weight_elements, layer.bias_elements, precision) for layer in graph.layers)


def tables_of(plain: Planning, other_bytes: int = 7) -> MaskTables:
    """All layers with weights may be masked in int8; a mask adds to the loss, and takes the bytes of its share."""
    stored: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for place, layer in enumerate(plain.graph.layers, 1):
        sizes = {p: weight_bytes(layer.weight_elements, layer.bias_elements, p) for p in plain.losses[layer.name]}
        stored[layer.name] = {(p, Mask.NONE): round(0.9 * size) for p, size in sizes.items()}
        if layer.weights:
            for mask in (Mask.HALF, Mask.THREE_QUARTERS):
                stored[layer.name][INT8, mask] = round(SHARES[mask] * sizes[INT8])
                losses.setdefault(layer.name, {})[INT8, mask] = 1e-2 * place / SHARES[mask]
    return MaskTables(losses, stored, other_bytes)


def masked(name: str = "conv_net", **changes: Any) -> Planning:
    plain = planted(case(name).graph)
    return formulate(plain.graph, plain.table, plain.losses, BITS, masks=replace(tables_of(plain), **changes))


def test_options_without_a_mask_come_first_and_all_are_counted() -> None:
    planning = masked()
    for layer in planning.problem.layers:
        masks = [option.mask for option in layer.options]
        assert masks == sorted(masks, key=lambda mask: mask is not Mask.NONE)
        for option in layer.options:
            assert planning.masks is not None
            stored = planning.masks.stored_bytes[layer.name][option.precision, option.mask]
            assert option.weight_bytes == stored + 7
            assert option.loss == planning.loss(layer.name, option.precision, option.mask)
    dense = planted(case("conv_net").graph).problem.layers
    for layer, plain in zip(planning.problem.layers, dense, strict=True):
        memory = {option.precision: option.memory_bytes for option in plain.options}
        assert all(option.memory_bytes == memory[option.precision] for option in layer.options), "expanded in memory"


@pytest.mark.parametrize("name", ["conv_net", "transformer", "lstm"])
def test_as_few_zeros_as_the_size_budget_asks_for(name: str) -> None:
    planning = masked(name)
    least = limits_of(Budget(weight_bytes=1))
    with pytest.raises(InfeasibleError) as error:
        solve(planning.problem, least)
    smallest = int(error.value.nearest["weight_bytes"])
    dense = evaluate(planning.problem, tuple(1 for _ in planning.problem.layers)).weight_bytes
    losses = []
    for size in np.linspace(smallest, dense, 4):
        solution = solve(planning.problem, limits_of(Budget(weight_bytes=int(size))), objective="loss")
        plan = planning.plan(solution)
        assert plan.compressed
        assert plan.predicted.weight_bytes <= size
        layers = {layer.name: layer for layer in planning.graph.layers}
        assert plan.predicted.weight_bytes == sum(
            planning.weight_bytes(layers[c.name], c.precision, c.mask, compressed=True) for c in plan.layers
        )
        losses.append(plan.predicted.loss)
    assert losses == sorted(losses, reverse=True)
    assert not plan.masks(), "a budget that holds without masks takes none"


def test_two_of_four_saves_time_and_nothing_else() -> None:
    plain = planted(case("conv_net").graph)
    layers = [layer.name for layer in plain.graph.layers if layer.weights]
    tables = MaskTables({name: {(INT8, Mask.TWO_OF_FOUR): 0.0} for name in layers}, sparse_speedup=1.6)
    planning = formulate(plain.graph, plain.table, plain.losses, BITS, masks=tables)
    for layer in planning.problem.layers:
        options = {(option.precision, option.mask): option for option in layer.options}
        dense = options[INT8, Mask.NONE]
        sparse = options.get((INT8, Mask.TWO_OF_FOUR), dense)
        if layer.name in layers:
            assert sparse.latency_ms == pytest.approx(dense.latency_ms / 1.6)
        assert (sparse.weight_bytes, sparse.memory_bytes) == (dense.weight_bytes, dense.memory_bytes)
    plan = planning.plan(solve(planning.problem, limits_of(Budget())))
    assert not plan.compressed
    assert set(plan.masks().values()) == {Mask.TWO_OF_FOUR}
    table = tables.at(plain.table, plan.masks())
    for name, mask in plan.masks().items():
        assert mask is Mask.TWO_OF_FOUR
        assert table.latency_ms[name][INT8] == pytest.approx(plain.table.latency_ms[name][INT8] / 1.6)


def test_a_board_that_is_not_at_hand_gains_by_a_mask_too() -> None:
    plain = planted(case("conv_net").graph)
    layers = [layer.name for layer in plain.graph.layers if layer.weights]
    tables = MaskTables({name: {(INT8, Mask.TWO_OF_FOUR): 0.0} for name in layers}, sparse_speedup=1.6)
    planning = formulate(plain.graph, plain.table, plain.losses, BITS, masks=tables)
    solution = solve(planning.problem, limits_of(Budget()))
    plan = planning.plan(solution)
    assert plan.masks()
    bench: Any = SimpleNamespace(job=SimpleNamespace(graph=plain.graph), graph_of=lambda kept: plain.graph)
    unscored: Any = None
    floating = dict.fromkeys(plan.precisions(), Precision.FP32)
    planned = Planned(planning, plan, (), (), (), unscored)
    contestants = [
        Contestant("float", floating, unscored, unscored, unscored, 0),
        Contestant("plan", plan.precisions(), unscored, unscored, unscored, 0, planned, masks=plan.masks()),
    ]
    found = _forecast(bench, planned, contestants)
    assert found["plan"].latency_ms.p50 == pytest.approx(solution.totals.latency_ms)
    whole = evaluate(planning.problem, tuple(0 for _ in planning.problem.layers)).latency_ms
    assert found["float"].latency_ms.p50 == pytest.approx(whole)


def test_masks_lose_by_8_bit_results_too_where_a_runtime_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    onnx.save(zoo.conv_net(), tmp_path / "model.onnx")
    job = prepare(tmp_path / "model.onnx", "host", use_synthetic=True, threads=1)
    # The layer before the model's output: nothing else would quantize what it writes.
    variant = (job.graph.layers[-1].name, INT8, Mask.TWO_OF_FOUR)
    losses = []
    for name in ("openvino", "tflite"):
        bench = Workbench(replace(job, device=replace(job.device, backend=backend(name))))
        losses.append(bench.masker.losses([variant], bench.ranges)[variant])
    assert losses[0] < losses[1]


def test_weights_below_a_byte_take_their_share_of_it() -> None:
    plain = planted(case("conv_net").graph)
    w4 = Precision.W4
    table = replace(
        plain.table, latency_ms={name: {**row, w4: row[Precision.FP32]} for name, row in plain.table.latency_ms.items()}
    )
    losses = {name: {**row, w4: 0.1} for name, row in plain.losses.items()}
    planning = formulate(plain.graph, table, losses, {**BITS, w4: 4})
    for layer, counted in zip(plain.graph.layers, planning.problem.layers, strict=True):
        (option,) = [option for option in counted.options if option.precision is w4]
        exact = layer.weight_elements / 2 + 4 * layer.bias_elements
        assert abs(option.weight_bytes - exact) <= 0.5
        assert option.memory_bytes == option.weight_bytes


def test_forbidden_precisions_take_their_masks_along() -> None:
    plain = planted(case("conv_net").graph)
    name = plain.graph.layers[0].name
    forbidden = frozenset({(name, INT8)})
    planning = formulate(plain.graph, plain.table, plain.losses, BITS, forbidden, masks=tables_of(plain))
    assert all(option.precision is not INT8 for option in planning.problem.layers[0].options)


def test_masks_are_part_of_the_digest_and_no_masks_are_not() -> None:
    planning = masked()
    dense = planning.plan(solve(planning.problem, limits_of(Budget())))
    plain = replace(dense, compressed=False)
    first, *others = plain.layers
    half = replace(plain, layers=(replace(first, mask=Mask.HALF), *others))
    more = replace(plain, layers=(replace(first, mask=Mask.THREE_QUARTERS), *others))
    assert len({plan.digest for plan in (plain, dense, half, more, replace(half, compressed=True))}) == 5
    before = planted(case("conv_net").graph)
    assert before.plan(solve(before.problem, limits_of(Budget()))).digest == plain.digest
    found = differences._layers(plain, half)
    assert [(row.a and row.a.mask, row.b and row.b.mask) for row in found] == [(Mask.NONE, Mask.HALF)]


@pytest.mark.parametrize("mask", [mask for mask in Mask if mask.is_codebook])
def test_what_a_layer_stores_shrinks_with_its_values(mask: Mask) -> None:
    graph = case("transformer").graph
    names = [layer.name for layer in graph.layers if layer.weights]
    precisions = dict.fromkeys((layer.name for layer in graph.layers), INT8)
    plain, held = (masked_bytes(graph, precisions, masks) for masks in ({}, dict.fromkeys(names, mask)))
    assert held < 0.7 * plain
    assert set(able_to(graph, mask)) <= set(able_to(graph, Mask.HALF)), "what can be masked alone is its own"
    assert can_pay(mask, INT8)
    assert not can_pay(mask, Precision.FP32)


@given(st.sampled_from(list(Mask)), st.sampled_from([INT8, W8]), st.sampled_from([1.0, 0.75]))
def test_no_two_decisions_read_the_same(mask: Mask, precision: Precision, keep: float) -> None:
    said = wording.decision(precision.value, keep, mask)
    assert said.startswith(precision.value)
    assert ("zeros" in said) == (mask is not Mask.NONE and not mask.is_codebook)
    others = {wording.decision(precision.value, keep, other) for other in Mask if other is not mask}
    assert said not in others


def test_reports_say_that_few_values_save_size_alone() -> None:
    sample = sample_result()
    first, second, *others = sample.plan.layers
    held = (replace(first, mask=Mask.HALF), replace(second, mask=Mask.TERNARY), *others)
    plan = replace(sample.plan, layers=held, compressed=True)
    count = len(plan.layers)
    said = f"compressed (size only: no faster), zeros in 1 and few values in 1 of {count} layers"
    assert channels.stored(plan) == said
    assert channels.stored(sample.plan) == ""
    rows = tuple(replace(row, mask=Mask.TERNARY) if row.name == second.name else row for row in sample.layers)
    page = html.render(replace(sample, plan=plan, layers=rows))
    assert "ternary" in page
    assert "the layer is no faster" in page
    assert "the layer is no faster" not in html.render(sample)
    document = results.to_json(replace(sample, plan=plan, layers=rows))
    assert {row["mask"] for row in document["plan"]["layers"]} >= {"50%", "ternary"}


def test_a_plan_file_with_an_unknown_mask_is_refused(tmp_path: Path) -> None:
    row = {"name": "a", "op_type": "Conv", "precision": "int8", "keep": 1, "mask": "3 values"}
    (tmp_path / "plan.json").write_text(json.dumps({"plan": {"layers": [row], "compressed": True}}))
    with pytest.raises(InputError, match="3 values"):
        read_plan(tmp_path / "plan.json")


def test_what_a_layer_stores_shrinks_with_its_zeros() -> None:
    graph = case("transformer").graph
    names = [layer.name for layer in graph.layers if layer.weights]
    precisions = dict.fromkeys((layer.name for layer in graph.layers), INT8)
    sizes = [
        masked_bytes(graph, precisions, dict.fromkeys(names, mask) if mask is not Mask.NONE else {}) for mask in SHARES
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.7 * sizes[0]
    for layer in graph.layers:
        assert layer_bytes(graph, layer, INT8) <= layer_bytes(graph, layer, Precision.FP32)
        if not layer.weights:
            assert layer_bytes(graph, layer, INT8) == 0


@given(st.binary(max_size=5000))
def test_what_is_stored_comes_back(content: bytes) -> None:
    assert gzip.decompress(deflate(content)) == content
    assert deflate(content) == deflate(content)


def test_weights_take_little_more_than_their_entropy() -> None:
    values = np.random.default_rng(0).standard_normal(100_000) * 30
    values[np.random.default_rng(1).permutation(values.size)[: values.size // 2]] = 0
    codes = values.astype(np.int8)
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / codes.size
    entropy_bytes = -float((shares * np.log2(shares)).sum()) * codes.size / 8
    assert entropy_bytes < len(deflate(codes.tobytes())) < 1.03 * entropy_bytes


def test_layers_stored_together_take_little_more_than_one_by_one() -> None:
    """Each with few values of its own, none as long as a block."""
    rng = np.random.default_rng(2)
    layers = [rng.choice(np.arange(40 * k, 40 * k + 4, dtype=np.uint8), 9000 + 700 * k).tobytes() for k in range(6)]
    layers.insert(3, (rng.standard_normal(9000) * 30).astype(np.int8).tobytes())
    together, apart = len(deflate(b"".join(layers))), sum(len(deflate(layer)) for layer in layers)
    assert together < 1.015 * apart
    assert gzip.decompress(deflate(b"".join(layers))) == b"".join(layers)


class TestBundle:
    @pytest.fixture
    def packed(self, source: Path, tmp_path: Path) -> Path:  # noqa: F811
        stored = tmp_path / "model.bin.gz"
        stored.write_bytes(deflate((source / "model.bin").read_bytes()))
        files = {"model.xml": source / "model.xml", "model.bin": source / "model.bin"}
        return pack(source, tmp_path / "out", artifact_files=files, compressed={"model.bin": stored})

    def test_the_compressed_file_ships_in_place_of_the_other(self, packed: Path, source: Path) -> None:  # noqa: F811
        bundle.verify(packed)
        content = (source / "model.bin").read_bytes()
        artifact = bundle.read_manifest(packed)["artifact"]
        entry = {"from": "model.bin.gz", "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        assert artifact["expanded"] == {"model.bin": entry}
        assert not (packed / "model.bin").exists()
        assert expanded(str(packed), artifact, "model.bin") == content
        assert expanded(str(packed), artifact, "model.xml") is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"size": 7},
            {"size": -1},
            {"size": 1 << 40},
            {"sha256": "0" * 64},
            {"from": "model.xml"},
            {"from": "../model.bin.gz"},
        ],
    )
    def test_what_expands_to_something_else_is_refused(self, packed: Path, changes: dict[str, Any]) -> None:
        artifact = bundle.read_manifest(packed)["artifact"]
        artifact["expanded"]["model.bin"] |= changes
        with pytest.raises(ValueError, match=r"expand|outside"):
            expanded(str(packed), artifact, "model.bin")

    @pytest.mark.parametrize("entry", [None, {"from": "../x"}, {"from": ["x"]}, {"size": -1}, {"sha256": "x"}, {}])
    def test_a_manifest_that_names_no_file_of_the_bundle(self, packed: Path, entry: Any) -> None:
        manifest = bundle.read_manifest(packed)
        known = manifest["artifact"]["expanded"]["model.bin"]
        manifest["artifact"]["expanded"] = {"model.bin": {**known, **entry}} if entry else [entry]
        sign(packed, manifest)
        refused(packed, "manifest.json")


def test_the_host_stores_weights_compressed_and_gains_no_time() -> None:
    host = catalog.target("host")
    assert host.sparsity == ("unstructured",)
    assert catalog.device_profile(host.device_profile).sparse_speedup == 1
    with pytest.raises(ValueError, match="sparsity"):
        replace(host, backend="tflite", sparsity=("unstructured",))
    with pytest.raises(ValueError, match="sparse_speedup"):
        DeviceProfile("board", "", "", sparse_speedup=0.5)


def test_weights_of_the_graph_are_not_touched() -> None:
    graph = case("conv_net").graph
    before = {layer.name: weight_array(graph.model, layer.weights[0]).copy() for layer in graph.layers if layer.weights}
    masked_bytes(graph, dict.fromkeys((x.name for x in graph.layers), W8), dict.fromkeys(before, Mask.HALF))
    for layer in graph.layers:
        if layer.name in before:
            np.testing.assert_array_equal(weight_array(graph.model, layer.weights[0]), before[layer.name])
