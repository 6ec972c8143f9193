"""The last event of a stream, made from the task's final record or from what is known of it."""

from typing import Final

import msgspec

from llorch_shared.errors import ErrorBody, ErrorCode, ResetDetail
from llorch_shared.wire.frames import End, encode_end, encode_error
from llorch_shared.wire.run import RunRecord
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
_CANCELLED: Final = b'"finish_reason":"cancelled"'
_PARTED: Final = ErrorBody(
    code=ErrorCode.WORKER_RESET,
    message="the rest of this stream does not go on from the tokens that this reader has",
    detail=ResetDetail.TOKENS_DIFFER,
    hint="read it from its beginning",
)


def terminal_frame(record: RunRecord, *, latency_first_token_ms: int | None = None) -> bytes:
    """The terminal event of a task in a final state: from who stored its record, and for a reader whose frame was lost
    (ARCHITECTURE, invariant 3), who lacks only the latency."""
    if record.state in (TaskState.DONE, TaskState.CANCELLED):
        cancelled = record.state is TaskState.CANCELLED
        end = End(
            tokens_out=record.tokens_out,
            decode_ms=record.decode_ms,
            decode_time_ms=record.decode_ms,
            finish_reason="cancelled" if cancelled else record.finish_reason or "stop",
            stop_sequence=record.stop_sequence,
            cancel_ms=record.cancel_ms,
            tokens_in=record.tokens_in or None,
            latency_first_token_ms=latency_first_token_ms,
            restarted_at=record.restarted_at,
        )
        return encode_end(record.attempt, end)
    error = record.error or _UNEXPLAINED.get(record.state)
    if error is None:
        error = ErrorBody(code=ErrorCode.INTERNAL, message=f"the task ended as {record.state} without a cause")
    return encode_error(record.attempt, record.tokens_out, error)


def was_cancelled(terminal: bytes) -> bool:
    """Whether an `end` frame says that the task was cancelled."""
    return _CANCELLED in terminal


def frames_gone() -> bytes:
    """The error event of a reader whose next token nobody keeps any more. It has no id: no token was passed over."""
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(_FRAMES_GONE)


def parted() -> bytes:
    """The error event of a reader that took tokens of a node which had lost the task already. It has no id."""
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(_PARTED)
