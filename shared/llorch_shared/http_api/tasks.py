"""Tasks: submit, look up, stream, cancel."""

from typing import Annotated, Final

from msgspec import Meta

from llorch_shared.errors import ErrorCode
from llorch_shared.http_api.operation import (
    BAD_ID,
    BODY_ERRORS,
    BUDGET_HEADERS,
    BUS_AWAY,
    CURSOR_PATTERN,
    EVENT_STREAM,
    LAST_EVENT_ID_HEADER,
    LAST_EVENT_ID_PATTERN,
    TASK,
    UNKNOWN,
    Operation,
    Parameter,
    Plane,
    Reply,
    usual,
)
from llorch_shared.wire.frames import STORED_CURSOR_PATTERN, StoredEvents
from llorch_shared.wire.run import LIST_CURSOR_PATTERN, LIST_MAX, TaskList, TaskView
from llorch_shared.wire.task import Name, TaskAccepted, TaskId, TaskRequest, TaskState

_LAST_EVENT_ID: Final = Parameter(
    name=LAST_EVENT_ID_HEADER,
    where="header",
    type=Annotated[str, Meta(pattern=LAST_EVENT_ID_PATTERN)],
    description="Resume after this event; a browser's EventSource sends it by itself. Empty is as good as none",
)
_AFTER: Final = Parameter(
    name="after",
    where="query",
    type=Annotated[str, Meta(pattern=CURSOR_PATTERN)],
    description="Resume after this token: `<index>` or `<attempt>-<index>`. Last-Event-ID wins over it",
)
_CANCEL_REPLIES: Final = (
    Reply(status=204, description="The task has ended and its slot is free; no token follows"),
    Reply(status=202, description="The wish is stored; the receipt is still out", body=TaskView),
)

TASKS: Final[tuple[Operation, ...]] = (
    Operation(
        method="POST",
        path="/v1/tasks",
        operation_id="submitTask",
        twin="tasks.submit",
        plane=Plane.DATA,
        requirements=("ORCH-2001", "OC-CTRL-2010", "OC-CTRL-2011", "FR-DP-001"),
        summary="Admit a task. The same task_id again is the same task",
        request=TaskRequest,
        replies=(Reply(status=202, description="In a durable queue", body=TaskAccepted, headers=BUDGET_HEADERS),),
        errors=(
            *usual(
                ErrorCode.INVALID_PARAMS,
                ErrorCode.DEADLINE_UNMET,
                ErrorCode.ADMISSION_REJECT,
                ErrorCode.POOL_UNREADY,
                ErrorCode.POOL_UNAVAILABLE,
                ErrorCode.REPLICA_EXHAUSTED,
            ),
            *BODY_ERRORS,
        ),
    ),
    Operation(
        method="GET",
        path="/v1/tasks",
        operation_id="listTasks",
        twin="tasks.list",
        plane=Plane.DATA,
        requirements=("ORCH-2001",),
        summary="Tasks of 72 hours: what waits, in the order of its queues, then the others, last changed first. One "
        "that moves while its list is read may be missed, or stand as it was",
        parameters=(
            Parameter(name="state", where="query", type=TaskState, description="only in this state"),
            Parameter(name="session", where="query", type=TaskId, description="only of this session"),
            Parameter(name="tenant", where="query", type=Name, description="only of this tenant"),
            Parameter(name="pool", where="query", type=Name, description="only of this pool"),
            Parameter(
                name="limit",
                where="query",
                type=Annotated[int, Meta(ge=1, le=LIST_MAX)],
                description="How many at most; 50 when absent",
            ),
            Parameter(
                name="cursor",
                where="query",
                type=Annotated[str, Meta(pattern=LIST_CURSOR_PATTERN)],
                description="`cursor` of the page before",
            ),
        ),
        replies=(Reply(status=200, description="One page; another tenant's tasks are not in it", body=TaskList),),
        errors=(*BAD_ID, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/tasks/{id}",
        operation_id="getTask",
        twin="tasks.get",
        plane=Plane.DATA,
        requirements=("ORCH-2001",),
        summary="State of a task, kept 72 hours",
        parameters=(TASK,),
        replies=(Reply(status=200, description="The task as it stands", body=TaskView),),
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/tasks/{id}/stream",
        operation_id="streamTask",
        plane=Plane.DATA,
        requirements=("ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022"),
        summary="Server-sent events: while the task waits its place, as metrics and narration without ids; then "
        "started, token, metrics, and one end or error. Many readers, at any time",
        parameters=(TASK, _LAST_EVENT_ID, _AFTER),
        replies=(
            Reply(
                status=200,
                description="The events after the cursor",
                body=str,
                media_type=EVENT_STREAM,
                headers=BUDGET_HEADERS,
            ),
            Reply(status=204, description="The cursor is at the end of the stream; do not come back"),
        ),
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/tasks/{id}/events",
        operation_id="listTaskEvents",
        twin="tasks.events",
        plane=Plane.DATA,
        requirements=("ORCH-2002",),
        summary="What is stored of a stream by now, page by page: for who hears the tokens "
        "on the bus and missed some. Tokens are kept for two hours at most",
        parameters=(
            TASK,
            Parameter(
                name="cursor",
                where="query",
                type=Annotated[str, Meta(pattern=STORED_CURSOR_PATTERN)],
                description="`cursor` of the page before; from the beginning when absent",
            ),
        ),
        replies=(Reply(status=200, description="One page of events", body=StoredEvents),),
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
    Operation(
        method="POST",
        path="/v1/tasks/{id}/cancel",
        operation_id="cancelTask",
        twin="tasks.cancel",
        plane=Plane.DATA,
        requirements=("ORCH-2003", "ORCH-3026", "OC-CTRL-2012"),
        summary="End a queued or running task; repeating it is fine",
        parameters=(TASK,),
        replies=_CANCEL_REPLIES,
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
    Operation(
        method="DELETE",
        path="/v1/tasks/{id}",
        operation_id="deleteTask",
        plane=Plane.DATA,
        requirements=("ORCH-2003", "ORCH-3026"),
        summary="The same as cancelTask",
        parameters=(TASK,),
        replies=_CANCEL_REPLIES,
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
)
