"""PP-OCRv4 text detector (a segmentation network) on pictures with planted text lines; metric: F1 of the boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.zoo import METRICS, ZooEntry, sources, stamp, stamped
from examples.ocr import lines
from examples.packages import extract

MODEL = "ch_PP-OCRv4_det_infer.onnx"
SIDE = 320
MAX_LINES = 6


def prepare(out: Path) -> ZooEntry:
    """32 pictures to calibrate, 100 to score; labels are the planted boxes [6, 4] (x0, y0, x1, y1), -1 where none."""
    entry = ZooEntry(
        "pp-ocr-det",
        out / MODEL,
        out / "calib.npz",
        out / "eval.npz",
        None,
        f"{METRICS}:planted_f1",
        {"x": (1, 3, SIDE, SIDE)},
    )
    if stamped(out, __file__, lines.__file__):
        return entry
    extract(sources.RAPIDOCR, {f"rapidocr_onnxruntime/models/{MODEL}": MODEL}, out)
    photos = [
        sources.picture(sources.SKIMAGE, f"skimage/data/{name}") for name in ("brick.png", "grass.png", "gravel.png")
    ]
    for seed, (path, count) in enumerate(((out / "calib.npz", 32), (out / "eval.npz", 100))):
        rng = np.random.default_rng(seed)
        made = [_picture(rng, photos) for _ in range(count)]
        # Scaled as the detector's own pipeline does it: BGR, (x / 255 - 0.5) / 0.5, NCHW.
        pixels = np.stack([picture[..., ::-1].transpose(2, 0, 1) for picture, _ in made])
        np.savez(path, x=(pixels / 127.5 - 1).astype(np.float32), labels=np.stack([boxes for _, boxes in made]))
    stamp(out, __file__, lines.__file__)
    return entry


def _picture(rng: np.random.Generator, photos: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One RGB picture [320, 320, 3] with two to six planted lines, and their boxes."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    ground = _ground(rng, photos)
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    boxes = np.full((MAX_LINES, 4), -1, np.float32)
    top = int(rng.integers(4, 40))
    for index in range(int(rng.integers(2, MAX_LINES + 1))):
        size = int(rng.integers(10, 30))
        font = ImageFont.truetype(str(fonts / f"{rng.choice(lines.FACES)}.ttf"), size)
        text = lines.texts(rng, 1)[0]
        while font.getlength(text) > SIDE - 12:
            text = text[:-1].rstrip()
        x = float(rng.uniform(4, SIDE - 6 - font.getlength(text)))
        box = draw.textbbox((x, top), text, font=font)
        if box[3] > SIDE - 6:
            break
        under = ground[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])].mean()
        shift = rng.uniform(45, 110) * (1 if under < 128 else -1)
        colour = np.clip(under + shift + rng.uniform(-25, 25, 3), 0, 255).astype(int)
        draw.text((x, top), text, fill=tuple(int(c) for c in colour), font=font)
        boxes[index] = box
        top = int(box[3] + rng.integers(8, 34))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.1))))
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 12), (SIDE, SIDE, 3))
    return _bytes(noisy), boxes


def _ground(rng: np.random.Generator, photos: list[np.ndarray]) -> np.ndarray:
    """A flat, shaded or textured background."""
    tint = rng.uniform(30, 225, 3)
    if rng.random() < 0.5:
        ramp = np.linspace(-1, 1, SIDE)[None, :, None] * rng.uniform(-40, 40)
        return _bytes(np.broadcast_to(tint + ramp, (SIDE, SIDE, 3)))
    photo = photos[int(rng.integers(len(photos)))]
    y, x = (int(rng.integers(0, photo.shape[axis] - SIDE + 1)) for axis in (0, 1))
    patch = photo[y : y + SIDE, x : x + SIDE].astype(np.float32)
    return _bytes(tint + (patch - patch.mean()) * rng.uniform(0.15, 0.5))


def _bytes(pixels: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(pixels, 0, 255).astype(np.uint8)
    return clipped
