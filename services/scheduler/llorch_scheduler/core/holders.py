"""Who holds a task: replicas report, fall silent and come back in another life, and what they can no longer finish is
taken back from them."""

from typing import Final

from llorch_scheduler.core import job as jobs
from llorch_scheduler.core.effects import Requeue
from llorch_scheduler.core.endings import Endings
from llorch_scheduler.core.events import ReplicaLost, ReplicaReported
from llorch_scheduler.core.job import PLACED, REQUEUEING, RUNNING, Job
from llorch_scheduler.core.placing import Placing
from llorch_scheduler.core.replica import Replica
from llorch_scheduler.core.state import State
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.task import TaskState


class Holders:
    __slots__ = ("_endings", "_placing", "_state")

    def __init__(self, state: State, endings: Endings, placing: Placing) -> None:
        self._state: Final = state
        self._endings: Final = endings
        self._placing: Final = placing

    def reported(self, event: ReplicaReported) -> None:
        record, at_ms = event.record, event.at_ms
        replica = self._state.fleet.named(record.pool_id, record.replica_id, at_ms)
        replica.report(record)
        for job in list(replica.held.values()):
            if job.phase is RUNNING:
                self._check_listed(job, record, at_ms)
            self._check_on(replica, job, at_ms)
        pool = self._state.pool(record.pool_id, at_ms)
        pool.dirty = True
        pool.loading.reported(record, at_ms)
        self._placing.fill(pool, at_ms)

    def lost(self, event: ReplicaLost) -> None:
        replica = self._state.fleet.get(event.pool_id, event.replica_id)
        if replica is not None:
            self.lose(replica, event.at_ms, node_gone=event.node_gone)

    def lose(self, replica: Replica, at_ms: int, *, node_gone: bool = False) -> None:
        replica.lose(at_ms, node_gone=node_gone)
        pool = self._state.pool(replica.pool_id, at_ms)
        pool.loading.lost(replica.replica_id)
        for job in list(replica.held.values()):
            self.check(job, at_ms)
        if not replica.held:
            self._state.fleet.remove(replica)
        pool.dirty = True

    def check(self, job: Job, at_ms: int) -> None:
        """Take the task back when its replica can no longer have it."""
        record = job.record
        self._check_on(self._state.fleet.get(record.pool_id, record.replica_id), job, at_ms)

    def _check_on(self, replica: Replica | None, job: Job, at_ms: int) -> None:
        record, phase = job.record, job.phase
        told = replica.record if replica is not None else None
        if replica is None or told is None:
            if phase in (PLACED, RUNNING):
                gone = replica is not None and replica.node_gone
                self.take_back(job, at_ms, reason="node_gone" if gone else "replica_expired")
        elif phase is RUNNING:
            if told.incarnation != record.incarnation or not replica.runs:
                self.take_back(job, at_ms, reason="engine_restarted")
            elif job.missing_ms and at_ms - job.missing_ms >= self._state.limits.missing_ms:
                self.take_back(job, at_ms, reason="not_listed")
        elif phase is PLACED and not replica.ready:
            self.take_back(job, at_ms, reason="replica_not_ready")

    def take_back(self, job: Job, at_ms: int, *, reason: str) -> None:
        """From a replica that cannot finish it. A claimed task counts an attempt, and so does one that a living replica
        left lying; one that nobody could claim any more does not: no engine has seen it. Preempted attempts are not
        counted as lost."""
        ran = job.phase is RUNNING
        counts = ran or reason == "not_claimed"
        lost = job.record.attempt - job.record.preemptions
        self._state.release(job, slot_is_free=False)
        pool = self._state.pool(job.record.pool_id, at_ms)
        pool.queue.returned(job, at_ms, used_ms=at_ms - job.held_ms if counts else None)
        if job.cancel_reason:
            self._endings.cancel(job, at_ms)
        elif counts and lost >= self._state.limits.attempts_max:
            message = f"{lost} attempts were lost with their engine or node"
            self._endings.fail(job, ErrorCode.WORKER_RESET, message, at_ms, reason=reason)
        else:
            attempt = job.record.attempt
            died = (attempt,) if ran and job.record.session is not None else ()
            job.next_record = jobs.off_replica(
                job.moved(TaskState.PLACED, attempt=attempt + counts, lost=(*job.record.lost, *died))
            )
            job.next_reason = reason
            job.enter(REQUEUEING, at_ms)
            self.again(job)

    def again(self, job: Job) -> None:
        """Ask for its requeueing (once more: what is stored already is recognised as ours)."""
        assert job.next_record is not None
        self._state.effect(
            Requeue(
                ticket=self._state.ledger.ticket(job),
                record=job.next_record,
                expect_seq=job.run_seq,
                reason=job.next_reason,
            )
        )

    def upkeep(self, at_ms: int) -> None:
        """Placements nobody claims, replicas nobody hears of. O(replicas and held tasks)."""
        limits = self._state.limits
        for replica in list(self._state.fleet.replicas.values()):
            if replica.record is None:
                if at_ms - replica.absent_ms >= limits.absent_ms:
                    self.lose(replica, at_ms)
                continue
            for job in list(replica.held.values()):
                if job.phase is PLACED and at_ms - job.since_ms >= limits.claim_ms:
                    self.take_back(job, at_ms, reason="not_claimed")

    @staticmethod
    def _check_listed(job: Job, record: ReplicaRecord, at_ms: int) -> None:
        if job.record.task_id in record.active:
            job.missing_ms = 0
        elif job.missing_ms == 0:
            job.missing_ms = at_ms
