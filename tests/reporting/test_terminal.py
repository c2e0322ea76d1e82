"""The terminal's screen: it fits, says the same as the page, and shows names as they are."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from edgekit import results
from edgekit.reporting import terminal
from edgekit.types import Budget, Conformance, Figure, Kind, Mismatch, Precision
from tests.reporting.sample_result import layer_rows, sample_result


def screen(result: results.DeployResult, width: int = 80, colour: bool = False) -> list[str]:
    console = Console(
        file=io.StringIO(),
        width=width,
        record=True,
        no_color=not colour,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    )
    terminal.print_summary(result, console)
    return console.export_text(styles=colour).rstrip("\n").split("\n")


def test_fits_one_screen_of_80_columns() -> None:
    lines = screen(sample_result())
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 30
    assert lines[0] == ""
    assert lines[1] == "1.92x faster than float, ctc-exact −0.3 points, 3.21 MB (95 % CI −1.3 to +0.7)"


def test_says_what_the_result_says() -> None:
    lines = screen(sample_result())
    text = "\n".join(lines)
    squeezed = [" ".join(line.split()) for line in lines]
    assert "→ plan 9.31 10.9 1.92x 92.7 (89.2–95.1) +0.3 19 dB 3.21 MB" in squeezed
    assert "int8 8.31 9.60 2.16x 69.0 (63.6–74.0) +24.0 10 dB 2.80 MB" in squeezed
    for said in (
        "✓ latency: 9.31 ms ≤ 10.0 ms (measured)",
        "✓ size: 3.21 MB ≤ 5.00 MB (counted)",
        "✓ memory: 5.43 MB ≤ 64.0 MB (predicted)",
        "✓ drop: 0.3 points ≤ 1.0 points (measured)",
        "✓ never slower: 1.92x the speed of float (measured)",
        "✓ runs as planned: 47 of 47 layers (measured)",
        "ships plan (38 int8, 9 fp32): the fastest that loses at most 1 point",
        "predicted 9.05 ms, measured 9.31 ms (−2.8 %)",
        "dropped bf16: takes 1.69x the time of fp32 on this device",
        "! the frequency governor could not be read",
        "report  out/ocr/report.html",
    ):
        assert said in text


def test_colour_changes_nothing_but_colour() -> None:
    plain = screen(sample_result())
    console = Console(file=io.StringIO(), width=80, record=True, force_terminal=True, color_system="truecolor")
    terminal.print_summary(sample_result(), console)
    coloured = console.export_text(clear=False)
    assert coloured.rstrip("\n").split("\n") == plain
    assert "\x1b[" in console.export_text(styles=True)
    assert "\x1b[" not in "\n".join(plain)


@pytest.mark.parametrize(
    "hostile", ["[red]x[/red]", "[/]", "[link=http://x]x", ":warning:", "x\\", "[bold", "{0}", "%s"]
)
def test_markup_in_names_is_text(hostile: str) -> None:
    sample = sample_result()
    rows = tuple(replace(row, name=hostile) for row in sample.layers)
    result = replace(
        sample_result(rows),
        model=replace(sample.model, name=f"{hostile}.onnx"),
        target=f"target {hostile}",
        device=replace(sample.device, cpu=f"cpu {hostile}"),
        chosen=f"plan {hostile}",
        chosen_reason=f"reason {hostile}",
        candidates=tuple(
            replace(
                c,
                name=c.name if c.name != "plan" else f"plan {hostile}",
                metric=replace(c.metric, name=f"metric {hostile}"),
            )
            for c in sample.candidates
        ),
        options_dropped=(results.DroppedOption("w8", "model", f"because {hostile}"),),
        warnings=(f"warning {hostile}",),
        bundle=f"out/{hostile}",
    )
    text = " ".join(" ".join(screen(result, 200)).split())
    for said in (
        f"{hostile}.onnx",
        f"target {hostile}",
        f"cpu {hostile}",
        f"ships plan {hostile}",
        f"reason {hostile}",
        f"{hostile.rpartition(':')[2]} %",
        f"→ plan {hostile}",
        f"because {hostile}",
        f"warning {hostile}",
        f"kept in fp32: {hostile}",
        f"out/{hostile}/report.html",
    ):
        assert said in text


@pytest.mark.parametrize("control", ["\x1b[2J", "\x1b]0;title\x07", "\r", "\n", "\u202e", "\x9b31m", "\udc80"])
def test_names_do_not_steer_the_terminal(control: str) -> None:
    sample = sample_result()
    name = f"a{control}b"
    rows = tuple(replace(row, name=name) for row in sample.layers)
    result = replace(
        sample_result(rows), model=replace(sample.model, name=name), warnings=(name,), chosen_reason=name, bundle=name
    )
    target = io.StringIO()
    terminal.print_summary(result, Console(file=target, width=80, no_color=True))
    letters = set(target.getvalue()) - {"\n"}
    assert all(letter.isprintable() for letter in letters)
    assert "a�" in target.getvalue()
    assert target.getvalue().encode()


def test_long_names_stay_within_the_screen() -> None:
    sample = sample_result()
    long = "Stateful/" * 40 + "the_end"
    rows = tuple(replace(row, name=f"{long}{n}") for n, row in enumerate(sample.layers))
    metric = replace(sample.candidates[0].metric, name="scores.py:" + "mean_average_precision_" * 4)
    many = tuple(
        replace(sample.candidates[n % 4], name="float" if n == 0 else f"plan {n}", metric=metric) for n in range(12)
    )
    result = replace(
        sample_result(rows), candidates=many, chosen="plan 3", model=replace(sample.model, name=f"{long}.onnx")
    )
    lines = screen(result)
    assert max(map(len, lines)) <= 80
    kept = next(line for line in lines if "most sensitive" in line)
    assert "…" in kept
    assert kept.endswith("the_end46")  # the end tells layers apart, not the beginning


def test_paths_are_never_cut() -> None:
    bundle = "/somewhere/" + "deep/" * 30 + "bundle"
    lines = screen(replace(sample_result(), bundle=bundle))
    assert lines[-2:] == [f"bundle  {bundle}", f"report  {bundle}/report.html"]


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_other_widths(width: int) -> None:
    assert screen(sample_result(), width)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(value: float) -> None:
    sample = sample_result()
    odd = tuple(
        replace(
            c,
            metric=replace(c.metric, value=value, low=value, high=value),
            sqnr_db=value,
            drop=Figure(Kind.MEASURED, value, value, value),
            speedup=None,
        )
        for c in sample.candidates
    )
    rows = tuple(replace(row, loss={Precision.INT8: value}) for row in layer_rows())
    lines = screen(
        replace(sample_result(rows), candidates=odd, prediction=results.Prediction(value, value, value, None, None))
    )
    assert max(map(len, lines)) <= 80
    assert not {"nan", "inf", "-inf"} & set(" ".join(lines).replace("(", " ").replace("%", " ").split())
    assert any("drop: not known" in line for line in lines)


def test_only_float_and_nothing_else() -> None:
    sample = sample_result()
    result = replace(
        sample,
        candidates=sample.candidates[:1],
        chosen="float",
        layers=(),
        options_dropped=(),
        prediction=None,
        warnings=(),
        budget=Budget(max_drop=None),
    )
    lines = screen(result)
    assert lines[1].startswith("float ships unchanged, 17.9 ms, ctc-exact 93.0 %, 10.8 MB")
    assert len(lines) < 20


def test_failures_are_marked_without_colour() -> None:
    sample = sample_result()
    mismatch = Conformance(47, 46, (Mismatch("conv", Precision.INT8, "f32"),))
    lines = screen(replace(sample, chosen="int8", conformance=mismatch))
    assert "✗ drop: 24.0 points > 1.0 points (measured)" in lines
    assert "✗ runs as planned: 46 of 47 layers (measured)" in lines
    assert "✓ never slower: 2.16x the speed of float (measured)" in lines


def test_synthetic_data_leave_the_drop_open() -> None:
    sample = sample_result()
    lines = screen(replace(sample, data=replace(sample.data, synthetic=True)))
    assert "? drop: not known, limit 1.0 points (none)" in lines
    assert "ctc-exact" not in lines[1]
