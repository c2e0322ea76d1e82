"""The page: whole in one file, the same each time, honest about its figures, safe with any name, and never without an
answer, however odd the result is.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import results
from edgekit.reporting import front, html
from edgekit.types import Budget, Conformance, Figure, Kind, Mismatch, Precision
from tests.reporting.sample_result import layer_rows, sample_result

VOID = {"meta", "br", "img", "link", "input", "hr", "col"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}",
    "$x$",
    "a&b",
    "'); url(http://x)",
)
KINDS = {kind.value for kind in Kind}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, the text of each heading, all text, tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2"):
            self.headings.append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text.append(data)
        if {"h1", "h2"} & set(self.open):
            self.headings[-1] += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def row(self, first: str) -> list[str]:
        """The first row of a table whose first cell is ``first``."""
        return next(row for row in self.rows if row and row[0] == first)


def page(result: results.DeployResult) -> Page:
    made = Page(html.render(result))
    assert made.open == []
    return made


def with_names(hostile: str) -> results.DeployResult:
    """The sample with ``hostile`` in every text that a model, a file or a user brings."""
    sample = sample_result()
    rows = tuple(replace(row, name=f"{row.name} {hostile}", reason=hostile) for row in sample.layers)
    return replace(
        sample_result(rows),
        model=replace(sample.model, name=f"{hostile}.onnx"),
        data=replace(sample.data, name=hostile),
        recipe=replace(sample.recipe, name=hostile, metric=hostile),
        device=replace(sample.device, cpu=hostile, governor=hostile, runtime=hostile, machine=hostile),
        target=hostile,
        chosen_reason=hostile,
        warnings=(hostile,),
        options_dropped=(results.DroppedOption(hostile, hostile, hostile),),
        candidates=tuple(replace(c, note=hostile, metric=replace(c.metric, name=hostile)) for c in sample.candidates),
        conformance=Conformance(47, 46, (Mismatch(hostile, Precision.INT8, hostile),)),
        rounds=(results.Round(1, hostile, None, None, None),),
        blame=(results.Blame(hostile, Precision.INT8, 0.5, None, hostile),),
        versions={hostile: hostile},
    )


def test_needs_nothing_but_itself() -> None:
    text = html.render(sample_result())
    made = Page(text)
    names = {tag for tag, _ in made.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video"}
    for tag, attributes in made.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert (value or "").startswith("#"), (tag, key, value)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)\)", text))
    assert "://" not in text
    policy = next(
        a["content"] for t, a in made.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_ids_are_unique_and_every_reference_has_its_target() -> None:
    text = html.render(sample_result())
    made = Page(text)
    ids = [attributes["id"] for _, attributes in made.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]*)\)", text)
    references += [(a.get("xlink:href") or a.get("href") or "").removeprefix("#") for t, a in made.tags if t == "use"]
    assert references
    assert set(references) <= set(ids)


def test_holds_no_path_of_this_machine() -> None:
    result = replace(sample_result(), bundle="/home/somebody/secret/out")
    text = html.render(result)
    assert "/home" not in text
    assert "somebody" not in text


def test_same_result_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = html.render(sample_result())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert html.render(results.from_json(results.to_json(sample_result()))) == first


def test_users_style_does_not_change_the_pictures() -> None:
    import matplotlib as mpl

    first = html.render(sample_result())
    with mpl.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.facecolor": "red", "text.usetex": True}):
        assert html.render(sample_result()) == first


def test_verdict_comes_first() -> None:
    made = page(sample_result())
    assert made.tags[[tag for tag, _ in made.tags].index("body") + 1][0] == "header"
    assert made.headings[0].startswith("1.92x faster than float, ctc-exact −0.3 points, 3.21 MB")
    assert "95 % CI −1.3 to +0.7" in made.headings[0]
    assert made.words.index("1.92x faster") < made.words.index("pass") < made.words.index("The candidates")
    assert "9.31 ms instead of 17.9 ms" in made.words


def test_everything_in_the_result_is_on_the_page() -> None:
    result = sample_result()
    made = page(result)
    titles = [attributes.get("title") for tag, attributes in made.tags if tag == "td"]
    assert [title for title in titles if title] == [row.name for row in result.layers]
    for candidate in result.candidates:
        row = made.row(candidate.name)
        assert f"{candidate.latency_ms.p50:.3g}" == row[1]
        assert str(candidate.latency_ms.n) in row
    assert [made.row(b.layer)[-1] for b in result.blame] == [b.cure for b in result.blame]
    for found in result.rounds:
        assert found.action in made.words
    for option in result.options_dropped:
        assert option.reason in made.words
        assert option.scope == "model" or made.words.count(option.scope) >= 1
    points = [row for row in made.rows if len(row) == 7 and row[1] in KINDS]
    assert len(points) == len(result.pareto)
    assert [row[-1] for row in points].count("ships") == 1
    circles = re.search(r'<svg[^>]*aria-label="Plans considered.*?</svg>', html.render(result), re.DOTALL)
    assert circles is not None
    assert circles[0].count("<use") >= len(result.pareto)
    for value in (result.model.sha256, result.data.sha256, result.recipe.digest, result.plan.digest, result.created):
        assert value in made.words
    for name, version in result.versions.items():
        assert f"{name} {version}" in made.words


def test_every_figure_carries_its_kind() -> None:
    result = sample_result()
    made = page(result)
    checks = [a for t, a in made.tags if t == "li"]
    assert len(checks) == 6
    for name, kind in (("latency", "measured"), ("size", "counted"), ("memory", "predicted"), ("drop", "measured")):
        assert re.search(rf"{name}: [^:]*? {kind}\b", made.words), name
    assert made.row("predicted")[3].startswith("predicted, 90 % interval; in-network table")
    assert made.row("predicted")[1] == "9.05 (8.30 to 9.80)"
    assert made.row("MAC baseline")[3].startswith("predicted, from float and int8 totals")
    assert made.row("measured")[3].startswith("measured on ")
    heading = next(row for row in made.rows if row[0] == "candidate")
    for column in heading[1:-1]:
        assert column in ("p90", "p99", "runs") or column.endswith(("measured", "counted")), column
    captions = re.findall(r"<figcaption>.*?</figcaption>", html.render(result))
    assert len(captions) == 3
    assert all("measured" in caption or "counted" in caption for caption in captions)
    for point, row in zip(
        result.pareto, reversed([r for r in made.rows if len(r) == 7 and r[1] in KINDS]), strict=True
    ):
        assert row[1] == point.kind.value
    assert "Time: measured inside the network" in made.words
    predicted = tuple(replace(row, latency_kind=Kind.PREDICTED) for row in result.layers)
    assert "Time: predicted inside the network" in page(sample_result(predicted)).words


def test_blame_speaks_of_uniform_int8_and_of_what_ships() -> None:
    made = page(sample_result())
    assert any("uniform int8" in heading for heading in made.headings)
    assert "Of everything in int8, not of what ships" in made.words
    worst = made.row(sample_result().blame[0].layer)
    assert worst[1:4] == ["fp32", "31 %", "4.3 points"]


def test_options_dropped_for_one_reason_share_a_row() -> None:
    reason = "the runtime executes it in f32 all the same"
    dropped = tuple(results.DroppedOption("int8", f"layer{n}", reason) for n in range(12))
    whole = results.DroppedOption("w8", "model", "slower")
    made = page(replace(sample_result(), options_dropped=(*dropped, whole)))
    (row,) = (row for row in made.rows if reason in row)
    assert row[1].startswith("12 layers: layer0, layer1, ")
    assert row[1].endswith("layer11")
    assert made.rows.index(["w8", "everywhere", "slower"]) < made.rows.index(row)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_are_text(hostile: str) -> None:
    clean, made = page(with_names("plain")), page(with_names(hostile))
    assert [tag for tag, _ in made.tags] == [tag for tag, _ in clean.tags]
    assert [sorted(attributes) for _, attributes in made.tags] == [sorted(attributes) for _, attributes in clean.tags]
    assert hostile in "".join(made.text)
    assert f"{hostile}.onnx" in "".join(made.text)


def test_layers_without_int8_point_to_the_reason() -> None:
    sample = sample_result()
    dropped = {option.scope for option in sample.options_dropped}
    made = page(sample)
    for row in sample.layers:
        shown = next(cells for cells in made.rows if len(cells) == 12 and row.name.endswith(cells[1]))
        assert shown[-1] == ("int8 set aside (see below)" if row.name in dropped else row.reason)
    assert made.words.index("int8 set aside (see below)") < made.words.index("Options set aside")


def test_candidates_with_hostile_names_are_text() -> None:
    sample = sample_result()
    named = tuple(replace(c, name=f"{c.name}<b>$x$&") if c.name != "float" else c for c in sample.candidates)
    made = page(replace(sample, candidates=named, chosen="plan<b>$x$&"))
    assert not any(tag == "b" and not attributes for tag, attributes in made.tags if "x$" in str(attributes))
    texts = "".join(made.text)
    assert texts.count("plan<b>$x$&") >= 5  # table, three pictures, sentence


@given(name=st.text(st.characters(codec=None), max_size=12))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_name_gives_a_page_that_can_be_written(name: str) -> None:
    rows = layer_rows()[:2]
    result = sample_result(tuple(replace(row, name=f"{row.name}{name}") for row in rows))
    text = html.render(replace(result, model=replace(result.model, name=name)))
    assert text.encode()  # half surrogates, as file names may have, are gone
    Page(text)


def with_metric(value: float, low: float | None = None, high: float | None = None) -> results.DeployResult:
    sample = sample_result()
    low, high = value if low is None else low, value if high is None else high
    broken = replace(sample.candidates[1].metric, value=value, low=low, high=high)
    damaged = replace(
        sample.candidates[1], metric=broken, sqnr_db=-math.inf, drop=Figure(Kind.MEASURED, value, value, value)
    )
    return replace(sample, candidates=(sample.candidates[0], damaged, *sample.candidates[2:]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metric_that_is_no_number(value: float) -> None:
    row = page(with_metric(value)).row("int8")
    assert "not finite (not finite to not finite)" in row
    assert "not known" in row
    everything = sample_result()
    broken = tuple(
        replace(c, metric=replace(c.metric, value=value, low=value, high=value)) for c in everything.candidates
    )
    made = page(replace(everything, candidates=broken))
    assert "nan" not in made.words.lower().split()


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1e-30, 0.0, 1e30), (-5.0, -9.0, 3)]
)
def test_metric_of_any_size(value: float, low: float, high: float) -> None:
    page(with_metric(value, low, high))


def test_only_the_float_model() -> None:
    sample = sample_result()
    result = replace(
        sample,
        candidates=sample.candidates[:1],
        chosen="float",
        chosen_reason="the only candidate",
        pareto=(),
        blame=(),
        rounds=(),
        options_dropped=(),
        prediction=None,
        warnings=(),
        budget=Budget(max_drop=None),
    )
    made = page(result)
    assert made.headings[0].startswith("float ships unchanged, 17.9 ms, ctc-exact 93.0 %, 10.8 MB")
    assert not any("What was considered" in heading or "Rounds" in heading for heading in made.headings)
    assert made.row("measured")[3] == "none; the plan was not raced"
    assert "No plan within the same limits" not in made.words
    assert "budget none" in made.words


def test_prediction_of_a_plan_that_lost_is_not_mixed_with_what_ships() -> None:
    sample = sample_result()
    lost = results.Prediction(8.0, 10.0, -0.2, None, None)
    made = page(replace(sample, chosen="int8", prediction=lost))
    assert made.row("predicted")[1] == "8.00 (7.34 to 8.66)"
    assert made.row("predicted")[2] == "−20.0 %"
    assert "the last plan that was raced; int8 ships" in made.words
    assert made.row("MAC baseline")[1:3] == ["none", "–"]
    assert "No plan within the same limits" not in made.words  # nothing was proven of a uniform precision


def test_no_prediction_at_all() -> None:
    sample = sample_result()
    unplanned = Figure(Kind.NONE, source="the unmodified model was raced, not planned")
    plan = replace(sample.plan, predicted=replace(sample.plan.predicted, latency_ms=unplanned))
    made = page(replace(sample, plan=plan, prediction=None))
    assert made.row("predicted")[1:] == ["none", "–", "none; the unmodified model was raced, not planned"]


@pytest.mark.parametrize("odd", [math.nan, math.inf, 0.0])
def test_layers_with_odd_numbers(odd: float) -> None:
    rows = layer_rows()
    broken = replace(rows[0], loss={Precision.INT8: odd}, latency_ms={Precision.FP32: odd})
    empty = replace(rows[1], loss={}, latency_ms={}, macs=0, weight_bytes=0, keep=0.75)
    made = page(sample_result((broken, empty, *rows[2:])))
    assert "fp32 75 %" in made.words or "int8 75 %" in made.words
    widths = [
        float(width)
        for tag, attributes in made.tags
        if tag == "i"
        for width in re.findall(r"width:(.*?)%", attributes.get("style") or "")
    ]
    assert widths
    assert all(0 <= width <= 100 for width in widths)


def test_pareto_with_odd_points() -> None:
    sample = sample_result()
    point = sample.pareto[0]
    odd = tuple(
        replace(point, latency_ms=latency, loss=loss)
        for latency, loss in ((math.nan, 0.1), (1.0, math.nan), (1.0, math.inf), (2.0, -1.0), (3.0, 0.0), (4.0, 0.0))
    )
    page(replace(sample, pareto=odd))
    alone = page(replace(sample, pareto=(point,)))
    assert "1 plan in numbers" in alone.words
    assert not any("Plans considered" in (a.get("aria-label") or "") for _, a in alone.tags)


def test_pareto_labels_do_not_cover_each_other() -> None:
    sample = sample_result()
    point = replace(sample.pareto[0], metric=0.9, kind=Kind.MEASURED)
    crowd = tuple(replace(point, latency_ms=9 + n / 50, loss=0.02 - n / 5000, int8_layers=30 + n) for n in range(12))
    far = replace(point, latency_ms=40.0, loss=1e-9, int8_layers=0)
    text = front.pareto(replace(sample, pareto=(*crowd, far)))
    places = re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>\d+ int8, 90.0 %', text)
    assert 3 <= len(places) < 13  # the nearest that fit; the table has all
    assert "38 int8" in text  # what ships comes first
    assert ">0 int8" in text  # where there is room there is a label
    boxes = [(float(x), float(y)) for x, y in places]
    for index, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:index]:
            assert abs(x - other_x) > 60 or abs(y - other_y) > 8


def test_one_layer() -> None:
    made = page(sample_result(layer_rows()[:1]))
    assert [a["title"] for t, a in made.tags if t == "td" and "title" in a] == [layer_rows()[0].name]


def test_no_layers() -> None:
    sample = sample_result()
    page(replace(sample, layers=(), blame=(), options_dropped=()))


def test_500_layers_in_a_box_of_bounded_height() -> None:
    rows = layer_rows()
    many = tuple(replace(rows[n % 47], name=f"StatefulPartitionedCall/net/{n}/Conv") for n in range(500))
    text = html.render(sample_result(many))
    made = Page(text)
    titles = [a["title"] for t, a in made.tags if t == "td" and "title" in a]
    assert titles == [row.name for row in many]
    assert ["1", "0/Conv"] in [row[:2] for row in made.rows]
    assert "Names are without StatefulPartitionedCall/net/" in made.words
    assert re.search(r"\.layers \{ max-height:\d+px;", text)
    assert len(text) < 600_000


def test_synthetic_data_claim_nothing_about_accuracy() -> None:
    sample = sample_result()
    made = page(replace(sample, data=replace(sample.data, synthetic=True)))
    assert "ctc-exact" not in made.headings[0]
    assert "Random inputs." in made.words
    assert re.search(r"open drop: not known, limit 1.0 points none", made.words.replace("? ", ""))


def test_failed_budgets_and_guards_are_marked() -> None:
    sample = sample_result()
    result = replace(
        sample,
        budget=Budget(latency_ms=9.0, memory_bytes=1_000_000, weight_bytes=3_000_000, max_drop=0.001),
        conformance=Conformance(47, 46, (Mismatch(sample.layers[3].name, Precision.INT8, "f32"),)),
        chosen="bf16",
    )
    made = page(result)
    assert [a["class"] for t, a in made.tags if t == "li"] == ["no", "no", "no", "yes", "no", "no"]
    assert made.headings[0].startswith("1.68x slower than float")
    assert made.row(sample.layers[3].name)[1:] == ["int8", "f32"]
    assert "latency: 30.1 ms > 9.00 ms" in made.words


def test_chosen_that_is_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="'nobody' is not one of the candidates"):
        html.render(replace(sample_result(), chosen="nobody"))
    with pytest.raises(ValueError, match="no candidate 'float'"):
        html.render(replace(sample_result(), candidates=sample_result().candidates[1:]))
