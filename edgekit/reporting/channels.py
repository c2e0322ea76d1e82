"""What was decided about channels, in words: shared by the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.reporting import wording
from edgekit.results import FixedDetail, GroupDetail, Price, Round
from edgekit.types import Plan

_MOST_NAMES = 3


@dataclass(frozen=True)
class GroupRow:
    """A channel group as tables show it. What it saves and loses is that of this group alone, a dash where it keeps
    every channel. Of many producers or consumers the first stand for all, which ``all_...`` name.
    """

    name: str
    kept: int
    channels: int
    share: float  # percent, for a bar
    makers: int
    readers: int
    producers: str
    consumers: str
    all_producers: str
    all_consumers: str
    saves: str
    noise: str
    reason: str

    @property
    def pruned(self) -> bool:
        """Whether it loses channels."""
        return self.kept < self.channels


@dataclass(frozen=True)
class FixedRow:
    """The layers that cannot be pruned for one reason."""

    layers: tuple[str, ...]
    reason: str


def group_rows(groups: Sequence[GroupDetail], prefix: str = "") -> list[GroupRow]:
    """The groups as text, in the order of the result; ``prefix`` is cut from the names where they have it."""
    rows = []
    for group in groups:
        taken = next((option for option in group.options if option.kept == group.kept < group.channels), None)
        rows.append(
            GroupRow(
                name=group.name.removeprefix(prefix),
                kept=group.kept,
                channels=group.channels,
                share=round(100 * min(max(group.kept / max(group.channels, 1), 0.0), 1.0), 1),
                makers=len(group.producers),
                readers=len(group.consumers),
                producers=few(group.producers, prefix),
                consumers=few(group.consumers, prefix),
                all_producers=", ".join(group.producers),
                all_consumers=", ".join(group.consumers),
                saves="–" if taken is None else wording.bare_ms(taken.saves_ms),
                noise="–" if taken is None else wording.noise_db(taken.loss),
                reason=group.reason,
            )
        )
    return rows


def fixed_rows(fixed: Sequence[FixedDetail]) -> list[FixedRow]:
    """The layers that cannot be pruned by their reason, the commonest first."""
    by_reason: dict[str, list[str]] = {}
    for one in fixed:
        by_reason.setdefault(one.reason, []).append(one.layer)
    rows = [FixedRow(tuple(layers), reason) for reason, layers in by_reason.items()]
    return sorted(rows, key=lambda row: -len(row.layers))


def summary(groups: Sequence[GroupDetail]) -> str:
    """ "40 of 272 channels removed, in 2 of 4 groups", "all 272 channels stay (4 groups)"; "" without groups."""
    if not groups:
        return ""
    total, kept = sum(group.channels for group in groups), sum(group.kept for group in groups)
    pruned = sum(group.kept < group.channels for group in groups)
    number = f"{len(groups)} group{'' if len(groups) == 1 else 's'}"
    if not pruned:
        return f"all {total} channels stay ({number})"
    return f"{total - kept} of {total} channels removed, in {pruned} of {number}"


def stored(plan: Plan) -> str:
    """ "compressed (size only: no faster), zeros in 12 and few values in 3 of 64 layers"; "" for a plain file."""
    masks = plan.masks().values()
    books = sum(mask.is_codebook for mask in masks)
    counts = (("zeros", len(masks) - books), ("few values", books))
    held = " and ".join(f"{what} in {number}" for what, number in counts if number)
    stored = "compressed (size only: no faster)" if plan.compressed else ""
    return ", ".join(part for part in (stored, held and f"{held} of {len(plan.layers)} layers") if part)


def prices(found: Sequence[Price], share: bool) -> list[str]:
    """The prices of the budgets in words; those that are not known are left out."""
    return [text for text in (wording.price(price, share) for price in found) if text]


def has_losses(rounds: Sequence[Round]) -> bool:
    """Whether any round compared a predicted with a measured loss."""
    return any(row.predicted_loss is not None or row.measured_loss is not None for row in rounds)


def few(names: Sequence[str], prefix: str = "") -> str:
    """The first names, and how many more there are."""
    shown = [name.removeprefix(prefix) for name in names]
    if len(shown) <= _MOST_NAMES:
        return ", ".join(shown) or "–"
    return f"{', '.join(shown[: _MOST_NAMES - 1])} and {len(shown) - _MOST_NAMES + 1} more"
