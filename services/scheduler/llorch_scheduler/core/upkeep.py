"""What time does: tasks run out of it, failed writes are tried again, load is told, specifications change."""

from typing import Final

from llorch_scheduler.core.effects import Audit
from llorch_scheduler.core.endings import Endings
from llorch_scheduler.core.events import BacklogRead, PoolChanged, PoolRemoved, Tick
from llorch_scheduler.core.holders import Holders
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.outcomes import Outcomes
from llorch_scheduler.core.placing import Placing
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.preempting import Preempting
from llorch_scheduler.core.state import State
from llorch_scheduler.core.telling import Telling
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority


class Upkeep:
    __slots__ = ("_endings", "_holders", "_outcomes", "_placing", "_preempting", "_state", "_telling", "_upkept_ms")

    def __init__(
        self,
        state: State,
        *,
        endings: Endings,
        holders: Holders,
        outcomes: Outcomes,
        placing: Placing,
        preempting: Preempting,
    ) -> None:
        self._state: Final = state
        self._endings: Final = endings
        self._holders: Final = holders
        self._outcomes: Final = outcomes
        self._placing: Final = placing
        self._preempting: Final = preempting
        self._upkept_ms = 0
        self._telling: Final = Telling(state)

    def pool_changed(self, event: PoolChanged) -> None:
        pool = self._state.pool(event.spec.id, event.at_ms)
        if pool.spec == event.spec:
            return
        pool.spec, pool.dirty = event.spec, True
        self._state.fleet.pool(pool.pool_id).configure(event.spec)
        pool.queue.configure(event.spec, event.at_ms)
        pool.reassess(event.at_ms)
        self._placing.fill(pool, event.at_ms)

    def pool_removed(self, event: PoolRemoved) -> None:
        pool = self._state.pool(event.pool_id, event.at_ms)
        if pool.spec is not None:
            pool.spec, pool.dirty = None, True
            self._state.fleet.pool(pool.pool_id).configure(None)

    def backlog_read(self, event: BacklogRead) -> None:
        pool = self._state.pool(event.pool_id, event.at_ms)
        pool.backlog_is_read(event.priority)
        pool.dirty = True
        queue = pool.queue.classes[event.priority]
        queue.seq = max(queue.seq, event.last_seq)
        self._placing.fill(pool, event.at_ms)

    def tick(self, event: Tick) -> None:
        state, at_ms = self._state, event.at_ms
        limits = state.limits
        state.ledger.see(event.run_seq)
        for job in state.expiries.due(at_ms, limits.expired_per_tick_max):
            self._look_at(job, at_ms)
        for job in state.repeats.due(at_ms, limits.expired_per_tick_max):
            self._outcomes.repeat(job)
        if state.rebuilt_ms >= 0 and at_ms - self._upkept_ms >= limits.upkeep_ms:
            self._upkept_ms = at_ms
            self._holders.upkeep(at_ms)
            for pool in state.pools.values():
                self._preempting.upkeep(pool, at_ms)
                self._step(pool, at_ms)
        for pool in state.pools.values():
            if self._wakes(pool, at_ms):
                self._placing.fill(pool, at_ms)
            self._telling.tell_if_due(pool, at_ms)

    def _step(self, pool: Pool, at_ms: int) -> None:
        """What changes by time alone: the breaker, and promises that nobody came for."""
        spec = pool.spec
        if spec is None:
            return
        for appointments in pool.appointments.values():
            appointments.step(at_ms, spec.waiting)
        for flow in pool.tenant_books.step(at_ms, spec.waiting):
            pool.forecast.forget_drain(flow)
        before = pool.breaker.level
        level = pool.breaker.step(at_ms, spec.breaker, oldest_wait_ms=self._oldest_wait_ms(pool, at_ms))
        if level is not before:
            pool.dirty = True
            self._state.effect(Audit(record=_breaker_audit(pool, spec, at_ms, self._state.actor)))

    @staticmethod
    def _oldest_wait_ms(pool: Pool, at_ms: int) -> int:
        """Of the interactive task that has waited longest, when a breaker asks. O(waiting interactive tasks)."""
        if pool.spec is None or pool.spec.breaker is None:
            return 0
        waiting = pool.queue.classes[Priority.INTERACTIVE].jobs()
        return max((at_ms - job.record.admitted_ms for job in waiting), default=0)

    def _wakes(self, pool: Pool, at_ms: int) -> bool:
        """Whether time alone may have made a placement possible, or one urgent."""
        if pool.paused_until_ms:
            if at_ms < pool.paused_until_ms:
                return False
            pool.paused_until_ms = 0
            return True
        if not pool.backlog_read or (pool.overloaded_ms and pool.spec and pool.spec.preemption.mode == "hard"):
            return True
        wake_ms = pool.queue.wake_ms()
        return wake_ms is not None and wake_ms <= at_ms

    def _look_at(self, job: Job, at_ms: int) -> None:
        """A waiting task has come to its latest start, or to its deadline."""
        pool = self._state.pools[job.record.pool_id]
        if at_ms >= job.due_ms:
            self._endings.expire(job, at_ms)
        elif pool.spec is not None and pool.spec.deadlines.evict == "expiry":
            self._state.expiries.watch(job, job.due_ms)
        elif at_ms > job.latest_start_ms and pool.lasting_overload(at_ms):
            self._endings.evict(job, at_ms)
        else:
            self._state.expiries.watch(job, min(job.due_ms, at_ms + self._state.limits.eta_again_ms))


def _breaker_audit(pool: Pool, spec: PoolSpec, at_ms: int, actor: str) -> AuditRecord:
    level = pool.breaker.level
    shed = [str(each) for each in CLASSES if pool.breaker.shed(each, at_ms, spec.breaker).reason]
    reasons = [pool.breaker.shed(each, at_ms, spec.breaker).reason for each in CLASSES]
    return AuditRecord(
        event=AuditEvent.BREAKER,
        task_id=pool.pool_id,
        pool_id=pool.pool_id,
        at_ms=at_ms,
        actor=actor,
        detail={"level": int(level), "refuses": shed, "reason": next((each for each in reasons if each), "healthy")},
    )
