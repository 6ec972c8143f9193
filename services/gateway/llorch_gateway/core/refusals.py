"""What a client is told that is not let into a queue now: why, by which policy, and when to come back. Pure."""

from llorch_gateway.core.prospect import Prospect
from llorch_shared.errors import ErrorCode, OrchError, PolicyLabel, Refused
from llorch_shared.waiting import RETRY_MIN_MS, retry_after_ms
from llorch_shared.wire.registry import Appointment, ClassLoad, PoolLoad
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest


def queue_full(request: TaskRequest, pool: PoolSpec, load: PoolLoad | None, appointment: Appointment | None) -> Refused:
    """No place: the server said so, or those that come free are promised. `appointment` is the scheduler's word on
    when to come back; without it that is reckoned from the load."""
    wait_ms, kept = _told(appointment, retry_after_ms(load))
    return Refused(
        f"the {request.priority} queue of pool {pool.id} is full{kept}",
        policy_label=PolicyLabel(pool.queue.full_policy),
        retry_after_ms=wait_ms,
        engine=request.engine,
        pool_id=pool.id,
    )


def tenant_full(
    request: TaskRequest, pool: PoolSpec, tenant: str, load: PoolLoad | None, appointment: Appointment | None
) -> Refused:
    """The queue has room, this tenant has its share of it: it comes back when it was told to, or without an
    `appointment` when one of its own tasks has started."""
    line = load.classes.get(request.priority) if load is not None else None
    flow = line.flows.get(tenant) if line is not None else None
    pace_ms = round(flow.pace_ms) if flow is not None else 0
    wait_ms, kept = _told(appointment, max(RETRY_MIN_MS, pace_ms or retry_after_ms(load)))
    return Refused(
        f"tenant {tenant} has {pool.queue.tenant_capacity} {request.priority} tasks waiting in pool {pool.id}, "
        f"which is its bound{kept}",
        policy_label=PolicyLabel.TENANT_CAPACITY,
        retry_after_ms=wait_ms,
        engine=request.engine,
        pool_id=pool.id,
    )


def shed(request: TaskRequest, pool: PoolSpec, line: ClassLoad) -> Refused:
    """The circuit breaker of the pool refuses this class (ORCH-3040)."""
    return Refused(
        f"pool {pool.id} takes no {request.priority} tasks now: {line.shed}",
        policy_label=PolicyLabel.CIRCUIT_BREAKER,
        retry_after_ms=max(RETRY_MIN_MS, line.shed_for_ms),
        engine=request.engine,
        pool_id=pool.id,
    )


def deadline_unmet(request: TaskRequest, pool: PoolSpec, prospect: Prospect) -> OrchError:
    """It would most likely end too late: better told now than after the wait (ORCH-3079)."""
    return OrchError(
        ErrorCode.DEADLINE_UNMET,
        f"the deadline is {request.deadline_ms} ms from now; pool {pool.id} is expected to start this task in "
        f"{prospect.start_ms} ms and to end it in {prospect.end_ms} ms",
        engine=request.engine,
        pool_id=pool.id,
        hint=f"its chance to be in time is {prospect.on_time:.2f}, and the pool takes tasks from "
        f"{pool.deadlines.min_on_time_probability:g} on",
    )


def _told(appointment: Appointment | None, reckoned_ms: int) -> tuple[int, str]:
    """When to come back, and what is said of the place."""
    if appointment is None or appointment.retry_after_ms <= 0:
        return reckoned_ms, ""
    wait_ms = appointment.retry_after_ms
    return wait_ms, f"; a place is kept for this task in {wait_ms} ms" if appointment.promised else ""
