"""Train a net of the zoo on one core from a fixed seed, and write what it leaves: ONNX, weights, torch source."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.zoo import ZooEntry, stamp, stamped

if TYPE_CHECKING:
    import torch

NETS = Path(__file__).resolve().parent / "nets"

Draw = Callable[[np.random.Generator, int, float], tuple[np.ndarray, np.ndarray]]
"""Makes so many fresh training samples, float32 inputs and integer labels, at a progress of the training of 0 to 1."""


@dataclass(frozen=True)
class Schedule:
    """Steps of ``batch`` samples at each size; ``phases`` holds (steps, the divisor of the picture's sides)."""

    batch: int
    phases: tuple[tuple[int, int], ...]
    peak_rate: float
    seed: int = 0


@dataclass(frozen=True)
class Samples:
    """The sets that edgekit calibrates and scores with: float32 inputs and integer labels of each."""

    calibration: tuple[np.ndarray, np.ndarray]
    evaluation: tuple[np.ndarray, np.ndarray]


def trained_entry(
    name: str,
    out: Path,
    schedule: Schedule,
    make: Callable[[], tuple[Draw, Samples]],
    *sources: str,
    start: Callable[[torch.nn.Module], None] | None = None,
) -> ZooEntry:
    """The entry ``name`` under ``out``: trained on what ``make`` draws, unless these very source files did it before.

    ``start`` puts weights into the net to begin with; without it they are drawn from the schedule's seed.
    """
    entry = ZooEntry(name, out / f"{name}.onnx", out / "calib.npz", out / "eval.npz", None, "top-1", {})
    net_source = NETS / f"{name.replace('-', '_')}.py"
    sources = (__file__, str(net_source), *sources)
    if stamped(out, *sources):
        return entry
    # Before the samples: a missing torch shows at once.
    network = importlib.import_module(f"benchmarks.zoo.nets.{net_source.stem}").network
    draw, samples = make()
    net = seeded(network, schedule.seed)
    if start is not None:
        start(net)
    fit(net, draw, schedule)
    for path, (inputs, labels) in ((entry.data, samples.calibration), (out / "eval.npz", samples.evaluation)):
        np.savez(path, x=inputs, labels=labels)
    write(net, net_source, samples.calibration[0].shape[1:], entry.model)
    stamp(out, *sources)
    return entry


def seeded(network: Callable[[], torch.nn.Module], seed: int) -> torch.nn.Module:
    """A net with torch's own initial weights out of ``seed``."""
    import torch

    torch.manual_seed(seed)
    return network()


def fit(net: torch.nn.Module, draw: Draw, schedule: Schedule) -> None:
    """Train ``net`` with AdamW and one rise and fall of the rate (Smith and Topin 2018); leaves it in evaluation mode.

    Pictures are small at first, where a step costs a fraction, and of full size in the end (Howard et al. 2018).
    """
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng([schedule.seed, 1])
    steps = [divisor for count, divisor in schedule.phases for _ in range(count)]
    optimiser = torch.optim.AdamW(net.parameters(), schedule.peak_rate, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.peak_rate, total_steps=len(steps), pct_start=0.2)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    pictures = any(isinstance(layer, torch.nn.Conv2d) for layer in net.modules())
    if pictures:
        net.to(memory_format=torch.channels_last)  # the layout that torch computes in on a CPU
    net.train()
    for step, divisor in enumerate(steps):
        inputs, labels = (torch.from_numpy(array) for array in draw(rng, schedule.batch, step / len(steps)))
        if pictures:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        if divisor > 1:
            inputs = torch.nn.functional.avg_pool2d(inputs, divisor)
        optimiser.zero_grad()
        loss_of(net(inputs), labels).backward()
        optimiser.step()
        rate.step()
    net.eval()


def write(net: torch.nn.Module, source: Path, shape: tuple[int, ...], model: Path) -> None:
    """Write ``model`` (opset 17, one sample of ``shape``) and beside it weights.safetensors and torch_model.py."""
    import torch
    from safetensors.torch import save_file

    folder = model.parent
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(weights, folder / "weights.safetensors.partial")
    (folder / "weights.safetensors.partial").replace(folder / "weights.safetensors")
    shutil.copyfile(source, folder / "torch_model.py")
    partial = model.with_suffix(".partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes on what it leaves unfolded
        torch.onnx.export(
            net,
            (torch.zeros(1, *shape),),
            str(partial),
            opset_version=17,
            dynamo=False,
            input_names=["x"],
            output_names=["logits"],
            # BatchNormalization stays a node of its own, as in a model fresh from training.
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    partial.replace(model)
