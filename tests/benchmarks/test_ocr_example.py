import csv
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from examples.ocr import lines
from examples.ocr.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def test_texts_are_distinct_seeded_and_disjoint() -> None:
    first = lines.texts(np.random.default_rng(5), 200)
    assert first == lines.texts(np.random.default_rng(5), 200)
    assert len(set(first)) == 200
    second = lines.texts(np.random.default_rng(5), 200, exclude=frozenset(first))
    assert not set(first) & set(second)


def test_render_is_seeded_and_shows_ink() -> None:
    for seed in range(20):
        one, two = (lines.render("AB-1207", np.random.default_rng(seed), FONTS) for _ in range(2))
        assert one.mode == "RGB"
        assert np.array_equal(np.asarray(one), np.asarray(two))
        assert 1.5 < one.width / one.height < 8
        assert np.asarray(one.convert("L"), np.float32).std() > 8


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not made by this program"):
        prepare(tmp_path, evaluation=2, calibration=2)
    assert (tmp_path / "eval" / "mine.txt").read_text() == "mine"


@pytest.mark.slow  # fetches the model's package
def test_example_from_nothing_and_again(tmp_path: Path) -> None:
    def run(count: int) -> str:
        command = [
            sys.executable,
            "examples/ocr/prepare.py",
            "--out",
            str(tmp_path),
            "--eval",
            str(count),
            "--calib",
            "3",
        ]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    assert run(5).startswith("made ")
    assert run(5).startswith("found ")
    assert run(4).startswith("made ")
    with (tmp_path / "eval" / "labels.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [f"{i:04d}.png" for i in range(4)]
    assert all(row["text"] and Image.open(tmp_path / "eval" / row["file"]).size[0] > 20 for row in rows)
    assert len(list((tmp_path / "eval").glob("*.png"))) == 4
    assert not list(tmp_path.glob(".*"))
