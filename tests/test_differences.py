"""Two plans side by side: what is read, what is refused, and that only what differs is said to."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from edgekit import differences, results
from edgekit.differences import Decided, compare, read
from edgekit.errors import InputError
from edgekit.reporting import comparison
from edgekit.types import Budget, GroupChoice, LayerChoice, Plan, Precision
from tests.reporting.sample_result import pruned_result, sample_result
from tests.test_results import shape

GOLDEN = Path(__file__).parent / "reporting/golden"


def decided(result: results.DeployResult, file: str = "a.json") -> Decided:
    return Decided(file, result.target, result.model, result.budget, result.plan)


def another() -> Decided:
    """A plan of channels, under other budgets, for another target, in which two layers take another precision."""
    result = pruned_result()
    first, second, *others = result.plan.layers
    changed = (replace(first, precision=Precision.INT8), replace(second, precision=Precision.BF16), *others)
    predicted = replace(
        result.plan.predicted,
        latency_ms=replace(result.plan.predicted.latency_ms, value=8.5),
        weight_bytes=2_914_336,
        loss=0.0203,
    )
    plan = replace(result.plan, layers=changed, predicted=predicted)
    budget = Budget(latency_ms=8.6, memory_bytes=64_000_000, max_drop=0.02)
    return Decided("bundle", "board", result.model, budget, plan)


def printed(found: differences.PlanDifference, width: int = 80) -> str:
    target = io.StringIO()
    comparison.print_difference(found, Console(file=target, width=width, no_color=True))
    return target.getvalue()


def document(result: results.DeployResult) -> dict[str, Any]:
    """What a bundle's plan.json holds."""
    decisions, _ = results.split(results.to_json(result))
    return decisions


class TestCompare:
    def test_the_same_plan(self) -> None:
        found = compare(decided(pruned_result()), decided(pruned_result(), "b.json"))
        assert found.same
        assert (found.budget, found.layers, found.groups) == ((), (), ())
        assert printed(found).splitlines()[-1] == "no difference"

    def test_what_differs_is_what_was_changed(self) -> None:
        found = compare(decided(sample_result()), another())
        assert not found.same
        assert [(one.name, one.a, one.b) for one in found.budget] == [
            ("latency_ms", 10.0, 8.6),
            ("weight_bytes", 5_000_000, None),
            ("max_drop", 0.01, 0.02),
        ]
        names = [row.name for row in sample_result().layers]
        assert [row.name for row in found.layers] == names[:4], "two in precision, four in the channels they keep"
        assert found.layers[0].a == differences.LayerOption(Precision.FP32, 1.0)
        assert found.layers[0].b == differences.LayerOption(Precision.INT8, 0.75)
        assert [(one.name, one.channels, one.a, one.b) for one in found.groups] == [
            (names[0], 32, 32, 24),
            (names[2], 128, 128, 96),
        ], "a plan that does not speak of a group keeps it whole"
        assert [one.name for one in found.totals] == [
            *("latency_ms", "weight_bytes", "peak_activation_bytes", "memory_bytes", "loss")
        ]

    def test_the_same_decisions_measured_again(self) -> None:
        one, other = decided(sample_result()), decided(sample_result())
        predicted = replace(other.plan.predicted, loss=0.02)
        found = compare(one, replace(other, plan=replace(other.plan, predicted=predicted)))
        assert not found.same
        assert found.a.plan_digest == found.b.plan_digest
        assert "the same decisions" in printed(found)

    def test_what_is_not_known_in_both_does_not_differ(self) -> None:
        one = decided(sample_result())
        unknown = replace(
            one.plan.predicted, loss=math.nan, latency_ms=replace(one.plan.predicted.latency_ms, value=None)
        )
        one = replace(one, plan=replace(one.plan, predicted=unknown))
        found = compare(one, one)
        assert found.same
        json.dumps(results.unstructure(found), allow_nan=False)

    def test_different_models_are_refused(self) -> None:
        one = decided(sample_result())
        other = replace(one, file="b.json", model=results.ModelInfo("other.onnx", "f" * 64))
        with pytest.raises(InputError) as caught:
            compare(one, other)
        for said in (
            "different models",
            "a.json plans ch_PP-OCRv4_rec_infer.onnx",
            "b.json plans other.onnx",
            "f" * 12,
        ):
            assert said in str(caught.value)
        renamed = replace(one, model=replace(one.model, name="renamed.onnx"))
        assert compare(one, renamed).same, "a model is what it holds, not what its file is called"

    def test_layers_that_only_one_plan_has(self) -> None:
        one = decided(sample_result())
        first, *others = one.plan.layers
        extra = LayerChoice("extra", "Gemm", Precision.INT8)
        found = compare(one, replace(one, plan=replace(one.plan, layers=(*others, extra))))
        assert [(row.name, row.a is None, row.b is None) for row in found.layers] == [
            (first.name, False, True),
            ("extra", True, False),
        ]
        assert "not in this plan" in printed(found)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_there_and_back_say_the_same(self, data: st.DataObject) -> None:
        def plan() -> Plan:
            layers = tuple(
                LayerChoice(name, "Conv", data.draw(st.sampled_from(Precision)), data.draw(st.sampled_from((1.0, 0.5))))
                for name in data.draw(st.lists(st.sampled_from("abcd"), unique=True))
            )
            groups = tuple(
                GroupChoice(name, 8, data.draw(st.integers(1, 8)))
                for name in data.draw(st.lists(st.sampled_from("gh"), unique=True))
            )
            return replace(sample_result().plan, layers=layers, groups=groups)

        a, b = (replace(decided(sample_result()), plan=plan()) for _ in range(2))
        there, back = compare(a, b), compare(b, a)
        assert {(x.name, x.a, x.b) for x in there.layers} == {(x.name, x.b, x.a) for x in back.layers}
        assert {(x.name, x.a, x.b) for x in there.groups} == {(x.name, x.b, x.a) for x in back.groups}
        assert there.same is back.same
        assert compare(a, a).same
        if a.plan.digest == b.plan.digest:
            assert there.same
        ours = {choice.name: (choice.precision, choice.keep) for choice in a.plan.layers}
        theirs = {choice.name: (choice.precision, choice.keep) for choice in b.plan.layers}
        assert {row.name for row in there.layers} == {n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n)}


class TestPrinted:
    def test_is_the_one_that_was_seen_to_read_well(self) -> None:
        """What a change of wording does to it is looked at, then the golden file is written anew."""
        text = printed(compare(decided(sample_result()), another()), width=100)
        assert [line.rstrip() for line in text.splitlines()] == (GOLDEN / "diff.txt").read_text().splitlines()

    @pytest.mark.parametrize("hostile", ["[red]x[/red]", "[/]", ":warning:", "a\x1b[2Jb", "x\\"])
    def test_names_are_shown_as_they_are(self, hostile: str) -> None:
        one, other = decided(sample_result(), hostile), another()
        layer = replace(one.plan.layers[0], name=hostile, op_type=hostile)
        group = GroupChoice(hostile, 8, 4)
        one = replace(
            one,
            target=hostile,
            model=replace(one.model, name=hostile),
            plan=replace(one.plan, layers=(layer,), groups=(group,)),
        )
        text = printed(compare(one, other), width=200)
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        assert text.count(hostile.replace("\x1b", "�")) == 7

    def test_fits_80_columns(self) -> None:
        one = decided(sample_result(), "folder/" * 30)
        long = tuple(replace(choice, name="/block" * 30 + choice.name) for choice in one.plan.layers)
        text = printed(compare(replace(one, plan=replace(one.plan, layers=long)), another()))
        assert max(map(len, text.splitlines())) <= 80

    def test_the_shape_is_the_one_that_was_promised(self) -> None:
        """As in test_results: a field that goes, or changes its type, takes another schema."""
        text = json.dumps(results.unstructure(compare(decided(sample_result()), another())), allow_nan=False)
        found = {"schema": differences.SCHEMA, "fields": shape(json.loads(text))}
        assert found == json.loads((GOLDEN / "plan-diff.json").read_text())


class TestRead:
    def test_each_form(self, tmp_path: Path) -> None:
        result = pruned_result()
        wanted = replace(decided(result), file="")
        forms = {
            "bundle/plan.json": document(result),
            "deploy.json": results.to_json(result),
            "plan.json": {**document(result), "schema": "edgekit/plan/1", "drop": 0.003, "unheard_of": 1},
        }
        (tmp_path / "bundle").mkdir()
        for name, content in forms.items():
            (tmp_path / name).write_text(json.dumps(content))
            found = read(tmp_path / name)
            assert found.file == str(tmp_path / name)
            assert replace(found, file="") == wanted
        assert replace(read(tmp_path / "bundle"), file="") == wanted

    def test_plans_of_before_pruning(self, tmp_path: Path) -> None:
        old = document(sample_result())
        del old["plan"]["groups"]
        (tmp_path / "plan.json").write_text(json.dumps(old))
        assert read(tmp_path / "plan.json").plan == sample_result().plan

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not a JSON document"),
            (b'{"plan": {"lay', "not a JSON document"),
            (b"\xff\xfe\x00", "not a JSON document"),
            (b"[" * 100_000, "not a JSON document"),
            (b"[]", "not an edgekit plan (it has no schema)"),
            (b"{}", "not an edgekit plan (it has no schema)"),
            (b'{"schema": "edgekit/pareto/1"}', "not an edgekit plan (its schema is 'edgekit/pareto/1')"),
            (b'{"schema": ["x"]}', "not an edgekit plan"),
            (b'{"schema": "edgekit/plan/1"}', "not a valid plan"),
        ],
    )
    def test_what_is_no_plan(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = tmp_path / "plan.json"
        path.write_bytes(content)
        self.refused(path, message)

    @pytest.mark.parametrize(
        ("where", "value", "named"),
        [
            (("plan",), None, "result.plan"),
            (("plan",), [], "result.plan"),
            (("plan", "layers", 0, "precision"), "int3", "result.plan.layers[0].precision"),
            (("plan", "layers"), {}, "result.plan.layers"),
            (("plan", "groups", 0, "kept"), "8", "result.plan.groups[0].kept"),
            (("plan", "groups", 0, "kept"), 8, "plan.digest"),
            (("plan", "predicted", "loss"), "low", "result.plan.predicted.loss"),
            (("budget", "latency_ms"), "10ms", "result.budget.latency_ms"),
            (("model", "sha256"), None, "result.model.sha256"),
            (("target",), 3, "result.target"),
        ],
    )
    def test_a_wrong_field_is_named(
        self, where: tuple[str | int, ...], value: object, named: str, tmp_path: Path
    ) -> None:
        content = json.loads(json.dumps(document(pruned_result())))
        inside: Any = content
        for key in where[:-1]:
            inside = inside[key]
        inside[where[-1]] = value
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(content))
        self.refused(path, named)

    @pytest.mark.parametrize("name", ["nothing.json", "folder"])
    def test_what_is_not_there(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        self.refused(tmp_path / name, "No such file")

    def refused(self, path: Path, message: str) -> None:
        with pytest.raises(InputError) as caught:
            read(path)
        assert message in str(caught.value)
        assert caught.value.hint
