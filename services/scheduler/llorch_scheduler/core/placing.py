"""Slots that are free get the task whose turn it is."""

from typing import Final

from llorch_scheduler.core.effects import Place
from llorch_scheduler.core.job import Job, Phase
from llorch_scheduler.core.placement import Decision
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.replica import Replica
from llorch_scheduler.core.state import State
from llorch_shared.wire.task import TaskState


class Placing:
    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state: Final = state

    def fill(self, pool: Pool, at_ms: int) -> None:
        """Place from the head of the line while a slot is free. O(replicas) per placement."""
        if pool.spec is None or at_ms < pool.paused_until_ms or not self._state.backlog_known(pool, at_ms):
            return
        replicas = self._state.fleet.of_pool(pool.pool_id)
        while free := [replica for replica in replicas if replica.slots_free > 0]:
            masks = sorted({replica.record.device for replica in free if replica.record and replica.record.device})
            job = pool.queue.head(masks)
            if job is None or job.record.request is None:
                return
            decision = self._state.fleet.pool(pool.pool_id).decide(job.record.request, at_ms=at_ms)
            if decision.replica is not None:
                pool.queue.discard(job)
                self._place(pool, job, decision, decision.replica, at_ms)
            elif decision.busy:
                return
            else:
                pool.queue.set_aside(job)

    def _place(self, pool: Pool, job: Job, decision: Decision, replica: Replica, at_ms: int) -> None:
        record = job.moved(TaskState.PLACED, replica_id=replica.replica_id, placed_ms=at_ms)
        job.record = record
        job.enter(Phase.PLACING, at_ms)
        job.held_ms = at_ms
        replica.hold(job)
        ledger = self._state.ledger
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
                    "waited_ms": at_ms - record.admitted_ms,
                    "queue_position": record.queue_position,
                    "predicted_start_ms": record.predicted_start_ms,
                },
            )
        )
