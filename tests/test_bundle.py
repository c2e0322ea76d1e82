"""The bundle: any change is found, a broken write leaves nothing, the same inputs give the same bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import bundle, catalog, results
from edgekit.errors import InputError, VerifyError
from edgekit.types import Latency
from tests.reporting.sample_result import sample_result

RUNNER = catalog.runner_files("openvino_runner.py")
VECTORS = bundle.Vectors(
    inputs=({"x": np.arange(12, dtype=np.float32).reshape(1, 3, 4), "length": np.array([4])},) * 2,
    outputs=({"y": np.ones((1, 2), np.float32)},) * 2,
    tolerance={"y": 1e-3},
)
MODULES = tuple(path.name for path in RUNNER[1:])
NAMES = (*bundle.REQUIRED, *MODULES, "model.xml", "weights/model.bin", bundle.MANIFEST, bundle.MANIFEST_DIGEST)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "model.xml").write_text("<net/>")
    (folder / "model.bin").write_bytes(bytes(range(256)) * 8)
    return folder


def pack(source: Path, out: Path, result: results.DeployResult | None = None, **changes: Any) -> Path:
    arguments = {
        "result": result or sample_result(),
        "artifact": bundle.Artifact("model.xml", "f32", 1),
        "artifact_files": {"model.xml": source / "model.xml", "weights/model.bin": source / "model.bin"},
        "preprocess": {"kind": "npz", "inputs": [{"name": "x", "shape": [1, 3, 4]}]},
        "vectors": VECTORS,
        "runner": RUNNER,
        "report_html": "<!doctype html><title>report</title>",
    }
    return bundle.pack(out, **{**arguments, **changes})


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    return pack(source, tmp_path / "out")


@pytest.fixture(scope="module")
def shared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(source, tmp_path_factory.mktemp("shared") / "out")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sign(folder: Path, manifest: object) -> None:
    """Write a manifest with a digest that matches it, as somebody would who wants to pass."""
    content = manifest if isinstance(manifest, bytes) else (json.dumps(manifest, indent=1) + "\n").encode()
    (folder / bundle.MANIFEST).write_bytes(content)
    (folder / bundle.MANIFEST_DIGEST).write_text(f"{hashlib.sha256(content).hexdigest()}  {bundle.MANIFEST}\n")


def refused(folder: Path, *named: str) -> str:
    with pytest.raises(VerifyError) as caught:
        bundle.verify(folder)
    message = str(caught.value)
    assert all(name in message for name in named), message
    assert "\n" not in message
    assert len(message) < 500
    return message


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_it_holds_what_the_design_says(packed: Path) -> None:
    assert set(files(packed)) == set(NAMES)
    manifest = json.loads((packed / "manifest.json").read_text())
    assert manifest["schema"] == bundle.SCHEMA
    assert manifest["artifact"] == {"path": "model.xml", "hint": "f32", "threads": 1}
    assert manifest["digests"]["plan"] == sample_result().plan.digest
    for name, content in files(packed).items():
        if not name.startswith("manifest."):
            entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            assert manifest["files"][name] == entry
    assert os.access(packed / "run", os.X_OK)
    assert subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=packed, capture_output=True).returncode == 0


def test_vectors_come_back_as_they_were(packed: Path) -> None:
    with np.load(packed / "vectors.npz", allow_pickle=False) as vectors:
        assert int(vectors["count"]) == 2
        assert vectors["input/1/x"].tolist() == VECTORS.inputs[1]["x"].tolist()
        assert vectors["input/0/length"].dtype == np.int64
        assert vectors["output/0/y"].shape == (1, 2)
        assert vectors["tolerance/y"] == 1e-3


def test_verify_passes_and_runs_the_vectors(packed: Path) -> None:
    seen: list[Path] = []
    assert bundle.verify(packed).vectors_run is False
    report = bundle.verify(packed, seen.append)
    assert (report.files, report.vectors_run, seen) == (len(NAMES) - 2, True, [packed])
    assert report.total_bytes == sum(len(content) for name, content in files(packed).items() if "manifest" not in name)


def test_vectors_that_fail_fail_it(packed: Path) -> None:
    def wrong(_: Path) -> None:
        raise VerifyError("vectors.npz: output y is off")

    with pytest.raises(VerifyError, match=r"vectors\.npz"):
        bundle.verify(packed, wrong)


def test_read_gives_the_result(packed: Path) -> None:
    assert bundle.read(packed) == replace(sample_result(), bundle=str(packed))
    path = packed / "measurements.json"
    path.write_bytes(path.read_bytes().replace(b"17.92", b"17.93"))
    with pytest.raises(VerifyError, match=r"measurements\.json"):
        bundle.read(packed)


# --- what verify finds -----------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(NAMES), share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_is_found(shared: Path, name: str, share: float, flip: int) -> None:
    path = shared / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[int(share * len(content))] ^= flip
    path.write_bytes(changed)
    try:
        refused(shared, name)
    finally:
        path.write_bytes(content)
    bundle.verify(shared)


@pytest.mark.parametrize("name", NAMES)
def test_missing_longer_and_shorter_files_are_found(packed: Path, name: str) -> None:
    path = packed / name
    content = path.read_bytes()
    for changed in (b"", content[:-1], content + b"\n"):
        path.write_bytes(changed)
        refused(packed, name)
    path.unlink()
    refused(packed, name, "missing")


@pytest.mark.parametrize("name", NAMES)
def test_a_link_to_the_same_content_is_found(packed: Path, name: str) -> None:
    path = packed / name
    path.rename(packed.parent / "copy")
    path.symlink_to(packed.parent / "copy")
    refused(packed, name, "link")
    if name in ("plan.json", "manifest.json"):
        with pytest.raises(VerifyError, match="link"):
            bundle.read(packed)


def test_whatever_else_lies_there_is_found(packed: Path) -> None:
    def odd(make: Callable[[Path], object], name: str) -> None:
        make(packed / name)
        refused(packed, name)
        (packed / name).rmdir() if make is Path.mkdir else (packed / name).unlink()

    odd(Path.touch, ".hidden")
    odd(Path.touch, "weights/more.bin")
    odd(Path.mkdir, "folder")
    odd(lambda path: path.symlink_to("/etc"), "etc")
    odd(os.mkfifo, "pipe")
    (packed / "run").unlink()
    odd(os.mkfifo, "run")
    odd(Path.mkdir, "run")


def test_a_folder_that_became_a_link_is_found(packed: Path) -> None:
    (packed / "weights").rename(packed.parent / "weights")
    (packed / "weights").symlink_to(packed.parent / "weights")
    refused(packed, "weights", "link")


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../b", "a//b", "./a", "a/.", "", ".", "..", "a\\b", "a\0b", "manifest.json"],
)
def test_a_manifest_that_points_outside_is_refused(packed: Path, name: str) -> None:
    (packed.parent / "secret").write_bytes(b"")
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}
    sign(packed, manifest)
    refused(packed, "manifest.json", "outside")


def edits() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    def entry(**values: object) -> Callable[[Any], Any]:
        return lambda m: {**m, "files": {**m["files"], "run": {**m["files"]["run"], **values}}}

    yield "other schema", lambda m: {**m, "schema": "edgekit/bundle/9"}
    yield "schema of another type", lambda m: {**m, "schema": ["x" * 10_000]}
    for key in ("files", "digests", "artifact"):
        yield f"no {key}", lambda m, key=key: {k: v for k, v in m.items() if k != key}
        yield f"{key} is a list", lambda m, key=key: {**m, key: []}
    yield "digest upper case", entry(sha256="A" * 64)
    yield "digest short", entry(sha256="")
    yield "digest is a number", entry(sha256=1)
    yield "size negative", entry(size=-1)
    yield "size is a bool", entry(size=True)
    yield "size huge", entry(size=10**30)
    yield "size is a text", entry(size="1")
    yield "entry is a list", lambda m: {**m, "files": {**m["files"], "run": []}}
    yield "artifact elsewhere", lambda m: {**m, "artifact": {**m["artifact"], "path": "/bin/sh"}}
    yield "artifact is no text", lambda m: {**m, "artifact": {**m["artifact"], "path": ["model.xml"]}}
    yield "plan of another", lambda m: {**m, "digests": {**m["digests"], "plan": "0" * 64}}
    yield "report not listed", lambda m: {**m, "files": {k: v for k, v in m["files"].items() if k != "report.html"}}
    yield "not an object", lambda m: [m]
    yield "not JSON", lambda _: b"{"
    yield "not text", lambda _: b"\xff\xfe\x00"
    yield "deeply nested", lambda _: b"[" * 100_000
    yield "endless number", lambda _: b'{"schema": ' + b"9" * 10_000 + b"}"


@pytest.mark.parametrize("edit", [pytest.param(edit, id=name) for name, edit in edits()])
def test_a_malformed_manifest_is_refused(packed: Path, edit: Callable[[Any], Any]) -> None:
    sign(packed, edit(json.loads((packed / "manifest.json").read_text())))
    refused(packed)


def test_a_huge_manifest_is_not_read(packed: Path) -> None:
    with (packed / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no space
    refused(packed, "manifest.json", "larger")


@pytest.mark.parametrize("name", ["plan.json", "measurements.json"])
@pytest.mark.parametrize("content", [b"[]", b"{}", b"nonsense", b'{"schema": "edgekit/deploy/1"}'])
def test_documents_that_are_signed_but_wrong_are_refused(packed: Path, name: str, content: bytes) -> None:
    (packed / name).write_bytes(content)
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    sign(packed, manifest)
    refused(packed, name)


def test_no_folder_is_a_wrong_argument(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        for look in (bundle.verify, bundle.read, bundle.read_manifest):
            with pytest.raises(InputError):
                look(path)
    refused(tmp_path, "manifest.json")


# --- the same bytes --------------------------------------------------------------------------------------------------


def test_only_measurements_differ_between_two_runs(source: Path, tmp_path: Path) -> None:
    again = sample_result()
    slower = tuple(replace(c, latency_ms=Latency(20.0, 21.0, 22.0, 5)) for c in again.candidates)
    again = replace(again, created="2027-01-01T00:00:00+00:00", candidates=slower, bundle="other")
    other_order = bundle.Vectors(
        tuple(dict(reversed(sample.items())) for sample in VECTORS.inputs), VECTORS.outputs, VECTORS.tolerance
    )
    first = files(pack(source, tmp_path / "a"))
    second = files(pack(source, tmp_path / "b", again, report_html="<p>slower", vectors=other_order))
    differ = {name for name in first if first[name] != second[name]}
    assert differ == {"measurements.json", "report.html", "manifest.json", "manifest.sha256"}
    manifests = [json.loads(each["manifest.json"]) for each in (first, second)]
    for manifest in manifests:
        del manifest["files"]["measurements.json"], manifest["files"]["report.html"]
    assert manifests[0] == manifests[1]
    assert files(pack(source, tmp_path / "c")) == first


def test_no_clock_in_the_vectors(packed: Path) -> None:
    with zipfile.ZipFile(packed / "vectors.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {bundle.ZIP_EPOCH}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_no_path_of_the_machine_is_shipped(source: Path, tmp_path: Path) -> None:
    result = replace(sample_result(), bundle=str(tmp_path / "out"))
    for name, content in files(pack(source, tmp_path / "out", result)).items():
        assert str(tmp_path).encode() not in content, name


# --- whole or not at all ---------------------------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked process. Returns its exit status: 0, an `InputError`'s 2, 99 for others, or minus the
    signal that killed it.
    """
    child = os.fork()
    if child == 0:
        status = 99
        try:
            work()
            status = 0
        except InputError as error:
            status = error.exit_code
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# What `sys.audit` tells of. A removal fails only where the folder was never writable.
WRITES = ("open", "os.mkdir", "os.rename", "os.chmod")
STEPS = (*WRITES, "os.rmdir", "os.remove")


def at_step(number: int, act: Callable[[], None], folder: Path, events: Container[str]) -> None:
    """Call ``act`` at this process's ``number``th of ``events`` on a path in ``folder``; a hook cannot be removed."""
    steps = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal steps
        if event in events:
            paths = [str(argument) for argument in arguments if isinstance(argument, str | os.PathLike)]
            if any(path.startswith(str(folder)) for path in paths):
                steps += 1
                if steps == number:
                    act()

    sys.addaudithook(hook)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("there_before", [False, True])
def test_killed_at_any_step_leaves_the_old_the_new_or_nothing(source: Path, tmp_path: Path, there_before: bool) -> None:
    new = replace(sample_result(), target="new-target")
    whole = files(pack(source, tmp_path / "whole", new))
    kills = 0
    for step in range(1, 1000):
        place = tmp_path / str(step)
        place.mkdir()
        out = place / "out"
        old = files(pack(source, out)) if there_before else {}

        def work(place: Path = place, step: int = step) -> None:
            at_step(step, kill_self, place, STEPS)
            pack(source, place / "out", new)

        status = in_child(work)
        assert status in (0, -signal.SIGKILL)
        found = files(out) if out.exists() else {}
        assert found in ({}, old, whole)
        if found:
            bundle.verify(out)
        pack(source, out, new)
        assert files(out) == whole
        assert names(place) == ["out"]
        shutil.rmtree(place)
        if status == 0:
            break
        kills += 1
    assert kills >= 20  # each file is opened, written, hashed and renamed: a hook that sees less sees nothing


@pytest.mark.parametrize("there_before", [False, True])
def test_a_failure_at_any_step_leaves_what_was_there(source: Path, tmp_path: Path, there_before: bool) -> None:
    new = replace(sample_result(), target="new-target")
    failures = 0
    for step in range(1, 1000):
        place = tmp_path / str(step)
        place.mkdir()
        out = place / "deep/out"
        old = files(pack(source, out)) if there_before else {}

        def work(place: Path = place, step: int = step, out: Path = out) -> None:
            failed = []

            def fail() -> None:
                failed.append(step)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            at_step(step, fail, place, WRITES)
            pack(source, out, new)
            if failed:  # while tidying up, which must not stop the bundle from being written
                os._exit(3)

        status = in_child(work)
        if status == 0:
            break
        assert status in (InputError.exit_code, 3), step
        if status == 3:
            bundle.verify(out)
            assert bundle.read(out).target == "new-target"
        elif there_before:
            assert files(out) == old
            assert names(place / "deep") == ["out"]
        else:
            assert names(place) == []
        failures += status == InputError.exit_code
    assert failures > 15


def test_a_file_size_limit_is_a_clear_error(source: Path, tmp_path: Path) -> None:
    (source / "large.bin").write_bytes(bytes(1 << 20))

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
        large = {"model.xml": source / "model.xml", "weights/model.bin": source / "large.bin"}
        pack(source, tmp_path / "out", artifact_files=large)

    assert in_child(work) == InputError.exit_code
    assert names(tmp_path) == []


def test_a_full_disk_is_a_clear_error(source: Path, tmp_path: Path) -> None:
    """On a real file system of 64 KiB, in a mount namespace of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    script = f"""
import os, subprocess, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", {str(disk)!r}], check=True)
from pathlib import Path
from edgekit.errors import InputError
from tests.test_bundle import pack
try:
    pack(Path({str(source)!r}), Path({str(disk)!r}) / "a/out")
except InputError as error:
    print(error, error.hint, os.listdir({str(disk)!r}), sep="\\n")
"""
    done = subprocess.run(["unshare", "-rm", sys.executable, "-c", script], capture_output=True, text=True)
    message, hint, left = done.stdout.splitlines()
    assert "No space left on device" in message
    assert "--out" in hint
    assert left == "[]"


def test_remains_of_a_living_process_are_left_alone(source: Path, tmp_path: Path) -> None:
    other = tmp_path / f".out.edgekit-{os.getppid()}"
    other.mkdir()
    similar = tmp_path / ".out.edgekit-notes"
    similar.mkdir()
    pack(source, tmp_path / "out")
    assert other.exists()
    assert similar.exists()


def test_remains_under_a_process_number_used_again_are_tidied(source: Path, tmp_path: Path) -> None:
    """In a container the process that is killed and the one that follows often have the same number."""
    for name in (f".out.edgekit-{os.getpid()}", f".edgekit-{os.getpid()}"):
        (tmp_path / name).mkdir()
    pack(source, tmp_path / "out")
    assert names(tmp_path) == ["out"]


# --- what may be replaced --------------------------------------------------------------------------------------------


def test_a_bundle_and_an_empty_folder_are_replaced(source: Path, packed: Path, tmp_path: Path) -> None:
    pack(source, packed, replace(sample_result(), target="new-target"))
    assert bundle.read(packed).target == "new-target"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    pack(source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    bundle.verify(tmp_path / "empty")


def not_replaceable(tmp_path: Path, packed: Path) -> Iterator[tuple[Path, str]]:
    (tmp_path / "file").touch()
    yield tmp_path / "file", "a file is there"
    yield tmp_path / "file/out", "cannot write"
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.tex").touch()
    yield tmp_path / "foreign", "not empty"
    (tmp_path / "project").mkdir()
    (tmp_path / "project/manifest.json").write_text('{"name": "something else"}')
    yield tmp_path / "project", "not empty"
    (packed / "notes.txt").touch()
    yield packed, "notes.txt"
    yield Path("/proc"), "mount point"
    yield Path("/proc/out"), "cannot write"
    yield Path("/"), "--out /"


def test_anything_else_is_not_touched(source: Path, packed: Path, tmp_path: Path) -> None:
    for out, named in not_replaceable(tmp_path, packed):
        before = files(out) if out.is_relative_to(tmp_path) and out.is_dir() else None
        for act in (bundle.require_replaceable, lambda out: pack(source, out)):
            with pytest.raises(InputError) as caught:
                act(out)
            assert named in str(caught.value)
            assert caught.value.hint
        if before is not None:
            assert files(out) == before


@pytest.mark.parametrize("name", ["../model.xml", "/model.xml", "plan.json", "manifest.json", "run", ""])
def test_artifact_names_stay_inside(source: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="artifact"):
        pack(source, tmp_path / "out", artifact_files={"model.xml": source / "model.xml", name: source / "model.bin"})
    assert names(tmp_path) == []


# --- on a device -----------------------------------------------------------------------------------------------------


def test_the_shipped_runner_checks_the_vectors(tmp_path: Path) -> None:
    """A real model, run by the program that ships, as a board without edgekit would."""
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([1, 4], np.float32, name="x")
    weights = np.arange(8, dtype=np.float32).reshape(4, 2)
    product = ops.matmul(x, ops.constant(weights), False, False, name="y")
    product.output(0).set_names({"y"})
    x.output(0).set_names({"x"})
    openvino.save_model(openvino.Model([product], [x], "net"), tmp_path / "net.xml", compress_to_fp16=False)
    sample = np.array([[1.0, -1.0, 0.5, 2.0]], np.float32)
    artifact = {"model.xml": tmp_path / "net.xml", "model.bin": tmp_path / "net.bin"}
    for error, expected_status in ((0.0, 0), (0.5, 7)):
        vectors = bundle.Vectors(({"x": sample},), ({"y": sample @ weights + np.float32(error)},), {"y": 1e-4})
        out = pack(tmp_path, tmp_path / "out", artifact_files=artifact, vectors=vectors)
        done = subprocess.run([sys.executable, out / "run", "--seconds", "0"], capture_output=True, text=True)
        assert done.returncode == expected_status, done.stderr
        assert json.loads(done.stdout)["ok"] is (expected_status == 0)
        bundle.verify(out)  # running leaves no trace in the bundle
