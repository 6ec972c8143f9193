"""The guards before a queue: what can be refused without asking anybody, in the order of REQUIREMENTS section 7.

Nothing is stored for a request that fails here. What only the engine can know (the exact number of prompt tokens) is
checked by the node, which ends the task with INVALID_PARAMS.
"""

from collections.abc import Collection, Mapping

from llorch_gateway.core.prospect import Prospect, prospect_for
from llorch_gateway.core.refusals import deadline_unmet, shed
from llorch_shared.errors import invalid
from llorch_shared.guards import check_budget, check_content, check_deadline
from llorch_shared.models import Models
from llorch_shared.routing import Replicas, route
from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority, TaskRequest


def admit(
    request: TaskRequest,
    tenant: str,
    pools: Mapping[str, PoolSpec],
    replicas: Replicas,
    loads: Mapping[str, PoolLoad],
    *,
    models: Models,
    drained: Collection[str] = (),
    session_since_ms: int | None = None,
) -> tuple[TaskRequest, PoolSpec]:
    """The request as pools know its model, and the pool whose queue takes it. `session_since_ms`: when the account of
    its session was opened, where it has one. Raises OrchError."""
    check_content(request)
    request = models.resolved(request, session_since_ms=session_since_ms)
    models.check(request, session_since_ms=session_since_ms)
    check_budget(request)
    check_deadline(request)
    pool = route(request, pools, replicas, loads, tenant=tenant, drained=drained)
    models.check_served(request, replicas.get(pool.id, ()), session_since_ms=session_since_ms)
    return request, pool


def check_priority(request: TaskRequest, permitted: Collection[Priority]) -> None:
    """Raises OrchError when the caller's token does not permit this class."""
    if request.priority not in permitted:
        raise invalid(
            f"priority: this token may not use {request.priority}",
            engine=request.engine,
            hint=f"it may use {', '.join(sorted(permitted))}",
        )


def check_turn(request: TaskRequest, tenant: str, pool: PoolSpec, load: PoolLoad | None) -> Prospect:
    """What the task may expect, if the pool takes such a one at present: the circuit breaker is asked first, then the
    deadline. Raises OrchError."""
    line = load.classes.get(request.priority) if load is not None else None
    if line is not None and line.shed:
        raise shed(request, pool, line)
    prospect = prospect_for(load, request, tenant)
    if prospect.on_time is not None and prospect.on_time < pool.deadlines.min_on_time_probability:
        raise deadline_unmet(request, pool, prospect)
    return prospect
