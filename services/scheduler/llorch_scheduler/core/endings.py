"""Tasks that the scheduler ends itself: no engine holds them. The run record decides; if somebody wrote it first, they
have the task."""

from typing import Final

from llorch_scheduler.core import job as jobs
from llorch_scheduler.core.effects import End
from llorch_scheduler.core.job import Job, Phase
from llorch_scheduler.core.state import State
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState


class Endings:
    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state: Final = state

    def end(self, job: Job, state: TaskState, at_ms: int, *, reason: str, error: ErrorBody | None = None) -> None:
        pool = self._state.pool(job.record.pool_id, at_ms)
        pool.queue.discard(job)
        pool.dirty = True
        self._state.ledger.may_be_recorded(job)
        job.next_record, job.next_reason = jobs.ended(job, state, at_ms, error), reason
        job.enter(Phase.ENDING, at_ms)
        self._state.effect(self._ending(job, job.next_record))

    def cancel(self, job: Job, at_ms: int) -> None:
        self.end(job, TaskState.CANCELLED, at_ms, reason=job.cancel_reason)

    def fail(self, job: Job, code: ErrorCode, message: str, at_ms: int, *, reason: str) -> None:
        self.end(job, TaskState.FAILED, at_ms, error=jobs.fault(code, message, job.record), reason=reason)

    def expire(self, job: Job, at_ms: int) -> None:
        message = "deadline_ms passed while the task waited for a slot"
        error = jobs.fault(ErrorCode.DEADLINE_UNMET, message, job.record)
        self.end(job, TaskState.EXPIRED, at_ms, error=error, reason="deadline")

    def again(self, job: Job) -> None:
        """The same end: what is stored already is recognised as ours."""
        assert job.next_record is not None
        self._state.effect(self._ending(job, job.next_record))

    def _ending(self, job: Job, record: RunRecord) -> End:
        return End(
            ticket=self._state.ledger.ticket(job),
            record=record,
            expect_seq=job.run_seq,
            ref=job.ref,
            reason=job.next_reason,
        )
