"""The words that the parts exchange: frozen, typed, units in the names. No I/O and no heavy import here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum


class Precision(StrEnum):
    """How a layer executes."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"  # 8-bit weights and activations
    FP8 = "fp8"  # 8-bit floating-point weights and activations (e4m3)
    INT16X8 = "int16x8"  # 8-bit weights, 16-bit activations
    W8 = "w8"  # 8-bit weights, float activations
    W4 = "w4"  # 4-bit weights, float activations

    @property
    def activation_bits(self) -> int:
        """Bits of one activation element that a layer of this precision reads."""
        return {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "fp8": 8, "int16x8": 16, "w8": 32, "w4": 32}[self.value]

    @property
    def weight_bits(self) -> int:
        """Bits of one stored weight element."""
        return {"fp32": 32, "bf16": 32, "fp16": 16, "int8": 8, "fp8": 8, "int16x8": 8, "w8": 8, "w4": 4}[self.value]


#: A layer of these reads tensors that are held in 8 bits: crossing to and from the others takes time.
EIGHT_BITS = frozenset({Precision.INT8, Precision.FP8})


class Mask(StrEnum):
    """What holds a layer's weights to less than its precision gives them. Masks: which of them are zero, a share of
    them anywhere or two of any four neighbours. Codebooks: the few values that they may take, for each output channel
    times a scale. All but 2:4 save size alone, where weights are stored compressed.
    """

    NONE = "none"
    HALF = "50%"
    THREE_QUARTERS = "75%"
    TWO_OF_FOUR = "2:4"
    SIXTEEN_VALUES = "16 values"
    FIFTEEN_STEPS = "15 steps"
    FOUR_VALUES = "4 values"
    POWERS_OF_TWO = "powers of two"
    TERNARY = "ternary"
    BINARY = "binary"

    @property
    def is_codebook(self) -> bool:
        """Whether it says which values the weights take, not which are zero."""
        return self not in (Mask.NONE, Mask.HALF, Mask.THREE_QUARTERS, Mask.TWO_OF_FOUR)


class Kind(StrEnum):
    """Where a figure comes from."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    COUNTED = "counted"
    NONE = "none"


@dataclass(frozen=True)
class Figure:
    """A number with its kind and its interval (90 % for predictions, p10..p90 spread or 95 % confidence as documented
    where it is made). ``source`` names the device that measured it, the evidence behind a prediction, or, for
    ``Kind.NONE``, the reason why there is no number.
    """

    kind: Kind
    value: float | None = None
    low: float | None = None
    high: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Budget:
    """What the deployed model may cost. ``None`` means unlimited.

    ``memory_bytes`` bounds resident weights + peak activations; ``weight_bytes`` bounds stored weights; ``max_drop`` is
    the largest tolerated drop of the metric, absolute (0.01 = one point of accuracy).
    """

    latency_ms: float | None = None
    memory_bytes: int | None = None
    weight_bytes: int | None = None
    max_drop: float | None = 0.01


@dataclass(frozen=True)
class Layer:
    """A node that carries weights or a matrix product: the unit of decision.

    ``inputs`` are the activation tensors that int8 would quantize (1 for Conv, 2 for an attention MatMul),
    ``weights`` the initializers with one value per connection; ``weight_axis`` is the output-channel axis of the first
    weight (-1 where there is none). ``macs`` are multiply-accumulates for the frozen shapes.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str
    weights: tuple[str, ...]
    weight_axis: int
    weight_elements: int
    bias_elements: int
    input_elements: int
    output_elements: int
    macs: int


@dataclass(frozen=True)
class Edge:
    """Data flowing from layer to layer, through non-layer operators or not. ``producer`` is '' for a model input."""

    producer: str
    consumer: str
    tensor: str
    elements: int


@dataclass(frozen=True)
class MetricResult:
    """A metric over ``n`` samples with its 95 % confidence interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool = True


@dataclass(frozen=True)
class LayerChoice:
    """What the plan decided for one layer. ``keep`` is the kept share of its output channels, ``mask`` says which of
    its weights are zero or which values they take.
    """

    name: str
    op_type: str
    precision: Precision
    keep: float = 1.0
    mask: Mask = Mask.NONE


@dataclass(frozen=True)
class GroupChoice:
    """What the plan decided for one channel group: ``kept`` of its ``channels``."""

    name: str
    channels: int
    kept: int


@dataclass(frozen=True)
class Predicted:
    """Totals that a plan promises. ``loss`` is the sum of the sensitivities of its layers and channel groups (relative
    output noise power).
    """

    latency_ms: Figure
    weight_bytes: int
    peak_activation_bytes: int
    memory_bytes: int
    loss: float


@dataclass(frozen=True)
class Plan:
    """One option for each layer and each channel group, with the proof: relative optimality ``gap`` and the budgets
    that bind ("latency", "size", "memory", "max_drop"). ``gap`` is None for a uniform assignment, which nobody
    optimised. ``groups`` holds the groups that had a choice. Where ``compressed``, the weights ship compressed, and
    their bytes are those.
    """

    layers: tuple[LayerChoice, ...]
    predicted: Predicted
    gap: float | None
    binding: tuple[str, ...] = ()
    groups: tuple[GroupChoice, ...] = ()
    compressed: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the decisions alone: the same decisions give the same digest on any machine."""
        rows: list[list[object]] = [[c.name, c.op_type, c.precision.value, c.keep] for c in self.layers]
        rows += [[g.name, g.channels, g.kept] for g in self.groups if g.kept < g.channels]
        rows += [[name, mask.value] for name, mask in self.masks().items()]
        rows += [["compressed"]] if self.compressed else []
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    def precisions(self) -> dict[str, Precision]:
        """Layer name -> precision."""
        return {c.name: c.precision for c in self.layers}

    def kept(self) -> dict[str, int]:
        """Channel group -> kept channels, of the groups that lose some."""
        return {g.name: g.kept for g in self.groups if g.kept < g.channels}

    def masks(self) -> dict[str, Mask]:
        """Layer name -> which weights are zero or which values they take, of the layers that are held to that."""
        return {c.name: c.mask for c in self.layers if c.mask is not Mask.NONE}


@dataclass(frozen=True)
class Latency:
    """Latency of one inference over ``n`` runs, milliseconds, wall clock. ``_low`` and ``_high`` are the ends of the
    95 % confidence interval of each percentile; None where there are too few runs for one. A predicted latency has no
    runs and no percentiles but ``p50``, with its 90 % interval.
    """

    p50: float
    p90: float
    p99: float
    n: int
    p50_low: float | None = None
    p50_high: float | None = None
    p90_low: float | None = None
    p90_high: float | None = None
    p99_low: float | None = None
    p99_high: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One contestant of the race. ``sqnr_db`` and ``agreement`` compare its outputs with the float model's.

    ``drop`` is what the metric lost against float on the same samples (positive = worse, 95 % paired confidence
    interval); ``speedup`` is float's latency over this one's (median over interleaved rounds, p10..p90), and
    ``speedup_ci`` the same with the 95 % confidence interval of that median. ``energy_mj`` is what one inference takes
    beyond the idle board (with the extremes of the repetitions), ``peak_memory_bytes`` the most that a process held
    which does nothing but load and run the model, runtime included.
    """

    name: str
    latency_ms: Latency
    metric: MetricResult
    sqnr_db: float
    agreement: float | None
    weight_bytes: int
    kind: Kind
    precisions: dict[str, int] = field(default_factory=dict)
    note: str = ""
    drop: Figure | None = None
    speedup: Figure | None = None
    speedup_ci: Figure | None = None
    energy_mj: Figure | None = None
    peak_memory_bytes: Figure | None = None


@dataclass(frozen=True)
class Mismatch:
    """A layer that the compiler executes otherwise than planned."""

    layer: str
    planned: Precision
    executed: str


@dataclass(frozen=True)
class Conformance:
    """Precision planned against precision compiled, layer by layer. ``unknown`` says why nothing was compared."""

    planned: int
    matched: int
    mismatches: tuple[Mismatch, ...] = ()
    unknown: str = ""
