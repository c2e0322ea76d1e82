"""Sweeps on this machine: what their files may say, what a cell that cannot leaves, and being cut off."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from edgekit.devices.lab import Board
from edgekit.errors import InputError
from edgekit.reporting import sweeps
from edgekit.sweep import run_sweep
from edgekit.sweeping import running
from edgekit.sweeping.cells import RECORD, cells
from edgekit.sweeping.declaration import folder_name, read_declaration
from edgekit.sweeping.table import Row, SweepResult, sweep_result, to_json, write_parquet
from edgekit.types import Budget
from tests import zoo
from tests.command import Desk, fill
from tests.test_end_to_end import await_no_process

HEAD = 'targets = ["quick"]\n'
MODEL = '[[model]]\npath = "model.onnx"\ndata = "data.npz"\neval = "eval.npz"\n'
SECOND = '[[model]]\npath = "second.onnx"\ndata = "second.npz"\n'
BUDGETS = '[[budget]]\nmax_drop = "1%"\n[[budget]]\nname = "impossible"\nlatency = "1ns"\n'
FLAGS = ("--overlay", "overlay", "--out", "out")


def write_sweep(folder: Path, text: str, name: str = "sweep.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def add_second_model(folder: Path, seed: int = 2) -> None:
    model = zoo.grouped_conv(seed)
    onnx.save(model, folder / "second.onnx")
    given = model.graph.input[0]
    shape = [40, *(one.dim_value for one in given.type.tensor_type.shape.dim[1:])]
    np.savez(folder / "second.npz", **{given.name: np.random.default_rng(2).standard_normal(shape).astype(np.float32)})


def read(folder: Path) -> Any:
    return json.loads((folder / "out" / "results.json").read_text())


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


class TestDeclaration:
    def test_everything_that_it_may_say(self, filled: Path) -> None:
        (filled / "own.py").write_text("")
        text = f'targets = ["quick", "host"]\n[hosts]\nquick = ["pi@10.0.0.5", "me@b:2222"]\n{MODEL}'
        text += 'metric = "own.py:score"\nshapes = { x = [1, 3, 16, 16] }\n' + MODEL + 'name = "again"\n'
        text += (
            '[[budget]]\nlatency = "10ms"\nmax_drop = "2%"\n[[budget]]\nname = "small"\nsize = "1MB"\nmemory = "2MiB"\n'
        )
        found = read_declaration(write_sweep(filled, text), [filled / "overlay"])
        assert [model.name for model in found.models] == ["model", "again"]
        assert found.models[0].path == str(filled / "model.onnx")
        assert found.models[0].metric == f"{filled / 'own.py'}:score"
        assert found.models[0].shapes == {"x": (1, 3, 16, 16)}
        assert found.budgets == {
            "latency 10ms, max_drop 2%": Budget(latency_ms=10.0, max_drop=0.02),
            "small": Budget(memory_bytes=2 << 20, weight_bytes=1_000_000),
        }
        assert found.hosts == {"quick": ("pi@10.0.0.5", "me@b:2222")}

    def test_without_a_budget_there_is_the_default_one(self, filled: Path) -> None:
        found = read_declaration(write_sweep(filled, HEAD + MODEL), [filled / "overlay"])
        assert found.budgets == {"default": Budget()}

    @pytest.mark.parametrize(
        ("text", "said", "hint"),
        [
            (MODEL, "sweep.toml: targets: is missing", "targets = "),
            ("targets = []\n" + MODEL, "targets: is empty", ""),
            ('targets = ["quick", "quick"]\n' + MODEL, "holds quick twice", ""),
            ('targets = ["quik"]\n' + MODEL, "there is no target 'quik'", "'quick'"),
            (HEAD, "holds no [[model]]", "[[model]]"),
            (HEAD + "model = 3\n", "holds no [[model]]", "[[model]]"),
            (HEAD + "[[models]]\n" + MODEL, "models: unknown key", "[[model]]"),
            (HEAD + "budget = []\n" + MODEL, "holds no [[budget]]", "[[budget]]"),
            (HEAD + MODEL + "dat = 3\n", "model 1: dat: unknown key", "'data'"),
            (HEAD + '[[model]]\npath = "model.onnx"\n', ": model 1: data: is missing", "data = "),
            (HEAD + MODEL.replace("data.npz", "date.npz"), "date.npz: no such file", ""),
            (HEAD + MODEL + 'recipe = "image-clasification"\n', "no recipe", "'image-classification'"),
            (HEAD + MODEL + "shapes = { x = [1, 0] }\n", "shapes: x: must be a list of positive sizes", ""),
            (HEAD + MODEL + MODEL, "two models are called 'model'", "name = "),
            (HEAD + MODEL + '[[budget]]\nlatency = "10"\n', "budget 1: latency '10' has no unit", 'latency = "33ms"'),
            (HEAD + MODEL + '[[budget]]\nmax_drop = "5"\n', "budget 1: max_drop '5' could mean", ""),
            (HEAD + MODEL + "[[budget]]\nlatency = 10\n", "budget 1: latency: must be a text", ""),
            (HEAD + MODEL + '[[budget]]\nsize = "1MB"\n' * 2, "two budgets are called 'size 1MB'", "name = "),
            (HEAD + '[hosts]\nquik = ["a@b"]\n' + MODEL, "'quik' is not one of targets (meant 'quick'?)", ""),
            (HEAD + "[hosts]\nquick = []\n" + MODEL, "quick: is empty", ""),
            (HEAD + "x = \n" + MODEL, "sweep.toml:2: not valid TOML", ""),
        ],
    )
    def test_what_is_wrong_is_said_at_once(self, filled: Path, text: str, said: str, hint: str) -> None:
        with pytest.raises(InputError) as error:
            read_declaration(write_sweep(filled, text), [filled / "overlay"])
        assert said in str(error.value)
        assert hint in error.value.hint

    @pytest.mark.parametrize("name", ["../../etc", "a/b", ".", "", "…", "latency 10ms, max_drop 1%"])
    def test_a_folder_leads_nowhere_else(self, name: str, tmp_path: Path) -> None:
        assert (tmp_path / folder_name(name)).resolve().parent in (tmp_path, tmp_path.parent / tmp_path.name)
        assert folder_name(name) not in ("", ".", "..")


class TestCells:
    def test_a_targets_boards_share_its_models_and_budgets_stay_together(self, filled: Path) -> None:
        text = HEAD + "".join(f'{MODEL}name = "{name}"\n' for name in "abc") + BUDGETS
        declared = read_declaration(write_sweep(filled, text), [filled / "overlay"])
        lab = {name: Board(name, f"pi@{name}", "quick") for name in ("one", "two")}
        made = cells(declared, filled / "out", lab, "lab.toml", [filled / "overlay"])
        assert [(c.row.model, c.row.host) for c in made] == [
            *([("a", "one")] * 2),
            *([("b", "two")] * 2),
            *([("c", "one")] * 2),
        ]
        assert len({c.folder for c in made}) == len({c.digest for c in made}) == 6

    def test_a_digest_changes_with_what_decides(self, filled: Path) -> None:
        def digest(text: str) -> str:
            declared = read_declaration(write_sweep(filled, HEAD + MODEL + text), [filled / "overlay"])
            return cells(declared, filled / "out", {}, "", [filled / "overlay"])[0].digest

        first = digest("")
        assert digest("") == first
        assert digest('metric = "sqnr"\n') != first
        assert digest('[[budget]]\nlatency = "1ms"\n') != first
        np.savez(filled / "eval.npz", x=np.zeros((4, 3, 16, 16), np.float32))
        changed = digest("")
        assert changed != first
        onnx.save(zoo.conv_net(seed=9), filled / "model.onnx")
        assert digest("") not in (first, changed)


def row(**values: Any) -> Row:
    return Row("m", "t", "", "b", None, None, None, 0.01, **values)


class TestTable:
    @pytest.mark.parametrize(
        ("codes", "worst"), [([0, 0], 0), ([0, 3], 3), ([3, 6], 6), ([6, 2, 3], 2), ([2, 5, 4], 5), ([5, 1], 1)]
    )
    def test_the_exit_code_is_the_worst(self, codes: list[int], worst: int) -> None:
        assert sweep_result(row(exit_code=code) for code in codes).exit_code == worst

    def test_parquet_holds_what_json_does(self, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        result = sweep_result([row(exit_code=0, latency_p50_ms=1.5, weight_bytes=7), row(exit_code=3, error="no")])
        assert write_parquet(result, tmp_path / "results.parquet")
        document = json.loads(json.dumps(to_json(result)))
        assert parquet.read_table(tmp_path / "results.parquet").to_pylist() == document["rows"]

    def test_a_page_shows_errors_as_text(self) -> None:
        page = sweeps.render(SweepResult((row(exit_code=5, error="<script>x</script>", log="a b/log.txt"),), 5), "s")
        assert "&lt;script&gt;" in page
        assert "<script" not in page
        assert 'href="a%20b/log.txt"' in page
        assert "0 of 1 cells done: 1 device failed" in page

    def test_what_was_predicted_says_so_in_its_row(self) -> None:
        known = {"exit_code": 0, "chosen": "int8", "latency_p50_ms": 3.4, "speedup": 2.05}
        rows = (row(**known, latency_kind="measured"), row(**known, latency_kind="predicted"), row(exit_code=0))
        page = sweeps.render(SweepResult(rows, 0), "s")
        assert not re.search(r"speed\s*<small>measured", page)
        screen = io.StringIO()
        sweeps.print_sweep(SweepResult(rows, 0), Console(file=screen, width=150), "out")
        printed = screen.getvalue().splitlines()
        assert [one.split()[6] for one in printed if "2.05x" in one] == ["measured", "predicted"]
        assert [sweeps.line(one).partition(": ")[2] for one in rows] == [
            "int8, 3.40 ms, 2.05x (measured)",
            "int8, 3.40 ms, 2.05x (predicted)",
            ", no latency known",
        ]


class TestFailures:
    @pytest.mark.slow
    def test_a_board_whose_latency_nothing_says_is_a_row_without_one(
        self, filled: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGEKIT_CACHE", str(session_cache))
        sweep = write_sweep(filled, 'targets = ["intel-n100"]\n' + MODEL)
        (found,) = run_sweep(sweep, filled / "out").rows
        assert (found.exit_code, found.latency_kind) == (0, "none")
        assert (found.latency_p50_ms, found.speedup) == (None, None)
        (again,) = run_sweep(sweep, filled / "out").rows
        assert again == found

    @pytest.mark.slow
    def test_rows_not_the_end(self, filled: Path, session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model that is none, and a board that nobody answers for, which is tried three times."""
        monkeypatch.setenv("EDGEKIT_CACHE", str(session_cache))
        monkeypatch.setattr(running, "RETRY_WAIT_S", 0.1)
        (filled / "none.onnx").write_bytes(b"no model")
        text = 'targets = ["quick", "host"]\n[hosts]\nhost = ["nobody@127.0.0.1:1"]\n'
        text += '[[model]]\npath = "none.onnx"\ndata = "data.npz"\n' + MODEL
        sweep = write_sweep(filled, text.replace(MODEL, MODEL + "shapes = { y = [1] }\n"))
        result = run_sweep(sweep, filled / "out", overlays=[filled / "overlay"])
        assert [(r.model, r.target, r.exit_code, r.attempts) for r in result.rows] == [
            ("none", "quick", 2, 1),
            ("none", "host", 2, 1),
            ("model", "quick", 2, 1),
            ("model", "host", 2, 1),
        ]
        assert "none.onnx" in result.rows[0].error
        assert "none.onnx" in (filled / "out" / result.rows[0].log).read_text()
        sweep = write_sweep(filled, 'targets = ["quick"]\n[hosts]\nquick = ["nobody@127.0.0.1:1"]\n' + MODEL)
        result = run_sweep(sweep, filled / "out", overlays=[filled / "overlay"])
        assert [(r.host, r.exit_code, r.attempts) for r in result.rows] == [("nobody@127.0.0.1:1", 5, 3)]
        assert result.exit_code == 5
        assert result.rows[0].error

    def test_a_deployment_that_dies_is_a_row(self, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dying = filled / "sitecustomize.py"
        dying.write_text(
            "import os, sys\nif 'edgekit.sweeping.attempt' in ' '.join(sys.orig_argv): os.kill(os.getpid(), 9)"
        )
        monkeypatch.setenv("PYTHONPATH", str(filled))
        result = run_sweep(write_sweep(filled, HEAD + MODEL), filled / "out", overlays=[filled / "overlay"])
        assert (result.rows[0].exit_code, result.exit_code) == (1, 1)
        assert "killed by signal 9" in result.rows[0].error
        assert "memory" in result.rows[0].hint

    def test_a_folder_of_someone_else_stays_as_it_is(self, filled: Path) -> None:
        (filled / "out").mkdir()
        (filled / "out" / "results.json").write_text("mine")
        with pytest.raises(InputError, match="not the folder of a sweep"):
            run_sweep(write_sweep(filled, HEAD + MODEL), filled / "out", overlays=[filled / "overlay"])
        assert [path.name for path in (filled / "out").iterdir()] == ["results.json"]


@pytest.mark.slow
class TestDeployed:
    def test_two_models_two_budgets_then_again_with_a_changed_budget(self, desk: Desk) -> None:
        add_second_model(desk.folder)
        write_sweep(desk.folder, HEAD + MODEL + SECOND + BUDGETS)
        first = desk.run("sweep", "sweep.toml", *FLAGS, "--json", timeout_s=600)
        assert first.code == 3, first.err
        assert first.document == read(desk.folder)
        rows = first.document["rows"]
        assert [(r["model"], r["budget"], r["exit_code"]) for r in rows] == [
            ("model", "max_drop 1%", 0),
            ("model", "impossible", 3),
            ("second", "max_drop 1%", 0),
            ("second", "impossible", 3),
        ]
        for one in rows:
            if one["exit_code"]:
                assert "no plan fits" in one["error"]
                assert one["latency_p50_ms"] is None
                continue
            bundle = json.loads(desk.succeed("report", desk.folder / "out" / one["bundle"], "--json").out)
            chosen = next(c for c in bundle["candidates"] if c["name"] == one["chosen"])
            assert one["latency_p50_ms"] == chosen["latency_ms"]["p50"] > 0
            assert (one["latency_kind"], one["weight_bytes"]) == (chosen["kind"], chosen["weight_bytes"])
        page = (desk.folder / "out" / "report.html").read_text()
        assert f'href="{rows[0]["bundle"]}/report.html"' in page

        records = sorted((desk.folder / "out").rglob(RECORD))
        before = {path: path.stat().st_mtime_ns for path in records}
        write_sweep(desk.folder, HEAD + MODEL + SECOND + BUDGETS.replace("1ns", "2ns"))
        again = desk.run("sweep", "sweep.toml", *FLAGS, timeout_s=600)
        assert again.code == 3
        assert "2 of 4 cells are finished already" in again.err
        assert {path for path in records if path.stat().st_mtime_ns != before[path]} == {
            path for path in records if "impossible" in path.parts
        }
        assert "2 of 4 cells done: 2 no plan fits" in again.out

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_cut_off_and_run_again(self, desk: Desk, number: int) -> None:
        """Nothing is left running, what was finished is kept, and the next run ends it."""
        add_second_model(desk.folder, seed=100 + number)  # which no cache knows, so that there is work to cut off
        write_sweep(desk.folder, HEAD + MODEL + SECOND + '[[budget]]\nname = "impossible"\nlatency = "1ns"\n')
        with desk.start("sweep", "sweep.toml", *FLAGS) as process:
            end = time.monotonic() + 120
            while not list(desk.folder.glob("out/cells/second/*/*/log.txt")):
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.1)
            time.sleep(4)
            os.kill(process.pid, number)
            process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 130)
        await_no_process(desk, 20)
        assert not (desk.folder / "out" / "results.json").exists()
        done = desk.run("sweep", "sweep.toml", *FLAGS, "--json", timeout_s=300)
        assert "1 of 2 cells are finished already" in done.err
        assert [one["exit_code"] for one in done.document["rows"]] == [3, 3]
