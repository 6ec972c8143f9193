"""When an engine that failed to erase a slot is asked again: ever less often. And when it has failed often enough to be
replaced, for the end of its process erases everything. Pure; of one replica, over the lives of its engines.

A new engine that cannot erase either is not replaced again, or a build without erasure would be restarted for every
session that ends. It is asked on; its slots warm nobody meanwhile.
"""

from math import inf
from typing import Final

PAUSE_FIRST_S: Final = 1.0
PAUSE_MAX_S: Final = 60.0
ENOUGH: Final = 5
"""Failures in a row, in about fifteen seconds, or forty of an engine that does not answer at all."""


class ErasurePatience:
    """Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row, of the present engine."""
        self._failed_at = -inf
        self._again_at = -inf
        self._replaced = False

    def new_engine(self) -> None:
        self.failures = 0
        self._failed_at = self._again_at = -inf

    def pause_s(self, now: float) -> float:
        """How long it is not asked yet."""
        return max(0.0, self._again_at - now)

    def failed(self, began: float, now: float) -> bool:
        """An erasure that began then. Whether it counts: of several that were under way at once, one does."""
        if began <= self._failed_at:
            return False
        self.failures += 1
        self._failed_at = now
        self._again_at = now + min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0 ** min(self.failures - 1, 10))
        return True

    def erased(self) -> None:
        self.new_engine()
        self._replaced = False

    @property
    def is_over(self) -> bool:
        """The engine is to be replaced as soon as no task is in it."""
        return self.failures >= ENOUGH and not self._replaced

    @property
    def is_hopeless(self) -> bool:
        """It was replaced for that, and the new one cannot either."""
        return self.failures >= ENOUGH and self._replaced

    def replaced(self) -> None:
        self._replaced = True
