"""Budgets and shapes from the command line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.budget import parse_budget, parse_shapes
from edgekit.errors import InputError
from edgekit.types import Budget


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("33ms", 33),
        ("10 ms", 10),
        ("1s", 1000),
        (" 2.5ms ", 2.5),
        (".5 s", 500),
        ("250us", 0.25),
        ("250µs", 0.25),
        ("1e3 ms", 1000),
    ],
)
def test_latency(text, milliseconds):
    assert parse_budget(latency=text).latency_ms == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MB", 512_000_000),
        ("64MiB", 64 << 20),
        ("5 MB", 5_000_000),
        ("1GB", 10**9),
        ("900 kB", 900_000),
        ("8 KiB", 8192),
        ("2.5kB", 2500),
        ("10 bytes", 10),
    ],
)
def test_bytes(text, count):
    budget = parse_budget(memory=text, size=text)
    assert budget.memory_bytes == budget.weight_bytes == count
    assert isinstance(budget.memory_bytes, int)


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("0", 0), ("0%", 0), ("100%", 1), (" 2.5 % ", 0.025)]
)
def test_drop(text, value):
    assert parse_budget(max_drop=text).max_drop == pytest.approx(value)


def test_nothing_is_the_default():
    assert parse_budget() == Budget()


JUNK = [
    "",
    " ",
    "ms",
    "10 parsecs ",
    "nan",
    "nanms",
    "inf ms",
    "1e999ms",
    "-3ms",
    "ten ms",
    "1,5 ms",
    "3 4 ms",
    "9**9**9 ms",
    "__import__('os')",
    "10ms; ls",
    "١٠ms",
    "0x10 ms",
    "10 ms\n10 ms",
    "%",
]


@pytest.mark.parametrize("text", [*JUNK, "10", "0ms", "0.0s", "5MB", "3 degC", "10%"])
def test_bad_latency(text):
    with pytest.raises(InputError, match="--latency") as caught:
        parse_budget(latency=text)
    assert "--latency 33ms" in caught.value.hint


@pytest.mark.parametrize("text", [*JUNK, "10", "0MB", "5ms", "512M", "64kb", "0.1 B", "1e30 GB", "10%"])
@pytest.mark.parametrize("flag", ["memory", "size"])
def test_bad_bytes(flag, text):
    with pytest.raises(InputError, match=f"--{flag}") as caught:
        parse_budget(**{flag: text})
    assert f"--{flag} 5" in caught.value.hint


@pytest.mark.parametrize("text", [*JUNK, "1", "2", "1 point", "1ms", "-1%", "nan%"])
def test_bad_drop(text):
    with pytest.raises(InputError, match="--max-drop") as caught:
        parse_budget(max_drop=text)
    assert "1%" in caught.value.hint


@given(st.text(max_size=20))
def test_any_text_is_a_budget_or_an_input_error(text):
    for flag in ("latency", "memory", "size", "max_drop"):
        with contextlib.suppress(InputError):
            assert isinstance(parse_budget(**{flag: text}), Budget)


def test_shapes():
    assert parse_shapes(["x=1x3x48x320", "input:0=7", "a=b=2X2"]) == {
        "x": (1, 3, 48, 320),
        "input:0": (7,),
        "a=b": (2, 2),
    }
    assert parse_shapes(["x=1x3", "x=1x3"]) == {"x": (1, 3)}
    assert parse_shapes([]) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x=",
        "=1x3",
        "x=1x",
        "x=x3",
        "x=0x3",
        "x=-1x3",
        "x=1,3",
        "x=1.5x3",
        "x=1x?",
        "x=1 x 3",
        "x=1xx3",
        "x=99999999999",
        "x=١",
    ],
)
def test_bad_shapes(text):
    with pytest.raises(InputError, match="--shape") as caught:
        parse_shapes([text])
    assert "x=1x3x224x224" in caught.value.hint


def test_two_shapes_for_one_input():
    with pytest.raises(InputError, match="two shapes"):
        parse_shapes(["x=1x3", "x=1x4"])


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=6))
def test_shapes_come_back(shape):
    assert parse_shapes([f"x={'x'.join(map(str, shape))}"]) == {"x": tuple(shape)}
