"""Imports point one way, and what is heavy loads when it is needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import edgekit

PACKAGE = Path(edgekit.__file__).parent

# A room (a module or package of edgekit) imports only rooms before it in this list.
ROOMS = (
    *("types", "errors", "conditions", "files"),
    *("entries", "results", "versions", "progress", "budget"),
    *("catalog", "releases", "graph", "toolchains"),
    *("planner", "recipes", "backends", "devices", "compress", "cost", "sensitivity"),
    *("tables", "search", "inspection", "bundle"),
    *("differences", "job", "profiles", "reporting"),
    *("workbench", "planning", "pricing"),
    *("guards", "blame", "diagnosis", "prediction", "outcome"),
    *("deployment", "api", "sweeping", "sweep", "cli"),
)
HEAVY = (
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "openvino",
    "torch",
    "scipy",
    "highspy",
    "matplotlib",
    "pint",
    "PIL",
    "cattrs",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, typing_too: bool) -> Iterator[str]:
    """Dotted names that a module imports, inside functions too; under TYPE_CHECKING only when asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            yield from chain.from_iterable(imports(one, typing_too) for one in node.orelse)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would hide where they point"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, typing_too)


def rooms_imported(path: Path, typing_too: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = (name.split(".") for name in imports(tree, typing_too) if name.split(".")[0] == "edgekit")
    return {parts[1] for parts in ours if len(parts) > 1 and not parts[1].startswith("__version")}


def test_every_room_has_its_place() -> None:
    unknown = {room_of(path) for path in modules()} - {*ROOMS, "__init__"}
    assert not unknown, f"give {unknown} a place in ROOMS: above everything that imports it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    if room_of(path) == "__init__":
        return  # it forwards to the api when one of its functions is first used
    place = ROOMS.index(room_of(path))
    up = sorted(room for room in rooms_imported(path) if ROOMS.index(room) > place)
    assert not up, f"{path.relative_to(PACKAGE)} imports {up}, which stand above it"


def test_the_planner_and_the_backends_do_not_know_each_other() -> None:
    """They meet in Plan; not even their types cross. The planner knows no model and no file either."""
    for path in modules():
        if room_of(path) == "planner":
            assert rooms_imported(path, typing_too=True) <= {"planner", "types", "errors"}
        if room_of(path) == "backends":
            allowed = {"backends", "graph", "files", "toolchains", "releases", "types", "errors"}
            assert rooms_imported(path, typing_too=True) <= allowed


def test_modules_of_the_planner_read_no_files_and_no_models() -> None:
    for path in modules():
        if room_of(path) == "planner":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found = {name.split(".")[0] for name in imports(tree, typing_too=True)}
            assert not found & {"onnx", "onnx_ir", "onnxruntime", "openvino", "os", "pathlib", "io", "subprocess"}


def test_only_the_command_line_prints_and_exits() -> None:
    for path in modules():
        if room_of(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "sys.exit", "exit"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize(
    "module", ["edgekit", "edgekit.cli", "edgekit.types", "edgekit.results", "edgekit.planner.problem"]
)
def test_what_must_be_light_is_light(module: str) -> None:
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
    allowed = {"numpy", "scipy"} if module.startswith("edgekit.planner") else set()
    assert not loaded & (set(HEAVY) - allowed)


def test_public_names_are_there() -> None:
    for name in edgekit.__all__:
        assert getattr(edgekit, name) is not None
    assert not hasattr(edgekit, "no_such_name")
