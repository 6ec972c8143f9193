"""The circuit breaker of one pool: while interactive tasks keep starting late, batch is refused, then everything
(ORCH-3040).

The part that starts late is an average whose time constant is `hold_ms`. It opens one level after
the part stayed at or above `broken_share` for `hold_ms`, and closes one after it stayed at or below `healthy_share` for
as long. Tasks that still wait and are late already count as one more late sample: a pool that starts nothing is broken,
too.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from llorch_shared.wire.policy import BreakerSpec
from llorch_shared.wire.task import Priority


class Level(IntEnum):
    CLOSED = 0
    SHEDS_BATCH = 1
    SHEDS_ALL = 2


class Shed(NamedTuple):
    """Why a class is refused now, and for how long at least. An empty reason: it is not."""

    reason: str = ""
    for_ms: int = 0


_SAMPLES_MIN: Final = 1.0
"""Below this weight nothing is known."""


class Breaker:
    """`started` for each start, `step` at least each second; both O(1)."""

    __slots__ = ("_all", "_at_ms", "_late", "_reason", "_since_ms", "_trend", "level")

    def __init__(self) -> None:
        self.level = Level.CLOSED
        self._all = self._late = 0.0
        self._at_ms = 0
        self._trend = 0
        """1: broken since `_since_ms`, -1: healthy, 0: neither."""
        self._since_ms = 0
        self._reason = ""

    def started(self, wait_ms: int, priority: Priority, at_ms: int, spec: BreakerSpec | None) -> None:
        if spec is None or priority is not Priority.INTERACTIVE:
            return
        self._age(at_ms, spec)
        self._all += 1
        self._late += wait_ms > spec.start_ms

    def step(self, at_ms: int, spec: BreakerSpec | None, *, oldest_wait_ms: int = 0) -> Level:
        """The level from now on. `oldest_wait_ms`: of the interactive task that has waited longest; 0 with none."""
        if spec is None:
            self.level, self._all, self._late, self._trend = Level.CLOSED, 0.0, 0.0, 0
            return self.level
        self._age(at_ms, spec)
        overdue = oldest_wait_ms > spec.start_ms
        count = self._all + overdue
        share = (self._late + overdue) / count if count >= _SAMPLES_MIN else 0.0
        trend = 1 if share >= spec.broken_share else -1 if share <= spec.healthy_share else 0
        if trend != self._trend:
            self._trend, self._since_ms = trend, at_ms
        elif trend and at_ms - self._since_ms >= spec.hold_ms:
            level = Level(min(Level.SHEDS_ALL, max(Level.CLOSED, self.level + trend)))
            if level is not self.level:
                self.level, self._since_ms = level, at_ms
        if trend == 1 or not self._reason:
            self._reason = f"{share:.0%} of the interactive tasks start later than {spec.start_ms} ms"
        return self.level

    def shed(self, priority: Priority, at_ms: int, spec: BreakerSpec | None) -> Shed:
        """Whether newcomers of this class are refused."""
        opens_at = Level.SHEDS_BATCH if priority is Priority.BATCH else Level.SHEDS_ALL
        if spec is None or self.level < opens_at:
            return Shed()
        healthy_ms = at_ms - self._since_ms if self._trend == -1 else 0
        return Shed(self._reason, max(1_000, spec.hold_ms - healthy_ms))

    def _age(self, at_ms: int, spec: BreakerSpec) -> None:
        """hold / (hold + dt) instead of an exponential: the same bits on every machine."""
        elapsed_ms = max(0, at_ms - self._at_ms)
        keep = spec.hold_ms / (spec.hold_ms + elapsed_ms)
        self._all, self._late, self._at_ms = self._all * keep, self._late * keep, at_ms
