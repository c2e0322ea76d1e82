"""Channel groups and pruned shapes: Torch-Pruning on a torch model, edgekit on the same model exported to ONNX.

    python -m benchmarks.peers.torch_pruning_groups --torch-python PATH [--json FILE] [NET ...]

PATH is the Python of an environment with benchmarks/requirements-torch-pruning.txt. Torch-Pruning (Fang et al.,
DepGraph, CVPR 2023) cuts every group of the torch model to half and exports what is left; edgekit cuts every group of
the unpruned export to half. Then the weights of each layer are compared by shape, and groups by the layers that make
their channels. Models have random weights: neither side looks at them for its groups.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NETS = (
    *("resnet18", "mobilenet_v2", "densenet", "shufflenet_v2", "resnext", "squeeze_excite"),
    *("transformer", "vit", "lstm"),
)


# -- in the environment with torch ------------------------------------------------------------------------------------


def _net(name: str) -> tuple[Any, Any, Any, dict[Any, int]]:
    """The model, an example input, the layer that makes its output, and the heads of its attention layers."""
    import torch
    from torch import nn

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):  # compiled for CUDA builds of torch only; torchvision wants them to be known
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models

    image = torch.randn(1, 3, 64, 64)
    heads: dict[Any, int] = {}
    if name == "lstm":

        class Tagger(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Linear(16, 32)
                self.lstm = nn.LSTM(32, 24)
                self.hidden = nn.Linear(24, 20)
                self.head = nn.Linear(20, 5)

            def forward(self, x: Any) -> Any:
                return self.head(torch.relu(self.hidden(self.lstm(self.embed(x))[0])))

        tagger = Tagger()
        return tagger, torch.randn(6, 1, 16), tagger.head, heads
    if name == "transformer":

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.query, self.key, self.value, self.out = (nn.Linear(64, 64) for _ in range(4))
                self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)
                self.norm, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)

            def forward(self, x: Any) -> Any:
                y = self.norm(x)
                q, k, v = (part(y).view(1, 16, 4, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
                weights = torch.softmax(q @ k.transpose(2, 3) * 0.25, dim=-1)
                x = x + self.out((weights @ v).transpose(1, 2).reshape(1, 16, -1))
                return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))

        encoder = nn.Sequential(nn.Linear(24, 64), Block(), Block(), nn.LayerNorm(64), nn.Linear(64, 10))
        heads = {part: 4 for block in encoder[1:3] for part in (block.query, block.key, block.value)}
        return encoder, torch.randn(1, 16, 24), encoder[-1], heads
    if name == "vit":
        vit = models.VisionTransformer(
            image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
        )
        heads = {module: 4 for module in vit.modules() if isinstance(module, nn.MultiheadAttention)}
        return vit, image, vit.heads.head, heads
    made: dict[str, Any] = {
        "resnet18": lambda: models.resnet18(num_classes=10),
        "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=10),
        "densenet": lambda: models.DenseNet(growth_rate=8, block_config=(3, 3), num_init_features=16, num_classes=10),
        "shufflenet_v2": lambda: models.shufflenet_v2_x0_5(num_classes=10),
        "resnext": lambda: models.ResNet(
            models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, groups=8, width_per_group=4
        ),
        "squeeze_excite": lambda: models.mobilenet_v3_small(num_classes=10),
    }
    net = made[name]()
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    return net, image, last, heads


def _prune(name: str, folder: Path) -> None:
    """Write ``float.onnx``, ``pruned.onnx`` and ``groups.json`` of one net."""
    import torch
    import torch_pruning as tp

    torch.manual_seed(0)
    net, example, last, heads = _net(name)
    net.eval()
    for tensor in net.state_dict().values():
        # a fresh net has equal biases and norms everywhere, which the exporter would write once: shared, so coupled
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(0.5 + torch.rand_like(tensor))
    names = {module: path for path, module in net.named_modules()}
    _export(net, example, folder / "float.onnx")
    pruner = tp.pruner.MagnitudePruner(
        net,
        example,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[last],
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        head_pruning_ratio=0.5,
    )
    groups = []
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear, torch.nn.LSTM, torch.nn.MultiheadAttention)
    for group in pruner.DG.get_all_groups(ignored_layers=[last], root_module_types=list(kinds)):
        makers = {
            names[dep.target.module]
            for dep, _ in group
            if isinstance(dep.target.module, kinds) and pruner.DG.is_out_channel_pruning_fn(dep.handler)
        }
        groups.append(sorted(makers))
    pruner.step()
    _export(net, example, folder / "pruned.onnx")
    (folder / "groups.json").write_text(json.dumps({"groups": groups}))


def _export(net: Any, example: Any, path: Path) -> None:
    import torch

    torch.onnx.export(net, (example,), str(path), opset_version=17, dynamo=False, input_names=["x"], output_names=["y"])


# -- in edgekit's environment -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One net. ``shapes`` are layers whose weights have the same shapes on both sides after pruning, of ``layers``;
    ``differences`` names the others: layer, shapes here, shapes there.
    """

    net: str
    layers: int
    shapes: int
    groups: int
    peer_groups: int
    same_groups: int
    differences: tuple[tuple[str, str, str], ...]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]
    failed: str = ""


def compare(name: str, folder: Path, failed: str = "") -> Row:
    """What both made of one net; of edgekit alone where the other failed and said why."""
    import numpy as np

    from edgekit.compress.prune import prune
    from edgekit.graph import load
    from edgekit.graph.channels import find_channels

    graph = load(folder / "float.onnx")
    channels = find_channels(graph)
    half = {group.name: np.arange(group.channels - group.channels // 2) for group in channels.groups}
    ours = _shapes(prune(graph, channels, half))
    if failed:
        return Row(name, len(ours), 0, len(channels.groups), 0, 0, (), (), (), failed)
    theirs = _shapes(load(folder / "pruned.onnx"))
    both = [layer for layer in ours if layer in theirs]
    differences = tuple((layer, ours[layer], theirs[layer]) for layer in both if ours[layer] != theirs[layer])
    known = {layer.name for layer in graph.layers if layer.weights}
    here = {frozenset(known.intersection(group.producers)) for group in channels.groups}
    groups = json.loads((folder / "groups.json").read_text())["groups"]
    there = {frozenset(layer for path in paths for layer in _layers_of(path, known)) for paths in groups}
    return Row(
        name,
        len(both),
        len(both) - len(differences),
        len(here),
        len(there),
        len(here & there),
        differences,
        tuple(sorted(" + ".join(sorted(group)) for group in here - there)),
        tuple(sorted(" + ".join(sorted(group)) for group in there - here)),
    )


def _shapes(graph: Any) -> dict[str, str]:
    from edgekit.graph.layers import shape_of

    values = graph.model.graph.initializers
    return {
        layer.name: " ".join("x".join(map(str, shape_of(values[weight]))) for weight in layer.weights)
        for layer in graph.layers
    }


def _layers_of(path: str, known: set[str]) -> list[str]:
    """The ONNX nodes of a torch module: its exporter writes /a/a.0/conv/Conv for the module a.0.conv."""
    scopes: list[str] = []
    for part in path.split("."):
        scopes.append(f"{scopes[-1]}.{part}" if part.isdigit() and scopes else part)
    return [name for name in known if name.startswith("/" + "/".join(scopes) + "/")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="NET", help=f"of {', '.join(NETS)}")
    parser.add_argument("--torch-python", type=Path, metavar="PATH")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where models go (default: a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        _prune(arguments.nets[0], arguments.worker)
        return 0
    unknown = [name for name in arguments.nets if name not in NETS]
    if unknown or arguments.torch_python is None:
        parser.error(f"no net {unknown[0]!r}: {', '.join(NETS)}" if unknown else "--torch-python is needed")
    with tempfile.TemporaryDirectory() as temporary:
        rows = [
            _row(name, (arguments.keep or Path(temporary)) / name, arguments.torch_python)
            for name in arguments.nets or NETS
        ]
    _print(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return 0


def _row(name: str, folder: Path, python: Path) -> Row:
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(Path(__file__).resolve()), name, "--worker", str(folder)]
    (folder / "float.onnx").unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not (folder / "float.onnx").exists():
        raise RuntimeError(f"{name}: {done.stderr.strip()[-400:]}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return compare(name, folder, failed=f"Torch-Pruning fails: {last[:300]}")
    return compare(name, folder)


def _print(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    made = Table(title="Every group cut to half", title_justify="left", box=box.MARKDOWN)
    for column in ("net", "layers", "same shapes", "groups here", "groups there", "same groups"):
        made.add_column(column, justify="left" if column == "net" else "right")
    for row in rows:
        theirs = ("-", "fails", "-") if row.failed else (str(row.shapes), str(row.peer_groups), str(row.same_groups))
        made.add_row(row.net, str(row.layers), theirs[0], str(row.groups), *theirs[1:])
    console.print(made)
    for row in rows:
        for layer, here, there in row.differences:
            console.print(f"{row.net}: {layer}: {here} here, {there} there", markup=False, highlight=False)
        for where, groups in (("here", row.only_here), ("there", row.only_there)):
            for group in groups:
                console.print(f"{row.net}: only {where}: {group}", markup=False, highlight=False)
        if row.failed:
            console.print(f"{row.net}: {row.failed}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
