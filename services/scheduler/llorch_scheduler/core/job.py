"""One task as the scheduler holds it: where it is in our hands, and what its run record says."""

from enum import Enum, auto
from sys import intern
from typing import Any, Final

import msgspec

from llorch_scheduler.core.events import AdmissionRef, TaskArrived
from llorch_scheduler.core.shape import ANY, Shape
from llorch_shared.errors import ERRORS, ErrorBody, ErrorCode
from llorch_shared.states import check_move
from llorch_shared.wire.audit import AuditEvent, AuditRecord, admission_detail
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState


class Phase(Enum):
    """Where a task is in our hands. The task's own state (`TaskState`) is a different thing: it is in the record."""

    QUEUED = auto()
    """In exactly one queue."""
    PLACING = auto()
    """A `Place` is on its way; a slot is held."""
    PLACED = auto()
    """Placed and not claimed; a slot is held."""
    RUNNING = auto()
    """Claimed by a node; a slot is held."""
    REQUEUEING = auto()
    """A `Requeue` is on its way."""
    ENDING = auto()
    """An `End` is on its way."""
    GONE = auto()
    """Ended, and no longer ours to look after."""


QUEUED: Final = Phase.QUEUED
PLACING: Final = Phase.PLACING
PLACED: Final = Phase.PLACED
RUNNING: Final = Phase.RUNNING
REQUEUEING: Final = Phase.REQUEUEING
ENDING: Final = Phase.ENDING
GONE: Final = Phase.GONE
"""Named here because every event asks for them, and looking a member up in its class takes ten times as long."""
HOLDS_SLOT: Final = (RUNNING, PLACED, PLACING)
_WAITS: Final = TaskState.QUEUED


class Job(msgspec.Struct, eq=False, gc=False):
    """`record` is the next run record but for the fields a move sets; `state` is that of the stored one."""

    record: RunRecord
    state: TaskState
    phase: Phase
    order: tuple[int, int]
    """Place in the line: (0, n) for tasks that come back from a replica, (1, admission sequence) for new ones."""
    due_ms: int
    """Its deadline: the last token is due by then, and waiting longer is pointless."""
    shape: Shape = ANY
    """What it requires of a replica."""
    cost_ms: float = 0.0
    """Slot time it is expected to take."""
    tokens: float = 0.0
    """Prompt and generated tokens it is expected to take."""
    tokens_out: float = 0.0
    """Of these, the generated ones."""
    est_kv_mb: int = 0
    """KV cache it is expected to take."""
    ahead_in_flow: int = -1
    """Tasks of its flow that were served before it when it joined, and how many its flow had started then; -1 when it
    was not foretold, or has started since."""
    flow_started: int = 0
    foretold: bool = False
    """Its record tells a wait forecast from measurements, and it has not started since."""
    ref: AdmissionRef | None = None
    newcomer: bool = False
    """It came after the backlog of this term: no scheduler before can have placed it."""
    run_seq: int = 0
    ticket: int = 0
    floor: int = 0
    """No record of this task can stand below this sequence; 0 while none can exist."""
    since_ms: int = 0
    """When the present phase began."""
    held_ms: int = 0
    """When it took its slot."""
    preempt_ms: int = 0
    """When its node was asked to stop it for more urgent work; 0 when it was not, or did not answer in time."""
    preempted_for: str = ""
    """The task that waits for its slot."""
    stopped: bool = False
    """It was preempted and has not been placed since."""
    watch: int = 0
    """Which entry of a heap of times is the one that counts."""
    missing_ms: int = 0
    """Since when its replica's reports do not list it; 0 when they do."""
    cancel_reason: str = ""
    next_record: RunRecord | None = None
    """The record an `End` or `Requeue` on its way writes, kept to repeat it."""
    next_reason: str = ""
    next_detail: dict[str, Any] | None = None
    """What else the audit trail keeps of it."""

    @property
    def task_id(self) -> str:
        return self.record.task_id

    @property
    def latest_start_ms(self) -> int:
        """Starting later, it is not expected to be in time."""
        return self.due_ms - int(self.cost_ms)

    def enter(self, phase: Phase, at_ms: int) -> None:
        self.phase, self.since_ms, self.missing_ms = phase, at_ms, 0

    def moved(self, state: TaskState, **fields: Any) -> RunRecord:
        """The record of this task in another state. Raises IllegalMove if the table does not connect the two."""
        check_move(self.state, state)
        return msgspec.structs.replace(self.record, state=state, **fields)


def arrived(event: TaskArrived) -> Job:
    """A job for an admission message that nobody has placed yet. Tasks are many, tenants are few: one name for all."""
    deadline_ms = event.request.deadline_ms if event.request else 0
    return Job(
        record=RunRecord(
            task_id=event.task_id,
            state=_WAITS,
            pool_id=event.pool_id,
            lane=event.lane,
            correlation_id=event.correlation_id,
            tenant=intern(event.tenant),
            priority=event.priority,
            channel=event.channel,
            admitted_ms=event.admitted_ms,
            request=event.request,
            session_id=event.request.session_id if event.request else "",
            session=event.session,
        ),
        state=_WAITS,
        phase=QUEUED,
        order=(1, event.ref.seq),
        due_ms=event.admitted_ms + deadline_ms,
        ref=event.ref,
        since_ms=event.at_ms,
    )


def recorded(record: RunRecord, seq: int, *, order: tuple[int, int], at_ms: int) -> Job:
    """A job for a run record that was found: after a takeover, or written by a scheduler that is no more."""
    deadline_ms = record.request.deadline_ms if record.request else 2**53
    return Job(
        record=record,
        state=record.state,
        phase=QUEUED,
        order=order,
        due_ms=record.admitted_ms + deadline_ms,
        run_seq=seq,
        floor=seq,
        since_ms=at_ms,
        held_ms=at_ms,
    )


def ended(job: Job, state: TaskState, at_ms: int, error: ErrorBody | None) -> RunRecord:
    """The final record of a task the scheduler ends itself. It names no incarnation: no engine's life ended it, and
    whoever repairs the audit trail sees by that whose part it is."""
    return job.moved(
        state,
        incarnation="",
        ended_ms=at_ms,
        finish_reason="cancelled" if state is TaskState.CANCELLED else "",
        error=error,
        request=None,
        trace=job.record.request is not None and job.record.request.trace,
    )


def admission_audit(event: TaskArrived, record: RunRecord, actor: str) -> AuditRecord:
    """The audit record of a task that a bus client admitted itself; gateways write their own."""
    told = {"queue_position": record.queue_position, "predicted_start_ms": record.predicted_start_ms}
    return AuditRecord(
        event=AuditEvent.ADMITTED,
        task_id=event.task_id,
        at_ms=event.at_ms,
        actor=actor,
        correlation_id=event.correlation_id,
        tenant=event.tenant,
        channel=event.channel,
        pool_id=event.pool_id,
        detail=admission_detail(event.request, **told) if event.request is not None else {**told},
    )


def off_replica(record: RunRecord) -> RunRecord:
    """The record of a task that no replica has."""
    return msgspec.structs.replace(record, replica_id="", node_id="", incarnation="", placed_ms=0, started_ms=0)


def fault(code: ErrorCode, message: str, record: RunRecord) -> ErrorBody:
    """What a task that the scheduler ends is told."""
    return ErrorBody(
        code=code,
        message=message,
        engine=record.request.engine if record.request else None,
        retriable=ERRORS[code].retriable,
        pool_id=record.pool_id,
    )
