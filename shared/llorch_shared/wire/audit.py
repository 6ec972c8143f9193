"""Audit records: what happened, who did it, when. Written off the hot path, kept 30 days, never changed."""

from enum import StrEnum
from typing import Final

import msgspec

from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskRequest

Detail = dict[str, str | int | float | bool | list[str]]


class AuditEvent(StrEnum):
    ADMITTED = "admitted"
    PLACED = "placed"
    RUNNING = "running"
    REQUEUED = "requeued"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DROPPED = "dropped"
    PREEMPTED = "preempted"
    ID_IN_USE = "id_in_use"
    """A task was refused because its id is another tenant's task. Tenant and pool are those of the one that was."""
    POOL_CHANGED = "pool_changed"
    """Of a pool, not a task: the pool's id stands where a task's id would."""
    TENANT_CHANGED = "tenant_changed"
    """The tenant's id stands where a task's id would."""
    CATALOG_CHANGED = "catalog_changed"
    """Of a model in the catalog: its id stands where a task's id would."""
    DEAD_LETTERED = "dead_lettered"
    """A message was set aside. Of the task whose id could be read, else the pool's id stands there; so it does in the
    next two."""
    LETTER_REPLAYED = "letter_replayed"
    LETTER_DROPPED = "letter_dropped"
    BREAKER = "breaker"
    """Of a pool: the circuit breaker opened or closed."""
    SESSION_RESERVED = "session_reserved"
    """Of a task: its session's budget holds something for it. The next two are its end."""
    SESSION_RELEASED = "session_released"
    """It was not queued; what was held is free again."""
    SESSION_SETTLED = "session_settled"
    """It has ended; what it used is spent."""
    SESSION_OPENED = "session_opened"
    """The session's id stands where a task's id would. So it does in the next two."""
    SESSION_CHANGED = "session_changed"
    SESSION_CLOSED = "session_closed"
    SESSION_POLICY_CHANGED = "session_policy_changed"
    """Of the key `sessions` of the desired state, whose name stands where a task's id would."""
    WRITER_CLOSED = "writer_closed"
    """The last record of a writer, with the number of records before it. The writer's life id stands where a task's id
    would."""


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    event: AuditEvent
    task_id: str
    at_ms: int
    actor: str
    """Service and instance, for example `scheduler/7f3a`."""
    correlation_id: str = ""
    tenant: str = ""
    identity: str = ""
    """`token:<fp6>` or `localhost`, never the token (AUTH-1008)."""
    channel: str = ""
    pool_id: str = ""
    replica_id: str = ""
    attempt: int = 0
    run_seq: int = 0
    detail: Detail = {}
    writer: str = ""
    """Who wrote this record: an actor and the random id of its life. The next three are its link in that writer's chain
    (`audit_chain.py`); records of earlier releases have none."""
    number: int = 0
    """From 1, of this writer."""
    prev: str = ""
    """`hash` of the record with the number before."""
    hash: str = ""
    """First 128 bits of the SHA-256 of the subject, a line feed, and the payload up to this field; hexadecimal."""


class AuditList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/audit: records in the order in which they were stored."""

    records: tuple[AuditRecord, ...] = ()
    cursor: str | None = None
    """Of the next page; null on the last. A page may hold fewer records than asked for, and none."""


def admission_detail(request: TaskRequest, *, queue_position: int, predicted_start_ms: int) -> Detail:
    """What an `admitted` record says about the task: all that a replay of the hour needs, and nothing of its text."""
    override: Detail = {"override": True, "model_ref": request.model_ref} if request.override else {}
    return override | {
        "queue_position": queue_position,
        "predicted_start_ms": predicted_start_ms,
        "priority": str(request.priority),
        "ctx": request.ctx,
        "max_tokens": request.max_tokens,
        "deadline_ms": request.deadline_ms,
        "session_id": request.session_id,
    }


def audit_of_run(
    event: AuditEvent, run: RunRecord, *, run_seq: int, at_ms: int, actor: str, detail: Detail
) -> AuditRecord:
    """What happened to a task whose record is stored at `run_seq`."""
    return AuditRecord(
        event=event,
        task_id=run.task_id,
        at_ms=at_ms,
        actor=actor,
        correlation_id=run.correlation_id,
        tenant=run.tenant,
        channel=run.channel,
        pool_id=run.pool_id,
        replica_id=run.replica_id,
        attempt=run.attempt,
        run_seq=run_seq,
        detail=detail,
    )


AUDIT_DECODER: Final = msgspec.json.Decoder(AuditRecord)
