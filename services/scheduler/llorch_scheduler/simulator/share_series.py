"""Shares over time against their ideal, and one figure of fairness per class."""

from collections.abc import Mapping
from typing import Final

from llorch_scheduler.simulator.fairness import ideal, jain_of, minutes
from llorch_scheduler.simulator.shares import Key, Window, joined
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.simulated import Fairness, ShareSeries
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority

POINTS: Final = 120
FLOWS: Final = 12
"""Flows with a line of their own: those that used most."""

_Specs = Mapping[str, PoolSpec]


def shares_of(windows: list[Window], specs: _Specs) -> ShareSeries:
    """At most `POINTS` points."""
    each = max(1, -(-len(windows) // POINTS))
    shown = [joined(windows[index : index + each]) for index in range(0, len(windows), each)]
    used: dict[Key, float] = {}
    for window in shown:
        for key, use in window.uses.items():
            used[key] = used.get(key, 0.0) + use.used
    keys = sorted(sorted(used, key=lambda key: (-used[key], key))[:FLOWS])
    parts = [(window, ideal(window, specs), sum(use.used for use in window.uses.values())) for window in shown]
    judged = {window.end_ms: window for window in minutes(windows)}
    return ShareSeries(
        at_s=tuple(round(window.end_ms / 1000, 3) for window in shown),
        used={
            _name(key, specs): tuple(
                _part(window.uses[key].used if key in window.uses else 0.0, all_) for window, _, all_ in parts
            )
            for key in keys
        },
        ideal={_name(key, specs): tuple(_part(due.get(key, 0.0), all_) for _, due, all_ in parts) for key in keys},
        jain={
            str(priority): tuple(
                _rounded(jain_of(judged[window.end_ms], specs, priority)) if window.end_ms in judged else None
                for window in shown
            )
            for priority in CLASSES
        },
    )


def fairness_of(windows: list[Window], specs: _Specs, priority: Priority) -> Fairness:
    found = [value for window in minutes(windows) if (value := jain_of(window, specs, priority)) is not None]
    gap: dict[Key, float] = {}
    total = 0.0
    for window in windows:
        total += sum(use.used for use in window.uses.values())
        for key, part in ideal(window, specs).items():
            if key.priority is priority:
                gap[key] = gap.get(key, 0.0) + window.uses[key].used - part
    return Fairness(
        priority=str(priority),
        jain_mean=_rounded(sum(found) / len(found)) if found else None,
        jain_least=_rounded(min(found)) if found else None,
        share_deviation=_part(max((abs(value) for value in gap.values()), default=0.0), total),
    )


def _name(key: Key, specs: _Specs) -> str:
    pool = f"{key.pool_id}: " if len(specs) > 1 else ""
    return f"{pool}{key.tenant} {key.priority}"


def _part(value: float, of: float) -> float:
    return round(value / of, 4) if of > 0 else 0.0


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None else None
