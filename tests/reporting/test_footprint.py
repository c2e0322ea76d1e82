"""Conditions, energy and peak memory in what people read."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from edgekit.reporting import footprint, html, terminal
from edgekit.results import DeployResult
from edgekit.types import Figure, Kind
from tests.reporting.sample_result import sample_result, with_conditions


def printed(result: DeployResult) -> str:
    console = Console(file=io.StringIO(), width=160)
    terminal.print_summary(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_ships_beside_float() -> None:
    found = with_conditions(sample_result())
    assert footprint.summary(found) == (
        "38.2 mJ an inference (float 73.5 mJ), peak memory of the process 93.2 MB (float 101 MB)"
    )
    assert footprint.summary(sample_result()) == ""
    assert footprint.reasons(found) == footprint.reasons(sample_result()) == ()


def test_no_figure_has_a_reason() -> None:
    found = sample_result()
    none = Figure(Kind.NONE, source="no power rails")
    found = replace(found, candidates=tuple(replace(one, energy_mj=none) for one in found.candidates))
    assert footprint.summary(found) == ""
    assert footprint.reasons(found) == ("energy: none (no power rails)",)


def test_the_terminal_and_the_report_show_them() -> None:
    found = with_conditions(sample_result())
    text = printed(found)
    assert "cores 4, 5, governor schedutil, nvpmodel 2, 1190 MHz, 62 to 97 °C, 63 of 210 rounds discarded" in text
    assert footprint.summary(found) in text
    page = html.render(found)
    for shown in ("63 of 210 rounds discarded", "peak memory<small>", "93.2 MB", "38.2 mJ", "9.27 to 9.36"):
        assert shown in page
    assert "rounds discarded" not in printed(sample_result()) + html.render(sample_result())
    assert "peak memory" not in html.render(sample_result())
