"""What is told about a pool: its load, from which gateways answer, and figures for its operators."""

from typing import Final

from msgspec import structs

from llorch_scheduler.core.effects import PoolFigures, TellLoad
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.preempting import preemptible
from llorch_scheduler.core.state import State
from llorch_shared.wire.registry import ClassLoad, PoolLoad
from llorch_shared.wire.task import Priority

FLOWS_PER_MS: Final = 10
"""A report costs time for each tenant that waits: with many of them it is told less often."""


class Telling:
    __slots__ = ("_state", "_version")

    def __init__(self, state: State) -> None:
        self._state: Final = state
        self._version = 0

    def tell_if_due(self, pool: Pool, at_ms: int) -> None:
        """At most every `load_min_ms` when something has changed, at least every `load_max_ms`."""
        limits = self._state.limits
        flows = sum(len(queue.flows) for queue in pool.queue.classes.values())
        least_ms = min(limits.load_max_ms, limits.load_min_ms + flows // FLOWS_PER_MS)
        silent_ms = at_ms - pool.told_ms
        if silent_ms >= (least_ms if pool.dirty else limits.load_max_ms) and self._state.backlog_known(pool, at_ms):
            self._version += 1
            pool.told_ms, pool.dirty = at_ms, False
            self._state.effect(TellLoad(load=self._load(pool, at_ms), figures=self._figures(pool, at_ms)))

    def _load(self, pool: Pool, at_ms: int) -> PoolLoad:
        """O(waiting tenants)."""
        slots = pool.fleet.slots()
        load = PoolLoad(
            pool_id=pool.pool_id,
            at_ms=at_ms,
            snapshot_version=self._version,
            queued={str(priority): len(queue) for priority, queue in pool.queue.classes.items()},
            queue_seq={str(priority): queue.seq for priority, queue in pool.queue.classes.items()},
            running=pool.fleet.index.held,
            slots_total=slots.total,
            slots_free=slots.free,
            replicas_ready=slots.replicas,
            preemptible=preemptible(self._state, pool, at_ms),
            service_ms=0,
            classes={
                name: _class_load(pool, Priority(name), line, at_ms) for name, line in pool.queue.class_loads().items()
            },
        )
        return pool.look(at_ms).told(load)

    def _figures(self, pool: Pool, at_ms: int) -> PoolFigures:
        counts = pool.tally.counts()
        if at_ms - pool.figures_told_ms < self._state.limits.load_max_ms:
            return PoolFigures(deadlines_met=counts, breaker_level=pool.breaker.level)
        pool.figures_told_ms = at_ms
        return PoolFigures(
            shares=tuple(pool.queue.shares()),
            deadlines_met=counts,
            start_error=pool.start_errors.medians(),
            breaker_level=pool.breaker.level,
        )


def _class_load(pool: Pool, priority: Priority, load: ClassLoad, at_ms: int) -> ClassLoad:
    spec = pool.spec
    shed = pool.breaker.shed(priority, at_ms, spec.breaker if spec is not None else None)
    promised = pool.appointments[priority].outstanding > 0
    told = {
        tenant: structs.replace(load.flows[tenant], promised=True)
        for tenant in pool.tenant_books.promised(priority)
        if tenant in load.flows
    }
    if not shed.reason and not promised and not told:
        return load
    return structs.replace(
        load, shed=shed.reason, shed_for_ms=shed.for_ms, promised=promised, flows={**load.flows, **told}
    )
