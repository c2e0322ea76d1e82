"""PP-OCRv4 text recogniser (convolutions and attention) on rendered text lines; metric: exact match of the CTC text."""

from __future__ import annotations

from pathlib import Path

from benchmarks.zoo import ZooEntry
from examples.ocr.prepare import MODEL
from examples.ocr.prepare import prepare as prepare_example


def prepare(out: Path) -> ZooEntry:
    """The example's own files: 64 lines to calibrate, 300 to score."""
    prepare_example(out)
    return ZooEntry(
        "pp-ocr-rec", out / MODEL, out / "calib", out / "eval", "text-line", "ctc-exact", {"x": (1, 3, 48, 480)}
    )
