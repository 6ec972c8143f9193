"""Who got which part of a pool's slot time lately: `admission_share{tenant,priority}` (ORCH-3076).

    share = Σ cost · e^(-age / window)  of one tenant and class  /  the same sum over all

A cost counts when its task starts, and is corrected when it ends. All sums are kept as multiples of one growing unit
e^((now - start) / window), so a start costs O(1) and nothing has to be decayed one by one.
"""

from collections.abc import Iterator
from math import exp
from typing import Final

from llorch_shared.wire.task import Priority

KEPT_MAX: Final = 4_096
"""Tenants and classes that are remembered; beyond it those under SHOWN_MIN are forgotten."""
SHOWN_MIN: Final = 0.001
_UNIT_MAX: Final = 500.0
"""Exponent from which the unit starts at one again, far below where floats end."""


class Shares:
    __slots__ = ("_start_ms", "_sums", "window_ms")

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self._start_ms = 0
        self._sums: dict[tuple[str, Priority], float] = {}

    def count(self, tenant: str, priority: Priority, cost_ms: float, at_ms: int) -> None:
        exponent = (at_ms - self._start_ms) / self.window_ms
        if exponent > _UNIT_MAX:
            self._begin_again(at_ms)
            exponent = 0.0
        key = (tenant, priority)
        self._sums[key] = max(0.0, self._sums.get(key, 0.0) + cost_ms * exp(exponent))
        if len(self._sums) > KEPT_MAX:
            self._forget_small()

    def over(self, window_ms: int, at_ms: int) -> None:
        """Another window: shares so far stay as they are."""
        if window_ms != self.window_ms:
            self._begin_again(at_ms)
            self.window_ms = window_ms

    def __iter__(self) -> Iterator[tuple[str, Priority, float]]:
        """Shares of at least SHOWN_MIN, by tenant and class."""
        total = sum(self._sums.values())
        for (tenant, priority), value in sorted(self._sums.items()):
            if value > 0 and value >= SHOWN_MIN * total:
                yield tenant, priority, value / total

    def _begin_again(self, at_ms: int) -> None:
        unit = exp(-min(700.0, max(0.0, (at_ms - self._start_ms) / self.window_ms)))
        self._sums = {key: value * unit for key, value in self._sums.items() if value * unit > 0}
        self._start_ms = at_ms

    def _forget_small(self) -> None:
        """Half of the entries at least: the cost of it is O(log n) per start."""
        least = SHOWN_MIN * sum(self._sums.values())
        kept = sorted(self._sums.items(), key=lambda item: (-item[1], item[0]))[: KEPT_MAX // 2]
        self._sums = {key: value for key, value in kept if value >= least}
