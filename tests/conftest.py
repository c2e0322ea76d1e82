from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.command import Desk, Finished, fill

# What is read while tests are collected: no device profiles of whoever runs them.
os.environ["EDGEKIT_DATA"] = str(Path(__file__).parent / "no-own-profiles")

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the device profiles of whoever runs it."""
    monkeypatch.setenv("EDGEKIT_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of a session: what one measured, the others need not."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> tuple[Desk, Finished]:
    """A folder with the model, its samples and a ``bundle`` for target quick, and what the deployment printed."""
    desk = Desk(tmp_path_factory.mktemp("deployed"), session_cache)
    fill(desk.folder)
    flags = ("--target", "quick", "--overlay", "overlay", "--data", "data.npz", "--eval", "eval.npz")
    return desk, desk.succeed("deploy", "model.onnx", *flags, "--out", "bundle", "--json")


@pytest.fixture
def desk(tmp_path: Path, session_cache: Path) -> Desk:
    """A folder of its own with the model and its samples."""
    fill(tmp_path)
    return Desk(tmp_path, session_cache)
