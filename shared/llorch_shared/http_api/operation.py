"""What an operation is, and what several have in common. The gateway's routes, their twins on the bus and
contracts/openapi are made from rows of this form; nothing here serves anything."""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from llorch_shared.errors import ERRORS, ErrorBody, ErrorCode
from llorch_shared.identifiers import CORRELATION_PATTERN
from llorch_shared.wire.task import Name, TaskId

API_VERSION: Final = "1.0.0"
JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
METRICS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

CORRELATION_HEADER: Final = "X-Correlation-Id"
LAST_EVENT_ID_HEADER: Final = "Last-Event-ID"
RETRY_AFTER_HEADER: Final = "Retry-After"
BACKOFF_HEADER: Final = "X-Backoff-Ms"
TOKENS_REMAINING_HEADER: Final = "X-Budget-Tokens-Remaining"
TIME_REMAINING_HEADER: Final = "X-Budget-Time-Remaining-Ms"
COST_REMAINING_HEADER: Final = "X-Budget-Cost-Remaining"
BUDGET_HEADERS: Final = (TOKENS_REMAINING_HEADER, TIME_REMAINING_HEADER, COST_REMAINING_HEADER)
CURSOR_PATTERN: Final = r"^([0-9]{1,6}-)?[0-9]{1,9}$(?!\n)"
LAST_EVENT_ID_PATTERN: Final = r"^(([0-9]{1,6}-)?[0-9]{1,9})?$(?!\n)"


class Plane(StrEnum):
    DATA = "data"
    CONTROL = "control"


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    where: Literal["path", "query", "header"]
    type: Any
    """What msgspec makes its JSON schema from."""
    description: str
    required: bool = False
    twin: str = ""
    """Its key in the payload on the bus, where that is not its name."""

    @property
    def key(self) -> str:
        """Its key in the flat object that the operation's twin takes: `X-Trust-Policy` is `trust_policy`."""
        return self.twin or self.name.lower().removeprefix("x-").replace("-", "_")


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that is not an error. `body` None means none is sent."""

    status: int
    description: str
    body: Any = None
    media_type: str = JSON
    headers: tuple[str, ...] = ()
    """Sent with it where there is something to say in them."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    """With `{name}` for a path parameter."""
    operation_id: str
    twin: str = ""
    """The same on the bus: `llorch.api.<twin>`, with one flat JSON object of the parameters and the body's fields.
    Empty for what another subject carries (a token stream) or what only HTTP clients ask."""
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
    TOKENS_REMAINING_HEADER: "Tokens that the task's session has left, where it has such a budget",
    TIME_REMAINING_HEADER: "Decode time that it has left, milliseconds",
    COST_REMAINING_HEADER: "Cost that it has left",
}

CORRELATION: Final = Parameter(
    name=CORRELATION_HEADER,
    where="header",
    type=Annotated[str, Meta(pattern=CORRELATION_PATTERN)],
    description="Echoed, and carried to the engine's log line; a value of another form is replaced",
)


_USUAL: Final[dict[ErrorCode, int]] = {code: facts.status for code, facts in ERRORS.items()}


def usual(*codes: ErrorCode) -> tuple[tuple[int, ErrorCode], ...]:
    return tuple((_USUAL[code], code) for code in codes)


BAD_ID: Final = usual(ErrorCode.INVALID_PARAMS)
UNKNOWN: Final = (*BAD_ID, (404, ErrorCode.INVALID_PARAMS))
BUS_AWAY: Final = usual(ErrorCode.POOL_UNAVAILABLE)
OPERATOR_ONLY: Final = ((403, ErrorCode.INVALID_PARAMS),)
"""Of what a caller that is bound to a tenant may not do."""
BODY_ERRORS: Final = tuple((status, ErrorCode.INVALID_PARAMS) for status in (408, 413, 415))
"""Of every operation that takes a body: it comes too slowly, is too large, or is not JSON."""
TASK: Final = Parameter(name="id", where="path", type=TaskId, description="task_id", required=True, twin="task_id")
POOL: Final = Parameter(name="id", where="path", type=Name, description="pool_id", required=True, twin="pool_id")
