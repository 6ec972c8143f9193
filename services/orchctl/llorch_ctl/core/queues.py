"""How the queues of a pool stand, from the scheduler's last load report: who waits, what share is theirs, and what a
newcomer is told. Pure.
"""

import msgspec

from llorch_shared.pool_policy import CLASSES, class_capacity
from llorch_shared.waiting import expect
from llorch_shared.wire.registry import ClassLoad, FlowLoad, PoolLoad
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority


class FlowStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant in one class. Shares are parts (0..1) of the pool's slot time."""

    tenant: str
    waiting: int
    weight: int
    share: float
    """Its due by the weights of who waits now."""
    gets: float | None
    """What it gets, as measured; None until that is known."""
    predicted_wait_ms: int
    """What a new task of it would be told."""
    throttled: bool
    """A quota of the tenant holds its tasks back now."""


class ClassStatus(msgspec.Struct, frozen=True, kw_only=True):
    priority: Priority
    waiting: int
    capacity: int
    share: float
    """Due of the class by the weights of the classes that wait now; of a class that does not: what it would be."""
    predicted_wait_ms: int
    """What a new task of a tenant that does not wait yet would be told."""
    shed: str
    """Why the circuit breaker refuses the class now; empty while it does not."""
    shed_for_ms: int
    promised: bool
    """Places are promised to clients that were sent away."""
    tenants: tuple[FlowStatus, ...]
    """The longest first; at most what the scheduler tells."""
    tenants_untold: int
    """Tasks of tenants that are not among them."""


def classes_of(pool: PoolSpec, load: PoolLoad) -> tuple[ClassStatus, ...]:
    return tuple(
        _class(pool, load, priority, load.classes[priority]) for priority in CLASSES if priority in load.classes
    )


def _class(pool: PoolSpec, load: PoolLoad, priority: Priority, line: ClassLoad) -> ClassStatus:
    weights = sum(other.weight for name, other in load.classes.items() if other.queued or name == priority)
    share = line.weight / max(1, weights)
    flows = sorted(line.flows.items(), key=lambda item: (-item[1].work_ms, item[0]))
    return ClassStatus(
        priority=priority,
        waiting=line.queued,
        capacity=class_capacity(pool, priority),
        share=round(share, 4),
        predicted_wait_ms=round(expect(load, priority, "").start_ms),
        shed=line.shed,
        shed_for_ms=line.shed_for_ms,
        promised=line.promised,
        tenants=tuple(_flow(load, priority, tenant, flow, share * _part(line, flow)) for tenant, flow in flows),
        tenants_untold=max(0, line.queued - sum(flow.queued for flow in line.flows.values())),
    )


def _part(line: ClassLoad, flow: FlowLoad) -> float:
    return flow.weight / max(line.flows_weight, flow.weight)


def _flow(load: PoolLoad, priority: Priority, tenant: str, flow: FlowLoad, share: float) -> FlowStatus:
    gets = None
    if flow.pace_ms > 0 and flow.queued and load.slots_total:
        gets = round(min(1.0, flow.work_ms / flow.queued / flow.pace_ms / load.slots_total), 4)
    return FlowStatus(
        tenant=tenant,
        waiting=flow.queued,
        weight=flow.weight,
        share=round(share, 4),
        gets=gets,
        predicted_wait_ms=round(expect(load, priority, tenant).start_ms),
        throttled=flow.throttled,
    )
