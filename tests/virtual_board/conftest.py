from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgekit import toolchains
from tests.command import Desk, Finished, fill
from tests.virtual_board import server, sysroot
from tests.virtual_board.packages import Unavailable
from tests.virtual_board.server import Running
from tests.virtual_board.sysroot import Sysroot


@pytest.fixture(scope="session")
def virtual() -> Sysroot:
    """The board that `make virtual-board` built. Tests download none."""
    try:
        return sysroot.built()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def pi5(virtual: Sysroot) -> Iterator[Running]:
    """A virtual Raspberry Pi 5 with sshd."""
    try:
        server.require_namespaces()
    except Unavailable as reason:
        pytest.skip(str(reason))
    with server.switched_on(virtual, "cortex-a76", "raspberry-pi-5") as running:
        yield running


@pytest.fixture(scope="session")
def pi5_desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A folder with a model, samples, and the toolchain of whoever runs the tests."""
    toolchains.ensure("tflite")
    desk = Desk(tmp_path_factory.mktemp("board"), tmp_path_factory.mktemp("cache"))
    fill(desk.folder)
    (desk.cache / "toolchains").symlink_to(toolchains.toolchain("tflite").environment.parent)
    return desk


@pytest.fixture(scope="session")
def on_pi5(pi5: Running, pi5_desk: Desk) -> Finished:
    """What the deployment to the virtual board printed; it left ``bundle`` on the desk."""
    flags = ("--target", "raspberry-pi-5", "--data", "data.npz", "--eval", "eval.npz", "--out", "bundle", "--json")
    return pi5_desk.succeed("deploy", "model.onnx", *flags, "--host", "virtual", "--lab", pi5.lab, timeout_s=600)
