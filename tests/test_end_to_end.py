"""Deployments through interruptions, damage and full disks: the same inputs end in the same bundle."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import zoo
from tests.command import QUICK_TARGET, Desk, Finished, bundle_files, samples, write_target

DEPLOY = (
    "deploy",
    "model.onnx",
    "--target",
    "quick",
    "--overlay",
    "overlay",
    "--data",
    "data.npz",
    "--eval",
    "eval.npz",
)
# The cache's kinds that differ from run to run.
MEASURED = ("costs", "float-precisions", "races", "profiles", "shape-profiles")


def keep_measurements(cache: Path, into: Path) -> None:
    """A cache as after a deployment of which only what was measured is left."""
    shutil.rmtree(into, ignore_errors=True)
    for kind in MEASURED:
        if (cache / kind).is_dir():
            shutil.copytree(cache / kind, into / kind)


def processes(text: str) -> list[int]:
    """Running processes whose command line or environment holds ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                content = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text.encode() in content and state != "Z":
                found.append(int(entry.name))
    return found


def await_no_process(desk: Desk, limit_s: float = 5.0) -> None:
    end = time.monotonic() + limit_s
    while found := processes(str(desk.cache)):
        assert time.monotonic() < end, f"still running: {found}"
        time.sleep(0.05)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def run_and_kill(desk: Desk, after_s: float, *, number: int = signal.SIGKILL) -> bool:
    """Start the deployment and kill it (not its children); True when it was still running."""
    with desk.start(*DEPLOY, "--out", "bundle", "--json") as process:
        try:
            process.wait(timeout=after_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, number)
        process.communicate(timeout=30)
    return process.returncode < 0


class TestTwice:
    def test_the_second_run_is_quick_and_gives_the_same_bytes(self, deployed: tuple[Desk, Finished]) -> None:
        desk, _ = deployed
        again = desk.succeed(*DEPLOY, "--out", "again", "--json")
        assert bundle_files(desk.folder / "again") == bundle_files(desk.folder / "bundle")
        for stage in ("sensitivity", "measure", "race", "observe", "cosine"):
            assert stage not in again.err, again.err
        manifests = [json.loads((desk.folder / name / "manifest.json").read_text()) for name in ("bundle", "again")]
        for manifest in manifests:
            for name in ("measurements.json", "report.html"):
                del manifest["files"][name]
        assert manifests[0] == manifests[1]

    def test_another_folder_and_another_name_of_the_files_folder_change_nothing(
        self, deployed: tuple[Desk, Finished], desk: Desk
    ) -> None:
        desk.succeed(*DEPLOY, "--out", "deep/down/here", "--json")
        assert bundle_files(desk.folder / "deep/down/here") == bundle_files(deployed[0].folder / "bundle")

    def test_with_all_but_the_measurements_made_again(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        keep_measurements(desk.cache, desk.folder / "cache")
        again = Desk(desk.folder, desk.folder / "cache")
        assert "sensitivity" in again.succeed(*DEPLOY, "--out", "bundle", "--json").err
        assert bundle_files(desk.folder / "bundle") == bundle_files(deployed[0].folder / "bundle")

    def test_what_a_board_of_more_threads_left_in_the_cache_changes_nothing(
        self, deployed: tuple[Desk, Finished], desk: Desk
    ) -> None:
        keep_measurements(desk.cache, desk.folder / "cache")
        own = Desk(desk.folder, desk.folder / "cache")
        own.succeed("plan", "model.onnx", "--target", "raspberry-pi-4", "--data", "data.npz", "--eval", "eval.npz")
        own.succeed(*DEPLOY, "--out", "bundle", "--json")
        assert bundle_files(desk.folder / "bundle") == bundle_files(deployed[0].folder / "bundle")

    def test_other_samples_are_not_mistaken_for_these(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        np.savez(desk.folder / "eval.npz", **samples(16, seed=2))
        done = desk.succeed("plan", *DEPLOY[1:], "--json")
        assert "cosine of float" in done.err
        assert done.document["data"]["sha256"] != deployed[1].document["data"]["sha256"]


class TestKilled:
    @pytest.mark.slow
    def test_ten_times_at_random_and_run_again(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        expected = bundle_files(deployed[0].folder / "bundle")
        own = Desk(desk.folder, desk.folder / "cache")
        keep_measurements(desk.cache, own.cache)
        start = time.monotonic()
        own.succeed(*DEPLOY, "--out", "bundle", "--json")
        whole_s = time.monotonic() - start
        moments = random.Random(7)
        killed = 0
        for number in range(10):
            shutil.rmtree(desk.folder / "bundle")
            keep_measurements(desk.cache, own.cache)
            killed += run_and_kill(own, whole_s * (number + moments.random()) / 10)
            await_no_process(own)
            if (desk.folder / "bundle").exists():
                own.succeed("verify", "bundle", "--overlay", "overlay")
            own.succeed(*DEPLOY, "--out", "bundle", "--json")
            assert bundle_files(desk.folder / "bundle") == expected
            assert hidden(desk.folder) == []
        assert killed >= 8, "the last ones may have come too late"

    @pytest.mark.slow
    def test_again_and_again_while_measuring(self, desk: Desk) -> None:
        own = Desk(desk.folder, desk.folder / "cache")
        moments = random.Random(11)
        for limit_s in (2.0, 6.0, 14.0):
            assert run_and_kill(own, limit_s * moments.uniform(0.5, 1.0))
            await_no_process(own)
            assert not (desk.folder / "bundle").exists()
            assert list(own.temporary.iterdir()) == []
        own.succeed(*DEPLOY, "--out", "bundle", "--json")
        own.succeed("verify", "bundle", "--overlay", "overlay")
        assert hidden(desk.folder) == []

    @pytest.mark.slow
    def test_while_an_old_bundle_is_there(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        """It is the old one, whole, or the new one, whole, at every moment; nothing else is left."""
        bundle = desk.folder / "bundle"
        shutil.copytree(deployed[0].folder / "bundle", bundle)
        start = time.monotonic()
        desk.succeed(*DEPLOY, "--out", "bundle", "--json")
        whole_s = time.monotonic() - start
        for share in (0.85, 0.95):
            run_and_kill(desk, whole_s * share)
            desk.succeed("verify", "bundle", "--overlay", "overlay")
        desk.succeed(*DEPLOY, "--out", "bundle", "--json")
        assert hidden(desk.folder) == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted(self, number: signal.Signals, desk: Desk) -> None:
        own = Desk(desk.folder, desk.folder / "cache")
        with own.start(*DEPLOY, "--out", "bundle", "--json") as process:
            assert process.stderr is not None
            seen = []
            for line in process.stderr:
                seen.append(line)
                if line.startswith("measure layer costs"):
                    break
            end = time.monotonic() + 20  # between two measurements there is none for a moment
            while len(processes(str(own.cache))) < 2:
                assert time.monotonic() < end, "the command and the runner that it measures with"
                time.sleep(0.01)
            os.kill(process.pid, number)
            out, err = process.communicate(timeout=10)
        assert process.returncode == 130
        assert out == ""
        assert err.splitlines()[-1].startswith("edgekit: interrupted")
        assert "Traceback" not in err
        await_no_process(own, limit_s=1.0)
        assert not (desk.folder / "bundle").exists()
        assert hidden(desk.folder) == []
        assert list(own.temporary.iterdir()) == []

    @pytest.mark.slow
    def test_interrupted_during_sensitivity_it_resumes(self, desk: Desk) -> None:
        """Of the layers that were tried, none is tried again."""
        onnx.save(zoo.inverted_residual(), desk.folder / "model.onnx")
        own = Desk(desk.folder, desk.folder / "cache", {"PYTHONPATH": str(desk.folder)})
        # Slows the trial of each layer down, so that there is a middle to interrupt.
        (desk.folder / "sitecustomize.py").write_text(
            "import edgekit.sensitivity as it, time\n"
            "trial = it.trial_session\n"
            "it.trial_session = lambda *a, **k: (time.sleep(0.5), trial(*a, **k))[1]\n"
        )
        arguments = ("plan", *DEPLOY[1:], "--no-prune", "--json")
        losses = own.cache / "losses"
        with own.start(*arguments) as process:
            end = time.monotonic() + 120
            while not losses.is_dir() or len(list(losses.glob("*.json"))) < 2:
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGINT)
            err = process.communicate(timeout=20)[1]
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("edgekit: interrupted")
        await_no_process(own, limit_s=1.0)
        kept = {path: path.stat().st_mtime_ns for path in losses.glob("*.json")}
        assert 2 <= len(kept) < 8
        done = own.succeed(*arguments)
        assert "sensitivity" in done.err
        assert "measure" not in done.err
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert len(list(losses.glob("*.json"))) == len(done.document["plan"]["layers"])


class TestDamagedCache:
    def entries(self, cache: Path) -> list[Path]:
        return sorted(path for path in cache.rglob("*") if path.is_file())

    @pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied"])
    def test_every_file_of_it_damaged(self, damage: str, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        """What can be made again is; measurements are left alone here, since others would give another plan."""
        own = Desk(desk.folder, desk.folder / "cache")
        shutil.copytree(desk.cache, own.cache)
        for path in self.entries(own.cache):
            if path.relative_to(own.cache).parts[0] not in MEASURED:
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 0x20
                cut = {"flipped": content, "truncated": content[: len(content) // 2], "emptied": b""}
                path.write_bytes(cut[damage])
        own.succeed(*DEPLOY, "--out", "bundle", "--json")
        assert bundle_files(desk.folder / "bundle") == bundle_files(deployed[0].folder / "bundle")

    @pytest.mark.slow
    def test_measurements_too(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        own = Desk(desk.folder, desk.folder / "cache")
        shutil.copytree(desk.cache, own.cache)
        for path in self.entries(own.cache):
            path.write_bytes(path.read_bytes()[:-1])
        assert "measure layer costs" in own.succeed("plan", *DEPLOY[1:], "--json").err

    def test_a_file_in_the_place_of_the_cache(self, desk: Desk) -> None:
        own = Desk(desk.folder, desk.folder / "model.onnx")
        done = own.run(*DEPLOY, "--out", "bundle")
        assert done.code == 2
        assert "cannot write to the cache" in done.complaint[0]
        assert "EDGEKIT_CACHE" in done.complaint[1]

    def test_a_cache_that_cannot_be_written(self, desk: Desk) -> None:
        done = Desk(desk.folder, Path("/proc/edgekit")).run(*DEPLOY, "--out", "bundle")
        assert done.code == 2
        assert "cannot write to the cache" in done.complaint[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with hardly any room. Only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class TestFullDisk:
    def test_for_the_bundle(self, deployed: tuple[Desk, Finished], desk: Desk, small_disk: Path) -> None:
        done = desk.run(*DEPLOY, "--out", small_disk / "bundle")
        assert done.code == 2
        assert "No space left on device" in done.complaint[0]
        assert "free some space" in done.complaint[1]
        assert list(small_disk.iterdir()) == []

    def test_an_old_bundle_stays(self, deployed: tuple[Desk, Finished], desk: Desk, small_disk: Path) -> None:
        shutil.copytree(deployed[0].folder / "bundle", desk.folder / "bundle")
        subprocess.run(["mount", "-o", "remount,size=400k", small_disk], check=True)
        (small_disk / "room").write_bytes(bytes(8 << 10))
        shutil.copytree(desk.folder / "bundle", small_disk / "bundle")
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filling").write_bytes(bytes(max(0, free - (20 << 10))))
        done = desk.run(*DEPLOY, "--out", small_disk / "bundle")
        assert done.code == 2
        assert "No space left on device" in done.complaint[0]
        assert bundle_files(small_disk / "bundle") == bundle_files(desk.folder / "bundle")
        assert hidden(small_disk) == []

    def test_for_the_cache(self, deployed: tuple[Desk, Finished], desk: Desk, small_disk: Path) -> None:
        """Wherever it gets full: in a converted model, in what was observed, in a score."""
        onnx.save(zoo.conv_net(), desk.folder / "model.onnx")
        for room in (4, 16, 40, 52):
            for entry in small_disk.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            (small_disk / "filling").write_bytes(bytes((64 - room) << 10))
            done = Desk(desk.folder, small_disk / "cache").run(*DEPLOY, "--out", "bundle")
            assert done.code == 2, room
            assert "cannot write to the cache" in done.complaint[0]
            assert "No space left on device" in done.complaint[0]
            assert "EDGEKIT_CACHE" in done.complaint[1]
            assert not (desk.folder / "bundle").exists()
            assert list((small_disk / "cache").rglob(".new-*")) == []

    def test_read_only(self, desk: Desk, small_disk: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        done = desk.run(*DEPLOY, "--out", small_disk / "bundle")
        assert done.code == 2
        assert "Read-only file system" in done.complaint[0]
        assert "load" not in done.err


class TestVerify:
    @pytest.fixture
    def bundle(self, deployed: tuple[Desk, Finished], desk: Desk) -> Path:
        return shutil.copytree(deployed[0].folder / "bundle", desk.folder / "bundle")

    def refused(self, desk: Desk, name: str, command: str = "verify") -> Finished:
        done = desk.run(command, "bundle", "--overlay", "overlay")
        assert done.code == 7, done.err
        assert done.out == ""
        assert name in done.complaint[0]
        return done

    def test_a_flipped_byte_of_any_file(self, desk: Desk, bundle: Path) -> None:
        places = random.Random(3)
        for path in sorted(bundle.iterdir()):
            content = path.read_bytes()
            at = places.randrange(len(content))
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << places.randrange(8))]) + content[at + 1 :])
            self.refused(desk, "manifest" if path.name.startswith("manifest") else path.name)
            path.write_bytes(content)
        desk.succeed("verify", "bundle", "--overlay", "overlay")

    def test_files_that_are_missing_extra_or_links(self, desk: Desk, bundle: Path) -> None:
        (bundle / "vectors.npz").rename(desk.folder / "vectors.npz")
        self.refused(desk, "vectors.npz")
        (bundle / "vectors.npz").symlink_to(desk.folder / "vectors.npz")
        self.refused(desk, "vectors.npz")
        (bundle / "vectors.npz").unlink()
        (desk.folder / "vectors.npz").rename(bundle / "vectors.npz")
        (bundle / "more").touch()
        self.refused(desk, "more", command="bench")

    @pytest.mark.parametrize("command", ["verify", "bench"])
    def test_outputs_that_are_not_the_expected_ones(self, command: str, desk: Desk, bundle: Path) -> None:
        """Every digest holds, but the artifact computes something else."""
        with np.load(bundle / "vectors.npz") as stored:
            vectors = dict(stored)
        output = next(name for name in vectors if name.startswith("output/1/"))
        vectors[output] = vectors[output] + 1.0
        np.savez(bundle / "vectors.npz", **vectors)
        content = (bundle / "vectors.npz").read_bytes()
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["files"]["vectors.npz"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        text = json.dumps(manifest, indent=1) + "\n"
        (bundle / "manifest.json").write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (bundle / "manifest.sha256").write_text(f"{digest}  manifest.json\n")
        done = self.refused(desk, "vectors.npz", command)
        assert "times the tolerance" in done.err
        shipped = subprocess.run(
            [sys.executable, bundle / "run", "--seconds", "0"], capture_output=True, text=True, check=False
        )
        assert shipped.returncode == 7
        assert json.loads(shipped.stdout)["ok"] is False


class TestOverlays:
    def test_a_target_and_a_recipe_of_one_s_own(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        recipe = desk.folder / "boards/calibration/few.toml"
        recipe.parent.mkdir(parents=True)
        recipe.write_text('extends = "npz"\nsamples = 24\nobserver = "min-max"\n')
        write_target(desk.folder / "boards", "mine", QUICK_TARGET)
        own = Desk(desk.folder, desk.cache, {"EDGEKIT_OVERLAY": "boards"})
        assert "mine" in own.succeed("targets").out
        assert "quick" not in own.succeed("targets").out
        flags = ("--data", "data.npz", "--eval", "eval.npz", "--recipe", "few")
        document = own.succeed("plan", "model.onnx", "--target", "mine", *flags, "--json").document
        assert document["target"] == "mine"
        assert (document["recipe"]["name"], document["recipe"]["observer"]) == ("few", "min-max")
        both = own.succeed("targets", "--overlay", "overlay", "--json").document["targets"]
        assert {"host", "mine", "quick"} <= {target["name"] for target in both}

    def test_a_name_twice(self, desk: Desk) -> None:
        write_target(desk.folder / "boards", "quick", 'extends = "host"\n')
        done = desk.run("targets", "--overlay", "overlay", "--overlay", "boards")
        assert done.code == 2
        assert "defined twice" in done.complaint[0]


class TestPython:
    def python(self, desk: Desk, script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=desk.folder, env=desk.environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", "the API prints nothing"
        return done.stdout

    @pytest.mark.slow
    def test_the_commands_are_functions(self, deployed: tuple[Desk, Finished], desk: Desk) -> None:
        script = """if True:
            import edgekit
            overlays = ["overlay"]
            data = dict(data="data.npz", evaluation="eval.npz", overlays=overlays)
            made = edgekit.deploy("model.onnx", "quick", budget=edgekit.Budget(max_drop=0.01), out="bundle", **data)
            planned = edgekit.plan("model.onnx", "quick", **data)
            assert {c.name for c in planned.plan.layers} == {c.name for c in made.plan.layers}
            assert edgekit.predict("model.onnx", "quick", plan="bundle/plan.json", overlays=overlays).weight_bytes > 0
            assert edgekit.inspect("model.onnx", "quick", overlays=overlays).macs > 0
            assert edgekit.load("model.onnx").inputs[0].name == "x"
            assert set(edgekit.targets(overlays)) >= {"host", "quick"}
            assert edgekit.verify("bundle", overlays).vectors_run
            assert edgekit.report("bundle").chosen == made.chosen
            assert edgekit.bench("bundle", 0.1, overlays).latency_ms.n > 0
            try:
                edgekit.deploy("none.onnx", "quick", out="other", **data)
            except edgekit.EdgekitError as error:
                print(type(error).__name__, error.exit_code)
        """
        assert self.python(desk, script) == "InputError 2\n"
        assert bundle_files(desk.folder / "bundle") == bundle_files(deployed[0].folder / "bundle")

    def test_no_module_takes_a_function_s_place(self, desk: Desk) -> None:
        script = """if True:
            import importlib, pkgutil
            import edgekit
            for found in pkgutil.walk_packages(edgekit.__path__, "edgekit."):
                if not found.name.endswith("__main__"):
                    importlib.import_module(found.name)
            for name in edgekit.__all__:
                assert callable(getattr(edgekit, name)), name
        """
        self.python(desk, script)

    def test_a_star_import(self, desk: Desk) -> None:
        assert self.python(desk, "from edgekit import *; print(deploy.__name__, report.__name__)") == "deploy report\n"


def test_samples_to_judge_by_are_not_those_of_calibration(desk: Desk) -> None:
    from edgekit.job import prepare

    job = prepare(desk.folder / "model.onnx", "host", data=desk.folder / "data.npz")
    calibration, judged = ({one["x"].tobytes() for one in map(part.sample, range(len(part)))}
                           for part in (job.data.calibration, job.data.evaluation))  # fmt: skip
    assert len(calibration) + len(judged) == 24
    assert not calibration & judged
