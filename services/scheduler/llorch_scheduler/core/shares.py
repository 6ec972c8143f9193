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
"""Tenants and classes without waiting or running tasks that are remembered; beyond it the smallest are forgotten."""
SHOWN_MIN: Final = 0.001
_EXPONENT_MAX: Final = 500.0
"""The unit starts at one again here, far below where floats end."""


class Share:
    """`live`: its flow exists and counts on."""

    __slots__ = ("live", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.live = True


class Shares:
    __slots__ = ("_at_ms", "_shares", "_start_ms", "_trim_at", "_unit", "window_ms")

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self._start_ms = self._at_ms = 0
        self._unit = 1.0
        self._shares: dict[tuple[str, Priority], Share] = {}
        self._trim_at = KEPT_MAX

    def of(self, tenant: str, priority: Priority) -> Share:
        """The share of a flow that comes to be."""
        share = self._shares.get((tenant, priority))
        if share is None:
            share = self._shares[tenant, priority] = Share()
            if len(self._shares) > self._trim_at:
                self._trim()
        share.live = True
        return share

    def count(self, share: Share, cost_ms: float, at_ms: int) -> None:
        if at_ms > self._at_ms:
            self._move(at_ms)
        value = share.value + cost_ms * self._unit
        share.value = value if value > 0.0 else 0.0

    def over(self, window_ms: int, at_ms: int) -> None:
        """Another window: shares so far stay as they are."""
        if window_ms != self.window_ms:
            self._begin_again(at_ms)
            self.window_ms = window_ms

    def __iter__(self) -> Iterator[tuple[str, Priority, float]]:
        """Shares of at least SHOWN_MIN, by tenant and class."""
        total = sum(share.value for share in self._shares.values())
        for (tenant, priority), share in sorted(self._shares.items(), key=lambda item: item[0]):
            if share.value > 0 and share.value >= SHOWN_MIN * total:
                yield tenant, priority, share.value / total

    def _move(self, at_ms: int) -> None:
        exponent = (at_ms - self._start_ms) / self.window_ms
        self._at_ms = at_ms
        if exponent > _EXPONENT_MAX:
            self._begin_again(at_ms)
        else:
            self._unit = exp(exponent)

    def _begin_again(self, at_ms: int) -> None:
        """Every sum in terms of the unit of now, which is one."""
        shrink = exp(-min(700.0, max(0.0, (at_ms - self._start_ms) / self.window_ms)))
        for share in self._shares.values():
            share.value *= shrink
        self._start_ms = self._at_ms = at_ms
        self._unit = 1.0

    def _trim(self) -> None:
        """The smallest of those without a flow go. The next time is at twice what stays: O(log n) per new flow."""
        gone = sorted((share.value, key) for key, share in self._shares.items() if not share.live)
        for _, key in gone[: max(0, len(gone) - KEPT_MAX // 2)]:
            del self._shares[key]
        self._trim_at = max(KEPT_MAX, 2 * len(self._shares))
