"""What became of our writes, and what others wrote. A stored record always wins over what is remembered here."""

from typing import Final

from llorch_scheduler.core import job as jobs
from llorch_scheduler.core.arrivals import Arrivals
from llorch_scheduler.core.effects import Ack, PlaceAgain
from llorch_scheduler.core.endings import Endings
from llorch_scheduler.core.events import Rebuilt, RunChanged, WriteDone, WriteFailed, WriteRefused
from llorch_scheduler.core.holders import Holders
from llorch_scheduler.core.job import ENDING, HOLDS_SLOT, PLACED, PLACING, QUEUED, REQUEUEING, RUNNING, Job
from llorch_scheduler.core.placing import Placing
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.preempting import Preempting, was_stopped
from llorch_scheduler.core.state import State
from llorch_shared.states import FINAL
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState

_PLACED: Final = TaskState.PLACED
_RUNNING: Final = TaskState.RUNNING
_DONE: Final = TaskState.DONE


class Outcomes:
    __slots__ = ("_arrivals", "_endings", "_holders", "_placing", "_preempting", "_state")

    def __init__(
        self,
        state: State,
        *,
        arrivals: Arrivals,
        endings: Endings,
        holders: Holders,
        placing: Placing,
        preempting: Preempting,
    ) -> None:
        self._state: Final = state
        self._arrivals: Final = arrivals
        self._endings: Final = endings
        self._holders: Final = holders
        self._placing: Final = placing
        self._preempting: Final = preempting

    # of our own writes

    def done(self, event: WriteDone) -> None:
        ledger = self._state.ledger
        job = ledger.answered(event.ticket)
        if job is None:
            return
        ledger.stands(job, event.run_seq)
        job.ref = None
        if job.phase is PLACING:
            job.state = _PLACED
            job.enter(PLACED, event.at_ms)
            self._holders.check(job, event.at_ms)
        elif job.phase is REQUEUEING:
            assert job.next_record is not None
            job.record, job.next_record, job.state = job.next_record, None, TaskState.PLACED
            self._arrivals.come_back(job, event.at_ms)
        else:
            if job.next_record is not None:
                self._state.pool(job.record.pool_id, event.at_ms).tally.ended(job.next_record, job.due_ms)
            ledger.drop(job)

    def refused(self, event: WriteRefused) -> None:
        job = self._state.ledger.answered(event.ticket)
        if job is None:
            return
        job.ref = None
        if event.record.state in FINAL:
            self._ended(job, event.record, event.run_seq, event.at_ms)
        else:
            self._adopt(job, event.record, event.run_seq, event.at_ms)

    def failed(self, event: WriteFailed) -> None:
        state, at_ms = self._state, event.at_ms
        job = state.ledger.answered(event.ticket)
        if job is None:
            if event.ref is not None:
                state.effect(Ack(task_id=event.task_id, ref=event.ref))
            return
        if job.phase is not PLACING:
            state.repeats.watch(job, at_ms + state.limits.pause_ms)
            return
        if event.run_seq:
            state.ledger.stands(job, event.run_seq)
            job.state = TaskState.PLACED
        state.release(job, slot_is_free=True)
        pool = state.pool(job.record.pool_id, at_ms)
        pool.queue.returned(job, at_ms)
        job.record = jobs.off_replica(job.record)
        if event.problem is not None:
            self._endings.end(job, TaskState.FAILED, at_ms, error=event.problem, reason="unplaceable")
            return
        pool.paused_until_ms = at_ms + state.limits.pause_ms
        if job.run_seq:
            # Its record stands, so it is not new any more: nobody's arrival may push it out.
            self._arrivals.come_back(job, at_ms)
        else:
            self._arrivals.enqueue(job, at_ms)

    def repeat(self, job: Job) -> None:
        """Write again what the bus did not do, expecting the same sequence."""
        if job.phase is ENDING:
            self._endings.again(job)
        else:
            self._holders.again(job)

    # of the writes of others

    def changed(self, event: RunChanged) -> None:
        record, seq, at_ms = event.record, event.seq, event.at_ms
        ledger = self._state.ledger
        ledger.see(seq)
        job = ledger.jobs.get(record.task_id)
        if job is None:
            if record.state not in FINAL:
                job = jobs.recorded(record, seq, order=ledger.next_order(), at_ms=at_ms)
                ledger.jobs[record.task_id] = job
                self._adopt(job, record, seq, at_ms)
            return
        phase, final = job.phase, record.state in FINAL
        if seq <= job.run_seq or phase is ENDING:
            return
        if phase is REQUEUEING and not final:
            return
        if phase is PLACING and (record is job.record or record == job.record):
            ledger.stands(job, seq)
            job.state = _PLACED
        elif phase in (PLACED, PLACING) and record.state is _RUNNING and _same_place(record, job.record):
            self._claimed(job, record, seq, at_ms)
        elif final:
            self._ended(job, record, seq, at_ms)
        else:
            self._adopt(job, record, seq, at_ms)

    def _claimed(self, job: Job, record: RunRecord, seq: int, at_ms: int) -> None:
        """What was to happen: a node has claimed the task for the slot that it holds."""
        pool = self._state.pools[record.pool_id]
        pool.dirty = True
        job.record, job.state, job.ref = record, record.state, None
        self._state.ledger.forget_ticket(job)
        self._state.ledger.stands(job, seq)
        pool.running[record.priority][record.task_id] = job
        job.enter(RUNNING, at_ms)
        self._holders.check(job, at_ms)

    def _ended(self, job: Job, record: RunRecord, seq: int, at_ms: int) -> None:
        """The stored record is final: its slot goes to whose turn it is."""
        self._endings.disown(job, record, at_ms)
        state = self._state
        pool, thought = self._pools_of(job, record, at_ms)
        if job.phase in HOLDS_SLOT:
            self._let_go(job, record, slot_is_free=True)
        elif job.phase is QUEUED:
            self._unqueue(thought, job)
        self._count(thought, job, record, at_ms)
        job.ref, job.next_record = None, None
        job.record, job.state, job.run_seq = record, record.state, seq
        state.ledger.drop(job)
        self._placing.fill(pool, at_ms)

    def _adopt(self, job: Job, record: RunRecord, seq: int, at_ms: int) -> None:
        """The stored record is the truth, and the task goes on: whatever we thought of it ends here."""
        self._endings.disown(job, record, at_ms)
        state = self._state
        pool, thought = self._pools_of(job, record, at_ms)
        held = job.phase in HOLDS_SLOT
        ran = job.phase is RUNNING
        stays = held and _same_place(record, job.record)
        if job.phase is QUEUED:
            self._unqueue(thought, job)
        if held and not stays:
            self._let_go(job, record, slot_is_free=False)
            thought.queue.returned(job, at_ms, used_ms=at_ms - job.held_ms if ran else None)
        state.ledger.forget_ticket(job)
        job.ref, job.next_record = None, None
        job.record, job.state = record, record.state
        state.ledger.stands(job, seq)
        job.cancel_reason = job.cancel_reason or self._arrivals.wish_for(record.task_id)
        if record.replica_id and record.state in (TaskState.PLACED, TaskState.RUNNING):
            self._hold(pool, job, at_ms, again=not stays)
        else:
            self._arrivals.come_back(job, at_ms)

    def _pools_of(self, job: Job, record: RunRecord, at_ms: int) -> tuple[Pool, Pool]:
        """The pool that the record names, and the one in which we thought the task to be."""
        pool = thought = self._state.pool(record.pool_id, at_ms)
        if job.record.pool_id != record.pool_id:
            thought = self._state.pool(job.record.pool_id, at_ms)
        pool.dirty = thought.dirty = True
        return pool, thought

    def _unqueue(self, pool: Pool, job: Job) -> None:
        """Somebody else has placed or ended it."""
        pool.queue.discard(job)
        if job.ref is not None:
            self._state.effect(Ack(task_id=job.task_id, ref=job.ref))

    def _let_go(self, job: Job, record: RunRecord, *, slot_is_free: bool) -> None:
        """It leaves the slot that it holds here. One that was stopped for more urgent work has freed it, too."""
        if record.preemptions == job.record.preemptions or not was_stopped(job.record, record):
            self._state.release(job, slot_is_free=slot_is_free)
            return
        urgent_id = job.preempted_for
        self._state.release(job, slot_is_free=True)
        self._preempting.stopped(job, record, urgent_task_id=urgent_id)

    @staticmethod
    def _count(pool: Pool, job: Job, record: RunRecord, at_ms: int) -> None:
        """A task has ended as `record` says: what it took, against what was expected."""
        pool.tally.ended(record, job.due_ms)
        if not (record.started_ms and job.held_ms):
            pool.queue.ended(job, None, 0, at_ms)
            return
        slot_ms = at_ms - job.held_ms if at_ms > job.held_ms else 0
        pool.queue.ended(job, slot_ms, record.tokens_in + record.tokens_out, at_ms)
        request = job.record.request
        if request is not None:
            if record.tokens_out:
                pool.fleet.affinity.spoke(record.tenant, request.session_id, record.replica_id, record.incarnation)
            pool.forecast.service.add(
                tenant=record.tenant,
                priority=record.priority,
                max_tokens=request.max_tokens,
                tokens_out=record.tokens_out,
                slot_ms=slot_ms,
                expected_ms=job.cost_ms,
                complete=record.state is _DONE,
            )

    def _hold(self, pool: Pool, job: Job, at_ms: int, *, again: bool) -> None:
        """A record that names a replica: the task is there."""
        running = job.state is TaskState.RUNNING
        replica = self._state.fleet.named(job.record.pool_id, job.record.replica_id, at_ms)
        if again:
            job.held_ms = job.record.placed_ms or at_ms
            replica.hold(job)
            if self._state.rebuilt_ms >= 0:
                pool.assess(job)
                pool.queue.held(job, at_ms)
                if not running:
                    self._state.effect(PlaceAgain(record=job.record, run_seq=job.run_seq))
        if running:
            pool.running[job.record.priority][job.task_id] = job
        job.enter(RUNNING if running else PLACED, at_ms)
        if replica.record is not None:
            self._holders.check(job, at_ms)

    def rebuilt(self, event: Rebuilt) -> None:
        state = self._state
        state.ledger.see(event.run_seq)
        state.rebuilt_ms = event.at_ms
        for job in state.ledger.recorded.values():
            if job.phase in HOLDS_SLOT:
                pool = state.pools[job.record.pool_id]
                pool.assess(job)
                pool.queue.held(job, event.at_ms)
            if job.phase is PLACED:
                state.effect(PlaceAgain(record=job.record, run_seq=job.run_seq))
        for replica in state.fleet.replicas.values():
            if replica.record is None:
                replica.absent_ms = event.at_ms
        for pool in list(state.pools.values()):
            self._placing.fill(pool, event.at_ms)


def _same_place(one: RunRecord, other: RunRecord) -> bool:
    """Both name the same replica, or none, of the same pool."""
    return one.replica_id == other.replica_id and one.pool_id == other.pool_id
