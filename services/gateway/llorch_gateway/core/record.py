"""What a task's stored record says to its clients: the view of GET /v1/tasks/{id}, and the last event of its stream."""

from typing import Final

import msgspec

from llorch_shared.errors import ErrorBody, ErrorCode, ResetDetail
from llorch_shared.states import FINAL
from llorch_shared.wire.frames import Cursor, End, encode_end, encode_error
from llorch_shared.wire.run import Located, RunRecord, TaskView, WaitsFor
from llorch_shared.wire.task import TaskState

_UNEXPLAINED: Final = {
    TaskState.EXPIRED: ErrorBody(code=ErrorCode.DEADLINE_UNMET, message="the deadline passed before the task ran"),
    TaskState.DROPPED: ErrorBody(
        code=ErrorCode.QUEUE_FULL_DROP_LRU, message="the task was dropped from a full queue", retriable=True
    ),
}
_FRAMES_GONE: Final = ErrorBody(
    code=ErrorCode.INTERNAL,
    message="tokens of this stream are no longer kept; the task itself is not affected",
    hint="GET /v1/tasks/{id} tells how it ended",
)
_PARTED: Final = ErrorBody(
    code=ErrorCode.WORKER_RESET,
    message="the rest of this stream does not go on from the tokens that this reader has",
    detail=ResetDetail.TOKENS_DIFFER,
    hint="read it from its beginning",
)


def is_final(record: RunRecord) -> bool:
    return record.state in FINAL


def is_cancelled(record: RunRecord) -> bool:
    return record.state is TaskState.CANCELLED


def has_all(record: RunRecord, cursor: Cursor | None) -> bool:
    """Whether a client with this cursor has seen the terminal event: its id carries the number of tokens."""
    return cursor is not None and is_final(record) and cursor.token == record.tokens_out


def terminal_frame(record: RunRecord) -> bytes:
    """The terminal event of a task in a final state, for a reader whose frame was lost (ARCHITECTURE, invariant 3)."""
    if record.state in (TaskState.DONE, TaskState.CANCELLED):
        cancelled = is_cancelled(record)
        end = End(
            tokens_out=record.tokens_out,
            decode_ms=record.decode_ms,
            decode_time_ms=record.decode_ms,
            finish_reason="cancelled" if cancelled else record.finish_reason or "stop",
            cancel_ms=record.cancel_ms,
            tokens_in=record.tokens_in or None,
            restarted_at=record.restarted_at,
        )
        return encode_end(record.attempt, end)
    error = record.error or _UNEXPLAINED.get(record.state)
    if error is None:
        error = ErrorBody(code=ErrorCode.INTERNAL, message=f"the task ended as {record.state} without a cause")
    return encode_error(record.attempt, record.tokens_out, error)


def frames_gone() -> bytes:
    """The error event of a reader whose next token nobody keeps any more. It has no id: no token was passed over."""
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(_FRAMES_GONE)


def parted() -> bytes:
    """The error event of a reader that took tokens of a node which had lost the task already. It has no id."""
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(_PARTED)


def view_of_run(record: RunRecord) -> TaskView:
    return TaskView(
        task_id=record.task_id,
        state=record.state,
        attempt=record.attempt,
        pool_id=record.pool_id,
        replica_id=record.replica_id or None,
        node_id=record.node_id or None,
        engine=record.request.engine if record.request is not None else None,
        priority=record.priority,
        correlation_id=record.correlation_id,
        queue_position=None if record.state is not TaskState.QUEUED else max(0, record.queue_position),
        predicted_start_ms=None if record.state is not TaskState.QUEUED else max(0, record.predicted_start_ms),
        admitted_ms=record.admitted_ms,
        placed_ms=record.placed_ms,
        started_ms=record.started_ms,
        ended_ms=record.ended_ms,
        tokens_in=record.tokens_in,
        tokens_out=record.tokens_out,
        decode_ms=record.decode_ms,
        finish_reason=record.finish_reason,
        cancel_ms=record.cancel_ms,
        error=record.error,
        restarted_at=record.restarted_at,
    )


def view_of_queued(task: str, located: Located) -> TaskView:
    return TaskView(
        task_id=task,
        state=TaskState.QUEUED,
        pool_id=located.pool_id or None,
        priority=located.priority,
        correlation_id=located.correlation_id,
        queue_position=max(0, located.queue_position),
        predicted_start_ms=max(0, located.predicted_start_ms),
        waits_for=WaitsFor.SLOT,
        admitted_ms=located.admitted_ms,
    )
