"""How far off the fit is on model families and on devices that it did not see, and how often its intervals hold.

    python -m benchmarks.profiles.cross_validate [RUNTIME ...] [--detail]

Prints Markdown tables. "Coverage" takes each group's interval from the errors of the other groups, so that no row has a
say in its own. A device is judged by the families that others were measured with too: else its networks would be new as
well. The baseline is the roofline alone: the sum over the kernels of the greater of the times that MACs and
bytes take at the device's peaks, times one factor, the median over the rows that were not held out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.profiles.published import Published, devices, published, tables
from edgekit.cost.fit import Row
from edgekit.cost.interval import Held, Score, coverage, factor, held_out
from edgekit.cost.profile import units
from edgekit.cost.work import FEATURES, MAC_KINDS, features

HELD: dict[Held, Callable[[Row], str]] = {"family": lambda row: row.family, "device": lambda row: row.cell.device}
_WORDS: dict[Held, str] = {"family": "model family", "device": "device"}
_MACS = [FEATURES.index(kind) for kind in MAC_KINDS]
_BYTES = [FEATURES.index(name) for name in ("activation_bytes", "weight_bytes")]


def scores_by(held: Held, rows: Sequence[Row]) -> list[Score]:
    """Each row of one runtime predicted from the rows of the other families or devices. Rows of a device are left out
    whose family no other device of that kind of processor was measured with: they would test both at once.
    """
    with threadpool_limits(1, user_api="blas"):  # many small systems: threads would wait for each other
        scores = held_out(rows, HELD[held])
    if held == "family":
        return scores
    devices = {(row.cell.processor, row.family): set[str]() for row in rows}
    for row in rows:
        devices[row.cell.processor, row.family].add(row.cell.device)
    return [score for score in scores if len(devices[score.row.cell.processor, score.row.family]) > 1]


def roofline_ms(one: Published) -> float:
    """What the peaks of the device promise, kernel by kernel."""
    profile = devices()[one.row.cell.device]
    part = profile.part(one.row.cell.processor)
    assert part is not None
    rows = features(tables()[one.model, one.shape], units(profile, part, one.row.cell.precision, one.row.cell.threads))
    return float(np.maximum(rows[:, _MACS].sum(axis=1), rows[:, _BYTES].sum(axis=1)).sum())


def roofline_errors(rows: Sequence[Published], group_of: Callable[[Row], str], judged: Sequence[Score]) -> list[float]:
    """Relative errors of the scaled roofline on the judged rows, each group with the factor of the others (of the same
    processor).
    """
    wanted = {id(score.row) for score in judged}
    promised = [roofline_ms(one) for one in rows]
    found = []
    for one, ms in zip(rows, promised, strict=True):
        if id(one.row) not in wanted:
            continue
        others = [
            other.row.latency_ms / theirs
            for other, theirs in zip(rows, promised, strict=True)
            if group_of(other.row) != group_of(one.row) and other.row.cell.processor == one.row.cell.processor
        ]
        if others:
            found.append(abs(ms * float(np.median(others)) / one.row.latency_ms - 1))
    return found


def _line(name: str, held: Held, scores: Sequence[Score], baseline: Sequence[float]) -> str:
    errors = [score.relative_error for score in scores]
    far, groups = np.quantile(errors, 0.9), len({score.group for score in scores})
    inside = f"{coverage(scores, held=held):.0%}" if groups > 1 else "-"
    width = np.exp(factor(scores, held=held) * np.median([score.deviation for score in scores]))
    beside = f"{np.median(baseline):.0%} | {np.quantile(baseline, 0.9):.0%}" if baseline else "- | -"
    return (
        f"| {name} | {_WORDS[held]} | {len(scores)} | {groups} | {np.median(errors):.0%} | {far:.0%} "
        f"| {inside} | x{width:.1f} | {beside} |"
    )


def main() -> None:
    known = list(dict.fromkeys(one.runtime for one in published()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtimes", nargs="*", metavar="RUNTIME", default=known, help=f"of {', '.join(known)}")
    parser.add_argument("--detail", action="store_true", help="each device of each runtime too")
    given = parser.parse_args()
    print(
        "| runtime | held out | rows | groups | median error | 90 % within | coverage | half-width | roofline | 90 % |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    every: dict[Held, list[Score]] = defaultdict(list)
    inside: dict[Held, float] = defaultdict(float)
    details: list[str] = []
    for runtime in given.runtimes:
        rows = [one for one in published() if one.runtime == runtime]
        for held, group_of in HELD.items():
            scores = scores_by(held, [one.row for one in rows])
            for kind in sorted({score.row.cell.processor for score in scores}):
                mine = [score for score in scores if score.row.cell.processor == kind]
                if len({score.group for score in mine}) < 2:
                    continue
                near = [one for one in rows if one.row.cell.processor == kind]
                print(_line(f"{runtime} ({kind})", held, mine, roofline_errors(near, group_of, mine)), flush=True)
                every[held] += mine
                inside[held] += coverage(mine, held=held) * len(mine)
                limit = factor(mine, held=held)
                for device in sorted({score.row.cell.device for score in mine}):
                    there = [score for score in mine if score.row.cell.device == device]
                    errors = [score.relative_error for score in there]
                    holds = np.mean([score.size <= limit for score in there])
                    details.append(
                        f"| {runtime} ({kind}) | {device} | {_WORDS[held]} | {len(there)} | {np.median(errors):.0%} "
                        f"| {np.quantile(errors, 0.9):.0%} | {holds:.0%} |"
                    )
    for held, scores in every.items():
        errors = [score.relative_error for score in scores]
        print(
            f"| all | {_WORDS[held]} | {len(scores)} | | {np.median(errors):.0%} | {np.quantile(errors, 0.9):.0%} "
            f"| {inside[held] / len(scores):.0%} | | | |"
        )
    if given.detail:
        print("\n| runtime | device | held out | rows | median error | 90 % within | inside |")
        print("|---|---|---|---|---|---|---|")
        print("\n".join(details))


if __name__ == "__main__":
    main()
