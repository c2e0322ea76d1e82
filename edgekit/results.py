"""What a deployment found out, as one document: what ``deploy --json`` prints, and the report and bundle are made of.

The JSON form is a public interface: its fields change only by addition, or with a new ``SCHEMA``. Numbers are finite:
JSON has no infinity, so a ``null`` where a number belongs says "not finite" (``sqnr_db`` of the float model against
itself is infinite) or, where the field may be ``None``, "not known".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args, get_origin

from edgekit.conditions import Conditions
from edgekit.errors import InputError
from edgekit.types import Budget, Candidate, Conformance, Figure, Kind, Mask, Plan, Precision

if TYPE_CHECKING:
    from cattrs import Converter

SCHEMA = "edgekit/deploy/1"

# The part of the document that the same inputs reproduce byte for byte; all else is measured, or says when and where.
DECISIONS = ("schema", "target", "model", "data", "recipe", "budget", "plan")


class HasPlan(Protocol):
    """What decided on a plan."""

    @property
    def plan(self) -> Plan:
        """The decisions."""


Planned = TypeVar("Planned", bound=HasPlan)


@dataclass(frozen=True)
class DeviceInfo:
    """Where the latencies were measured."""

    cpu: str
    threads: int
    runtime: str  # "openvino 2026.4.1"
    governor: str = ""  # CPU frequency governor, where it can be read
    machine: str = ""  # "x86_64", "aarch64"
    power_mode: str = ""  # "nvpmodel 2", "balanced": where it can be read


@dataclass(frozen=True)
class VectorsCheck:
    """The bundle's test vectors on the board: the worst error as a share of the tolerance, and the SHA-256 of all
    outputs where its runner tells. Of an ``emulated`` board only this was taken, no time.
    """

    count: int
    worst_error_share: float
    outputs_sha256: str
    runtime: str
    emulated: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """The model that was deployed: its file's name (no folder) and digest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class DataInfo:
    """The samples: ``name`` is the file's or folder's name. ``synthetic`` data say nothing about accuracy."""

    name: str
    sha256: str
    calibration_samples: int
    eval_samples: int
    synthetic: bool = False


@dataclass(frozen=True)
class RecipeInfo:
    """How samples became inputs, how ranges were observed, and what scored the outputs."""

    name: str
    digest: str
    observer: str
    metric: str


@dataclass(frozen=True)
class LayerDetail:
    """One layer of the plan, in execution order.

    ``latency_ms`` and ``loss`` have one entry an option that was considered; ``loss`` is the noise power at the model's
    output relative to the signal power when this layer alone takes the option. ``reason`` says why it got what it got,
    ``cures`` what was done so that its precision costs less accuracy ("rounded", "bias", "observer mse" ...).
    """

    name: str
    op_type: str
    precision: Precision
    keep: float
    macs: int
    weight_bytes: int
    latency_ms: dict[Precision, float]
    loss: dict[Precision, float]
    reason: str = ""
    latency_kind: Kind = Kind.MEASURED
    mask: Mask = Mask.NONE
    cures: tuple[str, ...] = ()


@dataclass(frozen=True)
class DroppedOption:
    """An option that was not considered further: ``scope`` is "model", or the name of a layer or a channel group."""

    option: str
    scope: str
    reason: str


@dataclass(frozen=True)
class GroupOptionDetail:
    """One keep ratio of a channel group that was offered to the planner: the noise power at the model's output when
    this group alone is pruned and what reads it re-solved, and what that alone saves of the latency.
    """

    kept: int
    loss: float
    saves_ms: float


@dataclass(frozen=True)
class GroupDetail:
    """A channel group: the layers whose output channels (``producers``) and input channels (``consumers``) go together.

    ``options`` are the keep ratios that were offered (empty where none was worth it); ``reason`` says why it got what
    it got, or why nothing was offered.
    """

    name: str
    channels: int
    kept: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    options: tuple[GroupOptionDetail, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class FixedDetail:
    """A layer whose output channels cannot be pruned, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class Price:
    """What loosening one budget ("latency", "size", "memory"; or "noise", the loss that the plan has, in decibel) would
    buy: with ``budget`` raised by ``step``, the best plan's ``buys`` ("latency_ms",
    "loss", "weight_bytes" or "memory_bytes") goes from ``now`` to ``then``. Found by planning again, not by a
    derivative.
    """

    budget: str
    step: float
    buys: str
    now: float
    then: float


@dataclass(frozen=True)
class ParetoPoint:
    """A plan that was considered. ``kind`` is that of the latency; ``metric`` is None where it was not evaluated.
    ``pruned_channels`` are the channels that it removes.
    """

    latency_ms: float
    loss: float
    weight_bytes: int
    int8_layers: int
    metric: float | None
    kind: Kind
    pruned_channels: int = 0


@dataclass(frozen=True)
class Blame:
    """A layer that cost accuracy: its share of the plan's loss, the metric it costs alone, and what would cure it."""

    layer: str
    precision: Precision
    loss_share: float
    drop: float | None
    cure: str


@dataclass(frozen=True)
class Round:
    """One turn of plan and realise. A plan that drops the metric too far is not raced: ``measured_ms`` is None. Rounds
    that correct the tables are on the cost table's clock, those of the candidates' race on that race's.
    ``predicted_loss`` is what the tables promised, ``measured_loss`` what the compiled plan's outputs show on the
    evaluation samples (both relative noise power).
    """

    round: int
    action: str
    predicted_ms: float | None
    measured_ms: float | None
    metric: float | None
    predicted_loss: float | None = None
    measured_loss: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Predicted against measured latency of the plan. Errors are relative, signed: (predicted - measured) / measured.
    The MAC baseline interpolates between the measured float and int8 totals by the share of multiply-accumulates.
    """

    predicted_ms: float
    measured_ms: float
    error: float
    mac_baseline_ms: float | None
    mac_baseline_error: float | None


# No network has as many: each is looked at one by one.
_MOST_KERNELS = 1_000_000


@dataclass(frozen=True)
class KernelCount:
    """``count`` equal kernels of a model: what each multiplies, reads, has as weights and writes; its operator, loops
    (`edgekit.cost.work.Shape`) and the functions that are computed inside; its precision, where it is a
    plan's.
    """

    kind: str
    count: int
    macs: int
    input_elements: int
    weight_elements: int
    output_elements: int
    op: str = ""
    shape: tuple[int, ...] = ()
    functions: tuple[str, ...] = ()
    precision: Precision | None = None

    def __post_init__(self) -> None:
        sizes = (self.macs, self.input_elements, self.weight_elements, self.output_elements)
        if not 1 <= self.count <= _MOST_KERNELS or min(sizes) < 0:
            raise ValueError(f"count must be from 1 to {_MOST_KERNELS}, and no size be negative")


@dataclass(frozen=True)
class Demand:
    """What a model asks of a device, so that its costs can be predicted without its graph. ``int8_crossing_elements``
    pass between float and int8: in the plan, or where all layers are int8.
    """

    kernels: tuple[KernelCount, ...]
    int8_crossing_elements: int

    def __post_init__(self) -> None:
        if self.int8_crossing_elements < 0:
            raise ValueError("int8_crossing_elements must not be negative")


@dataclass(frozen=True)
class DeployResult:
    """All that a deployment decided, predicted and measured. ``bundle`` is the path of what was written.

    ``chosen`` names the candidate that ships; ``candidates`` holds ``float`` first. ``prediction`` is None when the
    plan was not raced. ``created`` is an ISO 8601 time in UTC; ``versions`` are those of edgekit and its libraries.
    ``conditions`` are those of the race that the candidates' latencies come from. ``vectors`` is what the board made of
    the test vectors, None where they ran on this machine alone. ``demand`` is the unmodified model's, None in results
    of earlier versions; ``plan_demand`` that of what ships, where it is a plan of which costs can tell.
    """

    target: str
    device: DeviceInfo
    created: str
    model: ModelInfo
    data: DataInfo
    recipe: RecipeInfo
    budget: Budget
    plan: Plan
    layers: tuple[LayerDetail, ...]
    options_dropped: tuple[DroppedOption, ...]
    candidates: tuple[Candidate, ...]
    chosen: str
    chosen_reason: str
    conformance: Conformance
    pareto: tuple[ParetoPoint, ...]
    blame: tuple[Blame, ...]
    rounds: tuple[Round, ...]
    prediction: Prediction | None
    bundle: str
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
    groups: tuple[GroupDetail, ...] = ()
    fixed: tuple[FixedDetail, ...] = ()
    prices: tuple[Price, ...] = ()
    conditions: Conditions | None = None
    vectors: VectorsCheck | None = None
    demand: Demand | None = None
    plan_demand: Demand | None = None
    schema: str = SCHEMA

    def candidate(self, name: str) -> Candidate | None:
        """The candidate of that name, or None."""
        return next((c for c in self.candidates if c.name == name), None)


def to_json(result: DeployResult) -> dict[str, Any]:
    """The document as JSON-able values: enums as text, tuples as lists, keys always in the same order."""
    document: dict[str, Any] = _converter().unstructure(result)
    return {"schema": document.pop("schema"), **document}


def unstructure(value: object) -> Any:
    """Any of our frozen dataclasses as JSON-able values, by the same rules as `to_json`."""
    return _converter().unstructure(value)


def from_json(document: object) -> DeployResult:
    """The inverse of `to_json`. Keys that this version does not know are ignored.

    Raises:
        InputError: the document is not a deploy result, or a field is missing or of the wrong type (named).
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise InputError(f"not a deploy result: expected schema {SCHEMA!r}, found {found!r}")
    return structure(document, DeployResult, "deploy result")


def structure(document: dict[str, Any], kind: type[Planned], name: str) -> Planned:
    """The inverse of `unstructure` for what has a ``plan``, by the same rules as `from_json`; ``name`` says in errors
    what it should have been.

    Raises:
        InputError: a field is missing or of the wrong type (named), or the plan's digest is not the plan's.
    """
    from cattrs import BaseValidationError, transform_error

    try:
        result = _converter().structure(document, kind)
    except BaseValidationError as error:
        problem = transform_error(error, path="result")[0]
        raise InputError(f"not a valid {name}: {problem}") from error
    if document["plan"].get("digest") != result.plan.digest:
        raise InputError(f"not a valid {name}: plan.digest is not the digest of its layers and groups")
    return result


def split(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(decisions, measurements): the part that the same inputs reproduce exactly, and the rest without local paths."""
    decisions = {key: document[key] for key in DECISIONS}
    return decisions, {key: value for key, value in document.items() if key not in DECISIONS and key != "bundle"}


def join(decisions: dict[str, Any], measurements: dict[str, Any], bundle: str) -> DeployResult:
    """The inverse of `split`; ``bundle`` is where the two were found. Raises InputError as `from_json` does."""
    return replace(from_json({**measurements, **decisions, "bundle": ""}), bundle=bundle)


@cache
def _converter() -> Converter:
    """cattrs with strict scalars (a number is no text, a bool no number), finite numbers and the plan's digest."""
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

    converter = Converter(detailed_validation=True)

    def scalar(value: object, kind: Any) -> object:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, found {value!r:.60}")
        return value

    def number(value: object, _: Any) -> float:
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"expected a number, found {value!r:.60}")
        return float(value)

    def rows(value: object, kind: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):  # a text has letters and a mapping has keys: neither is a list of rows
            raise TypeError(f"expected a list, found {value!r:.60}")
        as_list: Any = GenericAlias(list, get_args(kind)[:1])
        return tuple(converter.structure(value, as_list))

    def is_rows(kind: Any) -> bool:
        origin: object = get_origin(kind)
        return origin is tuple

    def optional_number(value: object, kind: Any) -> float | None:
        return None if value is None else number(value, kind)

    def finite(value: float | None) -> float | None:
        return float(value) if value is not None and math.isfinite(value) else None

    def by_precision(value: dict[Precision, float]) -> dict[str, float | None]:
        return {p.value: finite(value[p]) for p in Precision if p in value}

    for kind in (str, int, bool):
        converter.register_structure_hook(kind, scalar)
        converter.register_unstructure_hook(kind, kind)  # a numpy scalar becomes Python's own
    for enum in (Precision, Kind, Mask):  # named, since both are also str
        converter.register_structure_hook(enum, lambda value, kind: kind(value))
        converter.register_unstructure_hook(enum, lambda value: value.value)
    converter.register_structure_hook_func(is_rows, rows)
    converter.register_structure_hook(float, number)
    converter.register_structure_hook(float | None, optional_number)
    converter.register_unstructure_hook(float, finite)
    converter.register_unstructure_hook_func(lambda kind: kind == dict[Precision, float], by_precision)
    converter.register_unstructure_hook_func(
        lambda kind: kind in (dict[str, int], dict[str, str]), lambda value: dict(sorted(value.items()))
    )

    plain_plan = make_dict_unstructure_fn(Plan, converter)
    converter.register_unstructure_hook(Plan, lambda plan: {"digest": plan.digest, **plain_plan(plan)})
    plain_candidate: Any = make_dict_structure_fn(Candidate, converter)

    def candidate(value: Any, kind: Any) -> Candidate:
        made: Candidate = plain_candidate(value, kind)
        return replace(made, sqnr_db=math.inf) if math.isnan(made.sqnr_db) else made

    converter.register_structure_hook(Candidate, candidate)
    return converter


__all__ = [
    "SCHEMA",
    "Blame",
    "DataInfo",
    "DeployResult",
    "DeviceInfo",
    "DroppedOption",
    "Figure",
    "FixedDetail",
    "GroupDetail",
    "GroupOptionDetail",
    "LayerDetail",
    "ModelInfo",
    "ParetoPoint",
    "Prediction",
    "Price",
    "RecipeInfo",
    "Round",
    "from_json",
    "join",
    "split",
    "structure",
    "to_json",
    "unstructure",
]
