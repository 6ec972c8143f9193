"""The lines of one class that compete for the replicas of one shape: least tag first, and the most urgent.

Heaps with entries that may be out of date: a tag that grew is put right when it reaches the top, one that shrank gets a
second entry. An entry whose tag is not its line's stamp is dropped. Both heaps are rebuilt when most of them is out of
date, so they stay proportional to the lines. Every operation O(log lines) amortised.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import Final

from llorch_scheduler.core.job import Job
from llorch_scheduler.core.line import Line
from llorch_scheduler.core.shape import Shape

IsOpen = Callable[[Shape], bool]

SHAPES_MAX: Final = 64
"""Shapes of a class with a contest of their own. Further ones share one, so that a start looks at a bounded number."""
LOOKED_AT_MAX: Final = 16
"""Lines, and jobs of a line, of mixed shapes that are looked at for one that can be placed."""
_COMPACT_MIN: Final = 64


class Contest:
    """`shape` is None for the one that mixes shapes."""

    __slots__ = ("_heap", "_urgent", "lines", "shape")

    def __init__(self, shape: Shape | None) -> None:
        self.shape: Final = shape
        self._heap: list[tuple[float, int, int, Line]] = []
        self._urgent: list[tuple[float, int, Line]] = []
        self.lines = 0
        """Lines that wait, throttled ones too."""

    def close(self) -> None:
        """Its last line is gone. Entries out of date would hold the contest by way of their lines, in circles that only
        the garbage collector ends."""
        self._heap.clear()
        self._urgent.clear()

    def enter(self, line: Line) -> None:
        """A line stands for election, or its flow's tag shrank."""
        flow = line.flow
        line.stamp = tag = flow.tag
        heap = self._heap
        heappush(heap, (tag, flow.serial, line.serial, line))
        if len(heap) > 2 * self.lines + _COMPACT_MIN:
            self._heap = [entry for entry in heap if entry[3].stamp == entry[0]]
            heapify(self._heap)

    def top(self) -> Line | None:
        """The line whose flow has the least tag."""
        heap = self._heap
        while heap:
            tag, serial, line_serial, line = heap[0]
            if line.stamp != tag:
                heappop(heap)
                continue
            now = line.flow.tag
            if now <= tag:
                return line
            line.stamp = now
            heapreplace(heap, (now, serial, line_serial, line))
        return None

    def top_open(self, top: Line, is_open: IsOpen) -> Line | None:
        """The line whose flow has the least tag among those with a job that could be placed; `top` is the first of all.
        Of mixed shapes at most LOOKED_AT_MAX lines are looked at."""
        if self.shape is not None:
            return top if is_open(self.shape) else None
        passed: list[Line] = []
        line: Line | None = top
        while line is not None and self.open_job(line, is_open) is None:
            heappop(self._heap)
            passed.append(line)
            line = self.top() if len(passed) < LOOKED_AT_MAX else None
        for each in passed:
            self.enter(each)
        return line

    def open_job(self, line: Line, is_open: IsOpen) -> Job | None:
        """The first job of this line that could be placed; of mixed shapes the first LOOKED_AT_MAX are looked at."""
        shape = self.shape
        if shape is not None:
            return line.head if is_open(shape) else None
        return next((job for job in line.first(LOOKED_AT_MAX) if is_open(job.shape)), None)

    def watch(self, line: Line) -> None:
        """Its head is new here: remember how late it may start. An entry that says earlier is put right when it comes
        to the top."""
        head = line.head
        if head is not None and head.due_ms - head.cost_ms < line.latest_ms:
            self._watch(line, head.due_ms - head.cost_ms)

    def urgent(self, at_ms: int, within_ms: float) -> Job | None:
        """The head that must start first to be in time, if it must within this time and still can be."""
        while self._urgent and self._urgent[0][0] < at_ms + within_ms:
            latest_ms, _, line = self._urgent[0]
            head = line.head
            now_ms = head.due_ms - head.cost_ms if head is not None and line.stamp is not None else -inf
            if line.latest_ms == latest_ms == now_ms >= at_ms:
                return head
            heappop(self._urgent)
            if line.latest_ms == latest_ms:
                line.latest_ms = inf
                if now_ms >= at_ms:
                    self._watch(line, now_ms)
        return None

    def _watch(self, line: Line, latest_ms: float) -> None:
        line.latest_ms = latest_ms
        heappush(self._urgent, (latest_ms, line.serial, line))
        if len(self._urgent) > 2 * self.lines + _COMPACT_MIN:
            self._urgent = [entry for entry in self._urgent if entry[2].latest_ms == entry[0] and entry[2].head]
            heapify(self._urgent)
