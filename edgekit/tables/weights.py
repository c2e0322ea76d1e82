"""What masks and codebooks of the weights offer to a plan: what each option stores and loses, what it gains in time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from edgekit.cost.table import CostTable
from edgekit.types import Mask, Precision

Option = tuple[Precision, Mask]


@dataclass(frozen=True)
class MaskTables:
    """``losses[layer][option]`` for each option with a mask; layers that are not in it take none.

    ``stored_bytes[layer][option]`` is what the layer's parameters take where all weights are stored compressed, for
    every option of every layer, those without a mask too; it is empty where they are stored as they are. What the file
    holds beside the layers is shared evenly by them: ``other_bytes`` each. ``sparse_speedup`` is how much faster a
    layer gets by a 2:4 mask.
    """

    losses: Mapping[str, Mapping[Option, float]]
    stored_bytes: Mapping[str, Mapping[Option, int]] = field(default_factory=dict)
    other_bytes: int = 0
    sparse_speedup: float = 1.0

    @property
    def compressed(self) -> bool:
        """Whether the weights are stored compressed."""
        return bool(self.stored_bytes)

    def options(self, layer: str, precisions: Iterable[Precision]) -> list[Option]:
        """Every precision without a mask, then those with one."""
        offered = list(precisions)
        masked = [option for option in self.losses.get(layer, {}) if option[0] in offered]
        return [*((precision, Mask.NONE) for precision in offered), *masked]

    def speedup(self, mask: Mask) -> float:
        """What a layer's latency is divided by."""
        return self.sparse_speedup if mask is Mask.TWO_OF_FOUR else 1.0

    def at(self, table: CostTable, masks: Mapping[str, Mask]) -> CostTable:
        """The cost table of the masked model."""
        times = {
            name: {precision: ms / self.speedup(masks.get(name, Mask.NONE)) for precision, ms in row.items()}
            for name, row in table.latency_ms.items()
        }
        return replace(table, latency_ms=times)
