"""A trained YOLOX-tiny with pictures of its kind, for boards that are asked for a frame rate.

    python -m benchmarks.detector FOLDER [--side PIXELS]

The model is the detector that ddddocr ships (MIT): one class, the characters that a picture captcha asks to click. What
is scored is the F1 of its boxes against letters planted in photographs of brick, grass and gravel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.zoo import ZooEntry, sources, stamp, stamped
from examples.ocr import lines
from examples.packages import Package, extract

DDDDOCR = Package("pip", "ddddocr", "1.6.1", "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935", "MIT")
METRIC = Path(__file__).resolve().parent / "metric.py"
SIDE = 480
MAX_LETTERS = 8
CALIBRATE, SCORE = 16, 64

_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"  # no I, O, Q, 0, 1: nobody can tell them apart


def prepare(out: Path, side: int = SIDE) -> ZooEntry:
    """16 pictures to calibrate, 64 to score; labels are the planted boxes [8, 4] (x0, y0, x1, y1), -1 where none.

    ``side`` in pixels is a multiple of 32, the network's largest stride. The model is shipped for 416 alone; nothing
    inside depends on it, so its input is opened and the entry names the size.
    """
    model = out / "yolox-tiny.onnx"
    shape: dict[str, tuple[int, ...]] = {"images": (1, 3, side, side)}
    entry = ZooEntry(
        "yolox-tiny", model, out / f"calib-{side}.npz", out / f"eval-{side}.npz", None, f"{METRIC}:box_f1", shape
    )
    made = out / f"{side}"
    if stamped(made, __file__, lines.__file__):
        return entry
    made.mkdir(parents=True, exist_ok=True)
    extract(DDDDOCR, {"ddddocr/common_det.onnx": "common_det.onnx"}, out)
    _opened(out / "common_det.onnx", model)
    names = ("brick", "grass", "gravel")
    photos = [sources.picture(sources.SKIMAGE, f"skimage/data/{name}.png") for name in names]
    for seed, (path, count) in enumerate(((entry.data, CALIBRATE), (out / f"eval-{side}.npz", SCORE))):
        rng = np.random.default_rng(seed)
        pictures = [_picture(rng, photos, side) for _ in range(count)]
        # As the package itself feeds it: BGR, 0 to 255, NCHW.
        pixels = np.stack([picture[..., ::-1].transpose(2, 0, 1) for picture, _ in pictures]).astype(np.float32)
        np.savez(path, images=pixels, labels=np.stack([boxes for _, boxes in pictures]))
    stamp(made, __file__, lines.__file__)
    return entry


def _opened(source: Path, target: Path) -> None:
    """The model with a picture of any size: what its file says of inner and outer shapes is taken out."""
    import onnx

    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis > 1 or (axis == 1 and value.name == "output"):
                dim.dim_param = f"{value.name}_{axis}"
    del model.graph.value_info[:]
    onnx.save(model, target)


def _picture(rng: np.random.Generator, photos: list[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray]:
    """One RGB picture [side, side, 3] with three to eight turned letters, and their boxes."""
    photo = photos[int(rng.integers(len(photos)))]
    y, x = (int(rng.integers(0, photo.shape[axis] - side + 1)) for axis in (0, 1))
    patch = photo[y : y + side, x : x + side].astype(np.float32)
    ground = _bytes(rng.uniform(30, 225, 3) + (patch - patch.mean()) * rng.uniform(0.15, 0.8))
    image = Image.fromarray(ground)
    boxes = np.full((MAX_LETTERS, 4), -1, np.float32)
    count = 0
    for _ in range(int(rng.integers(3, MAX_LETTERS + 1))):
        glyph = _glyph(rng)
        width, height = glyph.size
        left, top = int(rng.integers(4, side - width - 4)), int(rng.integers(4, side - height - 4))
        box = np.array([left, top, left + width, top + height], np.float32)
        taken = boxes[:count]
        if ((box[:2] <= taken[:, 2:] + 4) & (box[2:] >= taken[:, :2] - 4)).all(axis=1).any():
            continue  # letters do not touch
        under = ground[top : top + height, left : left + width].mean()
        shift = rng.uniform(60, 140) * (1 if under < 128 else -1)
        colour = np.clip(under + shift + rng.uniform(-40, 40, 3), 0, 255).astype(int)
        image.paste(tuple(int(c) for c in colour), (left, top), glyph)
        boxes[count] = box
        count += 1
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1))))
    return _bytes(np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 10), (side, side, 3))), boxes


def _glyph(rng: np.random.Generator) -> Image.Image:
    """A letter of 36 to 80 pixels, turned by up to 35 degrees, as a mask that it fills."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    size = int(rng.integers(36, 80))
    font = ImageFont.truetype(str(fonts / f"{rng.choice(lines.FACES)}.ttf"), size)
    mask = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(mask).text((size // 2, size // 2), str(rng.choice(list(_LETTERS))), fill=255, font=font)
    mask = mask.rotate(float(rng.uniform(-35, 35)), resample=Image.Resampling.BICUBIC)
    return mask.crop(mask.getbbox())


def _bytes(pixels: np.ndarray) -> np.ndarray:
    clipped: np.ndarray = np.clip(pixels, 0, 255).astype(np.uint8)
    return clipped
