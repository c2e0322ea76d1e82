"""Printed characters on photographs, between others as on a sign: 46 classes, their labels known because drawn.

The faces are the DejaVu fonts that matplotlib ships. Training and calibration draw on photographs of scikit-image and
scikit-learn, evaluation on foolbox's ImageNet pictures: no evaluation picture's ground was seen before.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.zoo import sources
from benchmarks.zoo.training import Draw, Samples
from examples.ocr.lines import FACES

SIDE = 96
# No two that are one shape in two sizes (O and o and 0), nor one shape in another face (I and l and 1).
ALPHABET = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabdefghnqrty"
CLASSES = len(ALPHABET)
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "brick.png", "grass.png")
_SIZES = range(44, 81, 4)


def make() -> tuple[Draw, Samples]:
    """How to draw training samples, and the 128 to calibrate and 1,000 to score with."""
    seen = [sources.picture(sources.SKIMAGE, f"skimage/data/{name}") for name in _PHOTOS]
    seen += [sources.picture(sources.SKLEARN, f"sklearn/datasets/images/{name}.jpg") for name in ("china", "flower")]
    unseen = [
        sources.picture(sources.FOOLBOX, path) for path in sources.members(sources.FOOLBOX, "foolbox/data/imagenet_")
    ]

    def fresh(rng: np.random.Generator, count: int, progress: float) -> tuple[np.ndarray, np.ndarray]:
        return batch(rng, count, seen, min(1.0, 1.4 * progress))

    sets = (batch(np.random.default_rng([0, 2]), 128, seen), batch(np.random.default_rng([0, 3]), 1000, unseen))
    return fresh, Samples(*sets)


def batch(
    rng: np.random.Generator, count: int, photos: list[np.ndarray], hardness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [count, 3, 96, 96] from -1 to 1, and int64 [count] indices of ALPHABET."""
    labels = rng.integers(0, CLASSES, count)
    pixels = np.stack([picture(rng, int(label), photos, hardness) for label in labels])
    return (pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2).copy(), labels


def picture(rng: np.random.Generator, label: int, photos: list[np.ndarray], hardness: float) -> np.ndarray:
    """uint8 RGB [96, 96, 3] with the character in the middle; turned, tinted, blurred, noisy as ``hardness`` says.

    At 0 it stands alone and clear; at 1, as all evaluation pictures are, it mostly has neighbours and little contrast.
    """
    font = _font(str(rng.choice(FACES)), int(rng.choice(_SIZES)))
    ink = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(ink)
    left, top, right, bottom = font.getbbox(ALPHABET[label])
    x, y = (((SIDE - size) / 2 + rng.uniform(-8, 8) * hardness) for size in (right + left, bottom + top))
    draw.text((x, y), ALPHABET[label], 255, font)
    if rng.random() < 0.8 * hardness:
        before, after = (ALPHABET[index] for index in rng.integers(0, CLASSES, 2))
        gap = font.size * rng.uniform(0.02, 0.15)
        draw.text((x - gap - font.getlength(before), y), before, 255, font)
        draw.text((x + gap + font.getlength(ALPHABET[label]), y), after, 255, font)
    ink = ink.transform((SIDE, SIDE), Image.Transform.AFFINE, _bend(rng, hardness), Image.Resampling.BILINEAR)

    ground = _ground(rng, photos, hardness)
    middle = ground[24:72, 24:72].mean((0, 1))
    shift = rng.uniform(110 - 70 * hardness, 140) * (1 if middle.mean() < 128 else -1)
    colour = (middle + shift + rng.uniform(-30, 30, 3)).astype(np.float32)
    blurred = ink.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.6) * hardness)))
    cover = np.asarray(blurred, np.float32)[..., None] / 255
    pixels = ground * (1 - cover) + colour * cover
    pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(0, 24) * hardness)
    clipped: np.ndarray = np.clip(pixels, 0, 255).astype(np.uint8)
    return clipped


def _bend(rng: np.random.Generator, hardness: float) -> tuple[float, ...]:
    """Turned by up to 14 degrees, sheared, stretched, about the middle; as PIL's affine coefficients."""
    turn, shear, stretch = rng.uniform((-0.25, -0.2, -0.15), (0.25, 0.2, 0.15)) * hardness
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    matrix = rotation @ np.array([[1 + stretch, shear], [0, 1]])
    offset = SIDE / 2 * (1 - matrix.sum(1))
    return (*matrix[0].tolist(), float(offset[0]), *matrix[1].tolist(), float(offset[1]))


def _ground(rng: np.random.Generator, photos: list[np.ndarray], hardness: float) -> np.ndarray:
    """float32 [96, 96, 3]: a piece of a photograph, paler or stronger, of another brightness."""
    photo = photos[int(rng.integers(len(photos)))]
    side = int(rng.integers(64, 193))
    y, x = (int(rng.integers(0, max(photo.shape[axis] - side, 1))) for axis in (0, 1))
    piece = np.asarray(Image.fromarray(photo[y : y + side, x : x + side]).resize((SIDE, SIDE)), np.float32)
    mean = piece.mean((0, 1))
    target = np.clip(mean + rng.uniform(-60, 60), 30, 225).astype(np.float32)
    ground: np.ndarray = (piece - mean) * np.float32(rng.uniform(0.2, 0.7) * hardness) + target
    return ground


@cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"), size)
