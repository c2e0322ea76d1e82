"""Model Compression Toolkit: its mixed-precision search on a torch model, as Q/DQ that runtimes execute in int8.

    python -I mct_search.py TORCH_MODEL.py SAMPLES.npz OUT.onnx

TORCH_MODEL.py has ``module() -> torch.nn.Module``. The search may spend 75 % of the bytes that
8-bit weights take, with 2, 4 or 8 bits a layer. MCT exports weights as floats on their grid, which runtimes would
compute in float: here each gets its integers and scales back, without loss, so that its layers run in int8. It runs in
an environment of its own (benchmarks/requirements-peers-mct.txt) and imports nothing of edgekit.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHARE = 0.75
RANKING_SAMPLES = 32
_KEPT: list[Any] = []  # a library's definitions end with it


def command(torch_model: Path, samples: Path, out: Path, python: Path) -> list[str]:
    """The process to run."""
    return [str(python), "-I", __file__, str(torch_model), str(samples), str(out)]


def load(path: Path) -> Any:
    """The torch model."""
    spec = importlib.util.spec_from_file_location("torch_model", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: is not a Python file")
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    return source.module().eval()


def codes(weight: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The int8 values [channels, ...] that give ``weight`` when multiplied with ``scales`` [channels]. Raises
    ValueError where it is not on that grid.
    """
    spread = scales.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
    exact = weight / spread
    found = np.round(exact)
    if np.abs(exact - found).max() > 1e-3 or np.abs(found).max() > 128:
        raise ValueError("the weights are not on MCT's grid")
    return np.clip(found, -128, 127).astype(np.int8)


def as_integers(model: Any, scales: dict[str, np.ndarray[Any, Any]]) -> int:
    """Replace the named float weights of an ONNX model, output channels first, by int8 ones and their scales. Returns
    how many were replaced.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    added = []
    for weight in [one for one in graph.initializer if one.name in scales]:
        name, scale = weight.name, scales[weight.name].astype(np.float32)
        values = codes(numpy_helper.to_array(weight), scale)
        graph.initializer.remove(weight)
        graph.initializer.extend(
            [
                numpy_helper.from_array(values, f"{name}.codes"),
                numpy_helper.from_array(scale, f"{name}.scales"),
                numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}.zero"),
            ]
        )
        inputs = [f"{name}.codes", f"{name}.scales", f"{name}.zero"]
        added.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.dequantized", axis=0))
    for node in reversed(added):
        graph.node.insert(0, node)
    return len(added)


def scales_of(quantized: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Name of each weight in the export that is quantized on an even grid -> its scale for each output channel."""
    found = {}
    for name, module in quantized.named_modules():
        for attribute, quantizer in (getattr(module, "weights_quantizers", None) or {}).items():
            if getattr(quantizer, "scales", None) is None or getattr(quantizer, "channel_axis", 0) not in (0, None):
                continue  # a codebook, or a transposed convolution's: stays float
            channels = getattr(module.layer, "out_channels", None) or module.layer.out_features
            scales = np.asarray(quantizer.scales.cpu(), np.float64).ravel()
            found[f"{name}.layer.{attribute}"] = np.broadcast_to(scales, (channels,))
    return found


def search(net: Any, batches: Callable[[], Iterator[list[Any]]]) -> Any:
    """MCT's post-training quantization with mixed precision."""
    import model_compression_toolkit as mct

    platform = mct.get_target_platform_capabilities()
    mixed = mct.core.MixedPrecisionQuantizationConfig(num_of_images=RANKING_SAMPLES)
    config = mct.core.CoreConfig(mixed_precision_config=mixed)
    whole = mct.core.pytorch_resource_utilization_data(net, batches, config, target_platform_capabilities=platform)
    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        net,
        batches,
        target_resource_utilization=mct.core.ResourceUtilization(weights_memory=SHARE * whole.weights_memory),
        core_config=config,
        target_platform_capabilities=platform,
    )
    return quantized


def _let_torchvision_in() -> None:
    """MCT imports torchvision. Where its compiled operators do not load, as beside a CPU build of torch from elsewhere,
    it only wants them to be known; nobody calls them here.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


def main() -> int:
    parser = argparse.ArgumentParser(description="MCT's mixed-precision search.")
    for name in ("torch_model", "samples", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()

    import torch

    _let_torchvision_in()
    # MCT's exporter is written for torch's exporter of before 2.9, and does not ask for it.
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)
    import model_compression_toolkit as mct
    import onnx

    with np.load(arguments.samples, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}

    def batches() -> Iterator[list[Any]]:
        for index in range(len(next(iter(arrays.values())))):
            yield [array[index] for array in arrays.values()]

    torch.manual_seed(0)
    quantized = search(load(arguments.torch_model), batches)
    scales = scales_of(quantized)
    mct.exporter.pytorch_export_model(
        quantized,
        str(arguments.out),
        repr_dataset=batches,
        serialization_format=mct.exporter.PytorchExportSerializationFormat.ONNX,
        quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT,
        onnx_opset_version=17,
    )
    model = onnx.load(arguments.out)
    count = as_integers(model, scales)
    sys.stderr.write(f"{count} of {len(scales)} weights in int8\n")
    _rename_inputs(model, arrays)
    onnx.save(model, arguments.out)
    return 0


def _rename_inputs(model: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """The names and the shapes of the samples, in their order, in place of MCT's."""
    for value, (name, array) in zip(model.graph.input, arrays.items(), strict=True):
        for node in model.graph.node:
            node.input[:] = [name if one == value.name else one for one in node.input]
        value.name = name
        for size, dim in zip(array.shape[1:], value.type.tensor_type.shape.dim, strict=True):
            dim.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[0].dim_value = 1


if __name__ == "__main__":
    sys.exit(main())
