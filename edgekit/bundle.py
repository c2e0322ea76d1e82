"""The folder that ships: writing it whole or not at all, and finding any byte of it that changed.

    manifest.json      artifact, digests of model, plan, data and recipe, tool versions, sha256 and size of each file
    manifest.sha256    digest of manifest.json, in the form that `sha256sum -c` reads
    plan.json          what was decided and predicted            preprocess.json  how raw samples become inputs
    measurements.json  what was measured, where and when         vectors.npz      inputs, expected outputs, tolerance
    run                checks and measures the bundle on a device report.html      the same for people
    and the modules of `run` and the files of the artifact

The same inputs give the same bytes, except measurements.json, report.html and their entries in the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekit import results
from edgekit.errors import InputError, VerifyError
from edgekit.files.replacing import replacing, require_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "edgekit/bundle/1"
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
PLAN = "plan.json"
MEASUREMENTS = "measurements.json"
PREPROCESS = "preprocess.json"
VECTORS = "vectors.npz"
RUN = "run"
REPORT = "report.html"
REQUIRED = (PLAN, MEASUREMENTS, PREPROCESS, VECTORS, RUN, REPORT)

MAX_JSON_BYTES = 64 << 20  # far above any plan (1 MB for 5,000 layers); keeps a hostile file from filling the memory
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip can hold


@dataclass(frozen=True)
class Artifact:
    """How the runtime opens the shipped model: its file in the bundle, the precision of what is not quantized
    ("f32", "bf16", "f16"), and the number of threads it was measured with.
    """

    path: str
    hint: str
    threads: int


@dataclass(frozen=True)
class Vectors:
    """Test vectors: for each sample, name -> array of the model's inputs and of the outputs expected of the artifact.
    ``tolerance`` is the largest absolute error that each output may have.
    """

    inputs: tuple[dict[str, NDArray[Any]], ...]
    outputs: tuple[dict[str, NDArray[Any]], ...]
    tolerance: dict[str, float]


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found in order. ``vectors_run`` is False where no way to run the test vectors was given."""

    files: int
    total_bytes: int
    vectors_run: bool


def require_replaceable(out: Path) -> None:
    """Check, before any long work, that a bundle can be written at ``out``: free, an empty folder, or an old bundle.

    Raises:
        InputError: something else is there that would be lost, or the folder above cannot be written to.
    """
    out = _resolved(out)
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"--out {out}: a file is there already", "choose another folder, or remove the file")
    if os.path.ismount(out):
        raise InputError(f"--out {out}: is a mount point and cannot be replaced", "choose a folder inside it")
    try:
        if out.is_dir() and any(out.iterdir()):
            mine = {MANIFEST, MANIFEST_DIGEST, *read_manifest(out)["files"]}
            present = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
            if foreign := present - mine:
                raise InputError(
                    f"--out {out}: holds files that are not part of the bundle there, such as {min(foreign)}",
                    "choose another folder, or move those files: replacing the bundle would delete them",
                )
    except VerifyError as error:
        message = f"--out {out}: not empty, and not an intact edgekit bundle ({error})"
        raise InputError(message, "choose a new or empty folder") from error
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}", "choose a folder that you may read and write") from error
    above = next(parent for parent in out.parents if os.path.lexists(parent))
    try:
        require_folder(above)
    except OSError as error:
        message = f"--out {out}: cannot write in {above}: {error.strerror}"
        raise InputError(message, "choose a folder that you may write to") from error


def pack(
    out: Path,
    *,
    result: results.DeployResult,
    artifact: Artifact,
    artifact_files: Mapping[str, Path],
    compressed: Mapping[str, Path] | None = None,
    preprocess: Mapping[str, Any],
    vectors: Vectors,
    runner: Sequence[Path],
    report_html: str,
) -> Path:
    """Write the bundle at ``out`` and return its absolute path.

    It is built in a hidden folder beside ``out`` and renamed when complete, so ``out`` is at every moment the old
    bundle, absent, or the new one. ``artifact_files`` maps names in the bundle to files on disk; ``runner`` is a
    program, which becomes ``run``, and the modules that it needs beside it. ``compressed`` maps some of these names to
    gzip files that ship in their place; the manifest says what must come out of them.

    Raises:
        InputError: ``out`` cannot be replaced or written (see `require_replaceable`), or the disk is full. Nothing is
            left behind.
        ValueError: the artifact's names escape the bundle or collide with its own files.
    """
    require_replaceable(out)
    out = _resolved(out)
    expanded = {name: artifact_files[name] for name in compressed or {}}
    packed = {path.name: path for path in (compressed or {}).values()}
    artifact_files = {**{name: path for name, path in artifact_files.items() if name not in expanded}, **packed}
    program, *modules = runner
    if taken := {path.name for path in modules} & {*artifact_files}:
        raise ValueError(f"not usable names for files of the artifact: {sorted(taken)}")
    artifact_files = {**artifact_files, **{path.name: path for path in modules}}
    for name in artifact_files:
        if not _is_safe(name) or name in (*REQUIRED, MANIFEST, MANIFEST_DIGEST):
            raise ValueError(f"not a usable name for a file of the artifact: {name!r}")
    if artifact.path not in artifact_files:
        raise ValueError(f"artifact.path {artifact.path!r} is not one of {sorted(artifact_files)}")
    decisions, measurements = results.split(results.to_json(result))
    with replacing(out) as folder:
        for name, source in artifact_files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        shutil.copyfile(program, folder / RUN)
        (folder / PLAN).write_bytes(_json_bytes(decisions))
        (folder / MEASUREMENTS).write_bytes(_json_bytes(measurements))
        (folder / PREPROCESS).write_bytes(_json_bytes(preprocess))
        (folder / VECTORS).write_bytes(_npz_bytes(vectors))
        (folder / REPORT).write_text(report_html, encoding="utf-8", newline="\n")
        names = sorted((*REQUIRED, *artifact_files))
        manifest = {
            "schema": SCHEMA,
            "target": result.target,
            "candidate": result.chosen,
            "artifact": {
                "path": artifact.path,
                "hint": artifact.hint,
                "threads": artifact.threads,
                **_expansions(expanded, compressed or {}),
            },
            "digests": {
                "model": result.model.sha256,
                "plan": result.plan.digest,
                "data": result.data.sha256,
                "recipe": result.recipe.digest,
            },
            "tools": dict(sorted(result.versions.items())),
            "files": {
                name: {"sha256": _sha256_of(folder / name), "size": (folder / name).stat().st_size} for name in names
            },
        }
        content = _json_bytes(manifest)
        (folder / MANIFEST).write_bytes(content)
        (folder / MANIFEST_DIGEST).write_bytes(_digest_line(content))
        for name in (*names, MANIFEST, MANIFEST_DIGEST):
            (folder / name).chmod(0o755 if name == RUN else 0o644)
    return out


def verify(path: Path, run_vectors: Callable[[Path], object] | None = None) -> VerifyReport:
    """Recompute every digest of the bundle at ``path``, then let ``run_vectors`` run its test vectors.

    Raises:
        InputError: there is no folder at ``path``.
        VerifyError: a file is missing, extra, changed, a link, or outside the bundle; the manifest is changed or not
            readable; the plan is not the manifest's. The message names the file. ``run_vectors`` raises it likewise.
    """
    manifest = read_manifest(path)
    _check_tree(path, manifest["files"])
    for name, entry in manifest["files"].items():
        _read_checked(path, name, entry, keep=False)
    plan = _join(path, manifest).plan.digest
    if plan != manifest["digests"].get("plan"):
        raise VerifyError(f"{PLAN}: is not the plan that {MANIFEST} names")
    if run_vectors is not None:
        run_vectors(path)
    total = sum(entry["size"] for entry in manifest["files"].values())
    return VerifyReport(len(manifest["files"]), total, run_vectors is not None)


def read(path: Path) -> results.DeployResult:
    """The result that a bundle was made of. Only the files that hold it are checked; raises as `verify`."""
    return _join(path, read_manifest(path))


# --- writing ---------------------------------------------------------------------------------------------------------


def _expansions(expanded: Mapping[str, Path], compressed: Mapping[str, Path]) -> dict[str, Any]:
    """What the runner must expand, file by file, and what must come out of it."""
    files = {
        name: {"from": compressed[name].name, "sha256": _sha256_of(path), "size": path.stat().st_size}
        for name, path in sorted(expanded.items())
    }
    return {"expanded": files} if files else {}


def _resolved(out: Path) -> Path:
    return Path(os.path.realpath(out))


def _json_bytes(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _digest_line(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def _npz_bytes(vectors: Vectors) -> bytes:
    """An .npz with no times in it and nothing compressed: compressors change their output from version to version."""
    import numpy as np

    arrays: dict[str, NDArray[Any]] = {"count": np.array(len(vectors.inputs), np.int64)}
    for kind, samples in (("input", vectors.inputs), ("output", vectors.outputs)):
        for index, sample in enumerate(samples):
            arrays.update({f"{kind}/{index}/{name}": np.asarray(sample[name]) for name in sorted(sample)})
    for name in sorted(vectors.tolerance):
        arrays[f"tolerance/{name}"] = np.array(vectors.tolerance[name], np.float64)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", ZIP_EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, data.getvalue())
    return target.getvalue()


# --- reading ---------------------------------------------------------------------------------------------------------


def _is_safe(name: object) -> bool:
    """A relative POSIX path in its shortest form that stays inside the bundle."""
    if not isinstance(name, str) or not name or not name.isprintable() or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name and name != "."


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle at ``path``: its own digest and form are checked, not the files that it lists. Raises
    as `verify`.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no bundle is there", "pass the folder that `edgekit deploy --out` wrote")
    if not os.path.lexists(path / MANIFEST):
        message = f"{path}: not a bundle: {MANIFEST} is missing"
        raise VerifyError(message, "pass the folder that `edgekit deploy --out` wrote")
    content = _read(path, MANIFEST, MAX_JSON_BYTES)
    if _read(path, MANIFEST_DIGEST, 1024) != _digest_line(content):
        raise VerifyError(f"{MANIFEST}: does not match {MANIFEST_DIGEST}: one of the two was changed")
    manifest = _parse(MANIFEST, content)
    if manifest.get("schema") != SCHEMA:
        raise VerifyError(f"{MANIFEST}: schema is {manifest.get('schema')!r:.60}, expected {SCHEMA!r}")
    files, artifact = manifest.get("files"), manifest.get("artifact")
    if not isinstance(files, dict) or not isinstance(manifest.get("digests"), dict) or not isinstance(artifact, dict):
        raise VerifyError(f"{MANIFEST}: 'files', 'digests' or 'artifact' is missing")
    for name, entry in files.items():
        if not _is_safe(name) or name in (MANIFEST, MANIFEST_DIGEST):
            raise VerifyError(f"{MANIFEST}: lists a file outside the bundle: {name!r:.200}")
        if not _is_entry(entry):
            raise VerifyError(f"{MANIFEST}: the entry of {name} has no valid sha256 and size")
    expanded = artifact.get("expanded", {})
    names = [*files]  # a list: what is no name may have no hash
    if not isinstance(expanded, dict) or not all(_is_entry(e) and e.get("from") in names for e in expanded.values()):
        raise VerifyError(f"{MANIFEST}: 'artifact' does not say how its weights are expanded")
    for name in (*REQUIRED, artifact.get("path")):
        if not isinstance(name, str) or name not in files:
            raise VerifyError(f"{MANIFEST}: does not list {name!r:.200}")
    return manifest


def _is_entry(entry: object) -> bool:
    """Whether a file's entry holds a digest and a size."""
    if not isinstance(entry, dict) or type(size := entry.get("size")) is not int or size < 0:
        return False
    digest = entry.get("sha256")
    return isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None


def _check_tree(path: Path, files: Mapping[str, Any]) -> None:
    """Every listed file is there as a plain file, and nothing else."""
    listed = {*files, MANIFEST, MANIFEST_DIGEST}
    folders = {parent.as_posix() for name in listed for parent in PurePosixPath(name).parents}
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise VerifyError(f"{folder.relative_to(path)}: {error.strerror}") from error
        for entry in entries:
            name = Path(entry.path).relative_to(path).as_posix()
            if entry.is_symlink():
                raise VerifyError(f"{name}: is a link; a bundle holds plain files only")
            if entry.is_dir(follow_symlinks=False) and name in folders:
                waiting.append(Path(entry.path))
            elif name not in listed:
                raise VerifyError(f"{name!r:.200}: is not listed in {MANIFEST}")
            elif not entry.is_file(follow_symlinks=False):
                raise VerifyError(f"{name}: is not a plain file")


def _join(path: Path, manifest: Mapping[str, Any]) -> results.DeployResult:
    parts = {}
    for name in (PLAN, MEASUREMENTS):
        entry = manifest["files"][name]
        if entry["size"] > MAX_JSON_BYTES:
            raise VerifyError(f"{name}: larger than {MAX_JSON_BYTES} bytes")
        parts[name] = _parse(name, _read_checked(path, name, entry, keep=True))
    try:
        return results.join(parts[PLAN], parts[MEASUREMENTS], bundle=str(path))
    except InputError as error:
        raise VerifyError(f"{PLAN}, {MEASUREMENTS}: {error}") from error


def _parse(name: str, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise VerifyError(f"{name}: not valid JSON ({error!s:.100})") from error
    if not isinstance(document, dict):
        raise VerifyError(f"{name}: not a JSON object")
    return document


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[io.BufferedReader, int]]:
    """The plain file ``name`` of the bundle and its size; links are not followed, nothing but plain files is read."""
    try:
        descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise VerifyError(f"{name}: is not a plain file")
            yield file, status.st_size
    except FileNotFoundError as error:
        raise VerifyError(f"{name}: is missing") from error
    except OSError as error:
        reason = "is a link; a bundle holds plain files only" if error.errno == errno.ELOOP else error.strerror
        raise VerifyError(f"{name}: {reason}") from error


def _read(path: Path, name: str, limit: int) -> bytes:
    with _opened(path, name) as (file, size):
        if size > limit:
            raise VerifyError(f"{name}: {size} bytes, larger than it can be ({limit})")
        return file.read()


def _read_checked(path: Path, name: str, entry: Mapping[str, Any], keep: bool) -> bytes:
    """Check size and digest of a file in blocks. Returns its content when ``keep``, else nothing."""
    kept = []
    digest = hashlib.sha256()
    with _opened(path, name) as (file, size):
        if size != entry["size"]:
            raise VerifyError(f"{name}: has {size} bytes, {MANIFEST} says {entry['size']}")
        while block := file.read(1 << 20):
            digest.update(block)
            if keep:
                kept.append(block)
    if digest.hexdigest() != entry["sha256"]:
        raise VerifyError(f"{name}: was changed (its sha256 is not the one in {MANIFEST})")
    return b"".join(kept)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
