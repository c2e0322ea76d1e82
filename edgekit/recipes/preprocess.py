"""From a picture or a sound to a model input. What is done here is what the bundle's ``preprocess.json`` says, so that
firmware can do the same: keep ``steps`` and the arithmetic together.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgekit.catalog import AudioSteps, ImageSteps, Recipe
    from edgekit.graph import Tensor

Array = np.ndarray[Any, Any]

# Formats whose decoders run nothing but a decoder (Pillow hands EPS to Ghostscript).
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"),
    "wav": (".wav",),
}


def main_input(recipe: Recipe, inputs: tuple[Tensor, ...]) -> Tensor:
    """The input that samples of this recipe fill; the others (recurrent state) get zeros.

    Pictures need the model's only input; sound fills the first. Raises ``InputError`` when the shape or dtype does not
    suit the recipe.
    """
    tensor = inputs[0]
    if np.dtype(tensor.dtype).kind != "f":
        raise InputError(
            f"recipe {recipe.name!r} makes float samples, but the model's input {tensor.name!r} is {tensor.dtype}",
            hint="pass an .npz with samples as the model takes them",
        )
    if recipe.image is not None:
        if len(inputs) > 1:
            raise InputError(
                f"recipe {recipe.name!r} fills one input, but the model has {len(inputs)}: "
                + ", ".join(t.name for t in inputs),
                hint="pass an .npz with an array for each of them",
            )
        _layout(recipe.image, tensor)
    if recipe.audio is not None:
        _windows(recipe.audio, tensor)
    return tensor


def read(path: Path, recipe: Recipe, tensor: Tensor) -> Array:
    """The file as one sample of ``tensor``'s shape and dtype. Raises ``InputError`` naming the file."""
    if recipe.image is not None:
        return picture(path, recipe.image, tensor)
    assert recipe.audio is not None  # the catalog holds this
    return sound(path, recipe.audio, tensor)


def steps(recipe: Recipe, inputs: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    """What ``read`` does, in order, with every number that it uses, ready for JSON."""
    tensor = main_input(recipe, inputs)
    zeros = [{"do": "zeros", "inputs": [t.name for t in inputs[1:]]}] if inputs[1:] else []
    if recipe.image is not None:
        layout, height, width = _layout(recipe.image, tensor)
        config = asdict(recipe.image)
        fit: dict[str, Any] = {"do": "fit", "fit": config["fit"], "height": height, "width": width}
        if recipe.image.fit == "crop":
            fit["crop_ratio"] = config["crop_ratio"]
        if recipe.image.fit == "pad-right":
            fit["pad_after_normalise"] = config["pad"]
        return [
            {"do": "decode", "channels": config["channels"], "dtype": "uint8"},
            fit | {"filter": "bilinear, widened by the reduction factor (antialiased, as in Pillow), rounded to uint8"},
            {"do": "normalise", "formula": "(pixel / 255 - mean) / std", "mean": config["mean"], "std": config["std"]},
            {"do": "lay out", "layout": layout, "input": tensor.name, "dtype": tensor.dtype},
            *zeros,
        ]
    assert recipe.audio is not None
    windows, width, context = _windows(recipe.audio, tensor)
    return [
        {"do": "decode", "channels": "mean of all", "range": [-1.0, 1.0]},
        {"do": "resample", "rate_hz": recipe.audio.rate_hz, "filter": "polyphase FIR (scipy.signal.resample_poly)"},
        {"do": "window", "windows": windows, "width": width, "context": context, "from": "start", "fill": 0.0},
        {"do": "lay out", "input": tensor.name, "dtype": tensor.dtype},
        *zeros,
    ]


def _layout(config: ImageSteps, tensor: Tensor) -> tuple[str, int, int]:
    """(NCHW or NHWC, height, width) of an image input."""
    channels = len(config.mean)
    shape = tensor.shape
    if len(shape) == 4 and shape[0] == 1 and shape[1] == channels:
        return "NCHW", shape[2], shape[3]
    if len(shape) == 4 and shape[0] == 1 and shape[3] == channels:
        return "NHWC", shape[1], shape[2]
    raise InputError(
        f"the model's input {tensor.name!r} has shape {shape}, which is no single {config.channels} picture",
        hint=f"the recipe fills (1, {channels}, height, width) or (1, height, width, {channels}); freeze the model "
        "with --shape, or pass an .npz",
    )


def picture(path: Path, config: ImageSteps, tensor: Tensor) -> Array:
    """Read, fit and normalise a picture (see ``ImageSteps``)."""
    layout, height, width = _layout(config, tensor)
    pixels, filled = _fit(_open_picture(path, config), config, height, width)
    mean, std = np.asarray(config.mean, np.float32), np.asarray(config.std, np.float32)
    normal = (pixels.astype(np.float32) / 255 - mean) / std
    sample = np.full((height, width, len(config.mean)), config.pad, np.float32)
    sample[:, :filled] = normal
    if layout == "NCHW":
        sample = sample.transpose(2, 0, 1)
    return np.ascontiguousarray(sample[None], dtype=tensor.dtype)


def _open_picture(path: Path, config: ImageSteps) -> Image:
    import PIL.Image

    try:
        with warnings.catch_warnings():
            # Pillow warns above its limit and raises above twice that: one refusal for both.
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=_IMAGE_FORMATS) as file:
                mode = file.mode
                image = file.convert("L" if config.channels == "GRAY" else "RGB")
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise InputError(f"{path}: too many pixels to be a sample", hint="resize it or leave it out") from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        problem = (error.strerror if isinstance(error, OSError) else "") or str(error).partition("\n")[0]
        raise InputError(f"{path}: cannot be read as a picture: {problem}", hint="repair or remove the file") from None
    if mode.startswith(("I", "F")):
        raise InputError(
            f"{path}: has {mode} pixels, not 8 bits a channel", hint="convert it to 8 bits, or pass an .npz"
        )
    return image


def _fit(image: Image, config: ImageSteps, height: int, width: int) -> tuple[Array, int]:
    """(pixels [height, filled, channels] in the recipe's channel order, filled): what is right of filled is padding."""
    from PIL.Image import Resampling

    filled = width
    box = (0.0, 0.0, float(image.width), float(image.height))
    if config.fit == "pad-right":
        filled = min(width, math.ceil(height * image.width / image.height))
    elif config.fit == "crop":
        # The same as resizing the shorter side and cutting the centre, without the large picture in between.
        scale = config.crop_ratio * min(image.width / width, image.height / height)
        left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
        box = (
            max(left, 0),
            max(top, 0),
            min(left + scale * width, image.width),
            min(top + scale * height, image.height),
        )
    pixels = np.asarray(image.resize((filled, height), Resampling.BILINEAR, box=box))
    pixels = pixels.reshape(height, filled, -1)
    return (pixels[:, :, ::-1] if config.channels == "BGR" else pixels), filled


def _windows(config: AudioSteps, tensor: Tensor) -> tuple[int, int, int]:
    """(windows, width, context) of an input [windows, width], [samples] or [1, ..., samples]."""
    shape = tensor.shape
    if not shape or (len(shape) > 2 and math.prod(shape[:-1]) != 1):
        raise InputError(
            f"the model's input {tensor.name!r} has shape {shape}, which is no sequence of windows",
            hint="the recipe fills (windows, width) or (1, samples); freeze the model with --shape, or pass an .npz",
        )
    windows, width = ([1, *shape])[-2:]
    context = config.context if windows > 1 else 0
    if context >= width:
        raise InputError(
            f"the recipe's context of {context} samples leaves nothing of the {width} samples of input {tensor.name!r}",
            hint='derive a recipe: extends = "audio-16k" with [audio] context = 0',
        )
    return windows, width, context


def sound(path: Path, config: AudioSteps, tensor: Tensor) -> Array:
    """Read the beginning of a wav file into the model's windows (see ``AudioSteps``); zeros where it is too short."""
    windows, width, context = _windows(config, tensor)
    hop = width - context
    needed = windows * hop
    wave = _open_sound(path, needed, config.rate_hz)
    padded = np.zeros(context + needed, np.float32)
    padded[context : context + len(wave)] = wave
    framed = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop]
    return np.ascontiguousarray(framed, dtype=tensor.dtype).reshape(tensor.shape)


def _open_sound(path: Path, needed: int, rate_hz: int) -> Array:
    """At most ``needed`` samples at ``rate_hz``: mono, float32, [-1, 1]."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # unknown chunks (tags) are no fault
            warnings.filterwarnings("error", "Reached EOF")  # a file cut short is
            rate, data = wavfile.read(path)
    except Exception as error:  # damaged headers make the reader raise nearly anything
        problem = (error.strerror if isinstance(error, OSError) else "") or str(error).partition("\n")[0]
        raise InputError(f"{path}: cannot be read as a wav file: {problem}", hint="repair or remove the file") from None
    if not 1000 <= rate <= 768_000:
        raise InputError(f"{path}: a sampling rate of {rate} Hz is not one of sound", hint="repair or remove the file")
    if not len(data):
        raise InputError(f"{path}: holds no sound", hint="remove the file")
    # Only what is needed is converted and resampled; 32 output samples more than that settle the filter's tail.
    data = data[: math.ceil((needed + 32) * rate / rate_hz)]
    if data.dtype.kind == "f":
        wave = data.astype(np.float64)
    elif data.dtype == np.uint8:  # 8-bit wav is unsigned, everything wider is signed
        wave = (data.astype(np.float64) - 128) / 128
    else:
        wave = data / -float(np.iinfo(data.dtype).min)
    if wave.ndim == 2:
        wave = wave.mean(axis=1)
    if not np.isfinite(wave).all():
        raise InputError(f"{path}: holds NaN or Inf", hint="repair or remove the file")
    if rate != rate_hz:
        from scipy.signal import resample_poly

        divisor = math.gcd(rate, rate_hz)
        wave = resample_poly(wave, rate_hz // divisor, rate // divisor)
    return np.asarray(wave[:needed], np.float32)
