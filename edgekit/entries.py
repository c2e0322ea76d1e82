"""What ``targets/``, ``device_profiles/`` and ``calibration/`` are made of: the keys of their files and the defaults.

A field is a key, a nested dataclass a block. Values out of range raise ``ValueError``, which ``catalog`` turns into an
``InputError`` that names the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Literal

from edgekit.types import Precision


@dataclass(frozen=True)
class Target:
    """What ``--target`` names: a device profile, a backend with its runtime, and how to reach the device.

    ``precisions`` are what the backend may try; what loses on the device is dropped when it is probed. ``runtime`` is a
    requirement in the notation of PEP 508. ``sparsity`` says what gains from zeros among the weights: "unstructured"
    where weights may be stored compressed and expanded at load, so that ``--size`` counts the compressed bytes (and few
    values for the weights save size as well); "2:4" where kernels skip two of any four, by the profile's
    ``sparse_speedup``. ``releases`` are those of its system software that the model is made for, where they decide what
    it may hold (`edgekit.releases`). ``accelerator`` is the part of the device that the network is put on, where its
    runtime has another by itself: "dla", the deep learning accelerator of a Jetson.
    """

    name: str
    description: str
    backend: Literal["openvino", "tflite", "tensorrt"]
    device_profile: str
    precisions: tuple[Precision, ...]
    runtime: str = ""
    transport: Literal["local", "ssh"] = "local"
    threads: int = 1
    sparsity: tuple[Literal["unstructured", "2:4"], ...] = ()
    releases: tuple[str, ...] = ()
    accelerator: Literal["", "dla"] = ""

    def __post_init__(self) -> None:
        _check(self.threads >= 1, "threads", f"must be at least 1, not {self.threads}")
        _check(Precision.FP32 in self.precisions, "precisions", 'must hold "fp32", which every plan can fall back to')
        repeated = [p.value for i, p in enumerate(self.precisions) if p in self.precisions[:i]]
        _check(not repeated, "precisions", f"holds {', '.join(repeated)} twice")
        released = self.backend == "tensorrt"
        needed = f"{'are needed by' if released else 'do not go with'} the backend {self.backend}"
        _check(released == bool(self.releases), "releases", needed)
        expands = self.backend == "openvino"  # whose runner knows how
        _check(
            expands or "unstructured" not in self.sparsity, "sparsity", f"{self.backend} cannot expand weights at load"
        )
        _check(released or not self.accelerator, "accelerator", f"does not go with the backend {self.backend}")
        skips = self.accelerator and "2:4" in self.sparsity
        _check(not skips, "sparsity", f'"2:4": nothing says what the {self.accelerator} gains from zeros in fp16')


@dataclass(frozen=True)
class Processor:
    """A part of a device that runs networks. ``peak_gmacs`` is its theoretical best by precision, all cores together,
    in 1e9 multiply-accumulates a second (vendors count each as two operations). Boards of one ``architecture`` share
    what was learnt of it.
    """

    name: str
    kind: Literal["cpu", "gpu", "npu", "dla"]
    architecture: str
    peak_gmacs: dict[Precision, float]
    cores: int = 1

    def __post_init__(self) -> None:
        _check(self.cores >= 1, "cores", f"must be at least 1, not {self.cores}")
        _check(bool(self.peak_gmacs), "peak_gmacs", "must name at least one precision")
        _check(all(peak > 0 for peak in self.peak_gmacs.values()), "peak_gmacs", "must hold positive numbers")


@dataclass(frozen=True)
class Memory:
    """Main memory: theoretical bandwidth, and the sizes that the board is sold with."""

    bandwidth_gbs: float
    sizes_mb: tuple[int, ...]

    def __post_init__(self) -> None:
        _check(self.bandwidth_gbs > 0, "bandwidth_gbs", f"must be positive, not {self.bandwidth_gbs}")


# Kind, operator, seven sizes, the function inside, milliseconds, factor, times seen: edgekit.cost.kernels reads it.
_NUMBER = r"(?=[0-9.]*[1-9])[0-9]{1,9}(?:\.[0-9]{1,9})?(?:e[-+]?[0-9]{1,2})?"
_KERNEL = re.compile(rf"[a-z0-9]+ \w+(?: [1-9][0-9]{{0,11}}){{7}} [0-3] {_NUMBER} {_NUMBER} [1-9][0-9]{{0,5}}")
_MOST_KERNELS = 5000  # `edgekit profile` writes some 2000; what they say takes memory by their square


@dataclass(frozen=True)
class Costs:
    """What one runtime costs here in one precision: the coefficients of `edgekit.cost.profile`, and how far to trust
    them.

    ``factors``: milliseconds for each start (call, layer, operator); for MACs by kind and for bytes, times the time
    that the peak promises. ``covariance``: of the factors' logarithms, lower triangle, in the order of ``factors``.
    ``spread``: standard deviation of the logarithm of a latency that comes on top, of networks that nobody measured.
    ``interval``: standard deviations to each side that hold 90 %, from held-out model families or, with no rows of this
    device, from held-out devices. ``kinds``, ``macs`` and ``elements`` (of activations) are what the rows covered.
    ``kernels``: those that were timed on the board itself, each a line (`edgekit.cost.kernels.Kernel`).
    """

    runtime: str
    processor: Literal["cpu", "gpu", "npu", "dla"]
    precision: Precision
    rows: int
    evidence: str
    factors: dict[str, float]
    covariance: tuple[str, ...]
    spread: float
    interval: float
    kinds: tuple[str, ...]
    macs: tuple[float, ...]
    elements: tuple[float, ...]
    threads: int = 0
    kernels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.threads >= 0, "threads", f"must not be negative, not {self.threads}")
        _check(len(self.kernels) <= _MOST_KERNELS, "kernels", f"must not be more than {_MOST_KERNELS}")
        bad = next((line for line in self.kernels if not _KERNEL.fullmatch(line)), None)
        _check(bad is None, "kernels", f"must be written by `edgekit profile`, unlike {bad!r}")
        _check(all(f > 0 for f in self.factors.values()), "factors", "must hold positive numbers")
        try:
            lengths = [len(row) for row in self.covariance_rows()]
        except ValueError:
            lengths = []
        whole = lengths == list(range(1, len(self.factors) + 1))
        _check(whole, "covariance", "must have a text for each factor, of 1, 2, 3 ... numbers")
        _check(self.spread > 0 and self.interval > 0, "interval", "and spread must be positive")
        for key in ("macs", "elements"):
            given = getattr(self, key)
            _check(len(given) == 2 and 0 < given[0] <= given[1], key, f"must be [lowest, highest], not {list(given)}")

    def covariance_rows(self) -> tuple[tuple[float, ...], ...]:
        """The lower triangle as numbers."""
        return tuple(tuple(map(float, row.split())) for row in self.covariance)


@dataclass(frozen=True)
class Anchor:
    """A whole network that was measured on the user's own device, beside what the costs alone predict for it.

    ``model`` is the SHA-256 of its file, ``date`` that of the measurement (YYYY-MM-DD).
    """

    runtime: str
    processor: Literal["cpu", "gpu", "npu", "dla"]
    precision: Precision
    model: str
    predicted_ms: float
    measured_ms: float
    date: str
    threads: int = 0

    def __post_init__(self) -> None:
        for key in ("predicted_ms", "measured_ms"):
            _check(getattr(self, key) > 0, key, f"must be positive, not {getattr(self, key)}")
        _check(self.threads >= 0, "threads", f"must not be negative, not {self.threads}")


@dataclass(frozen=True)
class DeviceProfile:
    """What is known about one piece of hardware, with its sources.

    ``channel_step``: kept channels are rounded to multiples of this. ``prediction_error``: relative half-width of the
    90 % interval of a latency predicted as a sum of layer costs that were measured on the device. ``sparse_speedup``: a
    layer's latency over its latency with 2:4 sparse weights, measured or cited in ``sources``; 1 where nothing is known
    to gain. ``costs`` predict for a device that nobody has at hand; ``anchors`` correct them
    (`edgekit.cost.anchoring`).
    """

    name: str
    description: str
    evidence: str
    sources: tuple[str, ...] = ()
    channel_step: int = 1
    prediction_error: float = 0.10
    sparse_speedup: float = 1.0
    memory: Memory | None = None
    processors: tuple[Processor, ...] = ()
    costs: tuple[Costs, ...] = ()
    anchors: tuple[Anchor, ...] = ()

    def __post_init__(self) -> None:
        _check(self.channel_step >= 1, "channel_step", f"must be at least 1, not {self.channel_step}")
        _check(0 < self.prediction_error < 1, "prediction_error", f"must lie in (0, 1), not {self.prediction_error}")
        _check(1 <= self.sparse_speedup <= 2, "sparse_speedup", f"must lie in 1..2, not {self.sparse_speedup}")
        kinds = [processor.kind for processor in self.processors]
        _check(len(kinds) == len(set(kinds)), "processors", "must hold each kind once")
        lonely = sorted({cost.processor for cost in self.costs} - set(kinds))
        _check(not lonely, "costs", f"need a processor of kind {', '.join(lonely)}")
        _check(not self.costs or self.memory is not None, "memory", "is needed by the costs")
        seen = [(cost.runtime, cost.processor, cost.precision, cost.threads) for cost in self.costs]
        twice = [key for i, key in enumerate(seen) if key in seen[:i]]
        _check(not twice, "costs", f"holds {' '.join(map(str, twice[0]))} twice" if twice else "")

    def part(self, kind: str) -> Processor | None:
        """The processor of that kind, or None."""
        return next((processor for processor in self.processors if processor.kind == kind), None)


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
