"""What a pool's policy says about one class or tenant, defaults filled in. Pure; used by all who must agree."""

from collections.abc import Mapping
from typing import Final

import msgspec

from llorch_shared.wire.policy import FullPolicy, PrioritySpec, TenantLimits, TenantSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority

CLASSES: Final = (Priority.INTERACTIVE, Priority.BATCH)
"""Highest class first."""
DEFAULT_WEIGHT: Final = {Priority.INTERACTIVE: 8, Priority.BATCH: 1}
HEADROOM: Final = 256
"""Messages a queue may hold beyond its capacity while the scheduler ends the victims of drop-lru: what arrives in the
moment that takes."""
_REJECT: Final = FullPolicy.REJECT
_DEFAULTS: Final = {priority: PrioritySpec(name=priority) for priority in CLASSES}


def class_policy(pool: PoolSpec, priority: Priority) -> PrioritySpec:
    """As configured, or all defaults."""
    for each in pool.admission.priorities:
        if each.name is priority:
            return each
    return _DEFAULTS[priority]


def class_weight(pool: PoolSpec, priority: Priority) -> int:
    return class_policy(pool, priority).weight or DEFAULT_WEIGHT[priority]


def class_capacity(pool: PoolSpec, priority: Priority) -> int:
    """Waiting tasks of this class that the policy keeps, when no other class lends it places."""
    return class_policy(pool, priority).queue_capacity or pool.queue.capacity


def total_capacity(pool: PoolSpec) -> int:
    return sum(class_capacity(pool, priority) for priority in CLASSES)


def server_capacity(pool: PoolSpec, priority: Priority) -> int:
    """Messages the server takes into this queue before it refuses.

    reject: the capacity. drop-lru: both classes share their places, and the scheduler ends what is over. shed: a class
    may use the places of all lower ones, whose tasks make way, so whatever the server takes has a place.
    """
    policy = pool.queue.full_policy
    if policy is _REJECT:
        return class_capacity(pool, priority)
    match policy:
        case FullPolicy.DROP_LRU:
            return total_capacity(pool) + HEADROOM
        case FullPolicy.SHED_LOW_PRIORITY:
            return sum(class_capacity(pool, each) for each in CLASSES[CLASSES.index(priority) :])


def tenant_limits(pool: PoolSpec, tenant: str) -> TenantLimits:
    """O(listed tenants): read once per flow, not per task."""
    fairness = pool.admission.fairness
    return next((each for each in fairness.tenants if each.id == tenant), fairness.default)


def with_tenants(pool: PoolSpec, tenants: Mapping[str, TenantSpec]) -> PoolSpec:
    """The pool as it is in effect: a tenant that it has no entry for has the limits of its own. O(tenants)."""
    fairness = pool.admission.fairness
    listed = {each.id for each in fairness.tenants}
    more = tuple(tenants[name] for name in sorted(tenants) if name not in listed)
    if not more:
        return pool
    wider = msgspec.structs.replace(fairness, tenants=(*fairness.tenants, *more))
    return msgspec.structs.replace(pool, admission=msgspec.structs.replace(pool.admission, fairness=wider))
