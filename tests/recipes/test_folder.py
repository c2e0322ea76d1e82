"""Samples from folders of pictures and wav files, against independent arithmetic, and what is refused."""

from __future__ import annotations

import os
import struct
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from edgekit import catalog
from edgekit.errors import InputError
from edgekit.graph import Tensor
from edgekit.recipes.metrics import metric
from edgekit.recipes.samples import open_dataset, preprocess_contract

CLASSES = catalog.recipe("image-classification")
TEXT = catalog.recipe("text-line")
AUDIO = catalog.recipe("audio-16k")
NCHW = (Tensor("image", (1, 3, 32, 48), "float32"),)
NHWC = (Tensor("image", (1, 32, 48, 3), "float32"),)
LINE = (Tensor("x", (1, 3, 48, 320), "float32"),)
VAD = (Tensor("input", (10, 576), "float32"), Tensor("h", (1, 1, 8), "float32"))


def draw(path: Path, width=64, height=40, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return pixels


def tone(path: Path, seconds=1.0, rate=16000, dtype=np.int16, channels=1, hz=440):
    scale = {np.int16: 32767, np.int32: 2**31 - 1, np.uint8: 127, np.float32: 1.0}[dtype]
    values = np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate) * scale * 0.5
    values = (values + (128 if dtype is np.uint8 else 0)).astype(dtype)
    wavfile.write(path, rate, np.stack([values] * channels, axis=1) if channels > 1 else values)
    return path


def refusal(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    told = f"{caught.value} | {caught.value.hint}"
    for part in parts:
        assert part in told, told
    assert "\n" not in told
    assert caught.value.hint


def test_crop_is_resize_shorter_side_and_cut_the_centre(tmp_path):
    """Against Pillow's own two steps on sizes where both are exact."""
    draw(tmp_path / "a.png", 128, 64)
    inputs = (Tensor("image", (1, 3, 28, 28), "float32"),)  # 64 -> 32 = 28 / 0.875
    ours = open_dataset(tmp_path, CLASSES, inputs).sample(0)["image"]
    resized = Image.open(tmp_path / "a.png").resize((64, 32), Image.Resampling.BILINEAR).crop((18, 2, 46, 30))
    expected = (np.asarray(resized) / 255 - CLASSES.image.mean) / CLASSES.image.std
    # The box is resized alone, so pixels on its edge do not see what is outside of it.
    inner = np.s_[1:-1, 1:-1]
    np.testing.assert_allclose(ours[0].transpose(1, 2, 0)[inner], expected[inner], atol=1e-5)


def test_layout_follows_the_model(tmp_path):
    draw(tmp_path / "a.png")
    nchw = open_dataset(tmp_path, CLASSES, NCHW).sample(0)["image"]
    nhwc = open_dataset(tmp_path, CLASSES, NHWC).sample(0)["image"]
    assert (nchw.shape, nhwc.shape) == ((1, 3, 32, 48), (1, 32, 48, 3))
    np.testing.assert_array_equal(nchw, nhwc.transpose(0, 3, 1, 2))
    assert nchw.flags.c_contiguous
    assert [preprocess_contract(CLASSES, i)["steps"][-1]["layout"] for i in (NCHW, NHWC)] == ["NCHW", "NHWC"]


def test_text_line_is_pp_ocr_s(tmp_path):
    """Height of the model, BGR, (x/255-0.5)/0.5, zeros on the right; wide lines are squeezed."""
    pixels = draw(tmp_path / "a.png", 100, 48)
    draw(tmp_path / "b.png", 1000, 48)
    dataset = open_dataset(tmp_path, TEXT, LINE)
    sample = dataset.sample(0)["x"]
    np.testing.assert_allclose(sample[0, :, :, :100], pixels[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert (sample[0, :, :, 100:] == 0).all()
    assert (dataset.sample(1)["x"][..., -1] != 0).any()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_modes_of_pictures(tmp_path, mode):
    draw(tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}", mode=mode)
    assert open_dataset(tmp_path, CLASSES, NCHW).sample(0)["image"].shape == (1, 3, 32, 48)


def test_gray_recipes(tmp_path):
    overlay = tmp_path / "o" / "calibration"
    overlay.mkdir(parents=True)
    (overlay / "digits.toml").write_text(
        'extends = "image-classification"\n[image]\nfit = "stretch"\nchannels = "GRAY"\nmean = [0]\nstd = [1]\n'
    )
    draw(tmp_path / "d" / "a.png", 28, 28)
    recipe = catalog.recipe("digits", [tmp_path / "o"])
    sample = open_dataset(tmp_path / "d", recipe, (Tensor("x", (1, 1, 28, 28), "float32"),)).sample(0)["x"]
    np.testing.assert_allclose(
        sample[0, 0], np.asarray(Image.open(tmp_path / "d" / "a.png").convert("L")) / 255, atol=1e-6
    )
    refusal(lambda: open_dataset(tmp_path / "d", recipe, NCHW), "'image'", "(1, 3, 32, 48)", "no single GRAY picture")


def test_labels_csv(tmp_path):
    for name in ("b.png", "a.png", "sub/c,1.png"):
        draw(tmp_path / name)
    (tmp_path / "labels.csv").write_text('file,text\nb.png,"1,024"\na.png,"say ""hi"""\n\n"sub/c,1.png", é \n', "utf-8")
    dataset = open_dataset(tmp_path, TEXT, LINE)
    assert dataset.files == ("b.png", "a.png", "sub/c,1.png")
    assert dataset.labels == ("1,024", 'say "hi"', " é ")
    (tmp_path / "labels.csv").write_bytes("\ufeffb.png,1\r\na.png,2\r\nsub/c,1.png\r\n".encode())
    refusal(lambda: open_dataset(tmp_path, CLASSES, NCHW), "labels.csv:3", "no file")
    (tmp_path / "labels.csv").write_bytes("\ufeffb.png,1\r\na.png,2\r\n".encode())
    assert open_dataset(tmp_path, CLASSES, NCHW).labels == (1, 2)


def test_labels_txt(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / name)
    (tmp_path / "labels.txt").write_text('a.png\tx, "y"\nb.png,z, w\r\n\nc.png\t\n', "utf-8")
    assert open_dataset(tmp_path, TEXT, LINE).labels == ('x, "y"', "z, w", "")


def test_lazy_and_digest(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png", seed=1)
    dataset = open_dataset(tmp_path, CLASSES, NCHW)
    digest = dataset.digest
    assert dataset.labels is None
    assert open_dataset(tmp_path, CLASSES, NCHW).digest == digest
    assert open_dataset(tmp_path, CLASSES, NHWC).digest != digest
    draw(tmp_path / "b.png", seed=2)
    assert open_dataset(tmp_path, CLASSES, NCHW).digest != digest
    (tmp_path / "b.png").write_bytes(b"broken")
    dataset = open_dataset(tmp_path, CLASSES, NCHW)  # nothing is read yet
    dataset.sample(0)
    refusal(lambda: dataset.sample(1), "b.png", "cannot be read as a picture")
    (tmp_path / "b.png").unlink()
    refusal(lambda: dataset.sample(1), "b.png", "No such file")
    refusal(lambda: open_dataset(tmp_path, CLASSES, NCHW) and dataset.digest, "b.png", "No such file")


def test_symlinks_are_files(tmp_path):
    draw(tmp_path / "real" / "a.png")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "d" / "broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d" / "loop.png").symlink_to(tmp_path / "d" / "loop.png")
    dataset = open_dataset(tmp_path / "d", CLASSES, NCHW)
    assert dataset.files == ("link.png",)
    dataset.sample(0)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["holds no rows"]),
        ("file,label\n", ["holds no rows"]),
        ("a.png,1\nb.png,2\nz.png,3\n", ["labels.csv:3", "no file 'z.png'"]),
        ("a.png,1\nb.pgn,2\n", ["labels.csv:2", "did you mean 'b.png'"]),
        ("a.png,1\n", ["1 of 2 files have no row", "'b.png'"]),
        ("a.png,1\na.png,2\n", ["labels.csv:2", "listed twice"]),
        ("a.png,cat\nb.png,2\n", ["labels.csv:1", "'cat' is not an integer"]),
        ("a.png,1.5\nb.png,2\n", ["labels.csv:1", "'1.5' is not an integer"]),
        ("a.png\n", ["labels.csv:1", "1 columns"]),
        ("a.png,1,2\n", ["labels.csv:1", "3 columns", "quotes"]),
        ('a.png,"1\n', ["labels.csv:", "not valid CSV"]),
        ("../a.png,1\n", ["labels.csv:1", "not the path of a file in this folder"]),
        ("/etc/passwd,1\n", ["labels.csv:1", "not the path of a file in this folder"]),
        (",1\n", ["labels.csv:1"]),
        ("a\0.png,1\n", ["labels.csv:1"]),
        ("a" * 5000 + ".png,1\n", ["labels.csv:1"]),
        ("a" * 200_000 + ".png,1\n", ["labels.csv:1", "not valid CSV"]),
        (b"\xff\xfea", ["labels.csv", "not UTF-8 at byte 0"]),
    ],
)
def test_bad_label_files(tmp_path, content, parts):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    (tmp_path / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(lambda: open_dataset(tmp_path, CLASSES, NCHW), *parts)


@pytest.mark.parametrize("path", ["a" * 5000, "~nobody-of-this-name/d", "a\0b", ""])
def test_paths_that_cannot_be(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    refusal(lambda: open_dataset(path, CLASSES, NCHW), "no such file" if path else "no files")
    refusal(lambda: catalog.recipes([path]) and metric(f"{path}:f"), "is not a folder" if path else "holds no targets")
    refusal(lambda: metric(f"{path}:f"), "there is no file" if path else "names no function")


def test_two_label_files(tmp_path):
    draw(tmp_path / "a.png")
    for name in ("labels.csv", "labels.txt"):
        (tmp_path / name).write_text("a.png,1")
    refusal(lambda: open_dataset(tmp_path, CLASSES, NCHW), "both labels.csv and labels.txt")


def test_labels_that_the_model_cannot_spell(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("a.png,ab c")
    assert open_dataset(tmp_path, TEXT, LINE, {"character": "a\nb\nc"}).labels == ("ab c",)
    assert open_dataset(tmp_path, TEXT, LINE, {}).labels == ("ab c",)
    refusal(lambda: open_dataset(tmp_path, TEXT, LINE, {"character": "A\nB\nC"}), "'ab c' has 'a'", "alphabet")


def test_folders_that_hold_nothing(tmp_path):
    refusal(lambda: open_dataset(tmp_path, CLASSES, NCHW), "no files that recipe 'image-classification' reads")
    draw(tmp_path / "calib" / "a.png")
    refusal(lambda: open_dataset(tmp_path, CLASSES, NCHW), "pass one of its folders: calib")
    refusal(lambda: open_dataset(tmp_path / "calib", AUDIO, VAD), "no files that recipe 'audio-16k' reads (.wav)")
    refusal(lambda: open_dataset(tmp_path, catalog.recipe("npz"), NCHW), "reads no folders", "--recipe")
    refusal(lambda: open_dataset(tmp_path / "none", CLASSES, NCHW), "no such file or folder")
    refusal(lambda: open_dataset(tmp_path / "calib" / "a.png", CLASSES, NCHW), "not an .npz")


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        ((Tensor("x", (1, 10), "float32"),), ["'x' has shape (1, 10)"]),
        ((Tensor("x", (8, 3, 32, 32), "float32"),), ["'x' has shape (8, 3, 32, 32)"]),
        ((Tensor("x", (1, 3, 32, 32), "uint8"),), ["makes float samples", "uint8"]),
        ((*NCHW, Tensor("state", (1, 8), "float32")), ["fills one input, but the model has 2: image, state"]),
    ],
)
def test_models_that_do_not_suit_pictures(tmp_path, inputs, parts):
    draw(tmp_path / "a.png")
    refusal(lambda: open_dataset(tmp_path, CLASSES, inputs), *parts)


def png_header(width, height):
    """A PNG that claims a size and carries nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def test_pictures_that_are_refused(tmp_path):
    whole = tmp_path / "whole.png"
    draw(whole, 300, 300)
    files = {
        "bomb": png_header(100_000, 100_000),
        "large": png_header(10_000, 10_000),
        "claims": png_header(64, 64),
        "cut": whole.read_bytes()[:2000],
        "empty": b"",
        "text": b"hello",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nquit\n",
    }
    whole.unlink()
    for name, content in files.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    dataset = open_dataset(tmp_path, CLASSES, NCHW)
    for i, name in enumerate(dataset.files):
        part = {"bomb.png": "too many pixels", "large.png": "too many pixels", "deep.png": "not 8 bits"}.get(
            name, "cannot be"
        )
        refusal(lambda i=i: dataset.sample(i), name, part)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    refusal(lambda: open_dataset(tmp_path, CLASSES, NCHW).sample(0), "a.png", "Permission denied")


def test_extreme_aspect_costs_no_memory(tmp_path):
    Image.new("RGB", (30_000, 1)).save(tmp_path / "thin.png")
    assert open_dataset(tmp_path, CLASSES, NCHW).sample(0)["image"].shape == (1, 3, 32, 48)
    assert open_dataset(tmp_path, TEXT, LINE).sample(0)["x"].shape == (1, 3, 48, 320)


def test_windows_are_silero_s(tmp_path):
    """64 samples of the window before and 512 new ones, zeros before the beginning; state inputs are zero."""
    tone(tmp_path / "a.wav", 2.0)
    sample = open_dataset(tmp_path, AUDIO, VAD).sample(0)
    _, pcm = wavfile.read(tmp_path / "a.wav")
    padded = np.concatenate([np.zeros(64), pcm / 32768]).astype(np.float32)
    expected = np.stack([padded[512 * t : 512 * t + 576] for t in range(10)])
    np.testing.assert_array_equal(sample["input"], expected)
    assert sample["h"].shape == (1, 1, 8)
    assert not sample["h"].any()


@pytest.mark.parametrize("shape", [(1, 4000), (4000,), (1, 1, 4000)])
def test_a_single_window_is_the_beginning(tmp_path, shape):
    tone(tmp_path / "a.wav")
    sample = open_dataset(tmp_path, AUDIO, (Tensor("x", shape, "float32"),)).sample(0)["x"]
    assert sample.shape == shape
    np.testing.assert_array_equal(sample.reshape(-1), (wavfile.read(tmp_path / "a.wav")[1][:4000] / 32768).astype("f4"))


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float32])
def test_any_rate_and_width_sound_the_same(tmp_path, rate, dtype):
    tone(tmp_path / "a.wav", 1.0, rate, dtype, channels=2)
    sample = open_dataset(tmp_path, AUDIO, (Tensor("x", (1, 8000), "float32"),)).sample(0)["x"][0]
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    np.testing.assert_allclose(sample[200:], expected[200:], atol=0.02 if dtype is np.uint8 else 0.005)


def test_short_sounds_are_filled_with_silence(tmp_path):
    tone(tmp_path / "a.wav", 0.1)
    sample = open_dataset(tmp_path, AUDIO, VAD).sample(0)["input"]
    assert sample[:3].any()
    assert not sample[4:].any()


def test_24_bit(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 3, 16000, 0, "NONE", ""))
        file.writeframes(b"".join((v).to_bytes(3, "little", signed=True) for v in (2**22, -(2**23), 0)))
    sample = open_dataset(tmp_path, AUDIO, (Tensor("x", (1, 3), "float32"),)).sample(0)["x"]
    assert sample.tolist() == [[0.5, -1.0, 0.0]]


def test_sounds_that_are_refused(tmp_path):
    whole = tone(tmp_path / "whole.wav", 0.1).read_bytes()
    (tmp_path / "whole.wav").unlink()
    nan = np.full(100, np.nan, np.float32)
    wavfile.write(tmp_path / "nan.wav", 16000, nan)
    wavfile.write(tmp_path / "none.wav", 16000, nan[:0])
    files = {
        "empty": b"",
        "text": b"hello there, this is no sound at all",
        "head": whole[:30],
        "slow": whole[:24] + struct.pack("<II", 1, 2) + whole[32:],
        "wide": whole[:34] + struct.pack("<H", 65) + whole[36:],
        "cut": whole[:1000],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    dataset = open_dataset(tmp_path, AUDIO, VAD)
    parts = {"nan.wav": "NaN", "none.wav": "no sound", "slow.wav": "1 Hz"}
    for i, name in enumerate(dataset.files):
        refusal(lambda i=i: dataset.sample(i), name, parts.get(name, "cannot be read as a wav file"))


@pytest.mark.parametrize("shape", [(), (1, 40, 101), (2, 3, 100), (10, 64)])
def test_models_that_do_not_suit_sound(tmp_path, shape):
    tone(tmp_path / "a.wav")
    refusal(lambda: open_dataset(tmp_path, AUDIO, (Tensor("x", shape, "float32"),)), "'x'")
