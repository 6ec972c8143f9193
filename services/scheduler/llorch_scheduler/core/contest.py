"""The lines of one class that compete for the replicas of one shape: least tag first, and the most urgent.

Heaps with entries that may be out of date: a tag that grew is put right when it reaches the top, one that shrank gets a
second entry. An entry whose tag is not its line's stamp is dropped. Both heaps are rebuilt when most of them is out of
date, so they stay proportional to the lines. Every operation O(log lines) amortised.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from llorch_scheduler.core.flow import Flow
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.line import Line
from llorch_scheduler.core.shape import Shape

IsOpen = Callable[[Shape], bool]

SHAPES_MAX: Final = 64
"""Shapes of a class with a line of their own. Further ones share one, so that a start looks at a bounded number."""
MIXED: Final = "mixed"
LOOKED_AT_MAX: Final = 16
"""Lines, and jobs of a line, of mixed shapes that are looked at for one that can be placed."""
_COMPACT_MIN: Final = 64

_Watched = tuple[float, int, str, Line, Job]
"""(latest start, serial of the line, task id, line, its head)"""


def open_job(line: Line, is_open: IsOpen) -> Job | None:
    """The job of this line that could be placed now."""
    if line.key is not MIXED:
        head = line.head
        return head if is_open(head.shape) else None
    return next((job for job in line.first(LOOKED_AT_MAX) if is_open(job.shape)), None)


class Contest:
    __slots__ = ("_heap", "_urgent", "lines")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Line]] = []
        self._urgent: list[_Watched] = []
        self.lines = 0
        """Lines that wait, throttled ones too."""

    def enter(self, line: Line, flow: Flow) -> None:
        """A line stands for election, or its flow's tag shrank."""
        line.stamp = flow.tag
        heappush(self._heap, (flow.tag, flow.serial, line.serial, line))
        if len(self._heap) > 2 * self.lines + _COMPACT_MIN:
            self._heap = [entry for entry in self._heap if entry[3].stamp == entry[0]]
            heapify(self._heap)

    def top(self) -> Line | None:
        """The line whose flow has the least tag."""
        heap = self._heap
        while heap:
            tag, serial, line_serial, line = heap[0]
            if line.stamp != tag:
                heappop(heap)
                continue
            assert line.flow is not None
            now = line.flow.tag
            if now <= tag:
                return line
            line.stamp = now
            heapreplace(heap, (now, serial, line_serial, line))
        return None

    def top_open(self, is_open: IsOpen) -> Line | None:
        """The first of the lines of mixed shapes with a job that could be placed, among the first LOOKED_AT_MAX."""
        passed: list[Line] = []
        found: Line | None = None
        while len(passed) < LOOKED_AT_MAX and (line := self.top()) is not None:
            if open_job(line, is_open) is not None:
                found = line
                break
            heappop(self._heap)
            passed.append(line)
        for line in passed:
            assert line.flow is not None
            self.enter(line, line.flow)
        return found

    def watch(self, line: Line) -> None:
        """Its head is new here: remember how late it may start."""
        head = line.head
        heappush(self._urgent, (head.due_ms - head.cost_ms, line.serial, head.task_id, line, head))
        if len(self._urgent) > 2 * self.lines + _COMPACT_MIN:
            self._urgent = [entry for entry in self._urgent if _stands(entry)]
            heapify(self._urgent)

    def urgent(self, at_ms: int, within_ms: float) -> Job | None:
        """The head that must start first to be in time, if it must within this time and still can be."""
        heap = self._urgent
        while heap and (heap[0][0] < at_ms or not _stands(heap[0])):
            heappop(heap)
        return heap[0][4] if heap and heap[0][0] < at_ms + within_ms else None


def _stands(entry: _Watched) -> bool:
    line = entry[3]
    return line.stamp is not None and line.size > 0 and line.head is entry[4]
