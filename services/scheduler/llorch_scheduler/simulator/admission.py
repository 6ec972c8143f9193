"""An admitted task on the bus: the request of its message, and the event of the scheduler that pulls it."""

from typing import Final

from llorch_scheduler.core.events import AdmissionRef, TaskArrived
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest, Workload

LANE: Final = "simulator"
_COMPLETION: Final = Workload.COMPLETION
"""Members that every task needs are named, here and elsewhere: to look one up takes ten times as long."""


def request_of(task: SimTask, spec: PoolSpec) -> TaskRequest:
    """The prompt is left out: nobody who decides reads it."""
    return TaskRequest(
        task_id=task.task_id,
        session_id=task.session,
        workload=_COMPLETION,
        model_ref=spec.model,
        engine=spec.engine,
        ctx=task.prompt + task.max_tokens or 1,
        priority=task.priority,
        max_tokens=task.max_tokens,
        deadline_ms=task.deadline_ms,
        prompt="",
    )


def arrival(task: SimTask, request: TaskRequest, ref: AdmissionRef, at_ms: int) -> TaskArrived:
    task_id = task.task_id
    return TaskArrived(
        at_ms=at_ms,
        ref=ref,
        task_id=task_id,
        pool_id=task.flow.pool_id,
        priority=task.priority,
        tenant=task.tenant,
        lane=LANE,
        correlation_id=task_id,
        channel="http",
        admitted_ms=at_ms,
        request=request,
    )
