"""Silero VAD, sequence variant (convolutions and a recurrent state), on speech in noise; metric: AUC."""

from __future__ import annotations

import csv
import shutil
import wave
from pathlib import Path

import numpy as np

from benchmarks.zoo import ZooEntry, sources, stamp, stamped
from examples.packages import extract, unpack

MODEL = "silero_vad_16k_sequence.onnx"
RATE_HZ = 16000
FRAMES = 64
SAMPLES = FRAMES * 512
SNR_DB = (-10, -5, 0, 5)
SPEECH = "usr/share/asterisk/sounds/en_US_f_Allison"


def prepare(out: Path) -> ZooEntry:
    """64 clips of 2.05 s to calibrate, 240 to score, half of them noise alone; no recording is in both."""
    entry = ZooEntry(
        "silero-vad",
        out / MODEL,
        out / "calib",
        out / "eval",
        "audio-16k",
        "auc",
        {"input": (FRAMES, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
    )
    if stamped(out, __file__):
        return entry
    extract(sources.SILERO, {f"silero_vad/data/{MODEL}": MODEL}, out)
    recordings = unpack(sources.ASTERISK, SPEECH, out / "speech")
    clips = [clip for path in sorted(recordings.glob("*.wav")) if (clip := _speech(path)) is not None]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(clips))
    for name, count, chosen in (("calib", 64, order[0::3]), ("eval", 240, np.concatenate([order[1::3], order[2::3]]))):
        _write_clips(out / name, [clips[i] for i in chosen], count, rng)
    shutil.rmtree(recordings)
    stamp(out, __file__)
    return entry


def _speech(path: Path) -> np.ndarray | None:
    """The loudest 2.05 s of a recording at 16 kHz, or None for one that is short or a mere tone."""
    from scipy.signal import resample_poly

    with wave.open(str(path)) as stream:
        rate = stream.getframerate()
        raw = np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.float64) / 32768
    sound: np.ndarray = resample_poly(raw, RATE_HZ, rate)
    if len(sound) < SAMPLES or "tone" in path.stem or "beep" in path.stem or "music" in path.stem:
        return None
    energy = np.concatenate([[0], np.cumsum(sound**2)])
    start = int(np.argmax(energy[SAMPLES:] - energy[:-SAMPLES]))
    return sound[start : start + SAMPLES]


def _write_clips(folder: Path, speech: list[np.ndarray], count: int, rng: np.random.Generator) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", "label"])
        for index in range(count):
            label = index % 2
            clip = _noise(rng)
            if label:
                voice = speech[index // 2 % len(speech)]
                snr_db = SNR_DB[index // 2 % len(SNR_DB)]
                clip = clip + voice * np.sqrt(np.mean(clip**2) / np.mean(voice**2)) * 10 ** (snr_db / 20)
            clip *= rng.uniform(0.05, 0.9) / np.abs(clip).max()
            file = f"{index:04d}.wav"
            with wave.open(str(folder / file), "wb") as sound:
                sound.setnchannels(1)
                sound.setsampwidth(2)
                sound.setframerate(RATE_HZ)
                sound.writeframes((clip * 32767).astype("<i2").tobytes())
            table.writerow([file, label])


def _noise(rng: np.random.Generator) -> np.ndarray:
    """Coloured noise (1/f^0 to 1/f^2 in power), beating slowly, with hum or clicks: easily taken for speech."""
    spectrum = np.fft.rfft(rng.normal(size=SAMPLES))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (rng.uniform(0, 2) / 2)
    spectrum[: SAMPLES * 60 // RATE_HZ] = 0
    noise = np.fft.irfft(spectrum, SAMPLES)
    noise /= noise.std()
    seconds = np.arange(SAMPLES) / RATE_HZ
    noise *= 1 + rng.uniform(0, 0.9) * np.sin(2 * np.pi * (rng.uniform(0.3, 6) * seconds + rng.uniform()))
    if rng.random() < 0.4:
        base = rng.uniform(80, 300)
        noise += rng.uniform(0.3, 1) * sum(np.sin(2 * np.pi * base * k * seconds) / k for k in range(1, 8))
    if rng.random() < 0.3:
        for at in rng.integers(0, SAMPLES - 400, int(rng.integers(3, 20))):
            noise[at : at + 400] += rng.normal(size=400) * np.exp(-np.arange(400) / 60) * 6
    return noise
