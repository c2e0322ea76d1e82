"""Instructions counted by a whole emulated machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Desk, Finished
from tests.virtual_board import system
from tests.virtual_board.sysroot import Sysroot
from tests.virtual_board.system import System


@pytest.fixture(scope="module")
def machine(virtual: Sysroot) -> System:
    made = system.place_of(virtual)
    if not made.folder.is_dir():
        pytest.skip("no emulated machine was built: python -m benchmarks.counted")
    return made


@pytest.mark.slow
def test_a_count_is_the_same_each_time_and_another_on_another_core(
    machine: System, on_pi5: Finished, pi5_desk: Desk
) -> None:
    models = {"plan": pi5_desk.folder / "bundle" / "model.tflite"}
    once, again = (system.count(machine, "cortex-a53", models)["plan"] for _ in range(2))
    assert once == again
    # The A76 has the dot product, which int8 layers use.
    newer = system.count(machine, "cortex-a76", models)["plan"]
    assert newer["instructions"] < 0.8 * once["instructions"]
    assert newer["outputs_sha256"] == once["outputs_sha256"]


@pytest.mark.slow
def test_a_model_that_cannot_run_is_an_error_with_the_guests_words(machine: System, tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="cortex-a53 fails"):
        system.count(machine, "cortex-a53", {"broken": broken})


def test_an_archive_lists_its_files_padded_to_four_bytes() -> None:
    """As the kernel reads it: magic, thirteen fields of eight hexadecimal digits, name, content."""
    archive = b"".join(system.cpio({"folder": b"", "folder/a.txt": b"seven b"}))
    found = []
    while archive:
        assert archive[:6] == b"070701"
        fields = [int(archive[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[110 : 110 + name_size - 1].decode()
        start = -(-(110 + name_size) // 4) * 4
        found.append((name, mode, archive[start : start + size]))
        archive = archive[start + -(-size // 4) * 4 :]
    assert found == [("folder", 0o40755, b""), ("folder/a.txt", 0o100644, b"seven b"), ("TRAILER!!!", 0, b"")]
