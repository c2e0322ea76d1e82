import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.files import cache


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def left_over(root: Path) -> list[Path]:
    return list(root.rglob(".new-*"))


def test_root_defaults_to_the_users_cache(monkeypatch):
    monkeypatch.delenv("EDGEKIT_CACHE")
    assert cache.root().name == "edgekit"
    monkeypatch.setenv("EDGEKIT_CACHE", "~/somewhere")
    assert cache.root() == Path.home() / "somewhere"


parts = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(parts, parts)
def test_keys_are_equal_exactly_when_the_parts_are(a, b):
    assert (cache.key(a=a) == cache.key(a=b)) == (typed(a) == typed(b))


def typed(part):
    if isinstance(part, list):
        return ("list", tuple(typed(p) for p in part))
    if isinstance(part, dict):
        return ("dict", frozenset((k, typed(v)) for k, v in part.items()))
    return (type(part).__name__, repr(part))


def test_key_is_stable_and_ignores_the_order_of_names():
    assert cache.key(a=1, b={"x": 1, "y": b"z"}) == cache.key(b={"y": b"z", "x": 1}, a=1)
    assert cache.key(a=1) == "b0fd0c482f32f0799fa2456e5b6bc6a111a3e55ce1e42daec0d7a2fcfff5b322"
    assert cache.key(a=(1, 2)) == cache.key(a=[1, 2])
    assert cache.key(a=1) != cache.key(a="1")
    for odd in (object(), np.float32(1), {1: 2}, {1, 2}):
        with pytest.raises(TypeError, match="cannot be part of a cache key"):
            cache.key(a=odd)


def test_json_comes_back():
    assert cache.read_json("losses", "k") is None
    for document in ({"a": [1, 2.5, None, "é\n"]}, None, 0, [], ""):
        cache.write_json("losses", "k", document)
        assert cache.read_json("losses", "k") == document
    assert cache.read_json("other", "k") is None


def test_arrays_come_back():
    arrays = {
        "file": np.arange(6, dtype=np.int64).reshape(2, 3),
        "names": np.zeros((0, 2), np.float32),
        "/a/b.npy": np.float32([np.nan, np.inf]),
        "../é": np.array(["x", "yz"]),
        "scalar": np.array(3.0),
    }
    cache.write_arrays("ranges", "k", arrays)
    back = cache.read_arrays("ranges", "k")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    cache.write_arrays("ranges", "none", {})
    assert cache.read_arrays("ranges", "none") == {}
    with pytest.raises(ValueError, match="objects"):
        cache.write_arrays("ranges", "k", {"a": np.array([object()])})


def entries():
    cache.write_json("kind", "k", {"value": 12345})
    cache.write_arrays("kind", "k", {"a": np.arange(100)})
    return [
        (cache.root() / "kind" / "k.json", cache.read_json),
        (cache.root() / "kind" / "k.arrays", cache.read_arrays),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:70],
        lambda content: content[:10],
        lambda content: content + b"\n",
        lambda content: content.replace(b"\n", b"", 1),
        lambda content: content[:75] + bytes([content[75] ^ 1]) + content[76:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: os.urandom(200),
    ],
)
def test_a_damaged_entry_is_a_miss_and_is_removed(damage):
    for path, read in entries():
        path.write_bytes(damage(path.read_bytes()))
        assert read("kind", "k") is None
        assert not path.exists()


def test_any_flipped_bit_is_noticed():
    for path, read in entries():
        whole = path.read_bytes()
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            assert read("kind", "k") is None
            assert not path.exists()


def build(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "f").write_text("made")


def test_folder_is_built_once(root):
    path = cache.folder("tools", "k", build)
    assert path == root / "tools" / "k"
    assert (path / "sub" / "f").read_text() == "made"
    assert cache.folder("tools", "k", lambda folder: pytest.fail("built again")) == path
    assert left_over(root) == []


DAMAGES = {
    "flipped": lambda folder: (folder / "sub" / "f").write_text("fade"),
    "truncated": lambda folder: (folder / "sub" / "f").write_text("mad"),
    "missing": lambda folder: (folder / "sub" / "f").unlink(),
    "renamed": lambda folder: (folder / "sub" / "f").rename(folder / "f"),
    "added": lambda folder: (folder / "g").touch(),
    "unsigned": lambda folder: (folder / ".sha256").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_built_again(damage, root):
    DAMAGES[damage](cache.folder("tools", "k", build))
    path = cache.folder("tools", "k", build)
    assert [p.relative_to(path).as_posix() for p in sorted(path.rglob("[!.]*"))] == ["sub", "sub/f"]
    assert (path / "sub" / "f").read_text() == "made"
    assert left_over(root) == []


def test_folder_that_fails_leaves_nothing(root):
    def fail(folder: Path) -> None:
        build(folder)
        raise FileNotFoundError("a source of its own")

    with pytest.raises(FileNotFoundError):
        cache.folder("tools", "k", fail)
    assert list((root / "tools").iterdir()) == []


def test_folder_that_another_process_made_meanwhile(root):
    def late(folder: Path) -> None:
        build(folder)
        cache.folder("tools", "k", lambda f: (f / "first").touch())

    path = cache.folder("tools", "k", late)
    assert [p.name for p in path.iterdir() if not p.name.startswith(".")] == ["first"]
    assert left_over(root) == []


def test_full_disk_while_building(root):
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match="No space left") as caught:
        cache.folder("tools", "k", fill)
    assert "free some space" in caught.value.hint
    assert list((root / "tools").iterdir()) == []


WRITERS = [
    lambda: cache.write_json("kind", "k", 1),
    lambda: cache.write_arrays("kind", "k", {"a": np.ones(3)}),
    lambda: cache.folder("kind", "k", build),
]


@pytest.mark.parametrize("write", WRITERS)
def test_root_that_cannot_be_a_folder(write, root):
    root.write_text("a file")
    with pytest.raises(InputError, match="cannot write to the cache") as caught:
        write()
    assert "EDGEKIT_CACHE" in caught.value.hint
    assert cache.read_json("kind", "k") is None
    assert cache.read_arrays("kind", "k") is None


def as_somebody_else(number: int, results) -> None:
    if os.geteuid() == 0:  # root may write everywhere
        os.setgid(65534)
        os.setuid(65534)
    try:
        WRITERS[number]()
    except InputError as error:
        results.send((str(error), error.hint))


@pytest.mark.parametrize("number", range(3))
def test_root_without_permission(number, root):
    root.mkdir(mode=0o500)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe()
    child = context.Process(target=as_somebody_else, args=(number, send))
    child.start()
    child.join(20)
    assert receive.poll()
    message, hint = receive.recv()
    assert "Permission denied" in message
    assert "EDGEKIT_CACHE" in hint


def test_a_folder_in_the_place_of_an_entry(root):
    (root / "kind" / "k.json").mkdir(parents=True)
    assert cache.read_json("kind", "k") is None
    with pytest.raises(InputError):
        cache.write_json("kind", "k", 1)
    assert left_over(root) == []


LIMITED = """
import resource
from edgekit.files import cache
from edgekit.errors import InputError
cache.write_json("kind", "k", "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    cache.write_json("kind", "k", "x" * 100_000)
except InputError as error:
    print(error, error.hint)
print(cache.read_json("kind", "k"))
"""


def test_a_write_that_does_not_fit_keeps_what_was_there(root):
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert "cannot write to the cache" in done.stdout
    assert "free some space" in done.stdout
    assert done.stdout.endswith("old\n")
    assert left_over(root) == []


def contend(number: int) -> None:
    for _ in range(30):
        cache.write_json("kind", "k", {"all": ["same"] * 1000})
        cache.folder("kind", f"f{_}", build)
        found = cache.read_json("kind", "k")
        assert found is None or len(found["all"]) == 1000


def test_processes_share_it(root):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=contend, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(cache.read_json("kind", "k")["all"]) == 1000
    assert left_over(root) == []


KILLED = """
from edgekit.files import cache
print("ready", flush=True)
number = 0
while True:
    number += 1
    cache.write_json("kind", "k", [number] * 20_000)
"""


def test_a_killed_writer_leaves_a_whole_entry_and_its_rest_goes_later(root):
    for delay in (0.01, 0.05, 0.11):
        writer = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        entry = root / "kind" / "k.json"
        if entry.exists():
            found = cache.read_json("kind", "k")
            assert found is not None
            assert found == [found[0]] * 20_000
    stale = root / "kind" / ".new-stale"
    stale.mkdir(parents=True, exist_ok=True)
    fresh = root / "kind" / ".new-fresh"
    fresh.touch()
    os.utime(stale, (0, 0))
    cache.write_json("kind", "other", 1)
    assert not stale.exists()
    assert fresh.exists()


def test_import_is_light():
    script = "import json, sys, edgekit.files.cache; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"onnx", "onnxruntime", "openvino", "scipy"} & set(json.loads(done.stdout))
