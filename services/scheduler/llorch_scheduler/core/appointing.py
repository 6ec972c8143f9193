"""Answers whether a task may be admitted now, or when its client should come back (see `appointments`).

Two bounds may be in its way: its tenant's, asked first, and that of the queue.
"""

from msgspec.structs import replace

from llorch_scheduler.core.pool import Pool
from llorch_shared.pool_policy import CLASSES, class_weight, server_capacity, tenant_limits, total_capacity
from llorch_shared.waiting import RETRY_MIN_MS
from llorch_shared.wire.policy import FullPolicy
from llorch_shared.wire.registry import Appointment, AppointmentRequest
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority


def appoint(pool: Pool | None, request: AppointmentRequest, at_ms: int) -> Appointment:
    """The server decides about pools that are not known here, and about queues that make room themselves."""
    if pool is None or pool.spec is None:
        return Appointment(admit=not (request.refused or request.tenant_refused))
    told = _of_tenant(pool, pool.spec, request, at_ms)
    if told is not None and not told.admit:
        return replace(told, tenant_bound=True)
    return _of_queue(pool, pool.spec, request, at_ms)


def _of_tenant(pool: Pool, spec: PoolSpec, request: AppointmentRequest, at_ms: int) -> Appointment | None:
    """None: nobody has promised anything about this tenant's places."""
    key = (request.tenant, request.priority)
    bound = spec.queue.tenant_capacity
    if bound is None:
        return Appointment(admit=False, retry_after_ms=RETRY_MIN_MS) if request.tenant_refused else None
    forecast = pool.look(at_ms)
    book = pool.tenant_books.open(key) if request.tenant_refused else pool.tenant_books.get(key)
    if book is None:
        pace_ms = round(forecast.pace(request.priority, request.tenant).flow_pace_ms)
        told = Appointment(admit=False, retry_after_ms=max(pace_ms, pool.retry_after_ms()))
        return told if request.tenant_refused else None
    flow = pool.queue.classes[request.priority].flows.get(request.tenant)
    return book.ask(
        request.task_id,
        at_ms,
        capacity=bound,
        free=0 if request.tenant_refused else bound - (flow.fresh if flow is not None else 0),
        drain=forecast.flow_drain(request.priority, request.tenant, share=_tenant_share(pool, spec, request)),
        spec=spec.waiting,
    )


def _of_queue(pool: Pool, spec: PoolSpec, request: AppointmentRequest, at_ms: int) -> Appointment:
    if spec.queue.full_policy is FullPolicy.DROP_LRU:
        return Appointment(admit=not request.refused)
    return pool.appointments[request.priority].ask(
        request.task_id,
        at_ms,
        capacity=server_capacity(spec, request.priority),
        free=0 if request.refused else _free(pool, spec, request.priority),
        drain=pool.look(at_ms).drain(request.priority, share=_share(pool, spec, request.priority)),
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


def _tenant_share(pool: Pool, spec: PoolSpec, request: AppointmentRequest) -> float:
    """Of the tenant in its class, times that of the class."""
    queue = pool.queue.classes[request.priority]
    weight = tenant_limits(spec, request.tenant).weight
    return _share(pool, spec, request.priority) * weight / max(weight, queue.flows_weight)
