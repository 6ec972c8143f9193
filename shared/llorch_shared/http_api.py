"""Every HTTP operation of the system as data: the gateway's routes and contracts/openapi are both made from this table.

A route that is not here does not exist, and a test compares the two. Field names and headers are those of REQUIREMENTS
section 2. Nothing here serves anything.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from llorch_shared.errors import ERRORS, ErrorBody, ErrorCode
from llorch_shared.identifiers import CORRELATION_PATTERN
from llorch_shared.wire.openai import (
    ChatCompletion,
    ChatCompletionRequest,
    Model,
    ModelList,
    OpenAiErrorBody,
    OpenAiFailover,
    TextCompletion,
    TextCompletionRequest,
)
from llorch_shared.wire.registry import Capabilities, PoolHealth
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.task import Name, Priority, TaskAccepted, TaskId, TaskRequest

API_VERSION: Final = "1.0.0"
JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
METRICS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

CORRELATION_HEADER: Final = "X-Correlation-Id"
LAST_EVENT_ID_HEADER: Final = "Last-Event-ID"
RETRY_AFTER_HEADER: Final = "Retry-After"
BACKOFF_HEADER: Final = "X-Backoff-Ms"
CURSOR_PATTERN: Final = r"^([0-9]{1,6}-)?[0-9]{1,9}$"
LAST_EVENT_ID_PATTERN: Final = r"^(([0-9]{1,6}-)?[0-9]{1,9})?$"


class Plane(StrEnum):
    DATA = "data"
    CONTROL = "control"


class Liveness(msgspec.Struct, frozen=True, kw_only=True):
    """GET /healthz: this process answers."""

    live: Literal[True] = True


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """GET /readyz: whether this process can admit and relay, and if not, why."""

    ready: bool
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What should be mended although it serves: a token file that cannot be used, with an earlier one in effect."""


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    where: Literal["path", "query", "header"]
    type: Any
    """What msgspec makes its JSON schema from."""
    description: str
    required: bool = False


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that is not an error. `body` None means none is sent."""

    status: int
    description: str
    body: Any = None
    media_type: str = JSON


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    method: Literal["GET", "POST", "DELETE"]
    path: str
    """With `{name}` for a path parameter."""
    operation_id: str
    plane: Plane
    requirements: tuple[str, ...]
    """`x-req-id` of the contract."""
    summary: str
    parameters: tuple[Parameter, ...] = ()
    request: Any = None
    replies: tuple[Reply, ...]
    """Several of one status differ in their media type."""
    errors: tuple[tuple[int, ErrorCode], ...] = ()
    """(status, code) of the errors this operation adds to `COMMON_ERRORS`."""
    error_body: Any = ErrorBody
    authenticated: bool = True

    def error_codes(self) -> dict[int, tuple[ErrorCode, ...]]:
        """Codes by status, the common ones included."""
        common = COMMON_ERRORS if self.authenticated else OPEN_ERRORS
        found: dict[int, list[ErrorCode]] = {}
        for status, code in (*self.errors, *common):
            codes = found.setdefault(status, [])
            if code not in codes:
                codes.append(code)
        return {status: tuple(found[status]) for status in sorted(found)}


OPEN_ERRORS: Final[tuple[tuple[int, ErrorCode], ...]] = ((500, ErrorCode.INTERNAL),)
COMMON_ERRORS: Final[tuple[tuple[int, ErrorCode], ...]] = (
    (401, ErrorCode.MISSING_TOKEN),
    (401, ErrorCode.BAD_TOKEN),
    (403, ErrorCode.NON_LOOPBACK_WITHOUT_TOKEN),
    (429, ErrorCode.ADMISSION_REJECT),
    *OPEN_ERRORS,
)

STATUS_HEADERS: Final[dict[int, tuple[str, ...]]] = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: (RETRY_AFTER_HEADER, BACKOFF_HEADER),
    503: (RETRY_AFTER_HEADER,),
}
"""Headers sent with a status, beside X-Correlation-Id, which is on every answer."""

HEADER_NOTES: Final[dict[str, str]] = {
    CORRELATION_HEADER: "The caller's id if it sent a valid one, else a new UUIDv4 (OC-CTRL-2052)",
    "WWW-Authenticate": "Bearer",
    "Allow": "Methods this path takes",
    RETRY_AFTER_HEADER: "Whole seconds, at least 1",
    BACKOFF_HEADER: "Milliseconds",
}

CORRELATION: Final = Parameter(
    name=CORRELATION_HEADER,
    where="header",
    type=Annotated[str, Meta(pattern=CORRELATION_PATTERN)],
    description="Echoed, and carried to the engine's log line; a value of another form is replaced",
)
_TASK: Final = Parameter(name="id", where="path", type=TaskId, description="task_id", required=True)
_POOL: Final = Parameter(name="id", where="path", type=Name, description="pool_id", required=True)
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

_USUAL: Final[dict[ErrorCode, int]] = {code: facts.status for code, facts in ERRORS.items()}


def _usual(*codes: ErrorCode) -> tuple[tuple[int, ErrorCode], ...]:
    return tuple((_USUAL[code], code) for code in codes)


_BAD_ID: Final = _usual(ErrorCode.INVALID_PARAMS)
_UNKNOWN: Final = (*_BAD_ID, (404, ErrorCode.INVALID_PARAMS))
_BUS_AWAY: Final = _usual(ErrorCode.POOL_UNAVAILABLE)

_CANCEL_REPLIES: Final = (
    Reply(status=204, description="The task has ended and its slot is free; no token follows"),
    Reply(status=202, description="The wish is stored; the receipt is still out", body=TaskView),
)

_OPENAI: Final[dict[str, Any]] = {"plane": Plane.DATA, "error_body": OpenAiErrorBody}
_COMPLETION: Final[dict[str, Any]] = {
    **_OPENAI,
    "method": "POST",
    "parameters": (
        Parameter(name="X-Llorch-Priority", where="header", type=Priority, description="Class of the queue"),
        Parameter(
            name="X-Llorch-Deadline-Ms",
            where="header",
            type=Annotated[int, Meta(ge=1, le=2**53)],
            description="From admission to the last token; absent: 600,000",
        ),
        Parameter(name="X-Llorch-Session", where="header", type=TaskId, description="session_id of the task"),
        Parameter(name="X-Llorch-Failover", where="header", type=OpenAiFailover, description="When the engine is lost"),
        Parameter(
            name="X-Llorch-Task-Id",
            where="header",
            type=TaskId,
            description="The same id again is the same task and gives the same answer",
        ),
    ),
    "errors": (
        *_usual(
            ErrorCode.INVALID_PARAMS,
            ErrorCode.DEADLINE_UNMET,
            ErrorCode.CANCELLED,
            ErrorCode.ADMISSION_REJECT,
            ErrorCode.QUEUE_FULL_DROP_LRU,
            ErrorCode.DECODE_TIMEOUT,
            ErrorCode.WORKER_RESET,
            ErrorCode.POOL_UNREADY,
            ErrorCode.POOL_UNAVAILABLE,
            ErrorCode.REPLICA_EXHAUSTED,
        ),
        (404, ErrorCode.INVALID_PARAMS),
        (408, ErrorCode.INVALID_PARAMS),
        (413, ErrorCode.INVALID_PARAMS),
        (415, ErrorCode.INVALID_PARAMS),
    ),
}
"""A request of an OpenAI client. What goes wrong once its stream has begun is the stream's last event."""

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="POST",
        path="/v1/tasks",
        operation_id="submitTask",
        plane=Plane.DATA,
        requirements=("ORCH-2001", "OC-CTRL-2010", "OC-CTRL-2011", "FR-DP-001"),
        summary="Admit a task. The same task_id again is the same task",
        request=TaskRequest,
        replies=(Reply(status=202, description="In a durable queue", body=TaskAccepted),),
        errors=(
            *_usual(
                ErrorCode.INVALID_PARAMS,
                ErrorCode.DEADLINE_UNMET,
                ErrorCode.ADMISSION_REJECT,
                ErrorCode.POOL_UNREADY,
                ErrorCode.POOL_UNAVAILABLE,
            ),
            (408, ErrorCode.INVALID_PARAMS),
            (413, ErrorCode.INVALID_PARAMS),
            (415, ErrorCode.INVALID_PARAMS),
        ),
    ),
    Operation(
        method="GET",
        path="/v1/tasks/{id}",
        operation_id="getTask",
        plane=Plane.DATA,
        requirements=("ORCH-2001",),
        summary="State of a task, kept 72 hours",
        parameters=(_TASK,),
        replies=(Reply(status=200, description="The task as it stands", body=TaskView),),
        errors=(*_UNKNOWN, *_BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/tasks/{id}/stream",
        operation_id="streamTask",
        plane=Plane.DATA,
        requirements=("ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022"),
        summary="Server-sent events: started, token, metrics, then one end or error. Many readers, at any time",
        parameters=(_TASK, _LAST_EVENT_ID, _AFTER),
        replies=(
            Reply(status=200, description="The events after the cursor", body=str, media_type=EVENT_STREAM),
            Reply(status=204, description="The cursor is at the end of the stream; do not come back"),
        ),
        errors=(*_UNKNOWN, *_BUS_AWAY),
    ),
    Operation(
        method="POST",
        path="/v1/tasks/{id}/cancel",
        operation_id="cancelTask",
        plane=Plane.DATA,
        requirements=("ORCH-2003", "ORCH-3026", "OC-CTRL-2012"),
        summary="End a queued or running task; repeating it is fine",
        parameters=(_TASK,),
        replies=_CANCEL_REPLIES,
        errors=(*_UNKNOWN, *_BUS_AWAY),
    ),
    Operation(
        method="DELETE",
        path="/v1/tasks/{id}",
        operation_id="deleteTask",
        plane=Plane.DATA,
        requirements=("ORCH-2003", "ORCH-3026"),
        summary="The same as cancelTask",
        parameters=(_TASK,),
        replies=_CANCEL_REPLIES,
        errors=(*_UNKNOWN, *_BUS_AWAY),
    ),
    Operation(
        path="/v1/chat/completions",
        operation_id="createChatCompletion",
        requirements=("FR-DP-001",),
        summary="A task as OpenAI's clients ask for it: a chat, whole or streamed",
        request=ChatCompletionRequest,
        replies=(
            Reply(status=200, description="The answer, whole or in chunks (`stream`)", body=ChatCompletion),
            Reply(status=200, description="", body=str, media_type=EVENT_STREAM),
        ),
        **_COMPLETION,
    ),
    Operation(
        path="/v1/completions",
        operation_id="createCompletion",
        requirements=("FR-DP-001",),
        summary="A task as OpenAI's clients ask for it: a prompt, whole or streamed",
        request=TextCompletionRequest,
        replies=(
            Reply(status=200, description="The answer, whole or in chunks (`stream`)", body=TextCompletion),
            Reply(status=200, description="", body=str, media_type=EVENT_STREAM),
        ),
        **_COMPLETION,
    ),
    Operation(
        method="GET",
        path="/v1/models",
        operation_id="listModels",
        requirements=("ORCH-3095",),
        summary="Models that pools serve, as OpenAI's clients list them",
        replies=(Reply(status=200, description="One entry for each model", body=ModelList),),
        **_OPENAI,
    ),
    Operation(
        method="GET",
        path="/v1/models/{id}",
        operation_id="getModel",
        requirements=("ORCH-3095",),
        summary="One model, by a pool's model reference or a pool's id",
        parameters=(
            Parameter(
                name="id",
                where="path",
                type=Annotated[str, Meta(min_length=1, max_length=512)],
                description="May hold slashes",
                required=True,
            ),
        ),
        replies=(Reply(status=200, description="The model", body=Model),),
        errors=((404, ErrorCode.INVALID_PARAMS),),
        **_OPENAI,
    ),
    Operation(
        method="GET",
        path="/v1/capabilities",
        operation_id="getCapabilities",
        plane=Plane.CONTROL,
        requirements=("ORCH-3095", "OC-CTRL-2060", "OC-CTRL-2061"),
        summary="Engines, models, context sizes and slots this system serves",
        replies=(Reply(status=200, description="What can be asked for", body=Capabilities),),
    ),
    Operation(
        method="GET",
        path="/v1/pools/{id}/health",
        operation_id="getPoolHealth",
        plane=Plane.CONTROL,
        requirements=("ORCH-2103", "OC-CTRL-2001"),
        summary="Whether a pool lives, serves or drains, with its replicas",
        parameters=(_POOL,),
        replies=(Reply(status=200, description="Health of the pool", body=PoolHealth),),
        errors=_UNKNOWN,
    ),
    Operation(
        method="GET",
        path="/metrics",
        operation_id="getMetrics",
        plane=Plane.CONTROL,
        requirements=("ORCH-3028", "ORCH-3460"),
        summary="Metrics of this gateway process for Prometheus",
        replies=(Reply(status=200, description="Prometheus text", body=str, media_type=METRICS_TEXT),),
    ),
    Operation(
        method="GET",
        path="/healthz",
        operation_id="getLiveness",
        plane=Plane.CONTROL,
        requirements=("ORCH-3500",),
        summary="This process lives",
        replies=(Reply(status=200, description="It answers", body=Liveness),),
        authenticated=False,
    ),
    Operation(
        method="GET",
        path="/readyz",
        operation_id="getReadiness",
        plane=Plane.CONTROL,
        requirements=("ORCH-3500",),
        summary="This process can admit and relay",
        replies=(
            Reply(status=200, description="Ready", body=Readiness),
            Reply(status=503, description="Not ready; the reasons say why", body=Readiness),
        ),
    ),
    Operation(
        method="GET",
        path="/openapi/{plane}",
        operation_id="getContract",
        plane=Plane.CONTROL,
        requirements=("FR-CT-001",),
        summary="This contract as OpenAPI JSON: `data.json` or `control.json`",
        parameters=(
            Parameter(
                name="plane",
                where="path",
                type=Literal["data.json", "control.json"],
                description="Which of the two documents",
                required=True,
            ),
        ),
        replies=(Reply(status=200, description="OpenAPI document", body=dict[str, Any]),),
        errors=((404, ErrorCode.INVALID_PARAMS),),
    ),
    Operation(
        method="GET",
        path="/openapi",
        operation_id="listContracts",
        plane=Plane.CONTROL,
        requirements=("FR-CT-001",),
        summary="Where the OpenAPI documents of this process are",
        replies=(Reply(status=200, description="Plane to path", body=dict[str, str]),),
    ),
)
