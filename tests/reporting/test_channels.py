"""What people read about channels: groups, what cannot be pruned, rounds, prices; nothing where there is none."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import results
from edgekit.reporting import channels, front, html, wording
from tests.reporting.sample_result import pruned_result, sample_result
from tests.reporting.test_html import HOSTILE, Page, page
from tests.reporting.test_terminal import screen

HEADINGS = ("Which channels stay", "What a looser budget would buy")
BUDGETS = ("latency", "size", "memory", "max_drop", "latency_ms", "weight_bytes", "memory_bytes", "loss", "other")
anything = st.floats(allow_nan=True, allow_infinity=True)


class TestPrices:
    @pytest.mark.parametrize(
        ("price", "text"),
        [
            (("latency", 1.0, "loss", 0.0131, 0.0105), "1 ms more would raise the output SNR from 18.8 dB to 19.8 dB"),
            (
                ("size", 1e6, "latency_ms", 9.05, 8.74),
                "1 MB more of weights would buy 0.310 ms (8.74 ms instead of 9.05 ms)",
            ),
            (("memory", 5e5, "latency_ms", 9.05, 9.05), "500 kB more of memory would buy nothing"),
            (("memory_bytes", 1e6, "latency_ms", 9.05, 9.0499), "1 MB more of memory would buy nothing"),
            (
                ("max_drop", 0.01, "latency_ms", 9.0, 8.0),
                "1 point more of drop would buy 1.00 ms (8.00 ms instead of 9.00 ms)",
            ),
            (
                ("max_drop", 0.02, "weight_bytes", 9e6, 8e6),
                "2 points more of drop would buy 1.00 MB of weights (8.00 MB instead of 9.00 MB)",
            ),
            (
                ("latency_ms", 0.5, "memory_bytes", 9e6, 8e6),
                "0.5 ms more would buy 1.00 MB of memory (8.00 MB instead of 9.00 MB)",
            ),
            (("latency", 1.0, "loss", 0.01, 0.0), "1 ms more would raise the output SNR from 20.0 dB to identical"),
            (("size", 1e6, "latency_ms", math.nan, 1.0), ""),
        ],
    )
    def test_words(self, price: tuple[str, float, str, float, float], text: str) -> None:
        assert wording.price(results.Price(*price), share=True) == text

    def test_a_drop_of_what_is_no_share_is_a_number(self) -> None:
        price = results.Price("max_drop", 0.5, "latency_ms", 9.0, 8.0)
        assert wording.price(price, share=False).startswith("0.5 more of drop would buy 1.00 ms")

    @given(
        budget=st.sampled_from(BUDGETS),
        buys=st.sampled_from(("latency_ms", "loss", "weight_bytes", "memory_bytes", "other")),
        step=anything,
        now=anything,
        then=anything,
        share=st.booleans(),
    )
    def test_no_number_breaks_it(
        self, budget: str, buys: str, step: float, now: float, then: float, share: bool
    ) -> None:
        said = wording.price(results.Price(budget, step, buys, now, then), share)
        assert "nan" not in said
        if then >= now:
            assert "would raise" not in said
            assert "instead of" not in said, "a looser budget never makes it worse"


class TestRows:
    def test_what_a_group_saves_is_that_of_its_own_option(self) -> None:
        rows = channels.group_rows(pruned_result().groups)
        assert [(row.channels, row.kept, row.saves, row.noise) for row in rows] == [
            (32, 24, "0.210", "−36.8 dB"),
            (128, 96, "0.400", "−32.0 dB"),
            (64, 64, "–", "–"),
            (48, 48, "–", "–"),
        ]
        assert [row.pruned for row in rows] == [True, True, False, False]
        assert [row.share for row in rows] == [75, 75, 100, 100]

    def test_an_option_that_keeps_everything_saves_nothing(self) -> None:
        whole = results.GroupOptionDetail(64, 0.0, 0.0)
        group = replace(pruned_result().groups[2], options=(whole,))
        assert channels.group_rows((group,))[0].saves == "–"

    def test_many_names_are_cut_and_kept_in_full_beside(self) -> None:
        names = tuple(f"/net/conv{n}" for n in range(9))
        group = replace(pruned_result().groups[0], producers=names, consumers=names[:3])
        (row,) = channels.group_rows((group,), prefix="/net/")
        assert row.producers == "conv0, conv1 and 7 more"
        assert row.consumers == "conv0, conv1, conv2"
        assert row.all_producers == ", ".join(names)
        assert (row.makers, row.readers) == (9, 3)
        assert channels.group_rows((replace(group, consumers=()),))[0].consumers == "–"

    def test_layers_fixed_for_one_reason_share_a_row(self) -> None:
        rows = channels.fixed_rows(pruned_result().fixed)
        assert [(len(row.layers), row.reason) for row in rows] == [
            (2, "Softmax 'attention' mixes them"),
            (1, "they are the model output 'y'"),
        ]

    def test_summary(self) -> None:
        groups = pruned_result().groups
        assert channels.summary(groups) == "40 of 272 channels removed, in 2 of 4 groups"
        assert channels.summary(groups[3:]) == "all 48 channels stay (1 group)"
        assert channels.summary(()) == ""


class TestPage:
    def test_nothing_where_there_is_none(self) -> None:
        made = page(sample_result())
        assert not any(heading in made.headings for heading in HEADINGS)
        for word in ("pruned", "channel", "SNR: of the model"):
            assert word not in made.words
        assert "predicted SNR" not in {cell for row in made.rows for cell in row}

    def test_everything_is_there(self) -> None:
        result = pruned_result()
        made = page(result)
        assert all(heading in made.headings for heading in HEADINGS)
        for group in result.groups:
            row = next(row for row in made.rows if len(row) == 9 and row[0] and group.name.endswith(row[0]))
            assert row[1:3] == [str(group.channels), str(group.kept)]
            assert row[-1] == group.reason
            titles = [attributes.get("title") for tag, attributes in made.tags if tag == "span"]
            assert ", ".join(group.consumers) in titles
        assert "38 int8, 9 fp32 layers; 40 of 272 channels removed, in 2 of 4 groups" in made.words
        assert "3 layers whose channels cannot be pruned" in made.words
        for fixed in result.fixed:
            assert fixed.reason in made.words
            assert fixed.layer in made.words
        assert "1 ms more would raise the output SNR from 18.8 dB to 19.8 dB" in made.words
        assert "1 MB more of memory would buy nothing" in made.words
        rounds = [row for row in made.rows if len(row) == 7 and row[0] in ("1", "2")]
        assert [row[2:] for row in rounds] == [
            ["8.85", "8.99", "19.9 dB", "17.7 dB", "91.7 %"],
            ["9.05", "9.31", "18.8 dB", "18.6 dB", "92.7 %"],
        ]
        place = next(row for row in made.rows if "channels removed" in row).index("channels removed")
        shown = [row[place] for row in made.rows if len(row) == 8 and row[1] in ("measured", "predicted")]
        points = sorted(result.pareto, key=lambda point: point.latency_ms)
        assert shown == [str(point.pruned_channels) for point in points]

    def test_what_ships_is_the_point_with_its_channels(self) -> None:
        result = pruned_result()
        shipped = front.shipped_point(result)
        assert shipped is not None
        assert (shipped.int8_layers, shipped.pruned_channels) == (38, 40)
        rival = replace(shipped, latency_ms=result.candidates[-1].latency_ms.p50, pruned_channels=0)
        assert front.shipped_point(replace(result, pareto=(rival, *result.pareto))) is shipped

    def test_the_cannot_be_pruned_are_collapsed(self) -> None:
        made = page(pruned_result())
        details = [attributes for tag, attributes in made.tags if tag == "details"]
        assert details
        assert not any("open" in attributes for attributes in details)

    def test_groups_that_all_stay_are_not_said_to_be_pruned(self) -> None:
        result = pruned_result()
        made = page(replace(result, groups=tuple(replace(group, kept=group.channels) for group in result.groups)))
        assert "All 272 channels stay (4 groups)." in made.words
        assert "removed, in" not in made.words

    @pytest.mark.parametrize("hostile", HOSTILE)
    def test_hostile_names_are_text(self, hostile: str) -> None:
        def named(name: str) -> Page:
            result = pruned_result()
            group = replace(result.groups[0], name=name, producers=(name,), consumers=(name,), reason=name)
            price = results.Price(name, 1.0, "latency_ms", 2.0, 1.0)
            fixed = (results.FixedDetail(name, name),)
            return page(replace(result, groups=(group,), fixed=fixed, prices=(price,)))

        clean, made = named("plain"), named(hostile)
        assert [tag for tag, _ in made.tags] == [tag for tag, _ in clean.tags]
        assert "".join(made.text).count(hostile) == "".join(clean.text).count("plain") > 0

    @pytest.mark.parametrize("odd", [math.nan, math.inf, 0.0])
    def test_odd_numbers(self, odd: float) -> None:
        result = pruned_result()
        options = (results.GroupOptionDetail(24, odd, odd),)
        broken = replace(result.groups[0], options=options)
        empty = replace(result.groups[1], channels=0, kept=0, options=(), producers=(), consumers=())
        rounds = (replace(result.rounds[0], predicted_loss=odd, measured_loss=None),)
        prices = (results.Price("size", odd, "loss", odd, odd),)
        made = page(replace(result, groups=(broken, empty), rounds=rounds, prices=prices))
        assert "nan" not in made.words.lower().split()

    def test_many_groups_in_a_box_of_bounded_height(self) -> None:
        group = pruned_result().groups[0]
        many = tuple(replace(group, name=f"conv{n}") for n in range(300))
        text = html.render(replace(pruned_result(), groups=many))
        assert '<div class="layers"><table class="groups">' in text
        assert len(text) < 500_000


class TestTerminal:
    def test_fits_the_screen(self) -> None:
        lines = screen(pruned_result())
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 32
        for said in (
            "  40 of 272 channels removed, in 2 of 4 groups",
            "  2 rounds: output SNR predicted 18.8 dB, measured 18.6 dB",
            "  1 ms more would raise the output SNR from 18.8 dB to 19.8 dB",
            "  1 MB more of weights would buy 0.310 ms (8.74 ms instead of 9.05 ms)",
        ):
            assert said in lines

    def test_nothing_where_there_is_none(self) -> None:
        text = "\n".join(screen(sample_result()))
        for word in ("channels", "rounds", "more would", "more of"):
            assert word not in text

    def test_names_are_shown_as_they_are(self) -> None:
        price = results.Price("[red]x[/red]\x1b[2J", 1.0, "latency_ms", 2.0, 1.0)
        text = "\n".join(screen(replace(pruned_result(), prices=(price,)), 120))
        assert "1 more of [red]x[/red]�[2J would buy 1.00 ms" in text
