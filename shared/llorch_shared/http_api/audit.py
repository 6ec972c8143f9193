"""The audit record: what happened, by whom, when."""

from typing import Annotated, Final

from msgspec import Meta

from llorch_shared.http_api.operation import BUS_AWAY, UNKNOWN, Operation, Parameter, Plane, Reply
from llorch_shared.identifiers import NAME_PATTERN
from llorch_shared.wire.audit import AuditEvent, AuditList

LIST_MAX: Final = 1000
_TIME: Final = Annotated[int, Meta(ge=0, le=2**53)]

AUDIT: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path="/v1/audit",
        operation_id="listAudit",
        twin="audit.list",
        plane=Plane.CONTROL,
        requirements=("AUTH-1008", "ORCH-3300"),
        summary="What happened to tasks, pools and tenants in 30 days, oldest first. A caller that is bound to its "
        "tenant sees what concerns its tasks",
        parameters=(
            Parameter(
                name="task",
                where="query",
                type=Annotated[str, Meta(pattern=NAME_PATTERN)],
                description="Only of this task; pools and tenants stand under their ids",
            ),
            Parameter(name="event", where="query", type=AuditEvent, description="Only of this kind"),
            Parameter(
                name="from_ms",
                where="query",
                type=_TIME,
                description="Happened at this time or later, Unix milliseconds",
            ),
            Parameter(name="until_ms", where="query", type=_TIME, description="Happened at this time or earlier"),
            Parameter(
                name="limit",
                where="query",
                type=Annotated[int, Meta(ge=1, le=LIST_MAX)],
                description="How many at most; 100 when absent",
            ),
            Parameter(
                name="cursor",
                where="query",
                type=Annotated[str, Meta(pattern=r"^[0-9]{1,18}$(?!\n)")],
                description="`cursor` of the page before; wins over from_ms",
            ),
        ),
        replies=(Reply(status=200, description="One page", body=AuditList),),
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
)
