"""Reduces model graphs to `layers.csv`: what each kernel of the measured public models asks of a device.

    python -m benchmarks.profiles.tables ONNX_FOLDER NCNN_CHECKOUT

ONNX_FOLDER is what `export.py` wrote; NCNN_CHECKOUT a work tree of github.com/Tencent/ncnn, whose benchmark models
are read as they were measured. Equal kernels of a model are one line with their count.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.profiles.ncnn_graphs import read_param
from edgekit.cost.work import Work, work_of
from edgekit.graph import load

HERE = Path(__file__).resolve().parent
COLUMNS = ("model", "shape", "kind", "count", "macs", "input_elements", "weight_elements", "output_elements")


def lines(model: str, shape: str, work: Iterable[Work]) -> list[list[object]]:
    counted = Counter(
        (one.kind, one.macs, one.input_elements, one.weight_elements, one.output_elements) for one in work
    )
    return [[model, shape, kind, count, *sizes] for (kind, *sizes), count in counted.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("ncnn", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "layers.csv")
    given = parser.parse_args()
    rows: list[list[object]] = []
    for path in sorted(given.onnx.glob("*.onnx")):
        model, shape = path.stem.rsplit("@", 1)
        rows += lines(model, shape, work_of(load(path)))
        print(path.stem, flush=True)
    for path in sorted((given.ncnn / "benchmark" / "models").glob("*.param")):
        if path.stem.endswith("_int8"):
            continue
        work, shape = read_param(path)
        rows += lines(f"ncnn/{path.stem}", shape, work)
        print(path.stem, flush=True)
    part = given.out.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    part.rename(given.out)


if __name__ == "__main__":
    main()
