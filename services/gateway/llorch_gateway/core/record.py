"""What a task's stored record says to its clients: the view of GET /v1/tasks/{id}."""

import msgspec

from llorch_shared.states import FINAL
from llorch_shared.wire.frames import Cursor
from llorch_shared.wire.run import Located, RunRecord, TaskView, WaitsFor
from llorch_shared.wire.task import TaskState


def is_final(record: RunRecord) -> bool:
    return record.state in FINAL


def is_cancelled(record: RunRecord) -> bool:
    return record.state is TaskState.CANCELLED


def has_all(record: RunRecord, cursor: Cursor | None) -> bool:
    """Whether a client with this cursor has seen the terminal event: its id carries the number of tokens."""
    return cursor is not None and is_final(record) and cursor.token == record.tokens_out


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


def listed(record: RunRecord, session: str) -> TaskView:
    """As lists show it, where tasks of several tenants and sessions stand side by side."""
    return msgspec.structs.replace(view_of_run(record), tenant=record.tenant, session_id=session)


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
