"""Which cures a job keeps, and that models come out with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.backends import able
from edgekit.compress.cures import NO_CURES
from edgekit.compress.grams import Moments
from edgekit.files import cache
from edgekit.graph import to_bytes
from edgekit.job import Job, prepare
from edgekit.sensitivity import losses_of
from edgekit.types import Budget, Precision
from edgekit.workbench.cures import TRIALS, _from_arrays, _parted, _Search, _to_arrays
from edgekit.workbench.stages import Workbench
from tests import zoo

INT8, W4 = Precision.INT8, Precision.W4


def odd_net(seed: int = 3) -> Any:
    """Depthwise and pointwise convolutions in turn, whose weights round badly and whose input is related and never
    negative. x [1, 8, 12, 12] -> [1, 6].
    """
    net = zoo.Net(seed)
    y = net.input("x", [1, 8, 12, 12])
    for channels, wider in ((8, 24), (24, 24)):
        depthwise = net.rng.uniform(0.002, 0.02, (channels, 1, 3, 3))
        depthwise[:, 0, 1, 1] = 1.0
        y = net.op("Conv", y, net.weight(depthwise), net.random(channels), pads=[1] * 4, group=channels)
        y = net.op("Relu", net.conv(y, channels, wider, 1))
    y = net.op("Flatten", net.op("GlobalAveragePool", y))
    return net.model([net.op("Gemm", y, net.random(6, 24), net.random(6), transB=1)])


def job_of(folder: Path, count: int = 48, **budget: int) -> Job:
    rng = np.random.default_rng(8)
    few = np.maximum(rng.standard_normal((count, 3, 12, 12)), 0)
    samples = np.einsum("oc,nchw->nohw", rng.uniform(0, 1, (8, 3)), few).astype(np.float32)[:, None]
    np.savez(folder / "samples.npz", x=samples)
    onnx.save(odd_net(), folder / "model.onnx")
    chosen = Budget(**budget)
    return prepare(folder / "model.onnx", "host", data=folder / "samples.npz", budget=chosen, threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests share: a model, samples, and the cache, so that the search is made once."""
    return tmp_path_factory.mktemp("cured")


@pytest.fixture
def job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("EDGEKIT_CACHE", str(folder / "cache"))
    return job_of(folder)


def arrays_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


def reader(contents: list[bytes]) -> Callable[[int], ir.Model]:
    return lambda index: ir.serde.deserialize_model(onnx.load_from_string(contents[index]))


def noise(bench: Workbench, contents: list[bytes]) -> list[float]:
    found = losses_of(bench.job.graph, reader(contents), range(len(contents)), bench.job.data.evaluation)
    return [found[index] for index in range(len(contents))]


def test_what_is_kept_helps_on_samples_that_no_cure_has_seen(job: Job) -> None:
    bench = Workbench(job)
    names = able(job.graph, job.device.backend, INT8)
    plain, cured = noise(bench, [bench.model_bytes(dict.fromkeys(names, INT8), cured=c) for c in (False, True)])
    assert bench.curer.cures
    assert 10 * math.log10(plain / cured) > 6
    assert any("rounded" in bench.curer.applied(name, INT8) for name in names)
    assert not any(bench.curer.applied(name, Precision.FP32) for name in names)


def test_operators_and_types_stay_and_floats_are_not_touched(job: Job) -> None:
    bench = Workbench(job)
    plan = dict.fromkeys(able(job.graph, job.device.backend, INT8), INT8)
    plain, cured = (onnx.load_from_string(bench.model_bytes(plan, cured=c)) for c in (False, True))
    assert [node.op_type for node in plain.graph.node] == [node.op_type for node in cured.graph.node]
    assert {i.name: (i.data_type, tuple(i.dims)) for i in plain.graph.initializer} == {
        i.name: (i.data_type, tuple(i.dims)) for i in cured.graph.initializer
    }
    assert bench.model_bytes({}) == to_bytes(job.graph.model)


def test_a_plan_gets_the_cures_of_its_own_layers(job: Job) -> None:
    bench = Workbench(job)
    first, *_ = able(job.graph, job.device.backend, INT8)
    model = onnx.load_from_string(bench.model_bytes({first: INT8}))
    exact = arrays_of(onnx.load_from_string(to_bytes(job.graph.model)))
    found = arrays_of(model)
    changed = {name for name in exact.keys() & found.keys() if not np.array_equal(exact[name], found[name])}
    owner = next(node for node in job.graph.model.graph if node.name == first)
    allowed = {value.name for value in owner.inputs if value is not None}
    assert bench.curer.cures.factors or changed <= allowed


def test_a_second_run_finds_the_same_in_the_cache(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dict.fromkeys(able(job.graph, job.device.backend, INT8), INT8)
    once = Workbench(job).model_bytes(plan)

    def fails(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(_Search, "found", fails)
    assert Workbench(job).model_bytes(plan) == once


def test_trials_are_bounded(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "empty"))
    tries: list[int] = []
    search = _Search._tried

    def counted(self: _Search, asked: list[Any]) -> tuple[np.ndarray, ...]:
        tries.append(len(asked))
        return search(self, asked)

    monkeypatch.setattr(_Search, "_tried", counted)
    assert Workbench(job).curer.cured
    assert 3 <= sum(tries) <= TRIALS


def test_losses_are_those_with_the_cures(job: Job) -> None:
    bench = Workbench(job)
    names = able(job.graph, job.device.backend, INT8)
    uncured, cured = bench._losses_uncured(INT8, names), bench.losses(INT8, names)
    assert all(cured[name] <= uncured[name] * 1.5 for name in names)
    assert sum(cured.values()) < 0.7 * sum(uncured.values())


def test_nothing_is_cured_by_random_or_too_few_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    few = job_of(tmp_path, 10)
    assert len(few.data.calibration) < 8
    random = prepare(tmp_path / "model.onnx", "host", use_synthetic=True, threads=1)
    for job in (few, random):
        bench = Workbench(job)
        assert not bench.curer.cures
        name = job.graph.layers[0].name
        assert bench.model_bytes({name: INT8}) == bench.model_bytes({name: INT8}, cured=False)


def test_eight_bit_weights_are_rounded_where_size_asks_for_them(job: Job) -> None:
    sized = replace(job, budget=Budget(weight_bytes=100_000))
    bench = Workbench(sized)
    assert Precision.W8 not in Workbench(job).curer.offered
    names = able(job.graph, job.device.backend, Precision.W8)
    plan = dict.fromkeys(names, Precision.W8)
    plain, cured = noise(bench, [bench.model_bytes(plan, cured=c) for c in (False, True)])
    assert cured < plain


@pytest.mark.slow
def test_four_bit_weights_are_learnt_where_that_helps(folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "onnx2torch"):
        pytest.importorskip(module, exc_type=Exception)  # type: ignore[arg-type]
    model, data = folder / "model.onnx", folder / "samples.npz"
    sized = prepare(model, "host-tflite", data=data, budget=Budget(weight_bytes=2_000), threads=1)
    names = able(sized.graph, sized.device.backend, W4)
    plan = dict.fromkeys(names, W4)
    learnt = Workbench(sized)
    assert names
    assert learnt.curer.learns
    contents = [learnt.model_bytes(plan, cured=cured) for cured in (False, True)]
    monkeypatch.setattr("edgekit.workbench.cures.has_torch", lambda: False)
    closed = Workbench(sized)
    assert not closed.curer.learns
    assert closed.curer.cures.rounded.keys() == learnt.curer.cures.rounded.keys()
    plain, better, good = noise(learnt, [*contents, closed.model_bytes(plan)])
    assert better <= good < plain


def test_cures_survive_the_cache(job: Job) -> None:
    found = Workbench(job).curer.cured
    cache.write_arrays("cures", "there", _to_arrays(found))
    stored = cache.read_arrays("cures", "there")
    assert stored is not None
    again = _from_arrays(stored)
    assert again.left == found.left
    for name in ("factors", "shifts"):
        mine, theirs = getattr(found.cures, name), getattr(again.cures, name)
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
    assert again.cures.observers == found.cures.observers
    assert again.cures.rounded.keys() == found.cures.rounded.keys()
    assert not _from_arrays({}).cures
    assert not NO_CURES


def test_quiet_layers_are_those_that_together_do_no_harm() -> None:
    losses = {"a": 0.2, "b": 1e-4, "c": 0.004, "d": 0.003, "e": 0.004}
    assert _parted(losses) == (("b", "c", "d"), ("a", "e")) or _parted(losses) == (("b", "d", "e"), ("a", "c"))
    assert _parted({"a": 1.0, "b": 2.0, "c": 3.0}) == (("a", "b"), ("c",))
    assert _parted({"a": 1e-3}) == (("a",), ())


def test_a_plan_that_prunes_gets_codes_chosen_for_what_stays(job: Job) -> None:
    """Compared with the pruned model in float: what rounding adds."""
    bench = Workbench(job)
    group = max(bench.pruner.channels.groups, key=lambda one: one.channels)
    kept = {group.name: group.channels // 2}
    pruned = bench.graph_of(kept)
    names = able(pruned, job.device.backend, INT8)
    contents = [bench.model_bytes(dict.fromkeys(names, INT8), kept, cured=cured) for cured in (False, True)]
    found = losses_of(pruned, reader(contents), range(2), job.data.evaluation)
    assert 10 * math.log10(found[0] / found[1]) > 3
    assert bench.model_bytes(dict.fromkeys(names, INT8), kept) == contents[1]


def test_moments_of_the_columns_that_stay() -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((2, 50, 6))
    whole, part = Moments(2, 6), Moments(2, 4)
    stay = np.array([[1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 1, 1]], bool)
    whole.add(0, rows)
    part.add(0, np.stack([block[:, at] for block, at in zip(rows, stay, strict=True)]))
    sliced = whole.gram().of(stay)
    assert sliced is not None
    np.testing.assert_allclose(sliced.second, part.gram().second)
    lost_block = whole.gram().of(np.array([[True] * 6, [False] * 6]))
    assert lost_block is not None
    assert lost_block.second.shape == (1, 7, 7)
    assert whole.gram().of(np.array([[True] * 6, [True] * 5 + [False]])) is None
