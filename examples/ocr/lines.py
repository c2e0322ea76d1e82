"""Rendered text lines with known text: what a meter, a parcel or a sign puts before a reader, in seeded variety.

The fonts are the DejaVu faces that matplotlib ships, so the lines need no font of the machine.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)

_WORD_LIST = """
account active address battery before between bridge button cabin camera carbon castle charge circuit city clear
closed coffee copper corner customer damage deliver depot device direct distance door driver east electric engine
entry error exit express factory filter final flow fragile freight front garden gate glass green handle harbour
heavy height hotel inlet invoice island keep kitchen ladder level light limit liquid loading machine market maximum
meter minimum model motor museum north notice number office open order output parcel park part paper platform please
power pressure private public pump quality quick record remote repair reset return river road room safety sample
screen sensor serial service silver single south speed square standard station steel stock storage street supply
switch system table terminal ticket torque total tower track traffic transit under unit update valve vehicle visitor
voltage warning water weight west window winter yellow zone
"""
WORDS = tuple(_WORD_LIST.split())

_CONSONANTS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # no I, O, Q: nobody can tell them from 1 and 0 on a label


def texts(rng: np.random.Generator, count: int, exclude: frozenset[str] = frozenset()) -> list[str]:
    """``count`` distinct strings, none of them in ``exclude``: words, prices, dates, part numbers, readings."""
    seen: set[str] = set(exclude)
    found: list[str] = []
    while len(found) < count:
        text = _text(rng)
        if text not in seen:
            seen.add(text)
            found.append(text)
    return found


def _text(rng: np.random.Generator) -> str:
    def word() -> str:
        return str(rng.choice(WORDS))

    def number(digits: int) -> str:
        return str(int(rng.integers(10 ** (digits - 1), 10**digits)))

    def letters(count: int) -> str:
        return "".join(rng.choice(list(_CONSONANTS), size=count))

    # Few blanks: where a gap ends and a blank begins is this recogniser's own known weakness, not a model's precision.
    makers = (
        lambda: f"{word()} {word()}",
        lambda: f"{word()} {word()}".title(),
        lambda: f"{word()}-{word()}".upper(),
        lambda: f"{word()}{number(int(rng.integers(1, 5)))}".capitalize(),
        lambda: f"{letters(2)}-{number(4)}-{letters(1)}{number(1)}",
        lambda: f"{letters(3)}{number(6)}",
        lambda: f"{rng.integers(2019, 2030)}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}",
        lambda: f"{rng.integers(0, 24):02d}:{rng.integers(0, 60):02d}:{rng.integers(0, 60):02d}",
        lambda: f"${number(int(rng.integers(1, 4)))}.{rng.integers(0, 100):02d}",
        lambda: f"{number(2)}.{number(1)}%",
        lambda: f"{number(int(rng.integers(2, 4)))}.{number(2)}{rng.choice(['kWh', 'm3', 'bar', 'kg', 'Hz', 'mA'])}",
        lambda: f"+{number(2)}-{number(3)}-{number(3)}-{number(4)}",
        lambda: f"{word()}@{word()}.{rng.choice(['com', 'org', 'net'])}",
        lambda: f"www.{word()}{word()}.com",
        lambda: f"{word()}/{word()}#{number(3)}",
        lambda: f"No.{number(5)}",
        lambda: f"{number(12)}",
    )
    return makers[int(rng.integers(len(makers)))]()


def render(text: str, rng: np.random.Generator, fonts: Path) -> Image.Image:
    """One RGB image of one line, as a camera would see it: tinted, uneven, slightly turned, blurred, noisy, JPEG-worn.

    ``fonts`` is the folder of the DejaVu faces.
    """
    size = int(rng.integers(18, 48))
    face = str(rng.choice(FACES))
    font = ImageFont.truetype(str(fonts / f"{face}.ttf"), size)
    left, top, right, bottom = (round(v) for v in font.getbbox(text))
    pad_x, pad_y = (max(3, int(size * rng.uniform(0.12, 0.35))) for _ in range(2))
    width, height = right - left + 2 * pad_x, bottom - top + 2 * pad_y

    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).text((pad_x - left, pad_y - top), text, fill=255, font=font)
    mask = mask.rotate(float(rng.uniform(-2.5, 2.5)), Image.Resampling.BICUBIC)
    ink = np.asarray(mask, np.float32)[..., None] / 255

    paper, colour = _colours(rng)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    shade = rng.uniform(-18, 18) * across + rng.uniform(-10, 10) * down
    pixels = paper * (1 - ink) + colour * ink + shade

    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    # Blur in parts of the letter size, so that small and large lines are equally hard to read.
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.06)) * size))
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 20), (height, width, 3))
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    worn = io.BytesIO()
    image.save(worn, "JPEG", quality=int(rng.integers(25, 95)))
    return Image.open(worn).convert("RGB")


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paper and ink colours whose brightness differs by more than 55 of 255 (either may be the darker)."""
    while True:
        pair = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        luma = pair @ np.array([0.299, 0.587, 0.114], np.float32)
        if abs(float(luma[0] - luma[1])) > 55:
            return pair[0], pair[1]
