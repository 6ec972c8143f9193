"""What waits in a pool, as forecasts and load reports need it."""

from collections.abc import Iterable
from heapq import nlargest
from typing import Final

from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.flow import Flow
from llorch_scheduler.core.line import Place
from llorch_shared.waiting import Ahead
from llorch_shared.wire.registry import ClassLoad, FlowLoad

FLOWS_TOLD_MAX: Final = 64
"""Flows in a load report: those with the most work."""


def ahead(
    classes: Iterable[ClassQueue], own: ClassQueue, flow: Flow | None, where: Place, *, weight: int, cost_ms: float
) -> Ahead:
    """What stands before this place in a flow of that weight. `cost_ms` is that of the task if it waits here, else 0.
    O(log n), plus the blocks of the flow."""
    tasks, work_ms = 0, 0.0
    for line in flow.lines.values() if flow is not None else ():
        line_tasks, line_work_ms = line.before(where)
        tasks += line_tasks
        work_ms += line_work_ms
    others = [each for each in classes if each is not own and each.size]
    return Ahead(
        flow_tasks=tasks,
        flow_work_ms=work_ms,
        flow_weight=weight,
        flows_weight=own.flows_weight + (0 if flow is not None and flow.queued else weight),
        class_tasks=own.size - (cost_ms > 0),
        class_work_ms=max(0.0, own.work_ms - cost_ms),
        class_weight=own.weight,
        other_tasks=sum(each.size for each in others),
        other_work_ms=sum(each.work_ms for each in others),
        other_weight=sum(each.weight for each in others),
    )


def class_load(queue: ClassQueue) -> ClassLoad:
    """O(waiting tenants)."""
    waiting = [(flow.work_ms, flow.tenant) for flow in queue.flows.values() if flow.queued]
    longest = [queue.flows[tenant] for _, tenant in nlargest(FLOWS_TOLD_MAX, waiting)]
    return ClassLoad(
        queued=queue.size,
        work_ms=round(queue.work_ms, 3),
        weight=queue.weight,
        flows_weight=queue.flows_weight,
        flows={flow.tenant: _flow_load(flow) for flow in longest},
    )


def _flow_load(flow: Flow) -> FlowLoad:
    return FlowLoad(
        queued=flow.queued,
        work_ms=round(flow.work_ms, 3),
        weight=flow.weight,
        pace_ms=round(flow.pace_ms, 3),
        throttled=flow.throttled,
    )
