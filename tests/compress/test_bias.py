from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekit.compress.bias import correct_biases
from edgekit.compress.cures import shifted
from edgekit.compress.qdq import apply_precisions
from edgekit.compress.ranges import observe
from edgekit.graph import to_bytes
from edgekit.recipes.samples import Subset
from edgekit.types import Precision
from tests import zoo
from tests.quantized import Case, case, case_of, run, sqnr_db


def everything(found: Case) -> Subset:
    return Subset(found.data, tuple(range(len(found.data))))


@pytest.mark.parametrize("name", ["conv_net", "inverted_residual", "grouped_conv", "conv_transpose", "transformer"])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.W4])
def test_means_of_all_results_are_those_of_the_float_model(name: str, precision: Precision) -> None:
    found = case(name)
    graph, samples = found.graph, everything(found)
    quantized = apply_precisions(graph, found.uniform(precision), found.ranges)
    shifts = correct_biases(graph, quantized, samples)
    assert shifts
    corrected = apply_precisions(shifted(graph, shifts), found.uniform(precision), found.ranges)
    assert to_bytes(corrected) == to_bytes(quantized)  # what was changed on the way is what the shifts say

    layers = {layer.name: layer for layer in graph.layers}
    nodes = {node.name: node for node in graph.model.graph}
    for layer_name in shifts:
        layer = layers[layer_name]
        if layer.op_type == "MatMul":  # its bias is an Add's
            continue
        axis = 1
        means = []
        for model in (graph, replace(graph, model=corrected)):
            values = [v[layer.output] for _, _, _, v in observe(model, [layer.output], samples)]
            stacked = np.stack(values)
            rest = tuple(i for i in range(stacked.ndim) if i != axis + 1)
            means.append(stacked.mean(axis=rest))
        scale = np.abs(means[0]).max() + 1e-6
        assert np.abs(means[0] - means[1]).max() / scale < 1e-3, (layer_name, nodes[layer_name].op_type)


def test_a_bias_that_rounding_moved_is_moved_back() -> None:
    """A layer whose weights all lose by rounding, behind an input that is never negative."""
    net = zoo.Net(3)
    x = net.op("Relu", net.input("x", [1, 8, 6, 6]))
    weight = np.full((4, 8, 1, 1), 0.4, np.float32) / 127
    weight[:, 0] = 1.0  # on this scale all others round to zero
    y = net.op("Conv", x, net.weight(weight), net.weight(np.zeros(4, np.float32)))
    found = case_of(net.model([net.op("Relu", y)]))
    samples = everything(found)
    precisions = found.uniform(Precision.W8)
    quantized = apply_precisions(found.graph, precisions, found.ranges)
    before = to_bytes(quantized)
    correct_biases(found.graph, quantized, samples)
    after = to_bytes(quantized)
    exact = to_bytes(found.graph.model)
    sample = found.data.sample(0)
    gains = [sqnr_db(run(model, sample), run(exact, sample)) for model in (before, after)]
    assert gains[1] > gains[0] + 6


def test_a_float_model_has_nothing_to_correct() -> None:
    found = case("conv_net")
    assert correct_biases(found.graph, apply_precisions(found.graph, {}, {}), everything(found)) == {}
