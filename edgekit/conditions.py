"""Under what a race was held, as its runner recorded it, and what of that a reader must be warned of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# A clock below this share of the cores' highest is worth a warning. Turbo clocks that all cores hold together are
# some 10 to 30 % below the highest of one core.
_SLOW_CLOCK = 0.65


@dataclass(frozen=True)
class Conditions:
    """What must be known of the device to read the latencies; ``None`` where ``missing`` has the reason.

    ``cores`` are those that the threads were pinned to. Clocks are those of the slowest of them under load (median and
    lowest over the race); ``max_clock_mhz`` is what the device names as its highest. Each contestant was loaded
    ``loads`` times: where in memory a model lies moves its latency. ``throttled`` and ``disturbed``
    are shares of the ``rounds``: while the device slowed itself down, and in which that or another load took more than
    5 %. ``discarded`` rounds do not count; where too few were calm, ``least_disturbed`` says that the better half
    counts. ``other_load`` is the mean share of the cores' time that others had. ``unstable`` names contestants that
    were still getting faster or slower when the race began. ``idle_w`` is subtracted from energies.
    """

    cores: tuple[int, ...] = ()
    governor: str | None = None
    power_mode: str | None = None
    clock_mhz: float | None = None
    lowest_clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    temperature_before_c: float | None = None
    temperature_after_c: float | None = None
    loads: int = 1
    rounds: int = 0
    discarded: int = 0
    disturbed: float = 0.0
    least_disturbed: bool = False
    throttled: float | None = None
    other_load: float | None = None
    seconds: float = 0.0
    unstable: tuple[str, ...] = ()
    energy_source: str | None = None
    idle_w: float | None = None
    missing: dict[str, str] = field(default_factory=dict)


def read_conditions(row: Mapping[str, Any]) -> Conditions:
    """The runner's ``conditions``; keys of a later runner are ignored."""
    known: dict[str, Any] = {one.name: row[one.name] for one in fields(Conditions) if one.name in row}
    for name in ("cores", "unstable"):
        known[name] = tuple(known.get(name, ()))
    return Conditions(**known)


def summary(found: Conditions) -> str:
    """One line: "core 0, governor performance, 1800 MHz, 51 to 58 °C, 3 of 210 rounds discarded"."""
    parts = []
    if found.cores:
        parts.append(f"core{'s' if len(found.cores) > 1 else ''} {', '.join(map(str, found.cores))}")
    if found.governor:
        parts.append(f"governor {found.governor}")
    if found.power_mode:
        parts.append(found.power_mode)
    if found.clock_mhz is not None:
        parts.append(f"{found.clock_mhz:.0f} MHz")
    if found.temperature_before_c is not None and found.temperature_after_c is not None:
        parts.append(f"{found.temperature_before_c:.0f} to {found.temperature_after_c:.0f} °C")
    if found.loads > 1:
        parts.append(f"loaded {found.loads} times")
    parts.append(f"{found.discarded} of {found.rounds} rounds discarded")
    unknown = {"clock_mhz": "clock", "temperature_c": "temperature", "throttled": "throttling"}
    if named := [word for key, word in unknown.items() if key in found.missing]:
        parts.append(f"{', '.join(named)} not readable")
    return ", ".join(parts)


def warnings(found: Conditions) -> tuple[str, ...]:
    """What was off, a line each, with what to do; none where the latencies can be taken as they are."""
    said = []
    if found.least_disturbed:
        others = found.other_load
        load = "" if others is None else f" (others had {100 * others:.0f} % of the cores' time)"
        said.append(
            f"disturbed: {100 * found.disturbed:.0f} % of rounds{load}; the least disturbed of them count: "
            "end other programs and run again"
        )
    if found.throttled:
        slowed = f"{100 * found.throttled:.0f} % of rounds"
        said.append(f"throttled: the device slowed itself down in {slowed}: cool it and run again")
    clock, highest = found.clock_mhz, found.max_clock_mhz
    if clock is not None and highest is not None and clock < _SLOW_CLOCK * highest:
        said.append(f"slow clock: {clock:.0f} of {highest:.0f} MHz under load: look at the governor and the power mode")
    return tuple(said)
