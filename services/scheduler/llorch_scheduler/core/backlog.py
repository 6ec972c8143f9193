"""What waits in a pool, as forecasts and load reports need it."""

from heapq import nlargest
from typing import Final

from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.flow import Flow
from llorch_scheduler.core.line import Place
from llorch_scheduler.core.tenants import Tenants
from llorch_shared.waiting import Ahead
from llorch_shared.wire.registry import ClassLoad, FlowLoad

FLOWS_TOLD_MAX: Final = 64
"""Flows in a load report: those with the most work."""
CHOSEN_FROM_MIN: Final = 256
CHOSEN_MS: Final = 1_000


class Backlog:
    __slots__ = ("_classes", "_longest", "_tenants")

    def __init__(self, classes: list[ClassQueue], tenants: Tenants) -> None:
        self._classes: Final = classes
        self._longest: Final = {str(queue.priority): Longest(queue) for queue in classes}
        self._tenants: Final = tenants

    def ahead(self, own: ClassQueue, tenant: str, where: Place, cost_ms: float) -> Ahead:
        """What stands before this place in the tenant's flow. `cost_ms` is that of the task if it waits here, else 0.
        O(log n), plus the blocks of the flow."""
        flow = own.flows.get(tenant)
        tasks, work_ms = 0, 0.0
        if flow is None:
            weight = self._tenants.limits_of(tenant).weight
        else:
            weight = flow.weight
            for line in flow.lines.values():
                line_tasks, line_work_ms = line.before(where)
                tasks += line_tasks
                work_ms += line_work_ms
        other_tasks, other_work_ms, other_weight = 0, 0.0, 0
        for each in self._classes:
            if each is not own and each.size:
                other_tasks += each.size
                other_work_ms += each.work_ms
                other_weight += each.weight
        return Ahead(
            flow_tasks=tasks,
            flow_work_ms=work_ms,
            flow_weight=weight,
            flows_weight=own.flows_weight + (0 if flow is not None and flow.queued else weight),
            class_tasks=own.size - (cost_ms > 0),
            class_work_ms=max(0.0, own.work_ms - cost_ms),
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
            flows={flow.tenant: _flow_load(flow) for flow in self._chosen if flow.queued},
        )


def _flow_load(flow: Flow) -> FlowLoad:
    return FlowLoad(
        queued=flow.queued,
        work_ms=round(flow.work_ms, 3),
        weight=flow.weight,
        pace_ms=round(flow.pace_ms, 3),
        throttled=flow.throttled,
    )
