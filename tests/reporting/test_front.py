"""The front as a document and as a picture: whole, the same each time, and honest about which plan was chosen."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgekit import results
from edgekit.outcome import PlanResult
from edgekit.reporting import front
from edgekit.types import Budget, Kind, Precision
from tests.reporting.sample_result import sample_result
from tests.reporting.test_tables import plan_result, pruned_plan_result
from tests.test_results import shape

GOLDEN = Path(__file__).parent / "golden/pareto.json"

amounts = st.integers(0, 6).map(float)
points = st.lists(
    st.builds(results.ParetoPoint, latency_ms=amounts, loss=amounts, metric=st.none(), kind=st.just(Kind.PREDICTED)),
    max_size=8,
)


def texts(svg: bytes) -> list[str]:
    """The texts of a picture, in the order they were drawn."""
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@given(points)
def test_the_front_is_what_nothing_beats(considered: list[results.ParetoPoint]) -> None:
    best = front.on_front(considered)
    for one in considered:
        beaten = any(
            other.latency_ms <= one.latency_ms
            and other.loss <= one.loss
            and (other.latency_ms, other.loss) != (one.latency_ms, one.loss)
            for other in considered
        )
        alike = [id(other) for other in considered if (other.latency_ms, other.loss) == (one.latency_ms, one.loss)]
        assert bool(best & set(alike)) is not beaten
        assert len(best & set(alike)) <= 1, "of equal plans one stands for all"


def test_the_shape_is_the_one_that_was_promised() -> None:
    """As in test_results: a field that goes, or changes its type, takes another schema."""
    document = front.document(front.front_of(plan_result()))
    assert next(iter(document)) == "schema"
    text = json.dumps(document, allow_nan=False)
    assert {"schema": front.SCHEMA, "fields": shape(json.loads(text))} == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("found", [plan_result(), pruned_plan_result()], ids=["bits", "channels"])
def test_one_point_is_the_plan(found: PlanResult) -> None:
    made = front.front_of(found)
    (chosen,) = (point for point in made.pareto if point.plan)
    assert chosen.latency_ms == found.plan.predicted.latency_ms.value
    assert chosen.loss == found.plan.predicted.loss
    assert chosen.weight_bytes == found.plan.predicted.weight_bytes
    assert chosen.pruned_channels == sum(group.channels - group.kept for group in found.plan.groups)
    assert chosen.metric == pytest.approx(0.93 - 0.0033)
    assert [point.latency_ms for point in made.pareto] == sorted(point.latency_ms for point in made.pareto)
    assert len(made.pareto) == len(found.pareto) + 1, "the sample's plan is none of its points"


def test_a_plan_that_was_considered_is_there_once() -> None:
    found = plan_result()
    same = results.ParetoPoint(9.05, 0.0131, 3_214_336, 38, None, Kind.PREDICTED)
    made = front.front_of(replace(found, pareto=(*found.pareto, same)))
    assert len(made.pareto) == len(found.pareto) + 1
    assert [point.plan for point in made.pareto].count(True) == 1


def test_uniform_precisions_are_given_where_they_are_known() -> None:
    found = plan_result()
    floats, int8 = front.front_of(found).uniform
    assert (floats.precision, int8.precision) == ("fp32", "int8")
    assert floats.latency_ms == pytest.approx(sum(row.latency_ms[Precision.FP32] for row in found.layers))
    assert int8.loss == pytest.approx(sum(row.loss[Precision.INT8] for row in found.layers))
    without = replace(found.layers[0], latency_ms={Precision.FP32: 1.0})
    assert [one.precision for one in front.front_of(replace(found, layers=(without, *found.layers[1:]))).uniform] == [
        "fp32"
    ]
    assert front.front_of(pruned_plan_result()).uniform == (), "its layers are timed at the channels that stay"


def test_picture_shows_the_plan_and_what_it_competes_with() -> None:
    found = plan_result()
    shown = texts(front.picture(front.front_of(found), ".svg"))
    for text in ("model.onnx on host", "38 int8, 92.7 %", "all fp32", "all int8", "latency budget", "the plan"):
        assert text in shown
    assert "predicted latency, ms (left is better)" in shown
    assert "considered" not in shown, "every point is on the front"
    worse = replace(found.pareto[3], loss=0.5)
    assert "considered" in texts(front.picture(front.front_of(replace(found, pareto=(*found.pareto, worse))), ".svg"))
    pruned = texts(front.picture(front.front_of(pruned_plan_result()), ".svg"))
    assert "38 int8, −40 ch., 92.7 %" in pruned
    assert "one precision" not in pruned
    free = replace(found, budget=Budget())
    assert "latency budget" not in texts(front.picture(front.front_of(free), ".svg"))


def test_same_front_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    made = front.front_of(plan_result())
    first = {suffix: front.picture(made, suffix) for suffix in (".svg", ".png")}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    with mpl.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.facecolor": "red", "text.usetex": True}):
        assert {suffix: front.picture(made, suffix) for suffix in first} == first
    assert b"<dc:date>" not in first[".svg"]
    assert b"var(--" not in first[".svg"], "a file has no page that gives it colours"


def test_png_is_an_image() -> None:
    with Image.open(io.BytesIO(front.picture(front.front_of(plan_result()), ".png"))) as image:
        assert image.format == "PNG"
        assert image.width > 600
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("hostile", ["<script>", "$x$", "a&b", "\x1b[2J", "{0}", "\udc80"])
def test_names_are_text(hostile: str) -> None:
    found = plan_result()
    found = replace(found, model=replace(found.model, name=f"{hostile}.onnx"))
    shown = texts(front.picture(front.front_of(found), ".svg"))
    assert any(text.endswith(".onnx on host") for text in shown)
    assert not any(not text.isprintable() for text in shown)
    if hostile.isprintable():
        assert f"{hostile}.onnx on host" in shown


@pytest.mark.parametrize("odd", [math.nan, math.inf, 0.0, -1.0])
def test_odd_points(odd: float) -> None:
    point = sample_result().pareto[0]
    for considered in ((replace(point, loss=odd),), (replace(point, latency_ms=odd),), ()):
        made = front.front_of(replace(plan_result(), pareto=considered))
        json.dumps(front.document(made), allow_nan=False)
        assert ElementTree.fromstring(front.picture(made, ".svg")) is not None


def test_a_plan_without_a_prediction_is_still_marked() -> None:
    found = plan_result()
    unknown = replace(found.plan.predicted, latency_ms=replace(found.plan.predicted.latency_ms, value=None))
    made = front.front_of(replace(found, plan=replace(found.plan, predicted=unknown)))
    assert [point.plan for point in made.pareto].count(True) == 1
    assert front.picture(made, ".png")


@pytest.mark.parametrize(
    ("named", "document", "picture"),
    [
        ("front.json", "front.json", "front.svg"),
        ("a.b/front.png", "a.b/front.json", "a.b/front.png"),
        ("front.svg", "front.json", "front.svg"),
        ("front", "front", "front.svg"),
        ("front.v2", "front.v2", "front.v2.svg"),
    ],
)
def test_names_of_the_two_files(named: str, document: str, picture: str) -> None:
    assert front.files(Path(named)) == (Path(document), Path(picture))
