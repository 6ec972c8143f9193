"""The run of a task: the record that every state change goes through, and the message that places it on a replica."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from llorch_shared.errors import ErrorBody
from llorch_shared.wire.session import SessionTerms
from llorch_shared.wire.task import Engine, Name, Priority, TaskId, TaskRequest, TaskState
from llorch_shared.wire.version import Kind, decode


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """State of one task from its first claim or its placement on. Stored at `run.<task>`, created with expected
    sequence 0, changed only by compare-and-set on its own sequence. Times are Unix milliseconds."""

    task_id: TaskId
    state: TaskState
    attempt: int = 1
    pool_id: Name
    replica_id: Name = ""
    node_id: Name = ""
    incarnation: str = ""
    """Which life of the replica runs it: a replica that restarted no longer holds its earlier tasks. In a final record:
    the life that ended it; empty when the scheduler did."""
    lane: Name
    correlation_id: str
    tenant: Name
    priority: Priority
    channel: str = "http"
    """`http` or `nats`: where the task came in."""
    admitted_ms: int
    placed_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    queue_position: int = 0
    """As told at admission."""
    predicted_start_ms: int = 0
    """As told at admission, milliseconds from admission."""
    on_time_probability: float | None = None
    """Chance that it ends before its deadline, as seen when it was placed (ORCH-3081)."""
    kv_warmth: bool | None = None
    """Whether it was placed where its session's cache is; None for a session's first task (ORCH-3009)."""
    preemptions: int = 0
    """Attempts that were stopped for more urgent work; they do not count as lost."""
    determinism_class: str = ""
    """Where its first attempt ran: a strict task is repeated byte for byte by replicas of this class."""
    token_log: str = ""
    """Where in which life of the token log its stream begins: what a later attempt must find there whole."""
    restarted_at: int | None = None
    """Tokens before this index are void: its output was begun anew (`failover`)."""
    session: SessionTerms | None = None
    """Of a task whose session has an account: what it may use, and where what it used is to be settled."""
    tokens_in: int = 0
    tokens_out: int = 0
    decode_ms: int = 0
    """From the first to the last token, of all attempts together. What an attempt took that died with its node or
    engine is told by the token log, for tasks whose session has an account (`lost`); for others it adds nothing."""
    lost: tuple[int, ...] = ()
    """Attempts whose decode time `decode_ms` lacks. Who next reads the task's token log adds it."""
    finish_reason: str = ""
    """`stop`, `length`, `tool_calls`, `cancelled`, or `budget` where its session's was used up; empty until the end and
    on errors."""
    stop_sequence: str | None = None
    """The stop word that ended the text."""
    cancel_ms: int | None = None
    """Of a cancelled task: from its stored wish until no engine worked for it; None when the wish could not be read."""
    error: ErrorBody | None = None
    request: TaskRequest | None = None
    """Kept while the task may have to run again; dropped in a final state."""
    trace: bool = False
    """In a final record: its request asked for the transcript of the stream."""
    session_id: str = ""
    """The request's, for lists of ended tasks."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """`plc.<pool>.<replica>`: run this, if it is what the run record says. `ahead.<node>`, a signal: a task's first
    placement, ahead of any record."""

    run: RunRecord
    run_seq: int = 0
    """Where the run record stands. 0: it may not be stored, then the claim is the task's first record."""


class CancelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`cxl.<task>` (the durable wish) and `can.<task>` (the wake-up)."""

    task_id: TaskId
    reason: str = "client"
    """Label of tasks_canceled_total: `client`, `disconnect`, `operator`."""
    correlation_id: str = ""
    requested_ms: int = 0


class PreemptRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`pre.<node>`: stop this task, see its slot free, put its record back to placed on no replica. A signal: the node
    that misses it just runs on."""

    task_id: TaskId
    run_seq: int
    urgent_task_id: str = ""
    """The task that waits for its slot."""


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's answer about a task that has no run record yet."""

    found: bool
    pool_id: str = ""
    lane: str = ""
    correlation_id: str = ""
    tenant: str = ""
    priority: Priority | None = None
    queue_position: int = 0
    predicted_start_ms: int = 0
    admitted_ms: int = 0


def located_of(record: RunRecord, *, queue_position: int = 0, predicted_start_ms: int = 0) -> Located:
    """Of a task that is known by its record, stored or not yet."""
    return Located(
        found=True,
        pool_id=record.pool_id,
        lane=record.lane,
        correlation_id=record.correlation_id,
        tenant=record.tenant,
        priority=record.priority,
        queue_position=queue_position,
        predicted_start_ms=predicted_start_ms,
        admitted_ms=record.admitted_ms,
    )


class WaitsFor(StrEnum):
    """What a queued task waits for."""

    SLOT = "slot"
    """Its turn: tasks before it, or a free slot."""
    MODEL = "model"
    """A replica that is ready: until then the model is loading, and predicted_start_ms counts that in."""
    DOWNLOAD = "download"
    """The same, while engine or model are still being fetched. Told on streams alone."""
    TRUST = "trust"
    """The trust policy lets no node load the model as the catalog has it. Told on streams alone."""


class TaskView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """GET /v1/tasks/{id}."""

    task_id: TaskId
    state: TaskState
    attempt: int = 0
    pool_id: str | None = None
    replica_id: str | None = None
    node_id: str | None = None
    engine: Engine | None = None
    priority: Priority | None = None
    correlation_id: str = ""
    queue_position: Annotated[int, Meta(ge=0)] | None = None
    predicted_start_ms: Annotated[int, Meta(ge=0)] | None = None
    """Milliseconds from now until it is expected to start; told while it is queued, as is the position."""
    waits_for: WaitsFor | None = None
    """Told while it is queued."""
    admitted_ms: int = 0
    placed_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    decode_ms: int = 0
    finish_reason: str = ""
    cancel_ms: int | None = None
    """Of a cancelled task: from its stored wish until no engine worked for it."""
    error: ErrorBody | None = None
    restarted_at: int | None = None
    """The result begins at this token; what was sent before is void. `tokens_out` counts all that was sent."""
    tenant: str = ""
    """Told in lists."""
    session_id: str = ""
    """Told in lists."""


LIST_MAX: Final = 500
LIST_CURSOR_PATTERN: Final = r"^(q\.[a-z0-9][a-z0-9_-]{0,62}\.(interactive|batch)\.[0-9]{1,18}|r\.[0-9]{1,18})$(?!\n)"


class TaskList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/tasks: what waits in the queues, then what was placed, last changed first."""

    tasks: tuple[TaskView, ...] = ()
    cursor: str | None = None
    """Of the next page; null on the last. A page may hold fewer tasks than asked for, and none."""


RUN_DECODER: Final = msgspec.json.Decoder(RunRecord)
PLACEMENT_DECODER: Final = msgspec.json.Decoder(Placement)
PREEMPT_DECODER: Final = msgspec.json.Decoder(PreemptRequest)
CANCEL_DECODER: Final = msgspec.json.Decoder(CancelRequest)
LOCATED_DECODER: Final = msgspec.json.Decoder(Located)


def decode_run(data: bytes, headers: Mapping[str, str]) -> RunRecord:
    """Raises NewerVersion, Unreadable."""
    return decode(Kind.RUN, RUN_DECODER, data, headers)
