"""The scheduler's decisions: which task runs where, which ends here, which comes back.

One `handle(event)` at a time, answered with effects; time comes with the event, so equal events give equal effects. A
task is in exactly one `Phase`; a phase with an effect on its way waits for that effect's outcome. What others write is
learned from `RunChanged`, and a stored record always wins over what is remembered here.

Not here: ordering (`queue`), choice of a replica (`placement`), slots (`fleet`), the bus (`llorch_scheduler.service`).
No event costs more than O(replicas of a pool); `Tick` looks at held tasks once a second and never at queued ones.
"""

from collections import OrderedDict
from typing import Final, assert_never

from llorch_scheduler.core import job as jobs
from llorch_scheduler.core.deadlines import Deadlines
from llorch_scheduler.core.effects import Ack, Audit, Effect, End, Place, PlaceAgain, Requeue, TellLoad
from llorch_scheduler.core.events import (
    BacklogRead,
    Event,
    PoolChanged,
    PoolRemoved,
    Rebuilt,
    ReplicaLost,
    ReplicaReported,
    RunChanged,
    TaskArrived,
    TaskCancelled,
    Tick,
    WriteDone,
    WriteFailed,
    WriteRefused,
)
from llorch_scheduler.core.fleet import RUNS, Fleet, Replica, abilities
from llorch_scheduler.core.job import HOLDS_SLOT, Job, Phase
from llorch_scheduler.core.ledger import Ledger
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.core.placement import Decision, decide
from llorch_scheduler.core.pool import Pool
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.states import FINAL
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.run import Located, RunRecord
from llorch_shared.wire.task import TaskState


class SchedulerCore:
    """All state of one term in office. A new term starts with a new core."""

    def __init__(self, *, actor: str = "scheduler", limits: Limits | None = None) -> None:
        self.limits: Final = limits or Limits()
        self._ledger: Final = Ledger()
        self.jobs: Final = self._ledger.jobs
        self.pools: Final[dict[str, Pool]] = {}
        self.fleet: Final = Fleet()
        self._actor: Final = actor
        self._wishes: Final[OrderedDict[str, str]] = OrderedDict()
        self._expiries: Final = Deadlines(lambda job: job.phase is not Phase.QUEUED)
        self._repeats: Final = Deadlines(
            lambda job: job.ticket != 0 or job.phase not in (Phase.ENDING, Phase.REQUEUEING)
        )
        self._rebuilt_ms = -1
        self._upkept_ms = 0
        self._version = 0

    def handle(self, event: Event) -> list[Effect]:
        effects: list[Effect] = []
        match event:
            case TaskArrived():
                self._task_arrived(event, effects)
            case TaskCancelled():
                self._task_cancelled(event, effects)
            case WriteDone():
                self._write_done(event, effects)
            case WriteRefused():
                self._write_refused(event, effects)
            case WriteFailed():
                self._write_failed(event, effects)
            case RunChanged():
                self._run_changed(event, effects)
            case ReplicaReported():
                self._replica_reported(event, effects)
            case ReplicaLost():
                self._replica_lost(event.replica_id, event.at_ms, effects)
            case PoolChanged():
                pool = self._pool(event.spec.id, event.at_ms)
                pool.spec, pool.dirty = event.spec, True
                pool.queue.bring_back()
                self._fill(pool, event.at_ms, effects)
            case PoolRemoved():
                self._pool(event.pool_id, event.at_ms).spec = None
            case BacklogRead():
                pool = self._pool(event.pool_id, event.at_ms)
                pool.read.add(event.priority)
                pool.dirty = True
                queue = pool.queue.classes[event.priority]
                queue.seq = max(queue.seq, event.last_seq)
                self._fill(pool, event.at_ms, effects)
            case Rebuilt():
                self._rebuilt(event, effects)
            case Tick():
                self._tick(event.at_ms, effects)
            case _:
                assert_never(event)
        return effects

    def floor(self) -> int:
        """No unfinished run has a lower sequence. O(held and returned tasks)."""
        return self._ledger.floor()

    def locate(self, task_id: str) -> Located:
        """Where a task that has not ended stands. Its position is an upper bound: tasks that left the line since it
        joined from before it are seen only when the head moves."""
        job = self.jobs.get(task_id)
        if job is None:
            return Located(found=False)
        pool, record = self.pools[job.record.pool_id], job.record
        position = pool.queue.ahead_of(job) if job.phase is Phase.QUEUED else 0
        return Located(
            found=True,
            pool_id=record.pool_id,
            lane=record.lane,
            correlation_id=record.correlation_id,
            tenant=record.tenant,
            priority=record.priority,
            queue_position=position,
            predicted_start_ms=pool.predict_ms(position, self.fleet.of_pool(pool.pool_id)),
            admitted_ms=record.admitted_ms,
        )

    # arrivals and cancels

    def _task_arrived(self, event: TaskArrived, effects: list[Effect]) -> None:
        known = self.jobs.get(event.task_id)
        pool = self._pool(event.pool_id, event.at_ms)
        queue = pool.queue.classes[event.priority]
        queue.seq = max(queue.seq, event.ref.seq)
        pool.dirty = True
        if known is not None:
            if known.ref != event.ref:
                effects.append(Ack(task_id=event.task_id, ref=event.ref))
            return
        position = pool.queue.ahead_of_newcomer(event.priority)
        predicted = pool.predict_ms(position, self.fleet.of_pool(pool.pool_id))
        job = self.jobs[event.task_id] = jobs.arrived(event, position=position, predicted_ms=predicted)
        if event.channel == "nats":
            effects.append(Audit(record=jobs.admission_audit(event, job.record, self._actor)))
        wish = self._wishes.pop(event.task_id, None)
        if event.problem is not None or event.request is None:
            self._end(job, TaskState.FAILED, event.at_ms, effects, error=event.problem, reason="invalid")
        elif wish is not None:
            self._end(job, TaskState.CANCELLED, event.at_ms, effects, reason=wish)
        else:
            self._enqueue(job, event.at_ms, effects)

    def _task_cancelled(self, event: TaskCancelled, effects: list[Effect]) -> None:
        job = self.jobs.get(event.task_id)
        if job is None:
            self._wishes[event.task_id] = event.reason
            if len(self._wishes) > self.limits.wishes_max:
                self._wishes.popitem(last=False)
            return
        job.cancel_reason = job.cancel_reason or event.reason
        if job.phase is Phase.QUEUED:
            self._end(job, TaskState.CANCELLED, event.at_ms, effects, reason=job.cancel_reason)

    def _enqueue(self, job: Job, at_ms: int, effects: list[Effect]) -> None:
        """Let it wait, unless it is already over."""
        pool = self._pool(job.record.pool_id, at_ms)
        job.enter(Phase.QUEUED, at_ms)
        if job.cancel_reason:
            self._end(job, TaskState.CANCELLED, at_ms, effects, reason=job.cancel_reason)
        elif job.record.request is None:
            problem = jobs.fault(ErrorCode.INTERNAL, "the record of this task has lost its request", job.record)
            self._end(job, TaskState.FAILED, at_ms, effects, error=problem, reason="no_request")
        elif job.due_ms <= at_ms:
            self._expire(job, at_ms, effects)
        else:
            pool.queue.push(job)
            pool.dirty = True
            self._expiries.watch(job, job.due_ms)
            self._fill(pool, at_ms, effects)

    # placement

    def _fill(self, pool: Pool, at_ms: int, effects: list[Effect]) -> None:
        """Place from the head of the line while a slot is free. O(replicas) per placement."""
        if pool.spec is None or not self._may_place(pool, at_ms):
            return
        replicas = self.fleet.of_pool(pool.pool_id)
        while free := [replica for replica in replicas if replica.slots_free > 0]:
            masks = sorted({replica.record.device for replica in free if replica.record and replica.record.device})
            job = pool.queue.head(masks)
            if job is None or job.record.request is None:
                return
            decision = decide(job.record.request, pool.spec, replicas)
            if decision.replica is not None:
                pool.queue.discard(job)
                self._place(job, decision, decision.replica, at_ms, effects)
            elif decision.busy:
                return
            else:
                pool.queue.set_aside(job)

    def _may_place(self, pool: Pool, at_ms: int) -> bool:
        return at_ms >= pool.paused_until_ms and self._backlog_known(pool, at_ms)

    def _backlog_known(self, pool: Pool, at_ms: int) -> bool:
        """What waits is known, as far as it can be: a queue that cannot be read is not waited for for ever."""
        if self._rebuilt_ms < 0:
            return False
        return pool.backlog_read or at_ms >= max(pool.since_ms, self._rebuilt_ms) + self.limits.backlog_ms

    def _place(self, job: Job, decision: Decision, replica: Replica, at_ms: int, effects: list[Effect]) -> None:
        record = job.moved(TaskState.PLACED, replica_id=replica.replica_id, placed_ms=at_ms)
        job.record = record
        job.enter(Phase.PLACING, at_ms)
        job.held_ms = at_ms
        replica.hold(job)
        self._ledger.may_be_recorded(job)
        self.pools[record.pool_id].dirty = True
        effects.append(
            Place(ticket=self._ledger.ticket(job), record=record, expect_seq=job.run_seq, ref=job.ref, log=decision.log)
        )

    # outcomes of our own writes

    def _write_done(self, event: WriteDone, effects: list[Effect]) -> None:
        job = self._ledger.answered(event.ticket)
        if job is None:
            return
        self._ledger.stands(job, event.run_seq)
        job.ref = None
        match job.phase:
            case Phase.PLACING:
                job.state = TaskState.PLACED
                job.enter(Phase.PLACED, event.at_ms)
                self._check_holder(job, event.at_ms, effects)
            case Phase.REQUEUEING:
                assert job.next_record is not None
                job.record, job.next_record, job.state = job.next_record, None, TaskState.PLACED
                self._come_back(job, event.at_ms, effects)
            case _:
                self._ledger.drop(job)

    def _write_refused(self, event: WriteRefused, effects: list[Effect]) -> None:
        job = self._ledger.answered(event.ticket)
        if job is None:
            return
        job.ref = None
        self._adopt(job, event.record, event.run_seq, event.at_ms, effects)

    def _write_failed(self, event: WriteFailed, effects: list[Effect]) -> None:
        job = self._ledger.answered(event.ticket)
        if job is None:
            if event.ref is not None:
                effects.append(Ack(task_id=event.task_id, ref=event.ref))
            return
        if job.phase is not Phase.PLACING:
            # The same write again, expecting the same sequence: what is stored already is recognised as ours.
            self._repeats.watch(job, event.at_ms + self.limits.pause_ms)
            return
        if event.run_seq:
            self._ledger.stands(job, event.run_seq)
            job.state = TaskState.PLACED
        self._release(job, slot_is_free=True)
        job.record = jobs.off_replica(job.record)
        if event.problem is not None:
            self._end(job, TaskState.FAILED, event.at_ms, effects, error=event.problem, reason="unplaceable")
            return
        pool = self._pool(job.record.pool_id, event.at_ms)
        pool.paused_until_ms = event.at_ms + self.limits.pause_ms
        self._enqueue(job, event.at_ms, effects)

    # what others write

    def _run_changed(self, event: RunChanged, effects: list[Effect]) -> None:
        record, seq = event.record, event.seq
        self._ledger.see(seq)
        job = self.jobs.get(record.task_id)
        if job is None:
            if record.state not in FINAL:
                job = jobs.recorded(record, seq, order=self._ledger.next_order(), at_ms=event.at_ms)
                self.jobs[record.task_id] = job
                self._adopt(job, record, seq, event.at_ms, effects)
            return
        if seq <= job.run_seq or job.phase is Phase.ENDING:
            return
        if job.phase is Phase.REQUEUEING and record.state not in FINAL:
            return
        if job.phase is Phase.PLACING and record == job.record:
            self._ledger.stands(job, seq)
            job.state = TaskState.PLACED
            return
        self._adopt(job, record, seq, event.at_ms, effects)

    def _adopt(self, job: Job, record: RunRecord, seq: int, at_ms: int, effects: list[Effect]) -> None:
        """The stored record is the truth: whatever we thought of this task ends here."""
        pool = self._pool(record.pool_id, at_ms)
        pool.dirty = True
        held_here = job.phase in HOLDS_SLOT and job.record.replica_id == record.replica_id
        if job.phase is Phase.QUEUED:
            self._pool(job.record.pool_id, at_ms).queue.discard(job)
            if job.ref is not None:
                effects.append(Ack(task_id=job.task_id, ref=job.ref))
        if not held_here or record.state in FINAL:
            self._release(job, slot_is_free=record.state in FINAL)
        self._ledger.forget_ticket(job)
        job.ref, job.next_record = None, None
        job.record, job.state = record, record.state
        self._ledger.stands(job, seq)
        job.cancel_reason = job.cancel_reason or self._wishes.pop(record.task_id, "")
        if record.state in FINAL:
            if held_here and record.started_ms:
                pool.slot_time.add(at_ms - job.held_ms)
            self._ledger.drop(job)
            self._fill(pool, at_ms, effects)
        elif record.replica_id and record.state in (TaskState.PLACED, TaskState.RUNNING):
            self._hold(job, at_ms, effects, again=not held_here)
        else:
            self._come_back(job, at_ms, effects)

    def _hold(self, job: Job, at_ms: int, effects: list[Effect], *, again: bool) -> None:
        """A record that names a replica: the task is there."""
        running = job.state is TaskState.RUNNING
        replica = self.fleet.named(job.record.replica_id, job.record.pool_id, at_ms)
        if again:
            job.held_ms = job.record.placed_ms or at_ms
            replica.hold(job)
            if not running and self._rebuilt_ms >= 0:
                effects.append(PlaceAgain(record=job.record, run_seq=job.run_seq))
        job.enter(Phase.RUNNING if running else Phase.PLACED, at_ms)
        if replica.record is not None:
            self._check_holder(job, at_ms, effects)

    def _rebuilt(self, event: Rebuilt, effects: list[Effect]) -> None:
        self._ledger.see(event.run_seq)
        self._rebuilt_ms = event.at_ms
        for job in self._ledger.recorded.values():
            if job.phase is Phase.PLACED:
                effects.append(PlaceAgain(record=job.record, run_seq=job.run_seq))
        for replica in self.fleet.replicas.values():
            if replica.record is None:
                replica.absent_ms = event.at_ms
        for pool in list(self.pools.values()):
            self._fill(pool, event.at_ms, effects)

    # replicas

    def _replica_reported(self, event: ReplicaReported, effects: list[Effect]) -> None:
        record = event.record
        replica = self.fleet.named(record.replica_id, record.pool_id, event.at_ms)
        changed = replica.record is None or abilities(replica.record) != abilities(record)
        replica.report(record)
        for job in list(replica.held.values()):
            if job.phase is Phase.RUNNING:
                self._check_listed(job, record, event.at_ms)
            self._check_holder(job, event.at_ms, effects)
        pool = self._pool(record.pool_id, event.at_ms)
        pool.dirty = True
        if changed:
            pool.queue.bring_back()
        self._fill(pool, event.at_ms, effects)

    def _check_listed(self, job: Job, record: ReplicaRecord, at_ms: int) -> None:
        if job.task_id in record.active:
            job.missing_ms = 0
        elif job.missing_ms == 0:
            job.missing_ms = at_ms

    def _check_holder(self, job: Job, at_ms: int, effects: list[Effect]) -> None:
        """Take the task back when its replica can no longer have it."""
        replica = self.fleet.get(job.record.replica_id)
        if replica is None or replica.record is None:
            if job.phase in (Phase.PLACED, Phase.RUNNING):
                self._take_back(job, at_ms, effects, reason="replica_gone")
        elif job.phase is Phase.RUNNING:
            if replica.record.incarnation != job.record.incarnation or replica.record.state not in RUNS:
                self._take_back(job, at_ms, effects, reason="engine_restarted")
            elif job.missing_ms and at_ms - job.missing_ms >= self.limits.missing_ms:
                self._take_back(job, at_ms, effects, reason="not_listed")
        elif job.phase is Phase.PLACED and not replica.ready:
            self._take_back(job, at_ms, effects, reason="replica_not_ready")

    def _replica_lost(self, replica_id: str, at_ms: int, effects: list[Effect]) -> None:
        replica = self.fleet.get(replica_id)
        if replica is None:
            return
        replica.record, replica.absent_ms = None, at_ms
        replica.strangers.clear()
        replica.released.clear()
        for job in list(replica.held.values()):
            self._check_holder(job, at_ms, effects)
        if not replica.held:
            self.fleet.remove(replica_id)
        self._pool(replica.pool_id, at_ms).dirty = True

    def _take_back(self, job: Job, at_ms: int, effects: list[Effect], *, reason: str) -> None:
        """From a replica that cannot finish it. A claimed task counts an attempt, and so does one that a living replica
        left lying; one that nobody could claim any more does not: no engine has seen it."""
        counts = job.phase is Phase.RUNNING or reason == "not_claimed"
        self._release(job, slot_is_free=False)
        if job.cancel_reason:
            self._end(job, TaskState.CANCELLED, at_ms, effects, reason=job.cancel_reason)
        elif counts and job.record.attempt >= self.limits.attempts_max:
            message = f"{job.record.attempt} attempts were lost with their engine or node"
            error = jobs.fault(ErrorCode.WORKER_RESET, message, job.record)
            self._end(job, TaskState.FAILED, at_ms, effects, error=error, reason=reason)
        else:
            record = jobs.off_replica(job.moved(TaskState.PLACED, attempt=job.record.attempt + counts))
            job.enter(Phase.REQUEUEING, at_ms)
            job.next_record, job.next_reason = record, reason
            effects.append(
                Requeue(ticket=self._ledger.ticket(job), record=record, expect_seq=job.run_seq, reason=reason)
            )

    def _come_back(self, job: Job, at_ms: int, effects: list[Effect]) -> None:
        """To the front of its queue, behind those that came back earlier."""
        job.order = self._ledger.next_order()
        self._enqueue(job, at_ms, effects)

    # endings

    def _expire(self, job: Job, at_ms: int, effects: list[Effect]) -> None:
        message = "deadline_ms passed while the task waited for a slot"
        error = jobs.fault(ErrorCode.DEADLINE_UNMET, message, job.record)
        self._end(job, TaskState.EXPIRED, at_ms, effects, error=error, reason="deadline")

    def _end(
        self,
        job: Job,
        state: TaskState,
        at_ms: int,
        effects: list[Effect],
        *,
        reason: str,
        error: ErrorBody | None = None,
    ) -> None:
        """End a task that no engine holds. The record decides: if somebody wrote it first, they have the task."""
        pool = self._pool(job.record.pool_id, at_ms)
        pool.queue.discard(job)
        pool.dirty = True
        self._ledger.may_be_recorded(job)
        job.next_record, job.next_reason = jobs.ended(job, state, at_ms, error), reason
        job.enter(Phase.ENDING, at_ms)
        effects.append(self._ending(job, job.next_record))

    def _ending(self, job: Job, record: RunRecord) -> End:
        return End(
            ticket=self._ledger.ticket(job), record=record, expect_seq=job.run_seq, ref=job.ref, reason=job.next_reason
        )

    # time

    def _tick(self, at_ms: int, effects: list[Effect]) -> None:
        for job in self._expiries.due(at_ms, self.limits.expired_per_tick_max):
            self._expire(job, at_ms, effects)
        for job in self._repeats.due(at_ms, self.limits.expired_per_tick_max):
            self._repeat(job, effects)
        if at_ms - self._upkept_ms >= self.limits.upkeep_ms:
            self._upkept_ms = at_ms
            self._upkeep(at_ms, effects)
        for pool in self.pools.values():
            if pool.paused_until_ms or not pool.backlog_read:
                pool.paused_until_ms = 0 if at_ms >= pool.paused_until_ms else pool.paused_until_ms
                self._fill(pool, at_ms, effects)
            silent_ms = at_ms - pool.told_ms
            due_ms = self.limits.load_min_ms if pool.dirty else self.limits.load_max_ms
            if silent_ms >= due_ms and self._backlog_known(pool, at_ms):
                self._tell(pool, at_ms, effects)

    def _repeat(self, job: Job, effects: list[Effect]) -> None:
        record = job.next_record
        assert record is not None
        if job.phase is Phase.ENDING:
            effects.append(self._ending(job, record))
        else:
            effects.append(
                Requeue(ticket=self._ledger.ticket(job), record=record, expect_seq=job.run_seq, reason=job.next_reason)
            )

    def _upkeep(self, at_ms: int, effects: list[Effect]) -> None:
        """Placements nobody claims, replicas nobody hears of. O(replicas and held tasks)."""
        if self._rebuilt_ms < 0:
            return
        for replica in list(self.fleet.replicas.values()):
            if replica.record is None:
                if at_ms - replica.absent_ms >= self.limits.absent_ms:
                    self._replica_lost(replica.replica_id, at_ms, effects)
                continue
            for job in list(replica.held.values()):
                if job.phase is Phase.PLACED and at_ms - job.since_ms >= self.limits.claim_ms:
                    self._take_back(job, at_ms, effects, reason="not_claimed")

    def _tell(self, pool: Pool, at_ms: int, effects: list[Effect]) -> None:
        self._version += 1
        pool.told_ms, pool.dirty = at_ms, False
        load = pool.load(self.fleet.of_pool(pool.pool_id), at_ms=at_ms, version=self._version)
        effects.append(TellLoad(load=load))

    # bookkeeping

    def _pool(self, pool_id: str, at_ms: int) -> Pool:
        pool = self.pools.get(pool_id)
        if pool is None:
            pool = self.pools[pool_id] = Pool(pool_id, since_ms=at_ms)
        return pool

    def _release(self, job: Job, *, slot_is_free: bool) -> None:
        if job.phase in HOLDS_SLOT and (replica := self.fleet.get(job.record.replica_id)) is not None:
            replica.release(job, slot_is_free=slot_is_free)
            if replica.record is None and not replica.held:
                self.fleet.remove(replica.replica_id)
