"""What would have been fair, and how near it came.

The ideal of a window is weighted max-min fairness over the slots that were used in it: classes by weight, then tenants
by weight, and nobody gets more than it wanted; what one does not want is divided among the others. Jain's index is
taken over the ratios of used to ideal, so 1 says that everybody had the same part of what was due to it.
"""

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from llorch_scheduler.simulator.shares import Key, Window, joined
from llorch_shared.pool_policy import class_weight, tenant_limits
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority

JUDGED_MS: Final = 60_000.0
"""Fairness is judged over a minute: below it the lengths of single tasks weigh more than any policy."""
JUDGED_SLOTS: Final = 0.01
"""Flows whose ideal is a smaller part of a slot than this are not judged: one task is more than their share."""

_Name = TypeVar("_Name")


def divided(capacity: float, wants: Mapping[_Name, float], weights: Mapping[_Name, float]) -> dict[_Name, float]:
    """Weighted max-min fair parts of `capacity`. O(n log n)."""
    parts: dict[_Name, float] = {}
    left, weight = capacity, sum(weights[name] for name in wants)
    for name in sorted(wants, key=lambda name: wants[name] / weights[name]):
        part = min(wants[name], left * weights[name] / weight if weight > 0 else 0.0)
        parts[name] = part
        left -= part
        weight -= weights[name]
    return parts


def ideal(window: Window, specs: Mapping[str, PoolSpec]) -> dict[Key, float]:
    """What each flow would have used, times milliseconds."""
    parts: dict[Key, float] = {}
    for pool_id, spec in specs.items():
        flows = {key: use for key, use in window.uses.items() if key.pool_id == pool_id}
        wants: dict[Priority, float] = {}
        for key, use in flows.items():
            wants[key.priority] = wants.get(key.priority, 0.0) + use.wanted
        capacity = sum(use.used for use in flows.values())
        classes = divided(capacity, wants, {each: float(class_weight(spec, each)) for each in wants})
        for priority, part in classes.items():
            of_class = {key: use.wanted for key, use in flows.items() if key.priority is priority}
            weights = {key: float(tenant_limits(spec, key.tenant).weight) for key in of_class}
            parts.update(divided(part, of_class, weights))
    return parts


def jain(values: Iterable[float]) -> float | None:
    """(Σx)² / (n·Σx²); None for fewer than two values."""
    found = list(values)
    squares = sum(value * value for value in found)
    if len(found) < 2 or squares <= 0:
        return None
    return sum(found) ** 2 / (len(found) * squares)


def jain_of(window: Window, specs: Mapping[str, PoolSpec], priority: Priority) -> float | None:
    """Over the tenants of a class that had something to want in this window."""
    least = JUDGED_SLOTS * (window.end_ms - window.begin_ms)
    due = ideal(window, specs)
    return jain(window.uses[key].used / part for key, part in due.items() if key.priority is priority and part >= least)


def minutes(windows: list[Window]) -> list[Window]:
    """For each window the minute that ends with it, or the window itself when that is longer; those that begin before
    a whole minute has passed are left out."""
    found = []
    first = 0
    for index, window in enumerate(windows):
        while windows[first + 1].begin_ms <= window.end_ms - JUDGED_MS if first < index else False:
            first += 1
        if window.end_ms - windows[first].begin_ms >= 0.99 * JUDGED_MS:
            found.append(joined(windows[first : index + 1]))
    return found
