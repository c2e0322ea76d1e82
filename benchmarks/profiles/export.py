"""Exports the public models that the published latencies measure, with random weights, as ONNX.

    python benchmarks/profiles/export.py FOLDER [NAME ...]

Needs `benchmarks/requirements-profiles.txt` and nothing of edgekit. A file is `<model>@<shape>.onnx`, with the
names of `latencies.csv`; what exists is left alone. Models of ncnn's own benchmark are not here: `ncnn_graphs.py` reads
the graphs that were measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

Maker = Callable[[], nn.Module]


def _vision(name: str, **given: object) -> Maker:
    def make() -> nn.Module:
        import torchvision

        if name in ("googlenet", "inception_v3"):
            given.update(aux_logits=name == "inception_v3", init_weights=False)
        return torchvision.models.get_model(name, weights=None, **given)

    return make


def _timm(name: str) -> Maker:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)

    return make


def _yolo(name: str) -> Maker:
    def make() -> nn.Module:
        from ultralytics import YOLO

        model = YOLO(f"{name}.yaml").model
        for part in model.modules():
            if hasattr(part, "export"):
                part.export, part.format = True, "onnx"
        return model.fuse()

    return make


def _bert() -> nn.Module:
    """Sizes of bert-base-cased (the defaults of transformers' BertConfig, but for the vocabulary)."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(vocab_size=28996, attn_implementation="eager"), add_pooling_layer=True)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            # A mask that is all ones folds away, as after every deployment tool.
            mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
            hidden = self.model.embeddings(input_ids=ids)
            for layer in self.model.encoder.layer:
                out = layer(hidden, mask)
                hidden = out[0] if isinstance(out, tuple) else out
            return self.model.pooler(hidden)

    return Encoder()


class MobileNetV1(nn.Module):
    """Table 1 of "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications"."""

    STEPS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))

    def __init__(self, width: float) -> None:
        super().__init__()
        before = max(8, int(32 * width))
        parts: list[nn.Module] = [nn.Conv2d(3, before, 3, 2, 1), nn.ReLU6()]
        for channels, stride in self.STEPS:
            after = max(8, int(channels * width))
            parts += [nn.Conv2d(before, before, 3, stride, 1, groups=before), nn.ReLU6()]
            parts += [nn.Conv2d(before, after, 1), nn.ReLU6()]
            before = after
        self.body = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1001))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class YoloV3Tiny(nn.Module):
    """yolov3-tiny.cfg of Darknet."""

    def __init__(self) -> None:
        super().__init__()

        def conv(i: int, o: int, k: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(i, o, k, 1, k // 2), nn.LeakyReLU(0.1))

        trunk: list[nn.Module] = []
        before = 3
        for channels in (16, 32, 64, 128):
            trunk += [conv(before, channels, 3), nn.MaxPool2d(2)]
            before = channels
        self.trunk = nn.Sequential(*trunk, conv(128, 256, 3))
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), conv(256, 512, 3), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1), conv(512, 1024, 3)
        )
        self.neck = conv(1024, 256, 1)
        self.coarse = nn.Sequential(conv(256, 512, 3), nn.Conv2d(512, 255, 1))
        self.lift = nn.Sequential(conv(256, 128, 1), nn.Upsample(scale_factor=2))
        self.fine = nn.Sequential(conv(384, 256, 3), nn.Conv2d(256, 255, 1))
        for weights in self.parameters():
            weights.data.mul_(0.5)  # or the outputs grow so large that rounding alone tells two runtimes apart

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        early = self.trunk(x)
        neck = self.neck(self.deep(early))
        return self.coarse(neck), self.fine(torch.cat([self.lift(neck), early], 1))


def makers() -> dict[str, Maker]:
    """`<model>@<shape>` -> what builds it. Shapes are NCHW here, whatever the runtime measured in."""
    made: dict[str, Maker] = {}
    for width in (0.25, 0.5, 0.75, 1.0):
        for size in (128, 160, 192, 224):
            made[f"MobileNet-v1 {width}@1x3x{size}x{size}"] = lambda width=width: MobileNetV1(width)
    for width in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
        for size in (96, 128, 160, 192, 224) if width < 1.3 else (224,):
            made[f"MobileNet-v2 {width}@1x3x{size}x{size}"] = _vision("mobilenet_v2", width_mult=width)
    for name in ("alexnet", "squeezenet1_0", "squeezenet1_1", "vgg11", "vgg13", "vgg16", "vgg19"):
        made[f"{name}@1x3x224x224"] = _vision(name)
    for depth in (18, 34, 50, 101, 152):
        made[f"resnet{depth}@1x3x224x224"] = _vision(f"resnet{depth}")
    for depth in (18, 34):
        made[f"resnet{depth}@1x3x256x256"] = _vision(f"resnet{depth}")
    made["squeezenet1_1@1x3x227x227"] = _vision("squeezenet1_1")
    made["shufflenet_v2@1x3x224x224"] = _vision("shufflenet_v2_x1_0")
    for code in ("002", "004", "006", "008"):
        made[f"regnety_{code}@1x3x224x224"] = _timm(f"regnety_{code}")
    made["googlenet@1x3x224x224"] = _vision("googlenet")
    made["inception_v3@1x3x299x299"] = _vision("inception_v3")
    made["inception_v4@1x3x299x299"] = _timm("inception_v4")
    for size in (224, 256, 288):
        made[f"efficientvit_b1@1x3x{size}x{size}"] = _timm("efficientvit_b1")
        made[f"efficientvit_b2@1x3x{size}x{size}"] = _timm("efficientvit_b2")
    for name, sizes in (("yolov8n", (320, 512)), ("yolov8s", (320, 512))):
        for size in sizes:
            made[f"{name}@1x3x{size}x{size}"] = _yolo(name)
    for name in ("yolo11n", "yolo11m", "yolo11x", "yolo26n", "yolo26m", "yolo26x"):
        made[f"{name}@1x3x640x640"] = _yolo(name)
    made["yolov3_tiny@1x3x416x416"] = YoloV3Tiny
    made["bert_base@1x128"] = _bert
    return made


def main() -> None:
    known = makers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(known))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in given.names:
        path = given.folder / f"{name}.onnx"
        if path.exists():
            continue
        shape = tuple(int(d) for d in name.rsplit("@", 1)[1].split("x"))
        x = torch.zeros(shape, dtype=torch.long) if len(shape) == 2 else torch.randn(shape)
        part = path.with_suffix(".part")
        with torch.no_grad():
            torch.onnx.export(known[name]().eval(), (x,), str(part), opset_version=17, dynamo=False)
        part.rename(path)
        print(path, flush=True)


if __name__ == "__main__":
    main()
