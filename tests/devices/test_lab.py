from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.backends import openvino
from edgekit.catalog import target
from edgekit.devices.lab import Address, Board, find_boards, open_lab, parse_address
from edgekit.errors import EdgekitError, InputError
from edgekit.job import open_device
from tests.command import write_target


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("board", Address("board")),
        ("pi@10.0.0.2", Address("10.0.0.2", "pi")),
        ("pi@board.local:2222", Address("board.local", "pi", 2222)),
        ("ssh://pi@board:22", Address("board", "pi", 22)),
        ("ssh://board/", Address("board")),
        ("pi@[fe80::1%eth0]:22", Address("fe80::1%eth0", "pi", 22)),
        ("[::1]", Address("::1")),
        ("fe80::2", Address("fe80::2")),
        ("DOMAIN\\me@x", Address("x", "DOMAIN\\me")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


NO_ADDRESSES = (
    *("", "-oProxyCommand=x", "pi@-x", "-x@board", "@board", "a b", "a;b", "$(x)", "x`y`", "a:99999", "a:b", "pi@"),
    *("a\nb", "ssh://", "ssh://a/b", "a'b", 'a"b', "a|b", "a&b", "[::1", "[board]", "b%h", "..;"),
)


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match="is no address"):
        parse_address(text)


@given(st.text(max_size=30))
def test_no_address_is_an_option_or_means_something_to_a_shell(text: str) -> None:
    try:
        found = parse_address(text)
    except InputError:
        return
    for word in (found.host, found.user):
        assert not word.startswith("-")
        assert not set(word) & set(" \t\n'\"`$;&|<>(){}*?!#~,")
    assert found.host


def lab_file(folder: Path, text: str) -> Path:
    path = folder / "lab.toml"
    path.write_text(text)
    return path


def test_a_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("")
    text = """
        [[board]]
        name = "a"
        host = "pi@10.0.0.2"
        target = "pi"
        work_dir = "/data/ek"
        ssh_config = "config"
        [[board]]
        name = "b"
        host = "b.local"
        python = "/opt/py/bin/python"
    """
    path = lab_file(tmp_path, text)
    lab = open_lab(path)
    config = str(tmp_path.resolve() / "config")
    assert lab["a"] == Board("a", "pi@10.0.0.2", "pi", work_dir="/data/ek", ssh_config=config)
    assert lab["b"] == Board("b", "b.local", python="/opt/py/bin/python")
    assert find_boards("b, a,me@x:22", "", lab) == (lab["b"], lab["a"], Board("me@x:22", "me@x:22"))
    assert find_boards(None, "pi", lab) == (lab["a"],)
    assert find_boards(None, "other", lab) == ()
    assert open_lab() == {}
    monkeypatch.setenv("EDGEKIT_LAB", str(path))
    assert open_lab() == lab


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[[board]]\nname = "a"\nhots = "x"', "board a: hots: unknown key", "did you mean 'host'?"),
        ('[[board]]\nname = "a"', "board a: host: is missing", "add a line"),
        ('[[board]]\nhost = "a"', "board 1: name: is missing", "add a line"),
        ('[[board]]\nname = "a"\nhost = "-x"', "host: '-x' is no address", ""),
        ('[[board]]\nname = "a"\nhost = "x"\nwork_dir = "data"', "work_dir: must be a folder of its own", ""),
        ('[[board]]\nname = "a"\nhost = "x"\nwork_dir = "/"', "work_dir: must be a folder of its own", ""),
        ('[[board]]\nname = "a"\nhost = "x"\npython = "-c"', "python: must be a command", ""),
        ('[[board]]\nname = "a"\nhost = "x"\npython = 3', "must be a text in quotes", ""),
        ('[[board]]\nname = "a\\nb"\nhost = "x"', "name: holds a control character", ""),
        ('[[board]]\nname = "a,b"\nhost = "x"', "name: must be a word without commas", ""),
        ('[[board]]\nname = "a"\nhost = "x"\n[[board]]\nname = "a"\nhost = "y"', "'a' is there twice", "rename one"),
        ('[[board]]\nname = "a"\nhost = "x"\nssh_config = "none"', "none is no file", ""),
        ('[[boards]]\nname = "a"', "holds no [[board]]", "write [[board]]"),
        ("", "holds no [[board]]", "add [[board]]"),
        ('[[board]]\nname = "a"\nhost = "x"\n[other]', "other: unknown key", ""),
        ("[[board]\n", ":1: not valid TOML", ""),
    ],
)
def test_a_lab_that_is_not_valid(text: str, message: str, hint: str, tmp_path: Path) -> None:
    path = lab_file(tmp_path, text)
    with pytest.raises(InputError) as caught:
        open_lab(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_a_lab_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_lab(tmp_path / "none.toml")


def test_a_bad_lab_of_the_environment_is_named_and_disturbs_only_who_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_LAB", str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match=r"^EDGEKIT_LAB: .*none\.toml") as caught:
        open_lab()
    assert "unset EDGEKIT_LAB" in caught.value.hint
    assert open_device(target("host"), None).place == ""
    assert open_device(target("host"), None, lab=lab_file(tmp_path, '[[board]]\nname = "a"\nhost = "x"\n')).place == ""
    for asks in ({"host": "pi@10.0.0.1"}, {}):
        with pytest.raises(InputError, match="EDGEKIT_LAB"):
            open_device(target("raspberry-pi-4" if not asks else "host"), None, **asks)


@pytest.mark.parametrize(("hosts", "message"), [("a,a", "names a twice"), ("a,,b", "no address"), ("-x", "no address")])
def test_hosts_that_are_not_valid(hosts: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_boards(hosts, "", {})


def test_where_a_target_is(tmp_path: Path) -> None:
    """Over ssh where a host is given, or a lab has a board for a target that is reached over ssh; nothing connects."""
    lab = lab_file(tmp_path, '[[board]]\nname = "a"\nhost = "x"\ntarget = "far"\n')
    write_target(tmp_path / "overlay", "far", 'extends = "host"\ntransport = "ssh"\nthreads = 3\n')
    far = target("far", [tmp_path / "overlay"])
    assert open_device(far, None, lab=lab).job_runner is not None  # asked only when something is measured
    assert open_device(far, None, lab=lab).threads == 3
    assert open_device(far, None, host="pi@10.0.0.1").backend is openvino
    assert open_device(target("host"), 2, host="pi@10.0.0.1").threads == 2
    assert open_device(far, None, host="pi@10.0.0.1").place == "pi@10.0.0.1"
    assert open_device(target("host"), None).place == ""
    absent = open_device(far, None)
    assert absent.job_runner is None
    assert not absent.at_hand
    with pytest.raises(EdgekitError, match="--host"):
        absent.probe()
