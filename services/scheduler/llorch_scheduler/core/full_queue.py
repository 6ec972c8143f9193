"""Who makes place in a full queue (REQUIREMENTS section 7, ORCH-3005).

Only tasks that still take a place of an admission queue count and can be victims: one that came back from a replica
has given its place back. `reject` needs nothing here but the bound per tenant, because the server refuses.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.job import Job
from llorch_shared.pool_policy import CLASSES, class_capacity, total_capacity
from llorch_shared.wire.policy import FullPolicy
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority


class Verdict(Enum):
    REFUSE = auto()
    """The newcomer itself finds no place."""


REFUSE: Final = Verdict.REFUSE


def victim(newcomer: Job, classes: Mapping[Priority, ClassQueue], spec: PoolSpec) -> Job | Verdict | None:
    """Who ends so that the newcomer, which does not wait here yet, has a place: a waiting job, nobody (None), or the
    newcomer itself (REFUSE). O(log n)."""
    own = classes[newcomer.record.priority]
    flow = own.flows.get(newcomer.record.tenant)
    bound = spec.queue.tenant_capacity
    if bound is not None and flow is not None and flow.fresh >= bound:
        return REFUSE
    match spec.queue.full_policy:
        case FullPolicy.REJECT:
            return None
        case FullPolicy.DROP_LRU:
            return _oldest(classes) if _is_full(classes, spec) else None
        case FullPolicy.SHED_LOW_PRIORITY:
            lower = CLASSES[CLASSES.index(own.priority) + 1 :]
            if own.fresh >= sum(class_capacity(spec, each) for each in (own.priority, *lower)):
                return REFUSE
            if not _is_full(classes, spec):
                return None
            return next((_newest(classes[each]) for each in reversed(lower) if classes[each].fresh), REFUSE)


def _is_full(classes: Mapping[Priority, ClassQueue], spec: PoolSpec) -> bool:
    return sum(each.fresh for each in classes.values()) >= total_capacity(spec)


def _oldest(classes: Mapping[Priority, ClassQueue]) -> Job | None:
    """Of the lowest class that has one: with two classes the oldest batch task, else the oldest of all."""
    for priority in reversed(CLASSES):
        line = classes[priority].by_age
        if line is not None and line.size:
            return line.head
    return None


def _newest(queue: ClassQueue) -> Job | Verdict:
    newest = queue.by_age.tail if queue.by_age is not None else None
    return newest or REFUSE
