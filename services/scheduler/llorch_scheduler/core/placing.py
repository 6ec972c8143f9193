"""Free slots get the task whose turn it is; for a task that cannot wait one may be made free."""

from functools import partial
from typing import Final

from msgspec.structs import replace

from llorch_scheduler.core.contest import IsOpen
from llorch_scheduler.core.decision import Decision
from llorch_scheduler.core.effects import Place
from llorch_scheduler.core.job import PLACING, Job
from llorch_scheduler.core.peers import Slots
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.pool_fleet import PoolFleet
from llorch_scheduler.core.preempting import Preempting
from llorch_scheduler.core.replica import Replica
from llorch_scheduler.core.shape import Shape
from llorch_scheduler.core.state import State
from llorch_shared.states import check_move
from llorch_shared.wire.task import Priority, TaskState

_PLACED: Final = TaskState.PLACED


class Placing:
    __slots__ = ("_preempting", "_state")

    def __init__(self, state: State, preempting: Preempting) -> None:
        self._state: Final = state
        self._preempting: Final = preempting

    def fill(self, pool: Pool, at_ms: int) -> None:
        """Place while a slot is free for a task that waits. O(log n) per placement, O(1) while no slot is free."""
        spec, fleet = pool.spec, pool.fleet
        if spec is None or not self._may_place(pool, at_ms):
            return
        if pool.shapes_version != fleet.shapes_version:
            pool.reassess(at_ms)
        slots = fleet.slots()
        if slots.free and pool.queue.size:
            self._fill(pool, slots, at_ms)
        pool.note_overload(at_ms, slots)
        if spec.preemption.mode == "hard" and pool.overloaded_ms:
            self._preempting.make_way(pool, spec, at_ms)

    def at_once(self, pool: Pool, job: Job, at_ms: int) -> bool:
        """Place a newcomer that need not wait; false when it has to join the queue, of whatever comes of that."""
        request, fleet = job.record.request, pool.fleet
        if pool.spec is None or request is None or not pool.queue.goes_at_once(job):
            return False
        if not self._may_place(pool, at_ms) or pool.shapes_version != fleet.shapes_version:
            return False
        decision = fleet.decide(
            request, tenant=job.record.tenant, at_ms=at_ms, expected_tokens=job.tokens_out, shape=job.shape
        )
        if decision.replica is None:
            return False
        pool.queue.took_at_once(job, at_ms)
        self._place(pool, job, decision, decision.replica, at_ms)
        pool.overloaded_ms = 0
        return True

    def _may_place(self, pool: Pool, at_ms: int) -> bool:
        return at_ms >= pool.paused_until_ms and self._state.backlog_known(pool, at_ms)

    def _fill(self, pool: Pool, slots: Slots, at_ms: int) -> None:
        """Place on the slots that are free: a placement takes one of them, and changes nothing else about replicas."""
        queue, fleet = pool.queue, pool.fleet
        is_open: IsOpen = fleet.can_take
        closed: set[Shape] = set()
        while slots.free and (pick := queue.pick(is_open, at_ms)) is not None:
            job = pick.job
            request = job.record.request
            assert request is not None, "a task without its request never waits"
            decision = fleet.decide(
                request, tenant=job.record.tenant, at_ms=at_ms, expected_tokens=job.tokens_out, shape=job.shape
            )
            if decision.replica is None:
                closed.add(job.shape)
                is_open = partial(_can_take, fleet, closed)
                continue
            queue.took(pick, at_ms)
            self._place(pool, job, decision, decision.replica, at_ms, passed_over=pick.passed_over)

    def _place(
        self,
        pool: Pool,
        job: Job,
        decision: Decision,
        replica: Replica,
        at_ms: int,
        *,
        passed_over: Priority | None = None,
    ) -> None:
        ledger, before = self._state.ledger, job.record
        chance = pool.chance(job, at_ms)
        if chance < 1.0:
            chance = round(chance, 4)
        self._learn(pool, job, at_ms)
        check_move(job.state, _PLACED)
        record = replace(
            before,
            state=_PLACED,
            replica_id=replica.replica_id,
            placed_ms=at_ms,
            on_time_probability=chance,
            kv_warmth=decision.kv_warmth,
        )
        resumed, job.stopped = job.stopped, False
        live = replica.record
        ahead = live.node_id if job.newcomer and not job.floor and live is not None and live.takes_ahead else ""
        job.record = record
        job.enter(PLACING, at_ms)
        job.held_ms = at_ms
        replica.hold(job)
        ledger.may_be_recorded(job)
        pool.dirty = True
        self._state.effect(
            Place(
                ticket=ledger.ticket(job),
                record=record,
                expect_seq=job.run_seq,
                ref=job.ref,
                log=decision.log,
                detail={
                    "waited_ms": at_ms - before.admitted_ms,
                    "queue_position": before.queue_position,
                    "predicted_start_ms": before.predicted_start_ms,
                    "expected_ms": round(job.cost_ms),
                    "on_time_probability": chance,
                    "passed_over": passed_over.value if passed_over is not None else "",
                },
                passed_over=passed_over,
                resumed=resumed,
                ahead=ahead,
            )
        )

    @staticmethod
    def _learn(pool: Pool, job: Job, at_ms: int) -> None:
        """A task of the queue takes a slot: how that compares with what was told."""
        record, spec = job.record, pool.spec
        if record.attempt == 1 and not job.run_seq:
            if record.predicted_start_ms:
                pool.start_errors.started(record, at_ms)
            if spec is not None and spec.breaker is not None:
                pool.breaker.started(at_ms - record.admitted_ms, record.priority, at_ms, spec.breaker)
        pool.look(at_ms).started(job, at_ms, pool.behind(job))


def _can_take(fleet: PoolFleet, closed: set[Shape], shape: Shape) -> bool:
    """Whether a replica can take this shape, and none was looked for in vain."""
    return shape not in closed and fleet.can_take(shape)
