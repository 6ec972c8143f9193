"""What the audit stream is told about a run record."""

from typing import Final

from llorch_shared.wire.audit import AuditEvent, AuditRecord, Detail, audit_of_run
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState

EVENTS: Final[dict[TaskState, AuditEvent]] = {
    TaskState.RUNNING: AuditEvent.RUNNING,
    TaskState.DONE: AuditEvent.DONE,
    TaskState.FAILED: AuditEvent.FAILED,
    TaskState.CANCELLED: AuditEvent.CANCELLED,
}
"""States that a node stores."""


def audit_of(run: RunRecord, seq: int, node_id: str) -> AuditRecord:
    """The same record gives the same audit, whoever writes it. Raises KeyError for a state no node stores."""
    event = EVENTS[run.state]
    detail: Detail = {}
    if event is not AuditEvent.RUNNING:
        detail = {"tokens_in": run.tokens_in, "tokens_out": run.tokens_out, "decode_ms": run.decode_ms}
        if run.finish_reason:
            detail["finish_reason"] = run.finish_reason
        if run.cancel_ms is not None:
            detail["cancel_ms"] = run.cancel_ms
        if run.error is not None:
            detail["error"] = run.error.code
    at_ms = run.ended_ms or run.started_ms
    return audit_of_run(event, run, run_seq=seq, at_ms=at_ms, actor=f"poold/{node_id}", detail=detail)


def requeue_of(run: RunRecord, seq: int, node_id: str, *, at_ms: int, reason: str) -> AuditRecord:
    """`run` was given back and stored at `seq`: what the scheduler would have said, had it taken the task back."""
    actor = f"poold/{node_id}"
    return audit_of_run(AuditEvent.REQUEUED, run, run_seq=seq, at_ms=at_ms, actor=actor, detail={"reason": reason})


def preemption_of(
    before: RunRecord, after: RunRecord, seq: int, *, at_ms: int, stop_ms: int, urgent_task_id: str
) -> AuditRecord:
    """`before` is the record of the stopped attempt, `after` the one that was stored at `seq`. `stop_ms`: from the
    request until the record was stored."""
    return audit_of_run(
        AuditEvent.PREEMPTED,
        before,
        run_seq=seq,
        at_ms=at_ms,
        actor=f"poold/{before.node_id}",
        detail={
            "resume_from": after.tokens_out,
            "preemptions": after.preemptions,
            "stop_ms": stop_ms,
            "urgent_task_id": urgent_task_id,
        },
    )
