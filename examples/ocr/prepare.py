"""Prepare the OCR example: a public text recogniser and text lines with known text.

    python examples/ocr/prepare.py --out DIR [--eval 300] [--calib 64] [--seed 0]

writes DIR/ch_PP-OCRv4_rec_infer.onnx with its licence note, DIR/calib and DIR/eval (PNG images and labels.csv with the
columns file,text). The same arguments give the same files; a second run finds them and does nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from examples import packages  # noqa: E402
from examples.ocr import lines  # noqa: E402

RAPIDOCR = packages.Package(
    client="pip",
    name="rapidocr-onnxruntime",
    version="1.4.4",
    sha256="971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    licence="Apache-2.0",
)
MODEL = "ch_PP-OCRv4_rec_infer.onnx"
STAMP = "prepared.json"
LICENCE_NOTE = f"""{MODEL}: the PP-OCRv4 text recogniser of PaddleOCR, copyright PaddlePaddle Authors,
Apache License 2.0, as converted to ONNX by RapidOCR and published in the package {RAPIDOCR.name} {RAPIDOCR.version}
(Apache-2.0). The images are rendered with the DejaVu fonts that matplotlib ships (free, see its LICENSE_DEJAVU).
"""


def prepare(out: Path, evaluation: int = 300, calibration: int = 64, seed: int = 0) -> bool:
    """Fill ``out``; returns whether there was anything to do. Raises PackageError, OSError, FileExistsError."""
    stamp = {"eval": evaluation, "calib": calibration, "seed": seed, "source": _source_digest()}
    before = _stamp(out)
    if before == stamp:
        return False
    for name in ("calib", "eval"):
        if before is None and (out / name).exists():
            raise FileExistsError(f"{out / name} exists and was not made by this program: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    packages.extract(RAPIDOCR, {f"rapidocr_onnxruntime/models/{MODEL}": MODEL}, out)
    (out / "LICENCE-NOTE.txt").write_text(LICENCE_NOTE)

    rng = np.random.default_rng(seed)
    calibration_texts = lines.texts(rng, calibration)
    evaluation_texts = lines.texts(rng, evaluation, exclude=frozenset(calibration_texts))
    with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as scratch:
        for name, texts in (("calib", calibration_texts), ("eval", evaluation_texts)):
            _write_lines(Path(scratch) / name, texts, rng)
        # An empty stamp while the folders change hands: ours, and not finished.
        (out / STAMP).write_text("{}\n")
        for name in ("calib", "eval"):
            shutil.rmtree(out / name, ignore_errors=True)
            (Path(scratch) / name).replace(out / name)
    (out / STAMP).write_text(json.dumps(stamp) + "\n")
    return True


def _write_lines(folder: Path, texts: list[str], rng: np.random.Generator) -> None:
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", "text"])
        for index, text in enumerate(texts):
            file = f"{index:04d}.png"
            lines.render(text, rng, fonts).save(folder / file)
            table.writerow([file, text])


def _source_digest() -> str:
    """What the files are made from: a changed renderer makes them anew."""
    sources = b"".join((HERE / name).read_bytes() for name in ("prepare.py", "lines.py"))
    return hashlib.sha256(sources).hexdigest()[:16]


def _stamp(out: Path) -> dict[str, object] | None:
    try:
        found = json.loads((out / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def main() -> int:
    """Run the command line and return its exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description="Prepare the OCR example: a text recogniser and rendered text lines.")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    parser.add_argument("--eval", type=int, default=300, help="lines to measure the metric on (default 300)")
    parser.add_argument("--calib", type=int, default=64, help="lines to calibrate with (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.eval < 1 or arguments.calib < 1:
        parser.error("--eval and --calib must be at least 1")
    try:
        made = prepare(arguments.out, arguments.eval, arguments.calib, arguments.seed)
    except (packages.PackageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = "made" if made else "found"
    print(f"{state} {arguments.out / MODEL}")
    print(f"{state} {arguments.out / 'calib'} ({arguments.calib} text lines)")
    print(f"{state} {arguments.out / 'eval'} ({arguments.eval} text lines)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
