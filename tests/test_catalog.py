"""The catalog: what ships is valid, overlays extend it, and every fault is told with its file and key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import catalog
from edgekit.errors import InputError
from edgekit.types import Precision

RECIPE = 'description = "d"\nreader = "npz"\n'


def overlay(root: Path, **files: str) -> Path:
    """Write files: the key is the path with __ for / and _toml left out, under ``calibration`` by default."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def refusal(call, *parts: str) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    told = f"{caught.value} | {caught.value.hint}"
    for part in parts:
        assert part in told, told
    assert "\n" not in told
    assert caught.value.hint
    return caught.value


def test_everything_that_ships_is_valid():
    assert set(catalog.recipes()) >= {"npz", "image-classification", "text-line", "audio-16k"}
    assert {*catalog.targets()["host"].precisions} == {*Precision} - {Precision.INT16X8, Precision.FP8, Precision.W4}
    assert catalog.device_profiles()["host"].channel_step == 16
    assert catalog.target("host").device_profile == "host"
    assert catalog.recipe("text-line").image is not None


def test_names_are_those_of_the_files():
    for name, entry in (catalog.recipes() | catalog.targets() | catalog.device_profiles()).items():
        assert entry.name == name


def test_digest_is_of_what_matters(tmp_path):
    root = overlay(
        tmp_path,
        calibration__a='extends = "text-line"\ndescription = "other words"\n',
        calibration__b='extends = "text-line"\n[image]\npad = 1.0\n',
    )
    base = catalog.recipe("text-line").digest
    assert catalog.recipe("a", [root]).digest == base
    assert catalog.recipe("b", [root]).digest != base


def test_overlay_by_argument_and_by_variable(tmp_path, monkeypatch):
    one = overlay(tmp_path / "one", calibration__mine=RECIPE)
    two = overlay(tmp_path / "two", targets__board__target='extends = "host"\nthreads = 4\n')
    assert "mine" not in catalog.recipes()
    assert catalog.recipe("mine", [one]).reader == "npz"
    monkeypatch.setenv(catalog.OVERLAY_VARIABLE, os.pathsep.join([str(one), "", str(two)]))
    assert catalog.recipe("mine").reader == "npz"
    assert catalog.target("board").threads == 4
    assert catalog.recipe("mine", [one, str(one)]).reader == "npz"  # the same folder three times is one folder


def test_extends_merges_block_by_block(tmp_path):
    root = overlay(
        tmp_path,
        calibration__small='extends = "image-classification"\nsamples = 8\n[image]\nfit = "stretch"\n',
        calibration__smaller='extends = "small"\nsamples = 4\n[image]\nmean = [0, 0, 0]\n',
    )
    base, recipe = catalog.recipe("image-classification"), catalog.recipe("smaller", [root])
    assert (recipe.samples, recipe.image.fit, recipe.image.mean) == (4, "stretch", (0.0, 0.0, 0.0))
    assert (recipe.image.std, recipe.metric) == (base.image.std, base.metric)


def test_duplicate_names_both_files(tmp_path):
    root = overlay(tmp_path, **{"calibration__npz": RECIPE})
    refusal(
        lambda: catalog.recipes([root]), str(root / "calibration/npz.toml"), "calibration/npz.toml", "defined twice"
    )


def test_circles_are_told(tmp_path):
    root = overlay(
        tmp_path, calibration__a='extends = "b"', calibration__b='extends = "a"', calibration__c='extends="c"'
    )
    refusal(lambda: catalog.recipe("a", [root]), "circle", "a -> b -> a")
    refusal(lambda: catalog.recipe("c", [root]), "circle", "c -> c")


def test_a_fault_of_the_base_is_told_as_its_own(tmp_path):
    root = overlay(tmp_path, calibration__base=RECIPE + "sample = 3", calibration__child='extends = "base"')
    refusal(lambda: catalog.recipe("child", [root]), str(root / "calibration/base.toml"), "sample: unknown key")


def test_a_broken_entry_does_not_hinder_others(tmp_path):
    root = overlay(tmp_path, calibration__good=RECIPE, calibration__bad="[[[")
    assert catalog.recipe("good", [root]).samples == 64
    refusal(lambda: catalog.recipes([root]), "bad.toml:1")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (RECIPE + "sampels = 3", ["sampels: unknown key", "did you mean 'samples'"]),
        (RECIPE + "zzz = 3", ["zzz: unknown key", "known keys: "]),
        (RECIPE + 'samples = "3"', ["samples: must be a whole number", "'3'"]),
        (RECIPE + "samples = true", ["samples: must be a whole number", "True"]),
        (RECIPE + "samples = 1.5", ["samples: must be a whole number"]),
        (RECIPE + "samples = 0", ["samples: must be at least 1"]),
        (RECIPE + "samples = []", ["samples: must be a whole number"]),
        (RECIPE + "percentile = nan", ["percentile: must be a number"]),
        (RECIPE + "percentile = 10", ["percentile: must lie in"]),
        (RECIPE + 'observer = "minmax"', ["observer: must be one of min-max", "did you mean 'min-max'"]),
        (RECIPE + "observer = 3", ["observer: must be one of min-max"]),
        (RECIPE + "metric = 3", ["metric: must be a text in quotes"]),
        (RECIPE + "extends = 3", ["extends: must be a name"]),
        (RECIPE + 'extends = "nzp"', ["extends: ", "did you mean 'npz'"]),
        (RECIPE + 'name = "other"', ["name: 'other'"]),
        (RECIPE + "image = 3", ["image: must be a block"]),
        (RECIPE + "[image]\nfit = 3", ["image"]),
        ('reader = "npz"', ["description: is missing"]),
        ('description = "d"\nreader = "image"', ["image: ", "needs a block [image]"]),
        (RECIPE + "[audio]\nrate_hz = 16000", ["audio: ", "does not go with"]),
        ('extends = "text-line"\n[image]\nmean = [0.5]', ["image.mean: must hold 3 numbers"]),
        ('extends = "text-line"\n[image]\nmean = [0.5, "x", 0.5]', ["image.mean: item 2 must be a number"]),
        ('extends = "text-line"\n[image]\nmean = "abc"', ["image.mean: must be a list"]),
        ('extends = "text-line"\n[image]\nstd = [0, 1, 1]', ["image.std: must be positive"]),
        ('extends = "text-line"\n[image]\nstdd = [0, 1, 1]', ["image.stdd: unknown key", "did you mean 'std'"]),
        ('extends = "text-line"\n[image]\nchannels = "RBG"', ["image.channels: must be one of RGB, BGR, GRAY"]),
        ('extends = "audio-16k"\n[audio]\nrate_hz = 1', ["audio.rate_hz: must lie in"]),
        ("a = 1\nb = \n", ["mine.toml:2: not valid TOML"]),
        ("a = 1\na = 2\n", ["mine.toml:2: not valid TOML"]),
        ("x = " + "[" * 5000, ["mine.toml"]),
    ],
)
def test_bad_recipes(tmp_path, text, parts):
    root = overlay(tmp_path, calibration__mine=text)
    refusal(lambda: catalog.recipe("mine", [root]), str(root / "calibration/mine.toml"), *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('precisions = ["int8"]', ['precisions: must hold "fp32"']),
        ('precisions = ["fp32", "fp32"]', ["precisions: holds fp32 twice"]),
        ('precisions = ["fp32", "int9"]', ["precisions: item 2 must be one of", "did you mean 'int8'"]),
        ('precisions = "fp32"', ["precisions: must be a list"]),
        ("threads = 0", ["threads: must be at least 1"]),
        ('backend = "opnvino"', ["backend: must be one of openvino"]),
        ('device_profile = "hots"', ["device_profile: ", "did you mean 'host'"]),
        ("[threads]\na=1", ["threads: must be a whole number"]),
    ],
)
def test_bad_targets(tmp_path, text, parts):
    root = overlay(tmp_path, targets__mine__target='extends = "host"\n' + text)
    place = str(root / "targets/mine/target.toml")
    refusal(lambda: catalog.target("mine", [root]), place, *parts)
    refusal(lambda: catalog.targets([root]), place, *parts)


@pytest.mark.parametrize(
    "text", ["channel_step = 0", "prediction_error = 0", "prediction_error = 1.0", "sources = [3]"]
)
def test_bad_profiles(tmp_path, text):
    root = overlay(tmp_path, device_profiles__mine='extends = "host"\n' + text)
    refusal(lambda: catalog.device_profile("mine", [root]), "mine.toml: " + text.split(" ")[0])


def test_unknown_names_list_what_there_is():
    refusal(lambda: catalog.recipe("textline"), "audio-16k", "did you mean 'text-line'")
    refusal(lambda: catalog.target("hsot"), "there are: host", "did you mean 'host'")
    refusal(lambda: catalog.device_profile("qqq"), "device_profiles/qqq.toml")
    refusal(lambda: catalog.recipe("../calibration/npz"), "there is no recipe")


def test_bad_overlays(tmp_path, monkeypatch):
    refusal(lambda: catalog.recipes([tmp_path / "none"]), "--overlay", "is not a folder")
    refusal(lambda: catalog.recipes([tmp_path]), "holds no targets")
    monkeypatch.setenv(catalog.OVERLAY_VARIABLE, str(tmp_path / "none"))
    refusal(catalog.recipes, "EDGEKIT_OVERLAY", "is not a folder")


def test_not_utf8_and_not_readable(tmp_path):
    root = overlay(tmp_path, calibration__mine=RECIPE)
    (root / "calibration/mine.toml").write_bytes(b'description = "\xff"')
    refusal(lambda: catalog.recipe("mine", [root]), "mine.toml", "UTF-8")


@given(st.text(max_size=200))
def test_no_text_is_a_traceback(tmp_path_factory, text):
    root = overlay(
        tmp_path_factory.mktemp("overlay"),
        calibration__mine=text.replace("\x00", "").encode("utf-8", "ignore").decode(),
    )
    with pytest.raises(InputError):
        catalog.recipe("mine", [root])


def test_the_wheel_s_data_is_found_too(tmp_path):
    """A package with ``_data`` inside, as in a wheel, and nothing beside it."""
    package = tmp_path / "site" / "edgekit"
    package.mkdir(parents=True)
    source = Path(catalog.__file__).parent
    for module in ("__init__", "catalog", "entries", "errors", "types"):
        (package / f"{module}.py").write_bytes((source / f"{module}.py").read_bytes())
    for tree in ("targets", "device_profiles", "calibration"):
        for path in (catalog.data_root() / tree).rglob("*.toml"):
            copy = package / "_data" / path.relative_to(catalog.data_root())
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    script = "from edgekit import catalog; print(catalog.data_root()); print(*catalog.recipes(), *catalog.targets())"
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    root, names = done.stdout.splitlines()
    assert root == str(package / "_data")
    assert {"npz", "text-line", "host"} <= set(names.split())
