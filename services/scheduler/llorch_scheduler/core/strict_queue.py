"""Who waits behind whom in one pool: strict FIFO inside a class, interactive before batch.

A queue holds one line per required device mask, so that a task which wants a busy device does not hold up the others;
the earliest head among the lines that a free replica can serve goes first. Bounds are the server's (a full admission
stream refuses), so nothing is refused here; `len` never exceeds what the streams hold plus what came back.

Costs: `push` in admission order, `discard` and `pop` O(1) amortised (removed entries stay as tombstones until they
reach the head, and a line is rebuilt when more than half of it is tombstones); `push` out of order O(log n). Messages
come out of order only after a takeover.
"""

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from llorch_scheduler.core.job import Job
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.task import Priority

_COMPACT_MIN: Final = 64


_Entry = tuple[tuple[int, int], int, str, Job]
"""(order, arrival, task id, job). A line compares entries by identity, so a job that left and came back is not two."""


class Line:
    """Jobs in `order`, least first."""

    __slots__ = ("_arrivals", "_early", "_live", "_tail")

    def __init__(self) -> None:
        self._tail: deque[_Entry] = deque()
        self._early: list[_Entry] = []
        self._live: dict[str, _Entry] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._live)

    def push(self, job: Job) -> None:
        self._arrivals += 1
        entry = (job.order, self._arrivals, job.task_id, job)
        self._live[job.task_id] = entry
        if not self._tail or self._tail[-1][0] < job.order:
            self._tail.append(entry)
        else:
            heappush(self._early, entry)
        self._compact()

    def discard(self, job: Job) -> bool:
        removed = self._live.pop(job.task_id, None) is not None
        if removed:
            self._compact()
        return removed

    def head(self) -> Job | None:
        while self._tail and self._live.get(self._tail[0][2]) is not self._tail[0]:
            self._tail.popleft()
        while self._early and self._live.get(self._early[0][2]) is not self._early[0]:
            heappop(self._early)
        if self._early and (not self._tail or self._early[0][0] < self._tail[0][0]):
            return self._early[0][3]
        return self._tail[0][3] if self._tail else None

    def _compact(self) -> None:
        if len(self._tail) + len(self._early) <= 2 * len(self._live) + _COMPACT_MIN:
            return
        self._tail = deque(entry for entry in self._tail if self._live.get(entry[2]) is entry)
        self._early = [entry for entry in self._early if self._live.get(entry[2]) is entry]
        heapify(self._early)


class ClassQueue:
    """The waiting tasks of one pool and class."""

    __slots__ = ("_lines", "_set_aside", "_size", "seq")

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._set_aside: dict[str, Job] = {}
        self._size = 0
        self.seq = 0
        """Highest admission sequence that arrived."""

    def __len__(self) -> int:
        return self._size

    def push(self, job: Job) -> None:
        self._lines.setdefault(job.device_mask, Line()).push(job)
        self._size += 1

    def discard(self, job: Job) -> bool:
        """Take `job` out, wherever it stands; false when it is not here."""
        if self._set_aside.get(job.task_id) is job:
            del self._set_aside[job.task_id]
        else:
            line = self._lines.get(job.device_mask)
            if line is None or not line.discard(job):
                return False
            if not line:
                del self._lines[job.device_mask]
        self._size -= 1
        return True

    def head(self, masks: Iterable[str]) -> Job | None:
        """The first task among those that any device may serve and those that require one of `masks`."""
        first: Job | None = None
        for mask in ("", *masks):
            line = self._lines.get(mask)
            job = line.head() if line is not None else None
            if job is not None and (first is None or job.order < first.order):
                first = job
        return first

    def ahead_of(self, job: Job) -> int:
        """Upper bound of how many of this class start before `job`: sequences of one admission stream are dense, but
        those that left from the middle are still counted. O(required masks)."""
        first = self.head(self._lines)
        if first is None or job.order <= first.order:
            return 0
        others = self._size - 1
        return others if first.order[0] != job.order[0] else min(others, job.order[1] - first.order[1])

    def set_aside(self, job: Job) -> None:
        """No replica of the pool as it is now can serve this one: let the others pass. It still waits and counts."""
        if self.discard(job):
            self._set_aside[job.task_id] = job
            self._size += 1

    def bring_back(self) -> None:
        """The replicas changed: everything set aside stands in line again."""
        jobs, self._set_aside = self._set_aside, {}
        for job in jobs.values():
            self._size -= 1
            self.push(job)


class PoolQueue:
    """The classes of one pool."""

    __slots__ = ("classes",)

    def __init__(self) -> None:
        self.classes: Final = {priority: ClassQueue() for priority in CLASSES}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.classes.values())

    def push(self, job: Job) -> None:
        self.classes[job.record.priority].push(job)

    def discard(self, job: Job) -> bool:
        return self.classes[job.record.priority].discard(job)

    def set_aside(self, job: Job) -> None:
        self.classes[job.record.priority].set_aside(job)

    def bring_back(self) -> None:
        for queue in self.classes.values():
            queue.bring_back()

    def head(self, masks: Iterable[str]) -> Job | None:
        """Who goes next: the first of the first class that has one."""
        for priority in CLASSES:
            if (job := self.classes[priority].head(masks)) is not None:
                return job
        return None

    def ahead_of(self, job: Job) -> int:
        higher = 0
        for priority in CLASSES:
            if priority is job.record.priority:
                break
            higher += len(self.classes[priority])
        return higher + self.classes[job.record.priority].ahead_of(job)

    def ahead_of_newcomer(self, priority: Priority) -> int:
        """How many start before a task that joins `priority` now."""
        ahead = 0
        for each in CLASSES:
            ahead += len(self.classes[each])
            if each is priority:
                break
        return ahead
