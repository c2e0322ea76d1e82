"""Fits all published rows and writes the costs into `device_profiles/`.

    python -m benchmarks.profiles.ship [NAME ...]

What stands above the marker line of a profile, its facts, is edited by hand and left alone. A profile gets costs for
each runtime that was measured on its kind of processor: with rows of its own, or shared by other devices, which its
evidence says.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.profiles.cross_validate import scores_by
from benchmarks.profiles.published import Published, devices, published
from edgekit.catalog import data_root
from edgekit.cost.fit import Cell, Coefficients, Fitted, fit
from edgekit.cost.interval import Held, Score, factor
from edgekit.cost.work import FEATURES
from edgekit.entries import DeviceProfile, Processor
from edgekit.types import Precision

MARKER = "# What follows is written by benchmarks/profiles/ship.py from the published latencies beside it."
# Runtimes of one vendor's parts: no shared costs for others.
_ONLY = {"tensorrt": "jetson", "openvino": "intel", "edgetpu": "coral"}
# What is fitted for its own sake (comparison, cross-validation) and is no backend: own rows only.
_OWN_ROWS_ONLY = ("ncnn-vulkan", "armnn", "tengine", "xnnpack")
_WORDS: dict[Held, str] = {"family": "model families", "device": "devices"}


def cells_for(runtime: str, profile: DeviceProfile, rows: Sequence[Published]) -> list[Cell]:
    """Configurations of this device that the runtime's rows say something about."""
    measured = {(p.row.cell.processor, p.row.cell.precision) for p in rows}
    own = list(dict.fromkeys(p.row.cell for p in rows if p.row.cell.device == profile.name))
    if runtime in _OWN_ROWS_ONLY or not _is_for(runtime, profile):
        return own
    found = list(own)
    for part in profile.processors:
        for precision in Precision:
            if (part.kind, precision) in measured and precision in part.peak_gmacs:
                found += [cell for cell in _threaded(profile, part, precision) if cell not in found]
    return found


def _is_for(runtime: str, profile: DeviceProfile) -> bool:
    if runtime in _ONLY:
        return profile.name.startswith(_ONLY[runtime])
    cpu = profile.part("cpu")
    return cpu is not None and (runtime == "ncnn" or not profile.name.startswith("intel"))


def _threaded(profile: DeviceProfile, part: Processor, precision: Precision) -> list[Cell]:
    if part.kind != "cpu":
        return [Cell(profile.name, part.architecture, part.kind, precision, 0)]
    counts = sorted({n for n in (1, 2, 4, part.cores) if n <= part.cores})
    return [Cell(profile.name, part.architecture, part.kind, precision, n) for n in counts]


def evidence(cell: Cell, rows: Sequence[Published], by: Mapping[Held, Sequence[Score]]) -> str:
    """What the costs of a cell rest on, in one line: rows, sources, and the errors on what was held out."""
    own = [p for p in rows if p.row.cell == cell]
    like = [p for p in rows if (p.row.cell.processor, p.row.cell.precision) == (cell.processor, cell.precision)]
    errors = "; ".join(
        f"held-out {_WORDS[held]}: median error {np.median(found):.0%}, 90 % within {np.quantile(found, 0.9):.0%}"
        for held, found in ((held, [s.relative_error for s in scores]) for held, scores in by.items())
    )
    if own:
        families = sorted({p.row.family for p in own})
        sources = sorted({p.source.split(":")[0].split(" (")[0].strip() for p in own})
        return f"{len(own)} published rows of {', '.join(families)} ({'; '.join(sources)}); {errors}"
    threads = f" at threads = {cell.threads}" if cell.threads else ""
    near = sorted({p.row.cell.device for p in like})
    return f"no published rows{threads} here; shared by {len(like)} rows of {', '.join(near)}; {errors}"


def text_of(
    runtime: str, cell: Cell, found: Coefficients, rows: Sequence[Published], by: dict[Held, list[Score]]
) -> str:
    own = [p for p in rows if p.row.cell == cell]
    near = [p for p in rows if p.row.cell.processor == cell.processor]
    like = [p for p in near if p.row.cell.precision == cell.precision]
    held: Held = "family" if any(p.row.cell.device == cell.device for p in like) else "device"
    mine = {way: [s for s in scores if s.row.cell.processor == cell.processor] for way, scores in by.items()}
    # A single device or family cannot be held out: the other way of holding out must do.
    mine = {way: scores for way, scores in mine.items() if len({s.group for s in scores}) > 1}
    held = held if held in mine else next(iter(mine))
    kinds = sorted({kind for p in near for kind in p.kinds})
    factors = ", ".join(f"{name} = {np.exp(mean):.4g}" for name, mean in zip(FEATURES, found.log_mean, strict=True))
    covariance = [" ".join(f"{v:.4f}" for v in row[: i + 1]) for i, row in enumerate(found.covariance)]
    spread = float(np.hypot(found.family, found.noise))
    lines = [
        "",
        "[[costs]]",
        f'runtime = "{runtime}"',
        f'processor = "{cell.processor}"',
        f'precision = "{cell.precision.value}"',
        *([f"threads = {cell.threads}"] if cell.threads else []),
        f"rows = {len(own)}",
        f'evidence = "{evidence(cell, rows, mine)}"',
        f"factors = {{ {factors} }}",
        "covariance = [",
        *(f'  "{row}",' for row in covariance),
        "]",
        f"spread = {spread:.4f}",
        f"interval = {factor(mine[held], held=held):.3f}",
        f"kinds = {json.dumps(kinds)}",
        f"macs = [{min(p.macs for p in like):.4g}, {max(p.macs for p in like):.4g}]",
        f"elements = [{min(p.elements for p in like):.4g}, {max(p.elements for p in like):.4g}]",
    ]
    return "\n".join(lines).replace("e+", "e")


def main() -> None:
    shipped = [name for name in devices() if (data_root() / "device_profiles" / f"{name}.toml").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=[name for name in shipped if name != "host"])
    names = parser.parse_args().names
    by_runtime: dict[str, list[Published]] = defaultdict(list)
    for row in published():
        by_runtime[row.runtime].append(row)
    blocks: dict[str, list[str]] = defaultdict(list)
    for runtime, rows in sorted(by_runtime.items()):
        wanted = {name: cells_for(runtime, devices()[name], rows) for name in names}
        if not any(wanted.values()):
            continue
        plain = [p.row for p in rows]
        with threadpool_limits(1, user_api="blas"):
            fitted: Fitted = fit(plain, [cell for cells in wanted.values() for cell in cells])
        by: dict[Held, list[Score]] = {"family": scores_by("family", plain), "device": scores_by("device", plain)}
        for name, cells in wanted.items():
            order = sorted(cells, key=lambda c: (c.processor, list(Precision).index(c.precision), c.threads))
            blocks[name] += [text_of(runtime, cell, fitted[cell], rows, by) for cell in order]
        print(runtime, len(rows), "rows", flush=True)
    for name in names:
        path = data_root() / "device_profiles" / f"{name}.toml"
        facts = path.read_text(encoding="utf-8").split(MARKER)[0].rstrip()
        costs = f"\n\n{MARKER}\n" + "\n".join(blocks[name]) if blocks[name] else ""
        part = path.with_suffix(".part")
        part.write_text(facts + costs + "\n", encoding="utf-8")
        part.rename(path)


if __name__ == "__main__":
    main()
