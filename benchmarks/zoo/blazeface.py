"""BlazeFace front (a small depthwise network) on faces and non-faces; metric: AUC of the best detection score."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.zoo import METRICS, ZooEntry, sources, stamp, stamped
from examples.packages import extract

MODEL = "face_detection_front_128x128_barracuda.onnx"
SIDE = 128


def prepare(out: Path) -> ZooEntry:
    """scikit-image's LFW subset (100 faces, 100 non-faces of 25 x 25): 30 of each calibrate, 70 of each score twice."""
    entry = ZooEntry("blazeface", out / MODEL, out / "calib.npz", out / "eval.npz", None, f"{METRICS}:face_auc", {})
    if stamped(out, __file__):
        return entry
    extract(sources.BLAZEFACE, {f"package/ONNX/{MODEL}": MODEL}, out)
    patches = np.load(io.BytesIO(sources.member(sources.SKIMAGE, "skimage/data/lfw_subset.npy")), allow_pickle=False)
    faces, others = patches[:100], patches[100:]
    rng = np.random.default_rng(0)
    for path, part, views in ((out / "calib.npz", slice(0, 30), 1), (out / "eval.npz", slice(30, 100), 2)):
        pictures, labels = [], []
        for label, group in ((1, faces[part]), (0, others[part])):
            for patch in group:
                pictures += [_scene(patch, rng) for _ in range(views)]
                labels += [label] * views
        arrays: dict[str, Any] = {"input:0": np.stack(pictures), "labels": np.array(labels, np.int64)}
        np.savez(path, **arrays)
    stamp(out, __file__)
    return entry


def _scene(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The patch enlarged to 30-100 % of a scene made of its blurred self; float32 [128, 128, 3] in -1..1."""
    grey = Image.fromarray((patch * 255).astype(np.uint8))
    scene = grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(14))
    size = int(SIDE * rng.uniform(0.3, 1.0))
    x, y = (int(v) for v in rng.integers(0, SIDE - size + 1, 2))
    scene.paste(grey.resize((size, size), Image.Resampling.BICUBIC), (x, y))
    pixels = (np.asarray(scene, np.float32) - 128) * rng.uniform(0.25, 1.0) + rng.uniform(60, 190)
    pixels += rng.normal(0, rng.uniform(0, 16), (SIDE, SIDE))
    return np.repeat((np.clip(pixels, 0, 255) / 127.5 - 1)[..., None], 3, axis=2).astype(np.float32)
