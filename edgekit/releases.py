"""What the releases of a board's software can do, from ``targets/releases``: facts with their sources, no opinions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from edgekit import catalog
from edgekit.errors import InputError
from edgekit.types import Precision

if TYPE_CHECKING:
    from edgekit.entries import DeviceProfile, Target


# onnx/onnx-tensorrt, docs/Changelog.md: 9.0 GA reads FP8, 10.0 EA INT4.
_SINCE = {Precision.FP8: ((9, 0), "fp8"), Precision.W4: ((10, 0), "4-bit weights")}


@dataclass(frozen=True)
class Release:
    """One JetPack: the TensorRT that it brings, and what that reads. ``l4t`` are beginnings of the versions of Jetson
    Linux that belong to it; ``opset`` is the newest that its ONNX parser reads; ``compute`` the capabilities of the
    GPUs that it runs on; ``dla`` the boards (device profiles) whose accelerator it uses.

    ``typing`` says where a network's types come from: ``flags`` of the builder, or the file itself (``strong``).
    """

    name: str
    l4t: tuple[str, ...]
    tensorrt: str
    python: str
    opset: int
    typing: Literal["flags", "strong"]
    compute: tuple[str, ...]
    dla: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def version(self) -> tuple[int, ...]:
        """TensorRT's version as numbers."""
        return version_of(self.tensorrt)

    @property
    def names_layers(self) -> bool:
        """Whether flags can keep single layers in a type: trtexec has --layerPrecisions from 8.4 on
        (NVIDIA/TensorRT, samples/common/sampleOptions.cpp of each tag).
        """
        return self.typing == "flags" and self.version >= (8, 4)

    @property
    def lacks(self) -> dict[str, str]:
        """Precision -> why its TensorRT does not have it, on any GPU."""
        return {
            precision.value: f"TensorRT {self.tensorrt} has no {word}"
            for precision, (first, word) in _SINCE.items()
            if self.version < first
        }


@dataclass(frozen=True)
class Accelerator:
    """What TensorRT computes on an accelerator beside the GPU, of networks as edgekit writes them; ``lacks`` says why
    it is no more. The rest stays on the GPU.
    """

    name: str
    description: str
    precisions: tuple[Precision, ...]
    sources: tuple[str, ...]
    lacks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """What TensorRT computes on the GPUs of one architecture; ``lacks`` says why it offers no more."""

    architecture: str
    compute: str
    precisions: tuple[Precision, ...]
    sparsity: tuple[Literal["2:4"], ...]
    sources: tuple[str, ...]
    lacks: dict[str, str] = field(default_factory=dict)


def releases() -> dict[str, Release]:
    """Every release by name, oldest first. Raises `InputError` where the facts are not valid."""
    return {one.name: one for one in _facts().releases}


def gpu(architecture: str) -> Gpu | None:
    """What is known of GPUs of that architecture."""
    return next((one for one in _facts().gpus if one.architecture == architecture), None)


def accelerator(name: str) -> Accelerator:
    """What is known of the accelerator that a target names."""
    return next(one for one in _facts().accelerators if one.name == name)


def lacks_of(compute: str) -> dict[str, str]:
    """Precision or other option -> why GPUs of that compute capability do not have it."""
    return next((one.lacks for one in _facts().gpus if one.compute == compute), {})


def releases_of(target: Target) -> tuple[Release, ...]:
    """The releases that a target names, oldest first.

    Raises `InputError` for one that is not known or cannot use the target's accelerator, or where their networks cannot
    have one form.
    """
    known = releases()
    for name in target.releases:
        if name not in known:
            close = catalog.nearest(name, known)
            raise InputError(
                f"target {target.name}: releases: there is no release {name!r}; there are: {', '.join(known)}",
                f"did you mean {close!r}?" if close else "name one of these",
            )
    named = tuple(one for one in known.values() if one.name in target.releases)
    if target.accelerator:
        _check_accelerator(target, named)
    if len({one.typing for one in named}) > 1:
        raise InputError(
            f"target {target.name}: releases: {', '.join(target.releases)} read networks of different form",
            'make a target for each: extends = "' + target.name + '", releases = ["..."]',
        )
    return named


def _check_accelerator(target: Target, named: tuple[Release, ...]) -> None:
    """Every release uses it on that board, and is told by flags which types it may take: up to TensorRT 10 the
    accelerator knows them from flags alone, and the networks that edgekit writes for 10 allow none.
    """
    word, board = target.accelerator, target.device_profile
    able = [one.name for one in releases().values() if board in one.dla and one.typing == "flags"]
    hint = (
        f"there it is used with releases = {json.dumps(able)}"
        if able
        else f"leave out the key: {board} is used by its GPU"
    )
    for one in named:
        if board not in one.dla:
            raise InputError(f"target {target.name}: accelerator: {one.name} has no {word} to use on {board}", hint)
        if one.typing != "flags":
            raise InputError(
                f"target {target.name}: accelerator: networks for {one.name} (TensorRT {one.tensorrt}) carry their "
                f"own types; edgekit uses the {word} only where TensorRT is told them by flags",
                hint,
            )


def offered(target: Target) -> Target:
    """The target without the precisions that its releases or its accelerator lack."""
    why = _lacking_of_software(target)
    return replace(target, precisions=tuple(one for one in target.precisions if one.value not in why))


def _lacking_of_software(target: Target) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in reversed(releases_of(target)):
        found |= one.lacks
    return found | (accelerator(target.accelerator).lacks if target.accelerator else {})


def lacking(target: Target, profile: DeviceProfile) -> dict[str, str]:
    """Precision or other option -> why the target does not offer it, where the facts say so."""
    found: dict[str, str] = {}
    if not target.releases:
        return found
    part = profile.part("gpu")
    known = gpu(part.architecture) if part is not None else None
    if known is not None:
        software = {word: why for word, why in _lacking_of_software(target).items() if word in known.precisions}
        facts = software if target.accelerator else known.lacks | software
        found |= {word: why for word, why in facts.items() if word not in target.precisions}
    if target.accelerator:
        return found
    if known is not None and "2:4" in known.sparsity and "2:4" not in target.sparsity:
        found["2:4"] = "the GPU has sparse tensor cores, but no published figure says what they gain on this board"
    by_flags = [one.name for one in releases().values() if one.typing == "flags" and profile.name in one.dla]
    if by_flags:
        found["dla"] = (
            f"this target runs on the GPU; {profile.name}-dla puts the network on the {accelerator('dla').description}"
        )
    return found


@cache
def operators() -> dict[str, tuple[int, ...]]:
    """ONNX operator -> the first TensorRT whose parser has it, as numbers. What is missing is not known to be read."""
    table = catalog.read_toml(catalog.data_root() / "targets" / "releases" / "onnx_operators.toml")
    return {operator: version_of(first) for first, names in table.items() for operator in names}


@cache
def trtexec_flags() -> dict[str, Any]:
    """``targets/releases/trtexec_flags.toml``: the options that trtexec takes, by release of TensorRT."""
    return catalog.read_toml(catalog.data_root() / "targets" / "releases" / "trtexec_flags.toml")


def version_of(text: str) -> tuple[int, ...]:
    """``"8.2.1"`` as numbers."""
    return tuple(int(part) for part in text.split("."))


@dataclass(frozen=True)
class _Facts:
    releases: tuple[Release, ...]
    gpus: tuple[Gpu, ...]
    accelerators: tuple[Accelerator, ...]


@cache
def _facts() -> _Facts:
    path = catalog.data_root() / "targets" / "releases" / "tensorrt.toml"
    return catalog.structure(catalog.read_toml(path), _Facts, str(path))
