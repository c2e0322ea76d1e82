"""What ``targets/``, ``device_profiles/`` and ``calibration/`` are made of: the keys of their files and the defaults.

A field is a key, a nested dataclass a block. Values out of range raise ``ValueError``, which ``catalog`` turns into an
``InputError`` that names the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from edgekit.types import Precision


@dataclass(frozen=True)
class Target:
    """What ``--target`` names: a device profile, a backend with its runtime, and how to reach the device.

    ``precisions`` are what the backend may try; what loses on the device is dropped when it is probed. ``runtime`` is a
    requirement in the notation of PEP 508.
    """

    name: str
    description: str
    backend: Literal["openvino"]
    device_profile: str
    precisions: tuple[Precision, ...]
    runtime: str = ""
    transport: Literal["local", "ssh"] = "local"
    threads: int = 1

    def __post_init__(self) -> None:
        _check(self.threads >= 1, "threads", f"must be at least 1, not {self.threads}")
        _check(Precision.FP32 in self.precisions, "precisions", 'must hold "fp32", which every plan can fall back to')
        repeated = [p.value for i, p in enumerate(self.precisions) if p in self.precisions[:i]]
        _check(not repeated, "precisions", f"holds {', '.join(repeated)} twice")


@dataclass(frozen=True)
class DeviceProfile:
    """What is known about one piece of hardware, with its sources.

    ``channel_step``: kept channels are rounded to multiples of this. ``prediction_error``: relative half-width of the
    90 % interval of a latency predicted as a sum of layer costs.
    """

    name: str
    description: str
    evidence: str
    sources: tuple[str, ...] = ()
    channel_step: int = 1
    prediction_error: float = 0.10

    def __post_init__(self) -> None:
        _check(self.channel_step >= 1, "channel_step", f"must be at least 1, not {self.channel_step}")
        _check(0 < self.prediction_error < 1, "prediction_error", f"must lie in (0, 1), not {self.prediction_error}")


@dataclass(frozen=True)
class ImageSteps:
    """How a picture becomes an input: fit to the model's height and width, then ``(pixel / 255 - mean) / std``.

    ``fit``: ``crop`` resizes the shorter side to size / ``crop_ratio`` and cuts the centre; ``pad-right`` resizes to
    the model's height, keeps the aspect (up to the model's width) and fills the rest with ``pad``, which is in
    normalised units; ``stretch`` ignores the aspect. NCHW or NHWC follows from the model's input shape.
    """

    fit: Literal["crop", "pad-right", "stretch"]
    channels: Literal["RGB", "BGR", "GRAY"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float = 1.0
    pad: float = 0.0

    def __post_init__(self) -> None:
        count = 1 if self.channels == "GRAY" else 3
        for key, values in (("mean", self.mean), ("std", self.std)):
            _check(len(values) == count, key, f"must hold {count} numbers for {self.channels}, not {len(values)}")
        _check(min(self.std) > 0, "std", f"must be positive, not {min(self.std)}")
        _check(0 < self.crop_ratio <= 1, "crop_ratio", f"must lie in (0, 1], not {self.crop_ratio}")


@dataclass(frozen=True)
class AudioSteps:
    """How a wav file becomes an input: mono, resampled to ``rate_hz``, in [-1, 1], cut into the model's windows.

    An input ``[windows, width]`` takes windows that each begin with the last ``context`` samples of the one before
    (zeros for the first), so ``width - context`` are new; an input with a single window takes ``width`` samples.
    """

    rate_hz: int
    context: int = 0

    def __post_init__(self) -> None:
        _check(1000 <= self.rate_hz <= 384_000, "rate_hz", f"must lie in 1000..384000, not {self.rate_hz}")
        _check(self.context >= 0, "context", f"must not be negative, not {self.context}")


@dataclass(frozen=True)
class Recipe:
    """How raw samples become model inputs, how ranges are observed, and which metric scores the outputs.

    ``labels`` is what a label file holds; ``samples`` the number of calibration samples; ``percentile`` belongs to the
    observer of that name. An empty ``metric`` means: by the labels (see ``edgekit.recipes.metrics.default_metric``).
    """

    name: str
    description: str
    reader: Literal["npz", "image", "wav"]
    labels: Literal["integer", "number", "text"] = "integer"
    samples: int = 64
    observer: Literal["min-max", "percentile", "mse", "entropy"] = "mse"
    percentile: float = 99.99
    metric: str = ""
    image: ImageSteps | None = None
    audio: AudioSteps | None = None

    def __post_init__(self) -> None:
        _check(self.samples >= 1, "samples", f"must be at least 1, not {self.samples}")
        _check(50 < self.percentile <= 100, "percentile", f"must lie in (50, 100], not {self.percentile}")
        for reader, block in (("image", "image"), ("wav", "audio")):
            given = getattr(self, block) is not None
            _check(given or self.reader != reader, block, f'reader = "{reader}" needs a block [{block}]')
            _check(not given or self.reader == reader, block, f'[{block}] does not go with reader = "{self.reader}"')

    @property
    def digest(self) -> str:
        """SHA-256 of everything that changes a result: the name and the description do not."""
        parts = {key: value for key, value in asdict(self).items() if key not in ("name", "description")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check(holds: bool, key: str, problem: str) -> None:
    if not holds:
        raise ValueError(f"{key}: {problem}")
