"""A user's own metric: used as it stands, and told where it fails."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.recipes.intervals import drop, result
from edgekit.recipes.metrics import metric, rows_of

SOURCE = """
from __future__ import annotations

from dataclasses import dataclass


def error(outputs, label, reference):
    return abs(float(outputs["y"][0]) - label)


error.higher_is_better = False


def fidelity(outputs, label, reference):
    return float(outputs["y"][0] == reference["y"][0])


@dataclass
class Ratio:
    name: str = "hits per try"

    def row(self, outputs, label, reference):
        return float(outputs["y"][0]), label

    def aggregate(self, rows):
        return rows[:, 0].sum() / rows[:, 1].sum()


ratio = Ratio()


def raises(outputs, label, reference):
    return {}["nothing"]


def nan(outputs, label, reference):
    return float("nan")


def text(outputs, label, reference):
    return "good"


def nothing(outputs, label, reference):
    pass


def too_few(outputs):
    return 1.0


class Broken(Ratio):
    def row(self, outputs, label, reference):
        return 3.0

    def aggregate(self, rows):
        return None


class NeedsArguments:
    def __init__(self, a):
        pass


number = 3
"""
RAISING = next(i for i, line in enumerate(SOURCE.split("\n"), 1) if "nothing" in line)
DIVIDING = next(i for i, line in enumerate(SOURCE.split("\n"), 1) if "rows[:, 1]" in line)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def sample(y, label, reference=0.0):
    return {"y": np.array([y])}, label, {"y": np.array([reference])}


def refusal(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    told = f"{caught.value} | {caught.value.hint}"
    for part in parts:
        assert part in told, told
    assert "\n" not in told
    assert caught.value.hint


def test_a_function_is_averaged(file):
    scorer = metric(f"{file}:error")
    rows = rows_of(scorer, [sample(1.0, 3), sample(5.0, 4)])
    assert (scorer.name, scorer.higher_is_better) == ("error", False)
    assert scorer.aggregate(rows) == 1.5
    assert drop(scorer, rows, rows + 1).value == 1
    binary = metric(f"{file}:fidelity")
    assert result(binary, rows_of(binary, [sample(0.0, 1)] * 9 + [sample(1.0, 1)])).value == 0.9


@pytest.mark.parametrize("name", ["ratio", "Ratio"])
def test_an_object_or_class_aggregates(file, name):
    scorer = metric(f"{file}:{name}")
    rows = rows_of(scorer, [sample(1.0, 3), sample(2.0, 3)])
    found = result(scorer, rows)
    assert (found.name, found.value, found.n) == ("hits per try", 0.5, 2)
    assert scorer.higher_is_better


def test_relative_paths(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert metric("own.py:error").aggregate(np.ones((1, 1))) == 1
    refusal(lambda: metric("./own.py:raises").row(*sample(1.0, 1)), f"own.py:{RAISING}")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("raises", [f":{RAISING}: raises raised KeyError: 'nothing'"]),
        ("nan", ["nan (label 7) returned nan, not a finite number"]),
        ("text", ["text (label 7) returned 'good'"]),
        ("nothing", ["nothing (label 7) returned None"]),
        ("too_few", ["too_few raised TypeError"]),
        ("Broken", ["Broken", "returned 3.0, not a tuple"]),
    ],
)
def test_failures_in_a_row(file, name, parts):
    refusal(lambda: metric(f"{file}:{name}").row(*sample(1.0, 7)), str(file), *parts)


def test_failures_in_aggregate(file):
    refusal(lambda: metric(f"{file}:Broken").aggregate(np.ones((1, 1))), str(file), "aggregate returned None")
    refusal(
        lambda: metric(f"{file}:ratio").aggregate(np.ones((1, 1))), f"{file}:{DIVIDING}", "aggregate raised IndexError"
    )


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("eror", ["has no 'eror'", "did you mean 'error'"]),
        ("number", ["neither a function"]),
        ("NeedsArguments", ["TypeError"]),
    ],
)
def test_names_that_are_no_metric(file, name, parts):
    refusal(lambda: metric(f"{file}:{name}"), str(file), *parts)


def test_files_that_cannot_be_imported(tmp_path):
    refusal(lambda: metric(str(tmp_path / "none.py") + ":f"), "there is no file")
    refusal(lambda: metric("own.py"), "names no function")
    refusal(lambda: metric(":f"), "names no function")
    refusal(lambda: metric(f"{tmp_path}:f"), "there is no file")
    for content, part in {
        "def f(:": "own.py:1",
        "import nothing_of_this_name": "own.py:1",
        "raise SystemExit(3)": "own.py:1",
        "x\0": "own.py",
    }.items():
        (tmp_path / "own.py").write_text(content)
        refusal(lambda: metric(f"{tmp_path}/own.py:f"), part, "import raised")
    (tmp_path / "own.txt").write_text("f = 3")
    refusal(lambda: metric(f"{tmp_path}/own.txt:f"), "is not a Python file")
