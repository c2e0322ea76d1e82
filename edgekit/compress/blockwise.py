"""Learns how the weights of blocks are rounded, so that what each block puts out stays: needs the ``torch`` extra.

One block after the other is reconstructed on what the quantized ones before it put out (BRECQ, Li et al. 2021,
https://arxiv.org/abs/2102.05426). Errors weigh by what the model's outputs feel of them, the diagonal of the Fisher
information as `edgekit.compress.gradients` samples it: no labels. Each weight finds its own of the two codes next to it
by a rectified sigmoid that a regulariser drives to 0 or 1 (AdaRound, Nagel et al. 2020,
https://arxiv.org/abs/2004.10568); scales and biases learn along. Half of the values that a block reads are those of the
float model, drawn anew in each step (QDrop, Wei et al. 2022, https://arxiv.org/abs/2203.05740). What a block learnt is
kept where it is better than what it began with, the closed form of `edgekit.compress.rounding`, on samples that it did
not learn from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.utils import Extractor

from edgekit.compress.parameters import intercept_of, weight_array
from edgekit.compress.products import product_of
from edgekit.compress.rounding import Bits, Rounded
from edgekit.compress.torch_extra import torch_modules
from edgekit.compress.weights import WEIGHT_LIMIT, Codes
from edgekit.errors import InputError
from edgekit.graph import to_bytes
from edgekit.graph.blocks import Block, blocks_of
from edgekit.graph.layers import shape_of

if TYPE_CHECKING:
    from edgekit.compress.ranges import Samples
    from edgekit.graph import Graph
    from edgekit.types import Layer

# So many a block, or what so many multiply-accumulates pay for: a few minutes on one core. Fewer teach nothing.
_STEPS = 400
_LEAST_STEPS = 20
_MACS = 6e12
_BATCH = 16
# Adam's, for codes, and for what is learnt beside them.
_RATE = 2e-2
_FINE_RATE = 1e-3
# The share of steps before the regulariser joins, its weight beside an error that is 1 to begin with, and its exponent
# from there to the end.
_FREE = 0.2
_WEIGHT = 300.0
_EXPONENTS = (20.0, 2.0)
# How far towards its code of before a weight begins, from where it lies between the two.
_TOWARDS = 0.9
# The share of float values among those that a block reads.
_EXACT = 0.5
# Random directions for each sample.
_DIRECTIONS = 2
# Every so-many-th sample judges what was learnt from the others.
_JUDGING = 4
# What samples may hold of activations that blocks pass on: in float, with the codes so far, and what outputs feel.
_HELD_BYTES = 1 << 30
_COPIES = 3
_OTHERWISE = "the closed form rounds this model too"
# What onnx2torch calls constants that it leaves as they are.
_AS_IN_ONNX = "initializers."


def learn_codes(
    graph: Graph,
    begun: Mapping[str, Rounded],
    dataset: Samples,
    bits: Bits = 4,
    on_block: Callable[[], None] = lambda: None,
) -> dict[str, Rounded]:
    """``begun`` with better codes, scales and shifts for the layers of those blocks that learnt some. ``on_block`` is
    called after each of the `blocks_of` these layers. The same samples give the same codes.

    Raises:
        MissingToolError: torch or onnx2torch is not installed.
        InputError: there are fewer than two samples, the model is too large, or torch cannot run it.
    """
    torch, convert = torch_modules("learning codes")
    if len(dataset) < 2:
        raise InputError("codes are learnt from two samples at least", _OTHERWISE)
    macs = sum(layer.macs for layer in graph.layers)
    steps = int(min(_STEPS, _MACS / max(1, 3 * _BATCH * macs)))  # backwards takes twice as many
    if steps < _LEAST_STEPS:
        raise InputError(f"codes are not learnt: {macs:.2g} multiply-accumulates take too long", _OTHERWISE)
    blocks = blocks_of(graph.model, begun.keys())
    found = dict(begun)
    with _one_thread(torch):
        try:
            learner = _Learner(torch, convert, graph, blocks, dataset)
            for block in blocks:
                found |= learner.learn(block, begun, WEIGHT_LIMIT[bits], steps)
                on_block()
        except (NotImplementedError, RuntimeError, ValueError) as error:  # as onnx2torch and vmap say what they lack
            reason = str(error).partition("\n")[0]
            raise InputError(f"codes cannot be learnt in torch: {reason}", _OTHERWISE) from None
    return found


class _Learner:
    """What blocks pass on, as tensors [samples, ...]: ``exact`` in the float model, ``now`` with the codes so far;
    ``felt`` is what a squared error there costs at the model's outputs, in relative noise power.
    """

    def __init__(self, torch: Any, convert: Any, graph: Graph, blocks: Sequence[Block], dataset: Samples) -> None:
        self._torch, self._convert, self._graph = torch, convert, graph
        self._extractor = Extractor(onnx.load_from_string(to_bytes(graph.model)))
        self._random = torch.Generator().manual_seed(0)
        count = _affordable(graph, blocks, len(dataset))
        samples = [dataset.sample(index * len(dataset) // count) for index in range(count)]
        self._exact = {t.name: torch.from_numpy(np.stack([sample[t.name] for sample in samples])) for t in graph.inputs}
        self._now = dict(self._exact)
        self._felt = self._feel([name for block in blocks for name in block.outputs])
        judges = torch.arange(count) % _JUDGING == min(_JUDGING, count) - 1
        self._judging, self._learning = judges.nonzero()[:, 0], (~judges).nonzero()[:, 0]

    def _stretch(self, inputs: Sequence[str], outputs: Sequence[str]) -> _Stretch:
        network = self._convert(self._extractor.extract_model(list(inputs), list(outputs)))
        return _Stretch(self._torch, network.eval(), tuple(inputs))

    def _feel(self, names: Sequence[str]) -> dict[str, Any]:
        """Mean squared gradient of random sums of the outputs, each relative to its own size."""
        torch, inputs, ends = self._torch, list(self._exact), [tensor.name for tensor in self._graph.outputs]
        hidden = [name for name in dict.fromkeys(names) if name not in ends]
        whole = self._stretch(inputs, [*hidden, *ends])
        for constant in (*whole.network.parameters(), *whole.network.buffers()):
            constant.requires_grad_(constant.is_floating_point())  # so that all that is computed has a gradient
        parts = []
        for given in whole.parts(self._exact):
            made = whole({}, given)
            sizes = {name: _size(y.detach()) for name, y in zip(ends, made[len(hidden) :], strict=True)}
            felt = [torch.zeros_like(cut) for cut in made[: len(hidden)]]
            for _ in range(_DIRECTIONS if hidden else 0):
                along = sum(
                    (y * torch.randn(y.shape, generator=self._random) / size).sum()
                    for y, size in zip(made[len(hidden) :], sizes.values(), strict=True)
                )
                slopes = torch.autograd.grad(along, made[: len(hidden)], retain_graph=True, allow_unused=True)
                felt = [f if g is None else f + g.square() / _DIRECTIONS for f, g in zip(felt, slopes, strict=True)]
            parts.append([*felt, *(size**-2 for size in sizes.values())])
        return {name: torch.cat(part) for name, part in zip([*hidden, *ends], zip(*parts, strict=True), strict=True)}

    def learn(self, block: Block, begun: Mapping[str, Rounded], limit: int, steps: int) -> dict[str, Rounded]:
        """The layers of the block, where they got better; what the block puts out is then that."""
        stretch, found = self._stretch(block.inputs, block.outputs), dict[str, Rounded]()
        stretch.network.requires_grad_(False)
        layers = [
            _Layer(self._torch, self._graph, stretch.network, layer, begun[layer.name], limit)
            for layer in self._graph.layers
            if layer.name in block.layers
        ]
        self._exact |= zip(block.outputs, stretch.all({}, self._exact), strict=True)
        made = stretch.all(_merged(layer.before() for layer in layers), self._now)
        first = float(self._error(block, [y[self._learning] for y in made], self._learning))
        if layers and first > 0:
            self._descend(block, stretch, layers, first, steps)
            ours = stretch.all(_merged(layer.after() for layer in layers), self._now)
            mine, theirs = (self._error(block, [y[self._judging] for y in one], self._judging) for one in (ours, made))
            if mine < theirs:
                made, found = ours, {layer.name: layer.rounded() for layer in layers}
        self._now |= zip(block.outputs, made, strict=True)
        return found

    def _descend(self, block: Block, stretch: _Stretch, layers: Sequence[_Layer], first: float, steps: int) -> None:
        torch, random = self._torch, self._random
        codes = {"params": [layer.leaning for layer in layers], "lr": _RATE * _STEPS / steps}
        fine = {"params": [one for layer in layers for one in layer.fine], "lr": _FINE_RATE * _STEPS / steps}
        optimiser = torch.optim.Adam([codes, fine])
        for step in range(steps):
            chosen = self._learning[torch.randperm(len(self._learning), generator=random)[:_BATCH]]
            given = []
            for name in block.inputs:
                exact, now = self._exact[name][chosen], self._now[name][chosen]
                given.append(torch.where(torch.rand(exact.shape, generator=random) < _EXACT, exact, now))
            made = stretch(_merged(layer.meanwhile() for layer in layers), given)
            loss = self._error(block, made, chosen) / first
            along = (step / steps - _FREE) / (1 - _FREE)
            if along >= 0:
                exponent = _EXPONENTS[0] + along * (_EXPONENTS[1] - _EXPONENTS[0])
                loss = loss + _WEIGHT * sum(layer.undecided(exponent) for layer in layers) / len(layers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def _error(self, block: Block, made: Sequence[Any], chosen: Any) -> Any:
        """Of these samples, on average."""
        total = self._torch.zeros(())
        for name, y in zip(block.outputs, made, strict=True):
            off = y - self._exact[name][chosen]
            total = total + (off.square() * self._felt[name][chosen]).sum() / len(chosen)
        return total


class _Stretch:
    """A part of the model in torch. The model takes one sample, this takes many."""

    def __init__(self, torch: Any, network: Any, inputs: tuple[str, ...]) -> None:
        def run(constants: Mapping[str, Any], *given: Any) -> tuple[Any, ...]:
            made = torch.func.functional_call(network, constants, given)
            return tuple(made) if isinstance(made, list | tuple) else (made,)

        self.network, self._torch, self._inputs = network, torch, inputs
        self._run = torch.vmap(run, in_dims=(None, *(0 for _ in inputs)))

    def __call__(self, constants: Mapping[str, Any], given: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs of these inputs, with ``constants`` in the place of some of its own."""
        made: tuple[Any, ...] = self._run(constants, *given)
        return made

    def parts(self, tensors: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """The inputs of all samples, some at a time."""
        return zip(*(tensors[name].split(_BATCH) for name in self._inputs), strict=True)

    def all(self, constants: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[Any]:
        """The outputs of all samples, without gradients."""
        with self._torch.no_grad():
            parts = [self(constants, given) for given in self.parts(tensors)]
        return [self._torch.cat(part) for part in zip(*parts, strict=True)]


class _Layer:
    """A layer's weight while it learns: each code leans towards the one below its weight or the one above."""

    def __init__(self, torch: Any, graph: Graph, network: Any, layer: Layer, begun: Rounded, limit: int) -> None:
        node = next(node for node in graph.model.graph if node.name == layer.name)
        product = product_of(node)
        assert product is not None, layer.name
        self.name, self._torch, self._begun, self._product = layer.name, torch, begun, product
        self._weight = _constant(network, layer.name, matrix=True)
        held = dict(network.named_parameters()) | dict(network.named_buffers())

        floats = weight_array(graph.model, product.weight)
        self._along = tuple(-1 if axis == layer.weight_axis else 1 for axis in range(floats.ndim))
        codes = begun.weight.codes.astype(np.float64)
        exact = floats / begun.weight.scale.reshape(self._along)
        below = np.clip(np.where(codes > exact, codes - 1, codes), -limit, limit - 1)
        lean = _TOWARDS * (codes - below) + (1 - _TOWARDS) * np.clip(exact - below, 0, 1)
        odds = (np.clip(lean, 0.01, 0.99) + 0.1) / 1.2
        self._codes, self._below = (torch.from_numpy(array.astype(np.float32)) for array in (codes, below))
        # Where the codes end, they stay: see `round_matrix`.
        self._stays = torch.from_numpy(np.abs(codes) == limit)
        self.leaning = torch.from_numpy(np.log(odds / (1 - odds)).astype(np.float32)).requires_grad_()
        self._scale = torch.from_numpy(begun.weight.scale)
        self._stretch = torch.zeros(self._scale.shape, requires_grad=True)
        self.fine = [self._stretch]
        shift, intercept, self._bias = begun.shift, intercept_of(node, product), ""
        if shift is not None and intercept is not None:  # where a later block adds it, it stays as it is
            self._bias = _constant(network, intercept.node.name or "", matrix=False)
            self._bias_scale = intercept.scale if self._bias.startswith(_AS_IN_ONNX) else 1.0
        if shift is not None and self._bias:
            self._held, self._unit = held[self._bias], float(held[self._bias].abs().mean()) + 1e-6
            self._first_shift = torch.from_numpy(shift.astype(np.float32))
            self._shift = torch.zeros(self._first_shift.shape, requires_grad=True)
            self.fine.append(self._shift)

    def before(self) -> dict[str, Any]:
        """The network's constants as they were to begin with."""
        return self._constants(self._codes, learnt=False)

    def meanwhile(self) -> dict[str, Any]:
        """The network's constants with codes that have not decided yet."""
        return self._constants(self._torch.where(self._stays, self._codes, self._below + self._lean()))

    def after(self) -> dict[str, Any]:
        """The network's constants with the codes that were chosen."""
        return self._constants(self._chosen())

    def undecided(self, exponent: float) -> Any:
        """How far the codes are from any, on average: 1 in the middle, less the sooner the higher the exponent."""
        return (1 - (2 * self._lean() - 1).abs().pow(exponent)).mean()

    def rounded(self) -> Rounded:
        """What was chosen."""
        weight = Codes(self._chosen().numpy().astype(np.int8), self._steps().detach().numpy())
        return Rounded(weight, self._shifts().detach().numpy().astype(np.float64) if self._bias else self._begun.shift)

    def _lean(self) -> Any:
        return (1.2 * self._torch.sigmoid(self.leaning) - 0.1).clamp(0, 1)

    def _chosen(self) -> Any:
        return self._torch.where(self._stays, self._codes, self._below + (self.leaning.detach() >= 0))

    def _steps(self) -> Any:
        return self._scale * self._stretch.exp()

    def _shifts(self) -> Any:
        return self._first_shift + self._unit * self._shift

    def _constants(self, codes: Any, learnt: bool = True) -> dict[str, Any]:
        weight = codes * (self._steps() if learnt else self._scale).reshape(self._along)
        if self._product.op_type == "Gemm" and not self._weight.startswith(_AS_IN_ONNX):  # outputs first, alpha in it
            weight = self._product.scale * (weight.T if self._product.transposed else weight)
        found = {self._weight: weight}
        if self._bias:
            shift = self._shifts() if learnt else self._first_shift
            found[self._bias] = self._held + shift.reshape(self._held.shape) / self._bias_scale
        return found


def _constant(network: Any, name: str, matrix: bool) -> str:
    """What a network that onnx2torch made calls the weight of a node, or its bias; "" where the node is not in it."""
    module = name.replace(".", "/").lstrip("/")
    call = next((node for node in network.graph.nodes if node.op == "call_module" and node.target == module), None)
    if call is None:
        return ""
    for inner, held in network.get_submodule(module).named_parameters():
        if (held.dim() > 1) == matrix:
            return f"{module}.{inner}"
    read = [str(value.target) for value in call.args if value is not None and value.op == "get_attr"]
    return read[0 if matrix else -1]


def _merged(constants: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: constant for one in constants for name, constant in one.items()}


def _size(y: Any) -> Any:
    """The norm of each sample, in the shape of one number a sample."""
    return y.flatten(1).float().norm(dim=1).reshape(-1, *(1 for _ in y.shape[1:])) + 1e-12


def _affordable(graph: Graph, blocks: Sequence[Block], samples: int) -> int:
    """How many of the samples fit into memory."""
    values = {value.name: value for node in graph.model.graph for value in node.outputs}
    passed = sum(math.prod(shape_of(values[name])) for block in blocks for name in block.outputs)
    return max(2, min(samples, _HELD_BYTES // max(1, 4 * _COPIES * passed)))


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """With more of them, sums would be added up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
