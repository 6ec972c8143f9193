"""Simulated time: what is to happen when, in order. Ties happen in the order they were planned."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

_Action = Callable[[Any], None]
_Planned = tuple[float, int, _Action, Any]
"""(when, how manieth plan, action, subject): no two are equal in the first two."""


class Clock:
    """`now_ms` is milliseconds since the simulation began.

    What falls into one millisecond lies together, and is put in order when that millisecond comes: with thousands of
    plans, of which a few are due in each, that is a third of the work of keeping them all in order.
    """

    __slots__ = ("_later", "_millisecond", "_next", "_plans", "_waiting", "now_ms")

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._plans = 0
        self._millisecond = -1
        """The present one."""
        self._next: list[_Planned] = []
        """What is left of it, the last to happen first."""
        self._later: Final[dict[int, list[_Planned]]] = {}
        """By millisecond, in no order."""
        self._waiting: Final[list[int]] = []
        """Heap of these milliseconds."""

    def at(self, when_ms: float, action: _Action, subject: Any = None, *, instead_of: int = 0) -> int:
        """Call `action(subject)` when `when_ms` comes; a past time means now. Returns the number of the plan, by which
        another one for another time can take its place among equal times."""
        when_ms = self.now_ms if when_ms < self.now_ms else when_ms
        number = instead_of
        if not number:
            self._plans = number = self._plans + 1
        millisecond = int(when_ms)
        together = self._later.get(millisecond)
        if together is not None:
            together.append((when_ms, number, action, subject))
        elif millisecond == self._millisecond:
            self._next.append((when_ms, number, action, subject))
            self._next.sort(reverse=True)
        else:
            self._later[millisecond] = [(when_ms, number, action, subject)]
            heappush(self._waiting, millisecond)
        return number

    def after(self, wait_ms: float, action: _Action, subject: Any = None) -> None:
        """`wait_ms` is not negative."""
        self.at(self.now_ms + wait_ms, action, subject)

    def step(self) -> bool:
        """The next thing that happens; false when nothing is planned any more."""
        if not self._next:
            if not self._waiting:
                return False
            self._millisecond = heappop(self._waiting)
            self._next = self._later.pop(self._millisecond)
            self._next.sort(reverse=True)
        self.now_ms, _, action, subject = self._next.pop()
        action(subject)
        return True
