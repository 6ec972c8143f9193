"""Flows that neither wait nor run but are ahead of virtual time: they are remembered until it has passed their tag.

Without it a tenant that leaves and returns would start anew each time. At most IDLE_MAX are kept; beyond it the one
least ahead is forgotten, and gains at most what it was ahead.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Final

from llorch_scheduler.core.flow import Flow

IDLE_MAX: Final = 16_384


class IdleFlows:
    """`forget` is called once for each flow that has been idle and is not worth remembering."""

    __slots__ = ("_forget", "_heap")

    def __init__(self, forget: Callable[[Flow], None]) -> None:
        self._forget: Final = forget
        self._heap: list[tuple[float, int, Flow]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first_tag(self) -> float:
        """From which virtual time on something can be forgotten."""
        return self._heap[0][0] if self._heap else inf

    def add(self, flow: Flow, virtual: float) -> None:
        if not flow.listed_idle:
            flow.listed_idle = True
            heappush(self._heap, (flow.tag, flow.serial, flow))
        self.passed(virtual)

    def passed(self, virtual: float) -> None:
        """Virtual time has come to here. O(log idle flows) for each that is forgotten or was busy again."""
        heap = self._heap
        while heap and (heap[0][0] <= virtual or len(heap) > IDLE_MAX):
            tag, serial, flow = heappop(heap)
            if flow.idle and flow.tag > max(tag, virtual):
                heappush(heap, (flow.tag, serial, flow))
                continue
            flow.listed_idle = False
            if flow.idle:
                self._forget(flow)

    def clear(self) -> None:
        for _, _, flow in self._heap:
            flow.listed_idle = False
        self._heap.clear()
