"""Answers whether a task may be admitted now, or when its client should come back (see `appointments`)."""

from llorch_scheduler.core.pool import Pool
from llorch_shared.pool_policy import CLASSES, class_weight, server_capacity, total_capacity
from llorch_shared.wire.policy import FullPolicy
from llorch_shared.wire.registry import Appointment, AppointmentRequest
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority


def appoint(pool: Pool | None, request: AppointmentRequest, at_ms: int) -> Appointment:
    """The server decides about pools that are not known here, and about queues that make room themselves."""
    spec = pool.spec if pool is not None else None
    if pool is None or spec is None or spec.queue.full_policy is FullPolicy.DROP_LRU:
        return Appointment(admit=not request.refused)
    forecast = pool.look(at_ms)
    return pool.appointments[request.priority].ask(
        request.task_id,
        at_ms,
        capacity=server_capacity(spec, request.priority),
        free=0 if request.refused else _free(pool, spec, request.priority),
        drain=forecast.drain(request.priority, share=_share(pool, spec, request.priority)),
        spec=spec.waiting,
    )


def _free(pool: Pool, spec: PoolSpec, priority: Priority) -> int:
    """Places of this class's queue that are not taken, as far as is known here. With `shed-low-priority` the places are
    shared, and a lower class gives its own to a higher one."""
    classes = pool.queue.classes
    free = server_capacity(spec, priority) - classes[priority].fresh
    if spec.queue.full_policy is FullPolicy.SHED_LOW_PRIORITY:
        at_least = CLASSES[: CLASSES.index(priority) + 1]
        free = min(free, total_capacity(spec) - sum(classes[each].fresh for each in at_least))
    return free


def _share(pool: Pool, spec: PoolSpec, priority: Priority) -> float:
    """Of the class, by weight, among those that wait."""
    weight = class_weight(spec, priority)
    others = sum(class_weight(spec, each) for each in CLASSES if each is not priority and len(pool.queue.classes[each]))
    return weight / (weight + others)
