"""Tasks that the scheduler ends itself: no engine holds them. The run record decides; if somebody wrote it first, they
have the task."""

from typing import Final

import msgspec

from llorch_scheduler.core import job as jobs
from llorch_scheduler.core.effects import Disown, End
from llorch_scheduler.core.job import ENDING, QUEUED, Job
from llorch_scheduler.core.state import State
from llorch_shared.errors import ErrorBody, ErrorCode, PolicyLabel, id_in_use
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState


class Endings:
    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state: Final = state

    def end(self, job: Job, state: TaskState, at_ms: int, *, reason: str, error: ErrorBody | None = None) -> None:
        pool = self._state.pool(job.record.pool_id, at_ms)
        if job.phase is QUEUED and pool.queue.discard(job):
            pool.look(at_ms).left(job, at_ms, pool.behind(job))
        pool.dirty = True
        self._state.ledger.may_be_recorded(job)
        job.next_record, job.next_reason = jobs.ended(job, state, at_ms, error), reason
        job.enter(ENDING, at_ms)
        record = job.record
        job.next_detail = {
            "waited_ms": at_ms - record.admitted_ms,
            "queue_position": record.queue_position,
            "predicted_start_ms": record.predicted_start_ms,
            **(job.next_detail or {}),
        }
        self._state.effect(self._ending(job, job.next_record))

    def cancel(self, job: Job, at_ms: int) -> None:
        self.end(job, TaskState.CANCELLED, at_ms, reason=job.cancel_reason)

    def fail(self, job: Job, code: ErrorCode, message: str, at_ms: int, *, reason: str) -> None:
        self.end(job, TaskState.FAILED, at_ms, error=jobs.fault(code, message, job.record), reason=reason)

    def expire(self, job: Job, at_ms: int) -> None:
        self._miss(job, "deadline_ms passed while the task waited for a slot", at_ms, reason="deadline")

    def evict(self, job: Job, at_ms: int) -> None:
        """Overload lasts, and the task can no longer be in time."""
        job.next_detail = {"expected_ms": round(job.cost_ms), "left_ms": job.due_ms - at_ms}
        message = f"in lasting overload, and {round(job.cost_ms)} ms of work no longer end before deadline_ms"
        self._miss(job, message, at_ms, reason="eta")

    def infeasible(self, job: Job, chance: float, at_ms: int) -> None:
        """Its chance to be in time is under what the pool asks for."""
        job.next_detail = {"on_time_probability": round(chance, 4), "expected_ms": round(job.cost_ms)}
        message = f"the chance to end before deadline_ms is {chance:.2f}, by the present backlog"
        self._miss(job, message, at_ms, reason="infeasible")

    def drop(self, job: Job, policy: PolicyLabel, at_ms: int, *, newcomer: str, retry_after_ms: int) -> None:
        """A newcomer takes its place in the full queue."""
        job.next_detail = {"newcomer": newcomer}
        message = f"dropped from a full queue to make room ({policy})"
        self._turn_away(
            job, ErrorCode.QUEUE_FULL_DROP_LRU, message, at_ms, policy=policy, retry_after_ms=retry_after_ms
        )

    def refuse(self, job: Job, message: str, policy: PolicyLabel, at_ms: int, *, retry_after_ms: int) -> None:
        """A newcomer that finds no place, though the server took its message."""
        self._turn_away(job, ErrorCode.ADMISSION_REJECT, message, at_ms, policy=policy, retry_after_ms=retry_after_ms)

    def disown(self, job: Job, stands: RunRecord, at_ms: int) -> None:
        """Nothing, unless its id is another tenant's task, as `stands` has it, and one of the two came past the
        gateways, which look whose an id is."""
        mine = job.record
        if mine.tenant != stands.tenant and mine.lane != stands.lane and "nats" in (mine.channel, stands.channel):
            error = id_in_use(mine.request.engine if mine.request else None).body
            end = msgspec.structs.replace(jobs.off_replica(mine), state=TaskState.FAILED, error=error, ended_ms=at_ms)
            self._state.effect(Disown(record=end))

    def again(self, job: Job) -> None:
        """The same end: what is stored already is recognised as ours."""
        assert job.next_record is not None
        self._state.effect(self._ending(job, job.next_record))

    def _miss(self, job: Job, message: str, at_ms: int, *, reason: str) -> None:
        error = jobs.fault(ErrorCode.DEADLINE_UNMET, message, job.record)
        self.end(job, TaskState.EXPIRED, at_ms, error=error, reason=reason)

    def _turn_away(
        self, job: Job, code: ErrorCode, message: str, at_ms: int, *, policy: PolicyLabel, retry_after_ms: int
    ) -> None:
        error = jobs.fault(code, message, job.record)
        error = msgspec.structs.replace(error, policy_label=policy, retry_after_ms=retry_after_ms)
        self.end(job, TaskState.DROPPED, at_ms, error=error, reason=policy)

    def _ending(self, job: Job, record: RunRecord) -> End:
        return End(
            ticket=self._state.ledger.ticket(job),
            record=record,
            expect_seq=job.run_seq,
            ref=job.ref,
            reason=job.next_reason,
            detail=job.next_detail or {},
        )
