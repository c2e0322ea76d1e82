"""Finds, parses and validates the data that boards and recipes are made of: ``targets/<name>/target.toml``,
``device_profiles/<name>.toml`` and ``calibration/<name>.toml``.

The same three folders are looked for in edgekit's own data, in every overlay that is passed and in every folder of
``EDGEKIT_OVERLAY`` (separated as in ``PATH``). A name is the name of the file (of the folder, for a target) and exists
once; ``extends = "name"`` starts from another entry of the same kind and overrides what is written, block by block.

The one exception are the user's own device profiles (`own_profiles`), which `edgekit profile` writes: one of them
stands in place of the profile of the same name.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args, get_origin

from edgekit.entries import AudioSteps, DeviceProfile, ImageSteps, Recipe, Target
from edgekit.errors import InputError
from edgekit.types import Precision

if TYPE_CHECKING:
    from cattrs import Converter

__all__ = [
    "OVERLAY_VARIABLE",
    "OWN_VARIABLE",
    "AudioSteps",
    "DeviceProfile",
    "ImageSteps",
    "Recipe",
    "Target",
    "data_root",
    "device_profile",
    "device_profiles",
    "nearest",
    "own_profiles",
    "profile_file",
    "read_profile",
    "read_toml",
    "recipe",
    "recipes",
    "runner_files",
    "structure",
    "target",
    "targets",
]

OVERLAY_VARIABLE = "EDGEKIT_OVERLAY"
OWN_VARIABLE = "EDGEKIT_DATA"


Entry = TypeVar("Entry", Target, DeviceProfile, Recipe)
Checked = TypeVar("Checked")


@dataclass(frozen=True)
class _Tree(Generic[Entry]):
    """One of the three data trees: ``{}`` in ``place`` stands for the name."""

    kind: type[Entry]
    noun: str
    place: str

    def find(self, root: Path) -> Iterable[tuple[str, Path]]:
        before, after = (root / self.place).as_posix().split("{}")
        for path in sorted(root.glob(self.place.replace("{}", "*"))):
            if os.path.isfile(path):  # noqa: PTH113
                yield path.as_posix().removeprefix(before).removesuffix(after), path


_TARGETS = _Tree(Target, "target", "targets/{}/target.toml")
_PROFILES = _Tree(DeviceProfile, "device profile", "device_profiles/{}.toml")
_RECIPES = _Tree(Recipe, "recipe", "calibration/{}.toml")


def targets(overlays: Sequence[str | Path] = ()) -> dict[str, Target]:
    """Every target by name. Raises ``InputError`` for the first entry that is not valid."""
    found = _all(_TARGETS, overlays)
    for entry in found.values():
        _check_profile(entry, overlays)
    return found


def target(name: str, overlays: Sequence[str | Path] = ()) -> Target:
    """The target ``name``. Raises ``InputError`` when there is none, with the nearest name, or when it is not valid."""
    found = _one(_TARGETS, name, overlays)
    _check_profile(found, overlays)
    return found


def _check_profile(entry: Target, overlays: Sequence[str | Path]) -> None:
    where = f"{_paths(_TARGETS, overlays)[entry.name]}: device_profile: "
    _check_known(_PROFILES, entry.device_profile, _paths(_PROFILES, overlays), where)


def device_profiles(overlays: Sequence[str | Path] = ()) -> dict[str, DeviceProfile]:
    """Every device profile by name. Raises ``InputError`` for the first entry that is not valid."""
    return _all(_PROFILES, overlays)


def device_profile(name: str, overlays: Sequence[str | Path] = (), own: bool = True) -> DeviceProfile:
    """The device profile ``name``; without ``own``, the one that the user's own stands in place of. Raises
    ``InputError`` when there is none or when it is not valid.
    """
    return _one(_PROFILES, name, overlays, own)


def profile_file(name: str, overlays: Sequence[str | Path] = ()) -> Path:
    """Where the device profile ``name`` is read from. Raises ``InputError`` when there is none."""
    paths = _paths(_PROFILES, overlays)
    _check_known(_PROFILES, name, paths, where="")
    return paths[name]


def read_profile(path: Path, overlays: Sequence[str | Path] = ()) -> DeviceProfile:
    """The device profile in any file, named after it. Raises ``InputError`` when it is not valid."""
    return _entry(_PROFILES, path.stem, {**_paths(_PROFILES, overlays), path.stem: path})


def own_profiles() -> Path:
    """The folder of the user's own device profiles, which need not exist: ``device_profiles`` in ``EDGEKIT_DATA`` or
    in the user's data folder.
    """
    import platformdirs

    root = os.environ.get(OWN_VARIABLE) or platformdirs.user_data_dir("edgekit")
    return Path(os.path.abspath(os.path.expanduser(root))) / "device_profiles"  # noqa: PTH100, PTH111


def recipes(overlays: Sequence[str | Path] = ()) -> dict[str, Recipe]:
    """Every recipe by name. Raises ``InputError`` for the first entry that is not valid."""
    return _all(_RECIPES, overlays)


def recipe(name: str, overlays: Sequence[str | Path] = ()) -> Recipe:
    """The recipe ``name``. Raises ``InputError`` when there is none or when it is not valid."""
    return _one(_RECIPES, name, overlays)


def runner_files(runner: str) -> tuple[Path, ...]:
    """The files that the runner program ``runner`` consists of: the program, then the modules that it needs beside it.
    All of them are copied wherever it goes.
    """
    program = data_root() / "targets" / "runners" / runner
    return (program, *runner_modules(program))


def runner_modules(program: Path) -> tuple[Path, ...]:
    """What a runner program needs beside it: a shell program ``x.sh`` what is called ``x_*.py``, a Python program the
    other modules of its folder that are no runner themselves.
    """
    of_shells = {shell: {*program.parent.glob(f"{shell.stem}_*.py")} for shell in program.parent.glob("*.sh")}
    if program.suffix != ".py":
        return tuple(sorted(of_shells.get(program, ())))
    others = set(program.parent.glob("*.py")).difference(*of_shells.values())
    return tuple(sorted(path for path in others if not path.stem.endswith("_runner")))


def data_root() -> Path:
    """The folder that holds edgekit's own three trees: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for root in (package / "_data", package.parent):
        if (root / "targets").is_dir() and (root / "calibration").is_dir():
            return root
    raise InputError(
        f"edgekit's own data is missing beside {package}",
        hint="reinstall it: pip install --force-reinstall edgekit-sdk",
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """The entry of ``known`` that ``word`` was probably meant to be, or ''."""
    from rapidfuzz import fuzz, process

    found = [name for name, *_ in process.extract(word, list(known), processor=str.casefold, score_cutoff=60)]
    return str(max(found, key=lambda name: fuzz.ratio(word.casefold(), name.casefold()), default=""))


def _roots(overlays: Sequence[str | Path]) -> list[Path]:
    """edgekit's own data, then the overlays, each folder once."""
    roots = [data_root()]
    from_variable = [part for part in os.environ.get(OVERLAY_VARIABLE, "").split(os.pathsep) if part]
    for given, origin in [*((o, "--overlay") for o in overlays), *((o, OVERLAY_VARIABLE) for o in from_variable)]:
        # os.path says no where pathlib raises: overlong names, folders that may not be entered, unknown users' homes.
        root = Path(os.path.expanduser(given))  # noqa: PTH111
        folders = [tree.place.split("/")[0] for tree in (_TARGETS, _PROFILES, _RECIPES)]
        if not os.path.isdir(root):  # noqa: PTH112
            raise InputError(f"{origin}: {root} is not a folder", hint=f"pass a folder that holds {', '.join(folders)}")
        if not any(os.path.isdir(root / folder) for folder in folders):  # noqa: PTH112
            raise InputError(
                f"{origin}: {root} holds no targets, device_profiles or calibration folder",
                hint="an overlay has at least one of these three folders; pass the folder above them",
            )
        if root.resolve() not in [known.resolve() for known in roots]:
            roots.append(root)
    return roots


def _paths(tree: _Tree[Entry], overlays: Sequence[str | Path], own: bool = True) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for root in _roots(overlays):
        for name, path in tree.find(root):
            if name in paths:
                raise InputError(
                    f"{tree.noun} {name!r} is defined twice: {paths[name]} and {path}",
                    hint=f'rename one; extends = "{name}" starts from the other',
                )
            paths[name] = path
    if own and tree.kind is DeviceProfile:
        paths |= dict(tree.find(own_profiles().parent))
    return paths


def _all(tree: _Tree[Entry], overlays: Sequence[str | Path]) -> dict[str, Entry]:
    paths = _paths(tree, overlays)
    return {name: _entry(tree, name, paths) for name in sorted(paths)}


def _one(tree: _Tree[Entry], name: str, overlays: Sequence[str | Path], own: bool = True) -> Entry:
    paths = _paths(tree, overlays, own)
    _check_known(tree, name, paths, where="")
    return _entry(tree, name, paths)


def _check_known(tree: _Tree[Entry], name: str, paths: dict[str, Path], where: str) -> None:
    if name not in paths:
        close = nearest(name, paths)
        raise InputError(
            f"{where}there is no {tree.noun} {name!r}; there are: {', '.join(sorted(paths))}",
            hint=f"did you mean {close!r}?"
            if close
            else f"add one as {tree.place.format(name)} in an --overlay folder",
        )


def _entry(tree: _Tree[Entry], name: str, paths: dict[str, Path]) -> Entry:
    """Parse, derive and validate one entry."""
    document = _derived(tree, name, paths, seen=())
    path = paths[name]
    parent = _parse(path).get("extends")
    if parent is not None:
        _entry(tree, parent, paths)  # so that its faults are told as its own
    if document.setdefault("name", name) != name:
        raise InputError(
            f"{path}: name: {document['name']!r} is not the name of its file", hint=f"remove it, or write {name!r}"
        )
    return structure(document, tree.kind, str(path), f"see {tree.place.format('*')} for examples")


def structure(document: dict[str, Any], kind: type[Checked], where: str, hint: str = "") -> Checked:
    """A document as a dataclass. Raises ``InputError``, which begins with ``where``, for a key that is unknown, missing
    or not valid; ``hint`` is for what explains itself least.
    """
    try:
        return _converter().structure(document, kind)
    except Exception as error:  # cattrs raises groups of whatever the hooks and dataclasses raise
        problem, better = _first_problem(error)
        raise InputError(f"{where}: {problem}", hint=better or hint) from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises ``InputError`` with the line where it is not valid."""
    return _parse(path)


def _derived(tree: _Tree[Entry], name: str, paths: dict[str, Path], seen: tuple[str, ...]) -> dict[str, Any]:
    """The document of ``name``, laid over the one that it extends."""
    if name in seen:
        raise InputError(
            f"{paths[name]}: extends: goes in a circle: {' -> '.join((*seen, name))}",
            hint="one of these must stand on its own",
        )
    document = _parse(paths[name])
    parent = document.pop("extends", None)
    if parent is None:
        return document
    if not isinstance(parent, str):
        raise InputError(f"{paths[name]}: extends: must be a name, not {parent!r}", hint='write extends = "name"')
    _check_known(tree, parent, paths, where=f"{paths[name]}: extends: ")
    base = _derived(tree, parent, paths, (*seen, name))
    base.pop("name", None)
    return _merge(base, document)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``: tables key by key, everything else as a whole."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _parse(path: Path) -> dict[str, Any]:
    try:
        return deepcopy(_loads(path.read_text(encoding="utf-8")))  # callers take entries out
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"^(.*) \(at line (\d+), column \d+\)$", str(error))
        place, problem = (f"{path}:{found[2]}", found[1]) if found else (str(path), str(error))
        raise InputError(f"{place}: not valid TOML: {problem}", hint="see toml.io for the notation") from None
    except (UnicodeDecodeError, RecursionError):
        raise InputError(f"{path}: not a TOML text in UTF-8", hint="write it with a text editor") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", hint="check its permissions") from None


@lru_cache(maxsize=256)
def _loads(text: str) -> dict[str, Any]:
    """Each text once: every target asks for its profile's again, and the profiles are long."""
    return tomllib.loads(text)


@cache
def _converter() -> Converter:
    """cattrs with nothing let through: no unknown key, no "3" for 3, no true for 1, no NaN, no text for a list."""
    from cattrs import Converter

    converter = Converter(forbid_extra_keys=True)

    def number(value: Any, kind: type) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if kind is int and not whole:
            raise ValueError(f"must be a whole number, not {value!r}")
        if not whole and not (isinstance(value, float) and math.isfinite(value)):
            raise ValueError(f"must be a number, not {value!r}")
        return kind(value)

    def text(value: Any, _: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"must be a text in quotes, not {value!r}")
        return value

    def one_of(value: Any, kind: Any) -> Any:
        known = tuple(Precision) if kind is Precision else get_args(kind)
        if not isinstance(value, str) or value not in known:
            close = nearest(value, known) if isinstance(value, str) else ""
            meant = f" (did you mean {close!r}?)" if close else ""
            raise ValueError(f"must be one of {', '.join(filter(None, known))}, not {value!r}{meant}")
        return known[known.index(value)]

    def several(value: Any, kind: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"must be a list, not {value!r}")
        items = []
        for place, item in enumerate(value, 1):
            try:
                items.append(converter.structure(item, get_args(kind)[0]))
            except ValueError as error:
                raise ValueError(f"item {place} {error}") from None
        return tuple(items)

    converter.register_structure_hook(int, number)
    converter.register_structure_hook(float, number)
    converter.register_structure_hook(str, text)
    converter.register_structure_hook(Precision, one_of)
    converter.register_structure_hook_func(lambda kind: _origin(kind) is Literal, one_of)
    converter.register_structure_hook_func(lambda kind: _origin(kind) is tuple, several)
    return converter


def _origin(kind: Any) -> object:
    return get_origin(kind)


def _first_problem(error: BaseException, place: str = "") -> tuple[str, str]:
    """The first leaf of a cattrs error as (``key path: problem``, hint). ``place`` is the block, with its dot."""
    from cattrs import AttributeValidationNote
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, BaseExceptionGroup):
        # An unknown key explains a missing one ("sample" for "samples"), so it is told first.
        inner = sorted(error.exceptions, key=lambda e: not isinstance(e, ForbiddenExtraKeysError))[0]
        keys = [n.name for n in getattr(inner, "__notes__", []) if isinstance(n, AttributeValidationNote)]
        return _first_problem(inner, place + "".join(f"{key}." for key in keys))
    if isinstance(error, ForbiddenExtraKeysError):
        key = sorted(error.extra_fields)[0]
        known = [field.name for field in fields(error.cl)] + ["extends"] * (not place)
        close = nearest(key, known)
        return f"{place}{key}: unknown key", f"did you mean {close!r}?" if close else f"known keys: {', '.join(known)}"
    if isinstance(error, KeyError):
        key = error.args[0]  # cattrs notes it as the last of the place too
        return f"{place.removesuffix(f'{key}.')}{key}: is missing", f"add a line: {key} = ..."
    if isinstance(error, TypeError):
        return f"{place.removesuffix('.')}: must be a block", f"write [{place.removesuffix('.')}] and its keys below it"
    # What a dataclass refuses names its key itself; what a hook refuses stands under the key in ``place``.
    named = re.match(r"\w+: ", str(error))
    return f"{place}{error}" if named or not place else f"{place.removesuffix('.')}: {error}", ""
