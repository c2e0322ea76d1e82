"""Needs the torch extra for all but the message that it is missing."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.compress import blockwise
from edgekit.compress.blockwise import learn_codes
from edgekit.compress.cures import Cures, shifted
from edgekit.compress.grams import collect_grams
from edgekit.compress.qdq import apply_precisions
from edgekit.compress.ranges import run_float
from edgekit.compress.rounding import Rounded, round_layer
from edgekit.compress.weights import WEIGHT_LIMIT
from edgekit.errors import InputError, MissingToolError
from edgekit.graph import Graph
from edgekit.recipes.samples import synthetic
from edgekit.sensitivity import sample_losses
from edgekit.types import Precision
from tests import zoo
from tests.compress.noise import output_noise
from tests.graph.nets import load_model
from tests.zoo import Net

W4 = Precision.W4


@pytest.fixture
def torch() -> Any:
    pytest.importorskip("onnx2torch", exc_type=Exception)  # type: ignore[arg-type]
    return pytest.importorskip("torch", exc_type=Exception)  # type: ignore[arg-type]


def closed_form(graph: Graph, data: Any) -> dict[str, Rounded]:
    grams = collect_grams(graph, [layer.name for layer in graph.layers], data)
    made = {
        layer.name: round_layer(graph, layer, grams[layer.name], 4) for layer in graph.layers if layer.name in grams
    }
    return {name: rounded for name, rounded in made.items() if rounded is not None}


def written(graph: Graph, codes: dict[str, Rounded]) -> Graph:
    """The graph with these codes as it is deployed."""
    cures = Cures(rounded={(name, W4): rounded for name, rounded in codes.items()})
    plan = dict.fromkeys(codes, W4)
    model = apply_precisions(shifted(graph, cures.biases(plan)), plan, {}, False, cures.codes(plan))
    return replace(graph, model=model)


def residual_net() -> Any:
    """Two residual blocks behind a stem. x [1, 6, 8, 8] -> [1, 12, 8, 8]."""
    net = Net(3)
    y = net.op("Relu", net.conv(net.input("x", [1, 6, 8, 8]), 6, 12))
    for _ in range(2):
        inner = net.op("Relu", net.conv(y, 12, 12))
        y = net.op("Relu", net.op("Add", net.conv(inner, 12, 12), y))
    return net.model([y])


@dataclass(frozen=True)
class Related:
    """Samples as activations are: few causes, never negative."""

    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([5, self.first + index])
        mixing = np.random.default_rng(6).standard_normal((6, 3))
        x = np.maximum(np.einsum("oc,chw->ohw", mixing, rng.standard_normal((3, 8, 8))) + 0.3, 0)
        return {"x": x[None].astype(np.float32)}


@pytest.mark.parametrize(
    "name", ["conv_net", "inverted_residual", "grouped_conv", "conv_transpose", "squeeze_excite", "transformer"]
)
def test_a_block_computes_what_will_be_deployed(
    name: str, torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block after block in torch, with the codes that it began with: the outputs of the model that is written."""
    graph = load_model(zoo.STATIC[name](), tmp_path)
    data = synthetic(graph.inputs, 4)
    begun = closed_form(graph, data)
    last: dict[str, np.ndarray] = {}

    def learn(self: Any, block: Any, *given: Any) -> dict[str, Rounded]:
        found = learn_block(self, block, *given)
        last.update({name: self._now[name].numpy() for name in block.outputs})
        return found

    learn_block = blockwise._Learner.learn
    monkeypatch.setattr(blockwise._Learner, "learn", learn)
    monkeypatch.setattr(blockwise, "_MACS", 48 * 20 * sum(layer.macs for layer in graph.layers))
    found = learn_codes(graph, begun, data)
    assert found.keys() == begun.keys()
    for codes in found.values():
        assert np.abs(codes.weight.codes).max() <= WEIGHT_LIMIT[4]
    for index, outputs in enumerate(run_float(written(graph, found), data)):
        for output, array in outputs.items():
            np.testing.assert_allclose(last[output][index], array, atol=1e-4 * np.abs(array).max() + 1e-6)


@pytest.mark.slow
def test_what_is_learnt_is_better_on_samples_that_nothing_saw(torch: Any, tmp_path: Path) -> None:
    graph = load_model(residual_net(), tmp_path)
    seen, unseen = Related(0, 32), Related(32, 16)
    begun = closed_form(graph, seen)
    blocks: list[int] = []
    threads = torch.get_num_threads()
    learnt = learn_codes(graph, begun, seen, on_block=lambda: blocks.append(1))
    assert len(blocks) == 2
    assert torch.get_num_threads() == threads
    models = [written(graph, codes).model for codes in (begun, learnt)]
    before, after = sample_losses(graph, models, unseen)  # type: ignore[arg-type]
    assert np.exp(np.mean(np.log(after / before))) < 0.9
    again = learn_codes(graph, begun, seen)
    assert output_noise(written(graph, learnt), written(graph, again), seen) < 1e-13
    for name, rounded in learnt.items():
        assert np.array_equal(rounded.weight.codes, again[name].weight.codes)
        ends = np.abs(begun[name].weight.codes) == 7
        assert np.array_equal(rounded.weight.codes[ends], begun[name].weight.codes[ends])


def test_recurrent_layers_cannot_be_learnt(torch: Any, tmp_path: Path) -> None:
    graph = load_model(zoo.gru(), tmp_path)
    data = synthetic(graph.inputs, 4)
    with pytest.raises(InputError, match="GRU"):
        learn_codes(graph, closed_form(graph, data), data)


def test_a_model_that_takes_too_long_is_left_alone(torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load_model(zoo.conv_net(), tmp_path)
    monkeypatch.setattr(blockwise, "_MACS", 48 * 19 * sum(layer.macs for layer in graph.layers))
    with pytest.raises(InputError, match="too long"):
        learn_codes(graph, {}, synthetic(graph.inputs, 2))


def test_without_torch_the_command_that_adds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    graph = load_model(zoo.conv_net(), tmp_path)
    with pytest.raises(MissingToolError, match="learning codes") as caught:
        learn_codes(graph, {}, synthetic(graph.inputs, 2))
    assert "edgekit-sdk[torch]" in caught.value.hint
