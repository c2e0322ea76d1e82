"""What the outputs feel of each channel, through the gradient: needs the ``torch`` extra.

Every channel gets a gate, 1, where its consumers read it. Without labels no loss has a gradient at the unpruned model;
what closing a gate costs is the curvature of the output error there, the Gauss-Newton diagonal |dy/dg|^2. It is sampled
with random directions v: E (d(v.y)/dg)^2, the Fisher information of outputs under Gaussian noise (Theis et al. 2018,
https://arxiv.org/abs/1801.05787). With a loss in the place of v.y it would be Molchanov's Taylor criterion
(https://arxiv.org/abs/1906.10771), which is the square of the same gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.compress.products import product_of
from edgekit.compress.torch_extra import torch_modules
from edgekit.errors import InputError
from edgekit.graph import to_bytes
from edgekit.graph.layers import shape_of

if TYPE_CHECKING:
    from edgekit.compress.ranges import Samples
    from edgekit.graph import Graph
    from edgekit.graph.channels import Channels

# Random directions for each sample.
_DIRECTIONS = 4


def gate_curvatures(graph: Graph, channels: Channels, dataset: Samples, seed: int = 0) -> dict[str, np.ndarray]:
    """Group name -> [channels]: the noise power at the outputs, relative to their own, to second order, when a channel
    goes; mean over samples. Groups that no layer sums over have no entry. What a LayerNormalization would notice, or
    the other hidden units of a recurrent layer, does not count.

    Raises:
        MissingToolError: torch or onnx2torch is not installed.
        InputError: there are no samples, or onnx2torch does not know an operator of the model (LSTM and GRU are such).
    """
    if len(dataset) == 0:
        raise InputError("there are no samples to take gradients on", "pass calibration data with --data")
    torch, convert = torch_modules("importance 'fisher'")
    model, gates = _gated(graph, channels)
    try:
        network = convert(onnx.load_from_string(to_bytes(model))).eval()
    except NotImplementedError as error:
        raise InputError(
            f"importance 'fisher': the model cannot be differentiated: {error}", "use importance 'activation'"
        ) from None
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros(sum(group.channels for group in channels.groups))
    ones = [torch.ones(shape, requires_grad=True) for _, shape in gates]
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        made = network(*(torch.from_numpy(sample[tensor.name]) for tensor in graph.inputs), *ones)
        outputs = [y for y in (made if isinstance(made, list | tuple) else [made]) if y.requires_grad]
        for _ in range(_DIRECTIONS):
            directions = [torch.randn(y.shape, generator=generator) / (y.detach().norm() + 1e-12) for y in outputs]
            along = sum((v * y).sum() for v, y in zip(directions, outputs, strict=True))
            gradients = torch.autograd.grad(along, ones, retain_graph=True, allow_unused=True)
            slopes = np.zeros_like(total)
            for (units, _), gradient in zip(gates, gradients, strict=True):
                if gradient is not None:
                    np.add.at(slopes, units[units >= 0], gradient.numpy().ravel()[units >= 0])
            total += np.square(slopes)
    total /= len(dataset) * _DIRECTIONS
    seen = {int(unit) for units, _ in gates for unit in units[units >= 0]}
    return {
        group.name: total[first : first + group.channels]
        for group, first in zip(channels.groups, channels.firsts, strict=True)
        if first in seen
    }


def _gated(graph: Graph, channels: Channels) -> tuple[ir.Model, list[tuple[np.ndarray, tuple[int, ...]]]]:
    """The model with one more input for each layer that sums over units: what its channels are multiplied with. With
    it, for each of these inputs, the unit of each position and the input's shape.
    """
    model = graph.model.clone()
    consumers = {name for group in channels.groups for name in group.consumers}
    gates: list[tuple[np.ndarray, tuple[int, ...]]] = []
    for node in [node for node in model.graph if node.name in consumers]:
        product = product_of(node)
        x = node.inputs[0] if product is None else _value(node, product.view.source)
        if x is None or not x.name or x.name not in channels.units:
            continue
        axis = len(shape_of(x)) - 1 if product is None else product.view.axis
        units = channels.units[x.name][axis]
        if units is None:
            continue
        shape = tuple(size if place == axis else 1 for place, size in enumerate(shape_of(x)))
        gate = ir.Value(
            name=f"gate_{len(gates)}/{node.name}", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT)
        )
        model.graph.inputs.append(gate)
        gated = ir.node("Mul", [x, gate], name=f"{gate.name}/mul")
        gated.outputs[0].name, gated.outputs[0].shape = f"{gate.name}/out", x.shape
        gated.outputs[0].dtype = ir.DataType.FLOAT
        node.prepend(gated)
        node.replace_input_with(next(i for i, v in enumerate(node.inputs) if v is x), gated.outputs[0])
        gates.append((units, shape))
    return model, gates


def _value(node: ir.Node, name: str) -> ir.Value | None:
    return next((v for v in node.inputs if v is not None and v.name == name), None)
