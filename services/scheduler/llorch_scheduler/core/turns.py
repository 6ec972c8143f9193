"""Which class goes next, and which task may pass it over to be in time. Who is next inside a class: `turn`."""

from dataclasses import dataclass
from typing import Final

from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.contest import IsOpen
from llorch_scheduler.core.flow import Flow, Root
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.tenants import Tenants
from llorch_scheduler.core.turn import next_job, urgent_job
from llorch_shared.wire.policy import PreemptionSpec
from llorch_shared.wire.task import Priority


@dataclass(slots=True)
class Pick:
    job: Job
    passed_over: Priority | None = None
    """The class whose turn it was, when the task goes before it to be in time."""


class Turns:
    """`classes` are two: interactive, which is the higher and goes first among equals, and batch."""

    __slots__ = ("_by_priority", "_classes", "_root", "_tenants", "preemption")

    def __init__(self, classes: list[ClassQueue], root: Root, tenants: Tenants) -> None:
        self._classes: Final = classes
        self._by_priority: Final = {queue.priority: queue for queue in classes}
        self._root: Final = root
        self._tenants: Final = tenants
        self.preemption = PreemptionSpec()

    def pick(self, is_open: IsOpen, at_ms: int) -> Pick | None:
        if self._tenants.next_ms <= at_ms:
            self._wake(at_ms)
        higher, lower = self._classes
        for queue in (lower, higher) if lower.tag < higher.tag else self._classes:
            if queue.active and (queue.meter is None or not self._held_back(queue, at_ms)):
                job = next_job(queue, is_open, at_ms, self._throttle)
                if job is not None:
                    passing = self._passing(queue, job, is_open, at_ms) if queue is lower and higher.active else None
                    return passing or Pick(job)
        return None

    def urgent(self, is_open: IsOpen, at_ms: int, within_ms: float) -> Job | None:
        self._wake(at_ms)
        return self._urgent_above(None, is_open, at_ms, within_ms)

    def wake_ms(self) -> int | None:
        times = [queue.wake_ms for queue in self._classes if queue.wake_ms and queue.active]
        flows_ms = self._tenants.wake_ms()
        return min(times if flows_ms is None else [*times, flows_ms], default=None)

    def _passing(self, turn: ClassQueue, job: Job, is_open: IsOpen, at_ms: int) -> Pick | None:
        """A task of a higher class that cannot wait for `job`, whose turn it is."""
        if self.preemption.mode == "disabled" or turn.passed_in_row >= self.preemption.soft_max_in_row:
            return None
        urgent = self._urgent_above(turn, is_open, at_ms, max(1.0, job.cost_ms))
        return Pick(urgent, turn.priority) if urgent is not None else None

    def _urgent_above(self, turn: ClassQueue | None, is_open: IsOpen, at_ms: int, within_ms: float) -> Job | None:
        for queue in self._classes:
            if queue is turn:
                break
            if queue.watched and queue.active and not self._held_back(queue, at_ms):
                job = urgent_job(queue, is_open, at_ms, within_ms, self._throttle)
                if job is not None:
                    return job
        return None

    def _held_back(self, queue: ClassQueue, at_ms: int) -> bool:
        """Over the rate limit of the class. It earns nothing by that."""
        if queue.meter is None:
            return False
        opens_ms = queue.meter.opens_ms(1.0, at_ms)
        if opens_ms == 0 and queue.wake_ms:
            queue.join(self._root.virtual)
        queue.wake_ms = opens_ms
        return opens_ms != 0

    def _throttle(self, flow: Flow, opens_ms: int) -> None:
        self._by_priority[flow.priority].throttle(flow, opens_ms)
        self._tenants.wait(flow)

    def _wake(self, at_ms: int) -> None:
        for flow in self._tenants.woken(at_ms):
            self._by_priority[flow.priority].wake(flow)
