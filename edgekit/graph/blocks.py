"""A model cut into blocks of few layers, where little is passed on: a residual block stays whole."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.graph.flow import flow_of

if TYPE_CHECKING:
    import onnx_ir as ir

# What a residual block has, its projection included.
_LAYERS = 3


@dataclass(frozen=True)
class Block:
    """Consecutive steps of a model: some of its layers, the activations that it reads, and those that are read after it
    or put out by the model.
    """

    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def blocks_of(model: ir.Model, layers: Collection[str]) -> tuple[Block, ...]:
    """The whole model in execution order, in blocks of one to three of these layers. Each ends where the fewest
    activations are alive, at the last of such places; none is cut between the results of one node.
    """
    flow = flow_of(model)
    steps = len(flow.nodes)
    made = {o.name: step for step, node in enumerate(flow.nodes) for o in node.outputs if o.name}
    ends = {name: steps if name in flow.outputs else max(at, default=-1) for name, at in flow.readers.items()}
    alive = [[name for name, end in ends.items() if made.get(name, -1) < step <= end] for step in range(steps + 1)]
    parts = {o.name for node in flow.nodes if len(node.outputs) > 1 for o in node.outputs}
    ours = [node.name in layers for node in flow.nodes]
    found = []
    start = 0
    while start < steps:
        places = [
            end
            for end in range(start + 1, steps + 1)
            if 1 <= sum(ours[start:end]) <= _LAYERS and not parts.intersection(alive[end])
        ]
        if not places or not any(ours[places[-1] :]):
            places = [steps]
        end = min(reversed(places), key=lambda place: len(alive[place]))
        reads = dict.fromkeys(name for step in range(start, end) for name in flow.reads[step])
        found.append(
            Block(
                tuple(flow.nodes[step].name or "" for step in range(start, end) if ours[step]),
                tuple(name for name in reads if made.get(name, -1) < start),
                tuple(name for name in alive[end] if made.get(name, -1) >= start),
            )
        )
        start = end
    return tuple(found)
