"""A pool's policy applied to one class, at once: to what waits there and to what runs."""

from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.line import JobList, entry_of
from llorch_scheduler.core.quota import starts_meter
from llorch_shared import pool_policy
from llorch_shared.wire.policy import FullPolicy
from llorch_shared.wire.spec import PoolSpec


def apply(queue: ClassQueue, spec: PoolSpec) -> None:
    """The tenants' limits are in force already. O(tenants), and O(n log n) if the order or the full policy changes."""
    queue.weight = pool_policy.class_weight(spec, queue.priority)
    queue.meter = starts_meter(pool_policy.class_policy(spec, queue.priority).rate_limit_rps, queue.meter)
    queue.wake_ms = 0
    queue.flows_weight = 0
    for flow in queue.flows.values():
        flow.weight = flow.use.limits.weight
        queue.flows_weight += flow.weight if flow.queued else 0
        queue.wake(flow)
    _order(queue, edf=spec.deadlines.order == "edf")
    _ages(queue, wanted=spec.queue.full_policy is not FullPolicy.REJECT)


def _order(queue: ClassQueue, *, edf: bool) -> None:
    """Every line anew."""
    if edf == queue.edf:
        return
    queue.edf = edf
    for line in queue.lines():
        line.rebuild(edf=edf)
        if queue.watched and not line.flow.throttled:
            line.contest.watch(line)


def _ages(queue: ClassQueue, *, wanted: bool) -> None:
    if not wanted:
        queue.by_age = None
    elif queue.by_age is None:
        queue.by_age = JobList()
        for job in queue.jobs():
            if job.order[0] != 0:
                queue.by_age.add(entry_of(job, edf=False))
