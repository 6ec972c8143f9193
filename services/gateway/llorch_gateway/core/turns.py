"""Whose turn it is at something that only a few may do at once: the callers' in the order of their tenants, one of each
after the other, so that a tenant with many waits behind its own. Pure.
"""

from collections import Counter, deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")


class TurnOrder(Generic[T]):
    """`at_once` have their turn, `waiting_max` wait, of one tenant no more than a quarter of these."""

    def __init__(self, at_once: int, waiting_max: int) -> None:
        self._at_once: Final = at_once
        self._waiting_max: Final = waiting_max
        self._waiting_each: Final = max(1, waiting_max // 4)
        self._waiting: Final[dict[Hashable, deque[T]]] = {}
        """By whom; whose turn comes first stands first."""
        self._running: Final[Counter[Hashable]] = Counter()
        self._most: Final[dict[Hashable, int]] = {}

    def come(self, whose: Hashable, who: T, *, alone: bool) -> bool:
        """`alone`: whether all turns may be `whose` at once. False when too many wait already."""
        own = self._waiting.get(whose, ())
        if sum(map(len, self._waiting.values())) >= self._waiting_max:
            return False
        if not alone and len(own) >= self._waiting_each:
            return False
        self._most[whose] = self._at_once if alone else max(1, self._at_once - 1)
        self._waiting.setdefault(whose, deque()).append(who)
        return True

    def next(self) -> T | None:
        """Who has a turn now, once for each."""
        if self._running.total() >= self._at_once:
            return None
        for whose, waiting in self._waiting.items():
            if self._running[whose] < self._most[whose]:
                who = waiting.popleft()
                del self._waiting[whose]
                if waiting:
                    self._waiting[whose] = waiting
                self._running[whose] += 1
                return who
        return None

    def leave(self, whose: Hashable, who: T) -> bool:
        """It waits no more. False when it does not wait, but has its turn."""
        waiting = self._waiting.get(whose, deque())
        if who not in waiting:
            return False
        waiting.remove(who)
        if not waiting:
            del self._waiting[whose]
            self._forget(whose)
        return True

    def done(self, whose: Hashable) -> None:
        """One turn is over."""
        self._running[whose] -= 1
        self._forget(whose)

    def _forget(self, whose: Hashable) -> None:
        if not self._running[whose]:
            del self._running[whose]
            if whose not in self._waiting:
                self._most.pop(whose, None)
