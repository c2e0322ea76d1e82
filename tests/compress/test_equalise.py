from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.compress.cures import Cures, scaled
from edgekit.compress.equalise import (
    Site,
    channel_magnitudes,
    equalised,
    factors_of,
    find_sites,
    scaled_grams,
    sites_of,
)
from edgekit.compress.grams import collect_grams
from edgekit.compress.observers import choose_range
from edgekit.compress.qdq import apply_precisions, quantization_points
from edgekit.compress.ranges import collect_ranges
from edgekit.graph import to_bytes
from edgekit.graph.channels import find_channels
from edgekit.types import Precision
from tests import zoo
from tests.quantized import CASES, Case, case, case_of, run, sqnr_db


def uneven_net(seed: int = 5) -> Any:
    """Two convolutions with a Relu between them, whose channels are of very unlike size."""
    net = zoo.Net(seed)
    size = np.geomspace(0.02, 50, 24)
    first = net.rng.standard_normal((24, 6, 3, 3)) * size[:, None, None, None]
    bias = net.weight(net.rng.standard_normal(24) * size)
    y = net.op("Relu", net.op("Conv", net.input("x", [1, 6, 12, 12]), net.weight(first), bias, pads=[1] * 4))
    second = net.rng.standard_normal((8, 24, 3, 3)) / size[None, :, None, None]
    return net.model([net.op("Conv", y, net.weight(second), net.random(8), pads=[1] * 4)])


def normalised_net(seed: int = 6) -> Any:
    """A LayerNormalization with a few large scales in front of two products, as in transformers with large language
    models' outliers.
    """
    net = zoo.Net(seed)
    x = net.input("x", [1, 10, 32])
    gamma = np.where(np.arange(32) % 8 == 0, 40.0, 1.0)
    normal = net.op("LayerNormalization", x, net.weight(gamma), net.random(32), axis=-1)
    rows = net.rng.standard_normal((2, 32, 16)) / gamma[:, None]
    q, k = (net.op("Add", net.op("MatMul", normal, net.weight(one)), net.random(16)) for one in rows)
    return net.model([net.op("Mul", q, k)])


def factors(found: Case, strength: float = 0.5) -> tuple[tuple[Site, ...], dict[str, np.ndarray]]:
    sites = find_sites(found.graph, find_channels(found.graph))
    layers = sorted({name for site in sites for name in site.columns})
    magnitudes = channel_magnitudes(found.graph, layers, found.data)
    return sites, factors_of(found.graph, sites, magnitudes, strength)


@pytest.mark.parametrize("name", CASES)
def test_what_the_float_model_computes_stays(name: str) -> None:
    """With any factors at any site."""
    found = case(name)
    sites = find_sites(found.graph, find_channels(found.graph))
    rng = np.random.default_rng(1)
    made = equalised(found.graph, sites, {site.name: rng.uniform(0.1, 10, site.channels) for site in sites})
    sample = found.data.sample(0)
    exact = run(to_bytes(found.graph.model), sample)
    assert sqnr_db(run(to_bytes(made.model), sample), exact) > 90
    assert [node.op_type for node in made.model.graph] == [node.op_type for node in found.graph.model.graph]
    assert [layer.weights for layer in made.layers] == [layer.weights for layer in found.graph.layers]


def test_sites_are_where_operators_are_homogeneous() -> None:
    relu = case("conv_net")
    assert find_sites(relu.graph, find_channels(relu.graph))
    clipped = case("squeeze_excite")  # hard-swish and gates everywhere
    channels = find_channels(clipped.graph)
    between = {name for site in find_sites(clipped.graph, channels) for name in site.rows}
    assert not any("HardSwish" in str(n.op_type) for n in clipped.graph.model.graph if n.name in between)
    attention = case("transformer")
    assert not any("Norm" in site.name for site in find_sites(attention.graph, find_channels(attention.graph)))


@pytest.mark.parametrize("net", [uneven_net, normalised_net])
def test_uneven_channels_cost_less_once_they_are_even(net: Callable[[], Any]) -> None:
    found = case_of(net())
    sites, chosen = factors(found)
    assert chosen
    made = equalised(found.graph, sites, chosen)
    seen = collect_ranges(made, quantization_points(made), found.data)
    ranges = {name: choose_range(one, "min-max") for name, one in seen.items()}
    sample = found.data.sample(1)
    exact = run(to_bytes(found.graph.model), sample)
    int8 = found.uniform(Precision.INT8)
    before = sqnr_db(run(found.write(int8), sample), exact)
    after = sqnr_db(run(to_bytes(apply_precisions(made, int8, ranges)), sample), exact)
    assert after > before + 6


def test_moments_of_scaled_channels_need_no_second_look() -> None:
    found = case_of(uneven_net())
    sites, chosen = factors(found)
    names = found.names
    grams = scaled_grams(collect_grams(found.graph, names, found.data), sites, chosen)
    looked = collect_grams(equalised(found.graph, sites, chosen), names, found.data)
    for name, gram in looked.items():
        np.testing.assert_allclose(grams[name].second, gram.second, rtol=1e-3, atol=1e-6 * np.abs(gram.second).max())


def test_sites_of_layers_are_those_that_they_read() -> None:
    found = case_of(uneven_net())
    sites = find_sites(found.graph, find_channels(found.graph))
    first, second = found.names
    assert list(sites_of(sites, [first])) == []
    assert [site.name for site in sites_of(sites, [second])] == [site.name for site in sites]
    assert scaled(found.graph, Cures(), sites) is found.graph
