"""Times at which a task must be looked at again: a heap whose stale entries are forgotten.

O(log n) per entry; rebuilt when most entries are stale, so it stays proportional to what it watches.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

from llorch_scheduler.core.job import Job

_COMPACT_MIN: Final = 64


class Deadlines:
    """One time per job: watching it again replaces the time before. `stale(job)` tells that it no longer matters."""

    __slots__ = ("_entries", "_heap", "_stale", "_trim_at")

    def __init__(self, stale: Callable[[Job], bool]) -> None:
        self._heap: list[tuple[int, tuple[int, int], int, Job]] = []
        self._stale: Final = stale
        self._trim_at = _COMPACT_MIN
        self._entries = 0

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, job: Job, at_ms: int) -> None:
        self._entries += 1
        job.watch = self._entries
        heappush(self._heap, (at_ms, job.order, self._entries, job))
        if len(self._heap) > self._trim_at:
            self._heap = [entry for entry in self._heap if self._matters(entry[2], entry[3])]
            heapify(self._heap)
            self._trim_at = 2 * len(self._heap) + _COMPACT_MIN

    def due(self, at_ms: int, limit: int) -> list[Job]:
        """Up to `limit` jobs whose time has come, earliest first. They are no longer watched."""
        found: list[Job] = []
        heap = self._heap
        while heap and heap[0][0] <= at_ms and len(found) < limit:
            _, _, number, job = heappop(heap)
            if self._matters(number, job):
                found.append(job)
        return found

    def _matters(self, number: int, job: Job) -> bool:
        return job.watch == number and not self._stale(job)
