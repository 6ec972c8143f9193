"""What waits in a pool, as forecasts and load reports need it."""

from bisect import bisect_left
from heapq import nlargest
from itertools import accumulate
from typing import Final

from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.flow import Flow
from llorch_scheduler.core.line import Place
from llorch_shared.queueing import NOBODY, Ahead
from llorch_shared.wire.registry import ClassLoad, FlowLoad

FLOWS_TOLD_MAX: Final = 64
"""Flows in a load report: those with the most work."""
DUES_TOLD: Final = 9
"""Deadlines told of each: eight parts of its line."""
CHOSEN_FROM_MIN: Final = 256
CHOSEN_MS: Final = 1_000


class Backlog:
    __slots__ = ("_classes", "_longest")

    def __init__(self, classes: list[ClassQueue]) -> None:
        self._classes: Final = classes
        self._longest: Final = {str(queue.priority): Longest(queue) for queue in classes}

    def ahead(self, own: ClassQueue, tenant: str, where: Place, cost_ms: float) -> Ahead:
        """What stands before this place in the tenant's flow. `cost_ms` is that of the task if it waits here, else 0.
        O(log n), plus the blocks of the flow."""
        flow = own.flows.get(tenant)
        if flow is None or not flow.queued:
            return NOBODY
        weight, only = flow.weight, flow.only
        tasks = only.before(where) if only is not None else sum([line.before(where) for line in flow.lines.values()])
        if not tasks:
            return NOBODY
        other_tasks, other_work_ms, other_weight = 0, 0.0, 0
        for each in self._classes:
            if each is not own and each.size:
                other_tasks += each.size
                other_work_ms += each.work_ms
                other_weight += each.weight
        return Ahead(
            flow_tasks=tasks,
            flow_weight=weight,
            flows_weight=own.flows_weight,
            class_tasks=own.size - (cost_ms > 0),
            class_work_ms=own.work_ms - cost_ms if own.work_ms > cost_ms else 0.0,
            class_weight=own.weight,
            other_tasks=other_tasks,
            other_work_ms=other_work_ms,
            other_weight=other_weight,
        )

    def loads(self, at_ms: int) -> dict[str, ClassLoad]:
        return {priority: longest.load(at_ms) for priority, longest in self._longest.items()}


class Longest:
    """The flows of one class with the most work. With many flows they are chosen again only every CHOSEN_MS, because
    that looks at every flow; what is told of the chosen ones is always of now."""

    __slots__ = ("_chosen", "_chosen_ms", "_queue")

    def __init__(self, queue: ClassQueue) -> None:
        self._queue: Final = queue
        self._chosen: list[Flow] = []
        self._chosen_ms = -CHOSEN_MS

    def load(self, at_ms: int) -> ClassLoad:
        queue = self._queue
        if len(queue.flows) <= CHOSEN_FROM_MIN or at_ms - self._chosen_ms >= CHOSEN_MS:
            self._chosen_ms = at_ms
            works = [(flow.work_ms, flow.serial, flow) for flow in queue.flows.values() if flow.queued]
            self._chosen = [flow for *_, flow in nlargest(FLOWS_TOLD_MAX, works)]
        return ClassLoad(
            queued=queue.size,
            work_ms=round(queue.work_ms, 3),
            weight=queue.weight,
            flows_weight=queue.flows_weight,
            flows={flow.tenant: _flow_load(flow, edf=queue.edf, at_ms=at_ms) for flow in self._chosen if flow.queued},
        )


def _flow_load(flow: Flow, *, edf: bool, at_ms: int) -> FlowLoad:
    return FlowLoad(
        queued=flow.queued,
        work_ms=round(flow.work_ms, 3),
        weight=flow.weight,
        pace_ms=round(flow.pace_ms, 3),
        throttled=flow.throttled,
        due_ms=_dues(flow, at_ms) if edf else (),
    )


def _dues(flow: Flow, at_ms: int) -> tuple[int, ...]:
    """As of now. Of several lines each counts as long as its samples stand for: as a rule there is one."""
    if flow.only is not None:
        return tuple(sorted([job.due_ms - at_ms for job in flow.only.spaced(DUES_TOLD)]))
    samples = [(line.spaced(DUES_TOLD), line.size) for line in flow.lines.values()]
    dues = sorted((job.due_ms - at_ms, size / len(jobs)) for jobs, size in samples for job in jobs)
    sums = list(accumulate(weight for _, weight in dues))
    steps = (sums[-1] * step / (DUES_TOLD - 1) for step in range(DUES_TOLD))
    return tuple(dues[min(len(dues) - 1, bisect_left(sums, step))][0] for step in steps)
