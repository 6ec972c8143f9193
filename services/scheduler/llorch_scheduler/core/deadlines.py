"""Which waiting tasks are out of time, or due to be tried again: a heap of times whose stale entries are forgotten.

O(log n) per entry; rebuilt when most entries are stale, so it stays proportional to what it watches.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from llorch_scheduler.core.job import Job

_COMPACT_MIN: Final = 64


class Deadlines:
    """`stale(job)` tells that an entry no longer matters."""

    __slots__ = ("_entries", "_heap", "_stale", "_trim_at")

    def __init__(self, stale: Callable[[Job], bool]) -> None:
        self._heap: list[tuple[int, tuple[int, int], int, Job]] = []
        self._stale: Final = stale
        self._trim_at = _COMPACT_MIN
        self._entries = 0

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, job: Job, due_ms: int) -> None:
        self._entries += 1
        heappush(self._heap, (due_ms, job.order, self._entries, job))
        if len(self._heap) > self._trim_at:
            self._heap = [entry for entry in self._heap if not self._stale(entry[3])]
            heapify(self._heap)
            self._trim_at = 2 * len(self._heap) + _COMPACT_MIN

    def due(self, at_ms: int, limit: int) -> list[Job]:
        """Up to `limit` jobs whose time has come, earliest first. They are no longer watched."""
        found: list[Job] = []
        while self._heap and self._heap[0][0] <= at_ms and len(found) < limit:
            job = heappop(self._heap)[3]
            if not self._stale(job) and job not in found:
                found.append(job)
        return found
