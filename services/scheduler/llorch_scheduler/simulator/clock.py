"""Simulated time: what is to happen when, in order. Ties happen in the order they were planned."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

_Action = Callable[[Any], None]


class Clock:
    """`now_ms` is milliseconds since the simulation began. O(log n) per plan and step."""

    __slots__ = ("_heap", "_planned", "now_ms")

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._heap: Final[list[tuple[float, int, _Action, Any]]] = []
        self._planned = 0

    def at(self, when_ms: float, action: _Action, subject: Any = None) -> None:
        """Call `action(subject)` when `when_ms` comes; a past time means now."""
        self._planned += 1
        now_ms = self.now_ms
        heappush(self._heap, (when_ms if when_ms > now_ms else now_ms, self._planned, action, subject))

    def after(self, wait_ms: float, action: _Action, subject: Any = None) -> None:
        """`wait_ms` is not negative."""
        self._planned += 1
        heappush(self._heap, (self.now_ms + wait_ms, self._planned, action, subject))

    def step(self) -> bool:
        """The next thing that happens; false when nothing is planned any more."""
        if not self._heap:
            return False
        self.now_ms, _, action, subject = heappop(self._heap)
        action(subject)
        return True
